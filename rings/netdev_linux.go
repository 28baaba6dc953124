package rings

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netdev is a line to the kernel's generic netlink family of that name (Documentation/netlink/specs/netdev.yaml). Requests
// are few bytes written and read by hand, because they are made between two turns of a reactor.
type netdev struct {
	fd     int
	family uint16
}

// From include/uapi/linux/netdev.h.
const (
	netdevNAPIGet = 11 // NETDEV_CMD_*
	netdevNAPISet = 14

	napiIfindex  = 1 // NETDEV_A_NAPI_*
	napiID       = 2
	napiDefer    = 5
	napiGROFlush = 6
)

func openNetdev() (netdev, error) {
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return netdev{fd: -1}, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	return netdev{fd, family.ID}, err
}

func (d *netdev) close() (err error) {
	if d.fd > 0 {
		err = unix.Close(d.fd)
	}
	d.fd = -1
	return err
}

// get reads the settings of a NAPI and whose interface's it is. ENOENT: there is none.
func (d *netdev) get(id uint32) (s NAPISettings, ifindex int, err error) {
	answer, err := d.ask(netdevNAPIGet, attr32(nil, napiID, id))
	if err != nil {
		return s, 0, err
	}
	err = eachAttr(answer, func(kind uint16, value uint64) {
		switch kind {
		case napiIfindex:
			ifindex = int(value)
		case napiDefer:
			s.DeferHardIRQs = uint32(value)
		case napiGROFlush:
			s.GROFlushTimeoutNS = value
		}
	})
	return s, ifindex, err
}

// eachAttr calls f with the attributes of an answer; what is no number is 0.
func eachAttr(answer []byte, f func(kind uint16, value uint64)) error {
	for len(answer) >= 4 {
		n, kind := int(binary.NativeEndian.Uint16(answer)), binary.NativeEndian.Uint16(answer[2:])
		if n < 4 || n > len(answer) {
			return io.ErrUnexpectedEOF
		}
		value := uint64(0)
		switch n - 4 { // NLA_UINT is as long as its value needs
		case 4:
			value = uint64(binary.NativeEndian.Uint32(answer[4:]))
		case 8:
			value = binary.NativeEndian.Uint64(answer[4:])
		}
		f(kind, value)
		answer = answer[min(len(answer), (n+3)&^3):]
	}
	return nil
}

// change sets a NAPI's settings, if they are what they are taken for.
func (d *netdev) change(id uint32, from, to NAPISettings) (changed bool, err error) {
	is, _, err := d.get(id)
	if err != nil || is != from {
		return false, err
	}
	b := attr32(attr32(nil, napiID, id), napiDefer, to.DeferHardIRQs)
	b = binary.NativeEndian.AppendUint16(b, 12)
	b = binary.NativeEndian.AppendUint16(b, napiGROFlush)
	b = binary.NativeEndian.AppendUint64(b, to.GROFlushTimeoutNS)
	_, err = d.ask(netdevNAPISet, b)
	return err == nil, err
}

func attr32(b []byte, kind uint16, value uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, 8)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return binary.NativeEndian.AppendUint32(b, value)
}

// ask makes a request and gives the attributes of the answer. The kernel has answered by the time that the request is
// sent (net/netlink/genetlink.c, genl_rcv).
func (d *netdev) ask(cmd byte, attrs []byte) ([]byte, error) {
	const header = unix.SizeofNlMsghdr + unix.GENL_HDRLEN
	b := binary.NativeEndian.AppendUint32(nil, uint32(header+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, d.family)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, cmd, 1, 0, 0)
	if err := unix.Sendto(d.fd, append(b, attrs...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var answer []byte
	for in := make([]byte, 4096); ; {
		n, _, err := unix.Recvfrom(d.fd, in, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for msg := in[:n]; len(msg) >= header; {
			size := int(binary.NativeEndian.Uint32(msg))
			if size < header || size > len(msg) {
				return nil, io.ErrUnexpectedEOF
			}
			if binary.NativeEndian.Uint16(msg[4:]) == unix.NLMSG_ERROR { // the last: what became of it
				if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(msg[unix.SizeofNlMsghdr:]))); errno != 0 {
					return nil, errno
				}
				return answer, nil
			}
			answer = append(answer, msg[header:size]...)
			msg = msg[min(len(msg), (size+3)&^3):]
		}
	}
}
