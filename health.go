package xdpd

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/krnet"
	"xdpd/sockets"
)

func (s *Stack) linkState() linkState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link
}

// iface is the interface's name.
func (s *Stack) iface() string { return s.linkState().name }

// followLink has the Hosts follow the interface's MTU and address. It is called by one goroutine.
func (s *Stack) followLink(e krnet.LinkChange) {
	now := linkState{e.Name, e.MTU, e.MAC}
	s.mu.Lock()
	was := s.link
	s.link = now
	s.mu.Unlock()
	if now.mtu == was.mtu && now.mac == was.mac {
		return
	}
	chunk, oneFrame := s.region.ChunkSize(), false // oneFrame: in zero copy
	for _, q := range s.queues {
		if h, at, ok := q.reactor.Enter(); ok {
			oneFrame = oneFrame || q.sock.ZeroCopy() && !q.sock.SG()
			h.SetLink(now.mac, now.mtu, at)
			if now.mac != was.mac && !s.cfg.Share {
				h.Announce(at)
			}
		}
		q.reactor.Leave()
	}
	if why := tooLong(s.dev.driver, min(now.mtu, sockets.MaxMTU(chunk, 1)), chunk); oneFrame && why != "" {
		s.leaveZeroCopy(why)
	}
}

// leaveZeroCopy goes over to copy mode, or ends the engine if zero copy was demanded: the driver cuts packets up from now on.
func (s *Stack) leaveZeroCopy(why string) {
	err := fmt.Errorf("xdpd: interface %s: %s: start the engine again, which then has larger frames, or use copy mode", s.iface(), why)
	if s.Mode() == Best {
		cerr := s.SetMode(Copy)
		if cerr == nil {
			return
		}
		err = fmt.Errorf("%w; it cannot be had now: %w", err, cerr)
	}
	s.fail(err)
}

// attendEvery is how often attend looks.
const attendEvery = 250 * time.Millisecond

// attend looks at what the kernel tells nobody of: whether the steering program is still attached, and how many queues the
// device has. What cannot go on ends the engine, with words for what to do.
func (s *Stack) attend(ctx context.Context) {
	tick := time.NewTicker(attendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.done:
			return
		case <-tick.C:
		}
		err := s.lostProgram()
		if err == nil {
			err = s.lostQueues()
		}
		if err != nil && ctx.Err() == nil {
			s.fail(err)
			return
		}
	}
}

// lostProgram: who detached it wants it off, so it is not attached again.
func (s *Stack) lostProgram() error {
	if s.program.Attached() {
		return nil
	}
	if _, err := s.kernel.Snapshot(); err != nil {
		return nil // the program went with the interface, which has an event of its own
	}
	return fmt.Errorf("xdpd: somebody detached the steering program from interface %s (bpftool link detach): start the engine again: %w",
		s.iface(), unix.ENOLINK)
}

// lostQueues: a queue that is new has no reactor, and drivers may not even run the program there (veth does not), so that
// frames for the engine pass to the kernel without a trace. Where all queues were to be served that is an error. A queue of
// ours cannot be taken away: the kernel refuses (net/ethtool/common.c, ethtool_check_max_channel).
func (s *Stack) lostQueues() error {
	name := s.iface()
	if rx := s.asking.RX(name); s.all && rx > s.dev.queues {
		return fmt.Errorf("xdpd: interface %s has %d RX queues now, and the engine serves the %d that it had: start it again, or name the queues it is to serve (--queues): %w",
			name, rx, s.dev.queues, unix.ENXIO)
	}
	return nil
}
