package xdpprog

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Attach says which XDP hook of the device to use.
type Attach uint8

const (
	BestAttach Attach = iota // the driver's hook, or the generic one if the driver refuses; Native tells which
	Native                   // the driver's hook or an error
	Generic                  // the kernel's generic hook
)

// ErrBusy means that another XDP program is attached; the message names it. It is never removed.
var ErrBusy = errors.New("another XDP program is attached")

const needCaps = " (CAP_BPF and CAP_NET_ADMIN are needed: run as root, or setcap cap_bpf,cap_net_admin,cap_net_raw+ep)"

// An attempt is one way to attach. Drivers want a program for frames in several buffers (frags) only above some MTU,
// and a plain one works with more drivers, so plain comes first.
type attempt struct {
	native   bool
	frags    bool
	metadata bool
}

func (a Attach) attempts() []attempt {
	switch a {
	case Native:
		return []attempt{{native: true}, {native: true, frags: true}}
	case Generic:
		return []attempt{{}}
	}
	return []attempt{{native: true}, {native: true, frags: true}, {}}
}

func attachBest(c Config) (*Program, error) {
	var first error
	var errs []error // of attempts with metadata
	for _, a := range withMetadata(c.Metadata, c.Attach.attempts()) {
		p, err := open(c, a)
		if err == nil {
			if err = p.attach(c.Ifindex, a.native); err == nil {
				p.refused, p.noMetadata = first, c.without(a, errs)
				return p, nil
			}
			err = errors.Join(explainAttach(c, a, err), p.Close())
			if !driverRefused(err) {
				return nil, err
			}
		} else if !a.metadata {
			return nil, err
		}
		// What the driver says of the plain program is what the user can act on.
		if a.metadata {
			errs = append(errs, err)
		} else if first == nil {
			first = err
		}
	}
	return nil, first
}

func (p *Program) attach(ifindex int, native bool) error {
	l, err := attachXDP(p.objs.Steer, ifindex, native)
	if err != nil {
		return err
	}
	p.link, p.native = l, native
	return nil
}

func attachXDP(prog *ebpf.Program, ifindex int, native bool) (link.Link, error) {
	flags := link.XDPGenericMode
	if native {
		flags = link.XDPDriverMode
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifindex, Flags: flags})
	if errors.Is(err, unix.EINVAL) {
		// net/core/dev.c, bpf_xdp_link_attach: EINVAL also stands for a device that is not there.
		if _, lerr := netlink.LinkByIndex(ifindex); errors.As(lerr, new(netlink.LinkNotFoundError)) {
			return nil, unix.ENODEV
		}
	}
	return l, err
}

// driverRefused tells a driver that will not run this program in this device's present state from an error that
// another kind of program or hook cannot mend. Drivers choose their own words: for too large an MTU veth says ERANGE,
// virtio_net and i40e EINVAL, ice EOPNOTSUPP; for too few queues veth says ENOSPC, and others ENOMEM.
func driverRefused(err error) bool {
	if errors.Is(err, ErrBusy) {
		return false
	}
	for _, errno := range []error{unix.EOPNOTSUPP, unix.ERANGE, unix.EINVAL, unix.ENOMEM, unix.ENOSPC} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

func explainAttach(c Config, a attempt, err error) error {
	hook := "generic"
	if a.native {
		hook = "native"
	}
	cure := ""
	switch {
	// net/core/dev.c, dev_xdp_attach: EBUSY for a program in the same hook, EEXIST for one in the other hook or on an
	// upper device.
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("xdpprog: attach to %s (%s): %w: %s", c.Interface, hook, ErrBusy, nameAttached(c.Ifindex))
	case errors.Is(err, unix.EPERM):
		cure = needCaps
	case errors.Is(err, unix.ENODEV):
		cure = " (no such device in this network namespace)"
	case errors.Is(err, unix.ERANGE):
		cure = " (the MTU is too large for XDP in this driver; on veth the peer's MTU counts)"
	case errors.Is(err, unix.EOPNOTSUPP):
		cure = " (the driver has no native XDP, or not with these settings; generic attach works on every device)"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM):
		cure = " (too few queues, or memory; on veth this side needs as many RX queues as the peer has TX queues)"
	case errors.Is(err, unix.EINVAL):
		cure = " (the driver refuses XDP with these settings: look at MTU, LRO and the number of queues, and at dmesg)"
	}
	return fmt.Errorf("xdpprog: attach to %s (%s): %w%s", c.Interface, hook, err, cure)
}
