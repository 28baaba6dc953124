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
	netdevQueueGet = 10 // NETDEV_CMD_*
	netdevNAPIGet  = 11
	netdevNAPISet  = 14

	napiIfindex    = 1 // NETDEV_A_NAPI_*
	napiID         = 2
	napiIRQ        = 3
	napiPID        = 4
	napiDefer      = 5
	napiGROFlush   = 6
	napiIRQSuspend = 7
	napiThreaded   = 8

	queueID      = 1 // NETDEV_A_QUEUE_*
	queueIfindex = 2
	queueType    = 3
	queueNAPI    = 4
	queueRX      = 0 // NETDEV_QUEUE_TYPE_RX
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
	info, err := parseNAPI(answer)
	return info.NAPISettings, info.Ifindex, err
}

func parseNAPI(answer []byte) (i NAPIInfo, err error) {
	err = eachAttr(answer, func(kind uint16, value uint64) {
		switch kind {
		case napiIfindex:
			i.Ifindex = int(value)
		case napiID:
			i.ID = uint32(value)
		case napiIRQ:
			i.IRQ = uint32(value)
		case napiPID:
			i.PID = uint32(value)
		case napiDefer:
			i.DeferHardIRQs = uint32(value)
		case napiGROFlush:
			i.GROFlushTimeoutNS = value
		case napiIRQSuspend:
			i.IRQSuspendTimeoutNS = value
		case napiThreaded:
			i.Threaded = uint32(value)
		}
	})
	return i, err
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

// change sets what differs of a NAPI's settings, if they are what they are taken for. A kernel that does not know one of
// them says EINVAL.
func (d *netdev) change(id uint32, from, to NAPISettings) (changed bool, err error) {
	is, _, err := d.get(id)
	if err != nil || is != from {
		return false, err
	}
	b := attr32(nil, napiID, id)
	if from.DeferHardIRQs != to.DeferHardIRQs {
		b = attr32(b, napiDefer, to.DeferHardIRQs)
	}
	if from.GROFlushTimeoutNS != to.GROFlushTimeoutNS {
		b = attr64(b, napiGROFlush, to.GROFlushTimeoutNS)
	}
	if from.IRQSuspendTimeoutNS != to.IRQSuspendTimeoutNS {
		b = attr64(b, napiIRQSuspend, to.IRQSuspendTimeoutNS)
	}
	if from.Threaded != to.Threaded {
		b = attr32(b, napiThreaded, to.Threaded)
	}
	_, err = d.ask(netdevNAPISet, b)
	return err == nil, err
}

func attr64(b []byte, kind uint16, value uint64) []byte {
	b = binary.NativeEndian.AppendUint16(b, 12)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return binary.NativeEndian.AppendUint64(b, value)
}

func attr32(b []byte, kind uint16, value uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, 8)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return binary.NativeEndian.AppendUint32(b, value)
}

// ask makes a request and gives the attributes of the answer.
func (d *netdev) ask(cmd byte, attrs []byte) (answer []byte, err error) {
	err = d.request(cmd, unix.NLM_F_ACK, attrs, func(msg []byte) { answer = append(answer, msg...) })
	return answer, err
}

// dump asks for all that there is of something, and calls f with the attributes of each.
func (d *netdev) dump(cmd byte, attrs []byte, f func(msg []byte)) error {
	return d.request(cmd, unix.NLM_F_DUMP, attrs, f)
}

// request calls f with the attributes of each message of the answer. The kernel has answered by the time that the request is
// sent (net/netlink/genetlink.c, genl_rcv), or does when the next part is asked for.
func (d *netdev) request(cmd byte, flags uint16, attrs []byte, f func(msg []byte)) error {
	const header = unix.SizeofNlMsghdr + unix.GENL_HDRLEN
	b := binary.NativeEndian.AppendUint32(nil, uint32(header+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, d.family)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, cmd, 1, 0, 0)
	if err := unix.Sendto(d.fd, append(b, attrs...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for in := make([]byte, 8192); ; {
		n, _, err := unix.Recvfrom(d.fd, in, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for msg := in[:n]; len(msg) >= header; {
			size := int(binary.NativeEndian.Uint32(msg))
			if size < header || size > len(msg) {
				return io.ErrUnexpectedEOF
			}
			switch binary.NativeEndian.Uint16(msg[4:]) {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE: // the last: what became of it
				if errno := unix.Errno(-int32(binary.NativeEndian.Uint32(msg[unix.SizeofNlMsghdr:]))); errno != 0 {
					return errno
				}
				return nil
			}
			f(msg[header:size])
			msg = msg[min(len(msg), (size+3)&^3):]
		}
	}
}
