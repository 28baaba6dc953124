package rings

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// An application in a process of its own uses an engine's rings through memory that both map, as it uses the kernel through
// io_uring. It asks for them over a unix socket of type SOCK_SEQPACKET: one message each way. After that a message of any length is
// a knock, which wakes the other side, and the connection's end says that it is gone. docs/clients.md is the contract.
//
// There are no eventfds: who has a descriptor of one can make it block (O_NONBLOCK belongs to the open file, which both sides would
// share) and fill it, and the engine's next write would not return.

// ShareMagic and ShareVersion begin both messages.
const (
	ShareMagic   = 0x68737264 // "drsh", little endian
	ShareVersion = 1
)

// Limits of what may be asked for.
const (
	MaxShareData   = 1 << 30
	maxShareReason = 256
)

// ShareHello is what an application asks for: 40 bytes, all in the machine's byte order.
type ShareHello struct {
	Magic, Version uint32
	SQEntries      uint32 // powers of two
	CQEntries      uint32
	Requests       uint32 // that may be in flight
	Sockets        uint32 // numbers
	Fixed          uint32 // slots of the fixed table
	Reactor        uint32 // the number of the reactor that the ring is to belong to, modulo how many there are
	Data           uint64 // bytes of memory for addresses and data
}

// ShareWelcome is the answer: 304 bytes, and unless Errno says otherwise with the memory's descriptor.
//
// The memory is a memfd of Size bytes that can neither grow nor shrink: the rings (RingLayout) at 0, the application's own
// memory at Data. The application knocks when it submitted and the SQ's flags say SQNeedWakeup; the engine does when the CQ's
// flags say CQNeedWakeup and the wanted tail was reached.
type ShareWelcome struct {
	Magic, Version uint32
	Errno          uint32 // 0, or why not
	Reactor        uint32 // the one that it is
	Size           uint64
	Data           uint64 // offset
	DataLen        uint64
	MTU            uint32
	Reactors       uint32 // how many there are

	Reason [maxShareReason]uint8 // Errno in words, ended by 0
}

// Share is memory for a ring and its application.
type Share struct {
	Layout RingLayout
	Ring   []byte // the rings
	Data   []byte // the application's memory
	mem    []byte
	data   int // offset of Data
	fd     int
}

// NewShare makes the memory for what h asks. Errors: sizes that cannot be, and no memory.
func NewShare(h *ShareHello) (*Share, error) {
	layout, err := LayoutRing(h.SQEntries, h.CQEntries)
	if err != nil {
		return nil, err
	}
	if h.Data > MaxShareData {
		return nil, fmt.Errorf("rings: %d bytes of memory; at most %d can be shared", h.Data, MaxShareData)
	}
	page := os.Getpagesize()
	data := (layout.Size + page - 1) &^ (page - 1)
	size := (data + int(h.Data) + page - 1) &^ (page - 1)
	fd, err := unix.MemfdCreate("xdpd-rings", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("rings: memfd_create: %w", err)
	}
	s := &Share{Layout: layout, fd: fd}
	if err = unix.Ftruncate(fd, int64(size)); err == nil {
		// Who has a descriptor could cut the file short, and the engine would die of SIGBUS at the next access.
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err == nil {
		s.mem, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("rings: %d bytes of shared memory: %w", size, err)
	}
	s.Ring, s.Data, s.data = s.mem[:layout.Size], s.mem[data:data+int(h.Data):data+int(h.Data)], data
	return s, nil
}

// FD is the memory's descriptor, for who joins.
func (s *Share) FD() int { return s.fd }

// Welcome is what who joins is told of the memory.
func (s *Share) Welcome() ShareWelcome {
	return ShareWelcome{
		Magic: ShareMagic, Version: ShareVersion,
		Size: uint64(len(s.mem)), Data: uint64(s.data), DataLen: uint64(len(s.Data)),
	}
}

// JoinShare maps the memory of fd as the answer says, and owns the descriptor.
func JoinShare(fd int, w *ShareWelcome) (*Share, error) {
	s := &Share{fd: fd}
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	switch {
	case err != nil:
	case uint64(st.Size) < w.Size || w.Data > w.Size || w.DataLen > w.Size-w.Data || w.Size > 2*MaxShareData:
		err = ErrRingArea
	default:
		s.mem, err = unix.Mmap(fd, 0, int(w.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err == nil {
		_, s.Layout, err = App(s.mem)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("rings: the engine's memory: %w", err), s.Close())
	}
	s.data = int(w.Data)
	s.Ring, s.Data = s.mem[:s.Layout.Size], s.mem[w.Data:w.Data+w.DataLen:w.Data+w.DataLen]
	return s, nil
}

// Close unmaps the memory. Nobody may use it any more: an access is a fault that Go does not survive.
func (s *Share) Close() (err error) {
	if s.mem != nil {
		err = unix.Munmap(s.mem)
		s.mem, s.Ring, s.Data = nil, nil, nil
	}
	return errors.Join(err, unix.Close(s.fd))
}

// SendShare sends a message of the handshake, m, with descriptors.
func SendShare(c *net.UnixConn, m any, fds ...int) error {
	b, err := binary.Append(nil, binary.NativeEndian, m)
	if err != nil {
		return err
	}
	_, _, err = c.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	return err
}

// RecvHello receives an application's message. Descriptors that come with it are not taken: their last close could be made to block.
func RecvHello(c *net.UnixConn) (*ShareHello, error) {
	h := &ShareHello{}
	b := make([]byte, binary.Size(h)+1)
	n, err := c.Read(b)
	if err != nil {
		return nil, err
	}
	return h, decodeShare(b[:n], h)
}

func decodeShare(b []byte, m any) (err error) {
	if len(b) != binary.Size(m) {
		err = ErrRingArea
	} else {
		_, err = binary.Decode(b, binary.NativeEndian, m)
	}
	if err != nil {
		return fmt.Errorf("rings: a message of %d bytes: %w", len(b), err)
	}
	return nil
}

// RecvShare receives the engine's message into m, and the descriptors that came with it, which are the caller's; at most four are taken.
func RecvShare(c *net.UnixConn, m any) (fds []int, err error) {
	b, oob := make([]byte, binary.Size(m)+1), make([]byte, unix.CmsgSpace(3*4))
	n, on, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil {
		return nil, err
	}
	for _, m := range cmsgs {
		list, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials and the like, which nobody asked for
		}
		fds = append(fds, list...)
	}
	if err := decodeShare(b[:n], m); err != nil {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, err
	}
	return fds, nil
}
