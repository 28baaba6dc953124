package xdpprog

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Metadata says what of that which a driver knows of a frame besides its bytes a program is to pass on. The program is bound to
// the device then and asks its driver (bpf/metadata.h; Documentation/networking/xdp-rx-metadata.rst; Linux 6.8): only in
// the native hook, and not in a dispatcher.
type Metadata uint8

const (
	NoMetadata Metadata = iota
	// Tags: a VLAN tag that the driver took out of a frame is put back, so that nobody takes the frame for one without.
	Tags
	// Stamps: besides, the StampSize bytes in front of each frame say when it was received. Only for Load.
	Stamps
)

// StampSize is how many bytes in front of a frame its stamp takes: nanoseconds in the machine's byte order, on
// CLOCK_MONOTONIC when the program saw the frame, or with StampHardware on the device's clock when that received it.
const StampSize = 8

// StampHardware is the bit of a stamp that says by whose clock it is.
const StampHardware = 1 << 63

// bind has a program be the one for metadata of a device, instead of the plain one.
func bind(spec *ebpf.CollectionSpec, plain, metadata string, ifindex int) {
	p := spec.Programs[metadata]
	p.Flags |= unix.BPF_F_XDP_DEV_BOUND_ONLY
	p.Ifindex = uint32(ifindex)
	spec.Programs[plain] = p
}

func (m Metadata) check() error {
	if m > Stamps {
		return fmt.Errorf("metadata %d: none of NoMetadata, Tags, Stamps", m)
	}
	return nil
}

// withMetadata are the attempts with metadata, and then those without.
func withMetadata(m Metadata, plain []attempt) (all []attempt) {
	if m != NoMetadata {
		for _, a := range plain {
			if a.native {
				a.metadata = true
				all = append(all, a)
			}
		}
	}
	return append(all, plain...)
}

// without says why a program that is attached in a way has no metadata, of the errors of the attempts with it. nil: it
// has, or nobody wanted any.
func (c *Config) without(a attempt, errs []error) error {
	switch {
	case c.Metadata == NoMetadata || a.metadata:
		return nil
	case len(errs) == 0:
		errs = append(errs, errors.New("the program is in the generic hook"))
	}
	return fmt.Errorf("xdpprog: no metadata of frames from %s (Linux 6.8, and a driver that has it, are needed): %w", c.Interface, errors.Join(errs...))
}
