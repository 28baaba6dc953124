package xdpprog

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netdev is a device of the network namespace in which it was opened: its methods may be called from any thread.
type netdev struct {
	index  int
	handle *netlink.Handle
	socket *nl.SocketHandle
}

func openNetdev(index int) (*netdev, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &netdev{index, handle, &nl.SocketHandle{Socket: socket}}, nil
}

func (d *netdev) close() {
	d.handle.Close()
	d.socket.Close()
}

// attached gives the program on the device, id 0 for none, and in which hook it is. A device that is not there has none.
func (d *netdev) attached() (id ebpf.ProgramID, native bool, err error) {
	l, err := d.handle.LinkByIndex(d.index)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("ask what is attached: %w", err)
	}
	xdp := l.Attrs().Xdp
	switch {
	case xdp == nil || !xdp.Attached:
		return 0, false, nil
	case xdp.AttachMode != nl.XDP_ATTACHED_DRV && xdp.AttachMode != nl.XDP_ATTACHED_SKB:
		return 0, false, errors.New("programs are attached to several hooks, or to the hardware")
	}
	return ebpf.ProgramID(xdp.ProgId), xdp.AttachMode == nl.XDP_ATTACHED_DRV, nil
}

// From linux/if_link.h.
const (
	iflaXDPExpectedFD = 8
	xdpFlagsReplace   = 1 << 4
)

// swap has a program take the place of another on the device. nil stands for no program. EEXIST and EBUSY say that was is
// not what is attached.
func (d *netdev) swap(was, is *ebpf.Program, native bool) error {
	flags := uint32(nl.XDP_FLAGS_SKB_MODE)
	if native {
		flags = nl.XDP_FLAGS_DRV_MODE
	}
	fd := int32(-1)
	if is != nil {
		fd = int32(is.FD())
	}
	attr := nl.NewRtAttr(unix.IFLA_XDP|unix.NLA_F_NESTED, nil)
	attr.AddRtAttr(nl.IFLA_XDP_FD, nl.Uint32Attr(uint32(fd)))
	if was == nil {
		flags |= nl.XDP_FLAGS_UPDATE_IF_NOEXIST
	} else {
		flags |= xdpFlagsReplace
		attr.AddRtAttr(iflaXDPExpectedFD, nl.Uint32Attr(uint32(was.FD())))
	}
	attr.AddRtAttr(nl.IFLA_XDP_FLAGS, nl.Uint32Attr(flags))

	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: d.socket}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(d.index)
	req.AddData(msg)
	req.AddData(attr)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
