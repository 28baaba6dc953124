package forward

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// attendEvery is how often attend looks.
const attendEvery = 250 * time.Millisecond

// attend looks at what the kernel tells nobody of: whether the programs are still attached, and how many queues the devices have.
// With either, frames would pass to the kernel without a trace, so it ends the forwarder.
func (f *Forward) attend(ctx context.Context) {
	tick := time.NewTicker(attendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, p := range f.ports {
			if err := f.lost(p); err != nil {
				f.loop.Fail(err)
				return
			}
		}
	}
}

func (f *Forward) lost(p *port) error {
	if rx := f.asking.RX(p.name); rx > p.queues {
		return fmt.Errorf("forward: interface %s has %d RX queues now, and the forwarder serves the %d that it had: start it again: %w",
			p.name, rx, p.queues, unix.ENXIO)
	}
	if p.program.Attached() {
		return nil
	}
	if t, err := f.kernel.Snapshot(); err != nil || t.Links[p.index].Name == "" {
		return nil // the program went with the interface, which has an event of its own
	}
	return fmt.Errorf("forward: somebody detached the program from interface %s (bpftool link detach): start the forwarder again: %w",
		p.name, unix.ENOLINK)
}
