package rings

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Reasons why a device does not finish checksums.
var (
	errNotAsked   = errors.New("not asked for")
	errNoMetadata = errors.New("the kernel knows no TX metadata: Linux 6.11 or newer is needed")
	errSumsOff    = errors.New("it is off: ethtool -K DEVICE tx on")
	errNoSums     = errors.New("the driver does not finish checksums of zero-copy frames (xsk-features)")
)

// xskFeatures is what the driver does with TX metadata in zero-copy mode, 0 if
// nobody knows.
func xskFeatures(ifindex int) uint64 {
	f, _ := ReadFeatures(ifindex)
	return f.TXMetadata
}

// register registers the region, with room for metadata in front of packets if
// it is of use and the kernel takes it.
func (s *Socket) register() error {
	s.noChecksum = errNotAsked
	if s.opts.Checksum {
		// A zero-copy driver that knows other metadata than checksums' may look for it in front of every packet, and find
		// what it must not obey.
		s.features = xskFeatures(s.opts.Ifindex)
		s.noChecksum = errNoSums
		if s.opts.Mode == Copy || s.features == 0 || s.features&TXChecksum != 0 {
			err := registerUmem(s.fd, s.region.Mem(), s.region.ChunkSize(), TXMetadata)
			if s.metadata = err == nil; s.metadata || !errors.Is(err, unix.EINVAL) {
				return err
			}
			s.noChecksum = errNoMetadata
		}
	}
	return registerUmem(s.fd, s.region.Mem(), s.region.ChunkSize(), 0)
}

// askForChecksums finds out, on a bound socket, whether the device finishes
// checksums. In copy mode an skb with CHECKSUM_PARTIAL is made of such a frame
// (xsk_skb_metadata in net/xdp/xsk.c), as of one of the kernel's own, and goes
// where those go: a device that has them switched off meanwhile gets the sum
// computed for it (validate_xmit_skb in net/core/dev.c).
func (s *Socket) askForChecksums() {
	if shared := s.opts.Shared; shared != nil {
		s.metadata, s.noChecksum = shared.metadata, shared.noChecksum
		if s.zeroCopy && s.metadata {
			s.features = xskFeatures(s.opts.Ifindex)
		}
	}
	if !s.metadata {
		return
	}
	// Not every driver looks at DescMetadata before it looks at what is in front of a packet.
	s.port.Metadata = s.zeroCopy
	on, err := txChecksum(s.opts.Interface)
	switch {
	case !s.opts.Checksum:
		s.noChecksum = errNotAsked
	case s.zeroCopy && s.features&TXChecksum == 0:
		s.noChecksum = errNoSums
	case err != nil:
		s.noChecksum = fmt.Errorf("the driver does not tell whether it does: %w", err)
	case !on:
		s.noChecksum = errSumsOff
	default:
		s.noChecksum = nil
	}
	s.port.Checksum = s.noChecksum == nil
}

// txChecksum is whether the device of that name, in the namespace of the
// calling thread, finishes checksums of what is sent (ETHTOOL_GTXCSUM).
func txChecksum(name string) (bool, error) {
	value := command(2, unix.ETHTOOL_GTXCSUM)
	err := ethtool(name, value)
	return field(value, 1) != 0, err
}

// NoChecksum says why the device finishes no checksums; nil: it does, and the
// port's Checksum is true.
func (s *Socket) NoChecksum() error { return s.noChecksum }
