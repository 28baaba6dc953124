package xdpprog

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hook is a program on a device's receive path, other than the steering program.
type hook struct {
	iface      string
	link       link.Link
	native     bool
	noMetadata error // why there is none, if it was wanted
}

// hookUp attaches what load gives, in the first way of those that c asks for which the driver accepts. load may be called
// several times, and unload after each that was in vain. c needs Interface, Ifindex, Attach and Metadata only.
func hookUp(c Config, load func(attempt) (*ebpf.Program, error), unload func() error) (hook, error) {
	var first error
	var errs []error // of attempts with metadata
	switch {
	case c.Ifindex < 1:
		return hook{}, fmt.Errorf("xdpprog: attach to %s: interface index %d: %w", c.Interface, c.Ifindex, unix.ENODEV)
	case c.Attach > Generic:
		return hook{}, fmt.Errorf("xdpprog: attach to %s: mode %d: none of BestAttach, Native, Generic", c.Interface, c.Attach)
	}
	for _, a := range withMetadata(c.Metadata, c.Attach.attempts()) {
		prog, err := load(a)
		if err == nil {
			var l link.Link
			if l, err = attachXDP(prog, c.Ifindex, a.native); err == nil {
				return hook{c.Interface, l, a.native, c.without(a, errs)}, nil
			}
			err = errors.Join(explainAttach(c, a, err), unload())
			if !driverRefused(err) {
				return hook{}, err
			}
		} else if err = errors.Join(fmt.Errorf("xdpprog: load for %s: %w", c.Interface, err), unload()); !a.metadata {
			return hook{}, err
		}
		if a.metadata {
			errs = append(errs, err)
		} else if first == nil {
			first = err
		}
	}
	return hook{}, first
}

// Native reports whether the program runs in the driver, as Program.Native does.
func (h *hook) Native() bool { return h.native }

// NoMetadata is why the program has no metadata, if it was asked for; nil: it has, or was not asked for.
func (h *hook) NoMetadata() error { return h.noMetadata }

// Attached is as Program.Attached, until Close.
func (h *hook) Attached() bool { return attached(h.link) }

// detach may be called more than once. Detach before Close, as in Program.Close.
func (h *hook) detach() error {
	if h.link == nil {
		return nil
	}
	err := errors.Join(h.link.Detach(), h.link.Close())
	h.link = nil
	if err != nil {
		return fmt.Errorf("xdpprog: detach from %s: %w", h.iface, err)
	}
	return nil
}
