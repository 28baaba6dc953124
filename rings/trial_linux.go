package rings

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/umem"
)

// ErrUnsent reports a socket whose device does not send: a frame did not come back.
var ErrUnsent = errors.New("the device does not send")

// TrySend sends one packet, in a frame of the pool, and waits up to the given time until the device gives the frame back: drivers may take a zero-copy socket and then never send from it, without an errno (one that busy-polls on
// virtio_net or igb: net/xdp/xsk.c, xsk_no_wakeup, waits for a NAPI that does not serve TX). Nobody else uses the port
// meanwhile. Some drivers send only while an XDP program is attached, and none without a carrier. Errors: ErrUnsent, with what
// Kick gives, but not that the device is down; the frame is lost then, and the socket to be closed.
func (s *Socket) TrySend(pool *umem.Pool, mac [6]byte, within time.Duration) error {
	f := pool.Get(umem.TX)
	if f == umem.None {
		return fmt.Errorf("rings: no free frame to try %s with", s.opts.where())
	}
	n := copy(pool.Chunk(f)[umem.Headroom:], trialPacket(mac))
	idx, got := s.port.TX.Reserve(1)
	if got == 0 {
		pool.Put(f, umem.TX)
		return fmt.Errorf("rings: no room in the TX ring to try %s with", s.opts.where())
	}
	*s.port.TX.Slot(idx) = Desc{Addr: pool.Region().Addr(f) + umem.Headroom, Len: uint32(n)}
	s.port.TX.Submit(1)
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Microsecond) {
		if idx, n := s.port.Comp.Peek(1); n == 1 {
			back, ok := pool.Region().FrameOf(s.port.Comp.Read(idx))
			s.port.Comp.Release(1)
			if !ok || back != f {
				return fmt.Errorf("rings: %s gave back another frame than was sent", s.opts.where())
			}
			pool.Move(f, umem.TX, umem.Comp)
			pool.Put(f, umem.Comp)
			return nil
		}
		if err := s.Kick(); err != nil && !errors.Is(err, ErrDeviceDown) {
			return fmt.Errorf("%w: %w", ErrUnsent, err)
		}
		if time.Now().After(end) {
			return fmt.Errorf("rings: %s: %w: a frame did not come back within %v", s.opts.where(), ErrUnsent, within)
		}
	}
}

// trialPacket is what nobody listens to: from the device to itself, which no switch passes on, of the EtherType for local
// experiments (IEEE 802-2014, 9.2.4).
func trialPacket(mac [6]byte) []byte {
	packet := make([]byte, 60)
	copy(packet, mac[:])
	copy(packet[6:], mac[:])
	packet[12], packet[13] = 0x88, 0xb5
	return packet
}

// AwaitCarrier waits until an interface of the calling thread's namespace has a carrier, for a limited time: drivers that reset
// the device for an XDP program or for a socket's memory lose it for a while (igb for seconds). false: there is none, or the
// interface is down or gone.
func AwaitCarrier(ifindex int, limit time.Duration) bool {
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByIndex(ifindex)
		if err != nil || link.Attrs().RawFlags&unix.IFF_UP == 0 {
			return false
		}
		if link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// ZeroCopyRoom is how long a packet a driver receives into one frame of chunk bytes in zero copy. Some devices count their buffers
// in KiB: what is left behind the headroom is rounded down, and a longer packet arrives in pieces that nobody joins
// (drivers/net/ethernet/intel: igb_setup_srrctl, igc_configure_rx_ring, ixgbe_configure_srrctl).
func ZeroCopyRoom(driver string, chunk int) int {
	room := chunk - umem.Headroom
	switch driver {
	case "igb", "igc", "ixgbe":
		room &^= 1023
	}
	return room
}

// Refused is why the socket is not zero copy although Best wanted it, else nil.
func (s *Socket) Refused() error { return s.refused }

// zeroCopyRefused is the driver's refusal in words.
func (o *SocketOptions) zeroCopyRefused(err error) error {
	why := "the driver refuses zero copy"
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) && o.SG:
		why = "the driver has no zero copy on this queue, or none for packets of several frames"
	case errors.Is(err, unix.EOPNOTSUPP):
		why = "the driver has no zero copy on this queue"
	case errors.Is(err, unix.EINVAL):
		why = "the driver refuses zero copy here although it may advertise it (virtio_net: without an IOMMU, iommu_platform=on)"
	}
	return fmt.Errorf("rings: %s: %s: %w", o.where(), why, err)
}
