package xdpd

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"xdpd/rings"
	"xdpd/sockets"
)

// Mode is how frames get to the engine, as it was asked for last.
func (s *Stack) Mode() Mode {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mode
}

// SetMode opens the queues' sockets anew in another mode, one queue after the other, while the engine runs. Connections, and
// everything else that is open, stay; what arrives on a queue in that moment passes to the kernel or is lost, as on a wire.
//
// A mode that the driver refuses, or in which it does not send (rings.ErrUnsent: each zero-copy socket sends a frame, and is
// believed when that came back), is an error, and the sockets are as before. If not even that can be had again, the engine
// ends. The caller needs the privileges of Open; without them nothing is touched. For a moment the packet memory is
// registered twice, which counts against RLIMIT_MEMLOCK.
func (s *Stack) SetMode(m Mode) error {
	s.reopening.Lock()
	defer s.reopening.Unlock()
	if m > ZeroCopy {
		return fmt.Errorf("xdpd: mode %d; there are Best, Copy and ZeroCopy", m)
	}
	if m != Copy && s.notZeroCopy != "" { // Open found that out
		return fmt.Errorf("xdpd: interface %s stays in copy mode: %s", s.iface(), s.notZeroCopy)
	}
	if m == ZeroCopy && !s.program.Native() { // igb takes such a socket, and says EINVAL to each kick
		return fmt.Errorf("xdpd: interface %s: zero copy needs the steering program in the driver, and it is attached in generic mode: use copy mode, or --attach native",
			s.iface())
	}
	chunk := s.region.ChunkSize()
	s.mu.Lock()
	mtu := min(s.link.mtu, sockets.MaxMTU(chunk, 1))
	s.mu.Unlock()
	if why := tooLong(s.dev.driver, mtu, chunk); m != Copy && why != "" && !s.queues[0].sock.SG() {
		return fmt.Errorf("xdpd: interface %s: %s: use larger frames, a smaller MTU, or copy mode", s.iface(), why)
	}
	if s.grant == nil {
		if err := inNamespace(s.cfg.NetNS, mayOpenSockets); err != nil {
			return err
		}
	}
	was, cable := s.Mode(), s.carrier(0)
	refused, err := s.reopen(m, was, cable)
	if err == nil && refused != nil { // some queues have it already
		var unsent error
		if unsent, err = s.reopen(was, was, cable); err == nil && errors.Is(unsent, rings.ErrUnsent) {
			s.fail(unsent)
			err = unsent
		}
	}
	if err == nil && refused == nil {
		s.mu.Lock()
		s.mode = m
		s.mu.Unlock()
	}
	return errors.Join(refused, err)
}

// mayOpenSockets finds out before a socket is closed that another can be opened.
func mayOpenSockets() error {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("xdpd: open another AF_XDP socket (needs CAP_NET_RAW): %w", err)
	}
	return unix.Close(fd)
}

// reopen opens the sockets of all queues anew. refused: one had to be opened as it was, or does not send, which is found out
// only with a cable. err: not even as it was.
func (s *Stack) reopen(m, was Mode, cable bool) (refused, err error) {
	for i, q := range s.queues {
		err := q.reactor.Exchange(func(*rings.Port) (*rings.Port, error) {
			var err error
			if refused, err = s.reopenQueue(i, q, m, was); err != nil {
				return nil, err
			}
			return q.sock.Port(), nil
		})
		if refused == nil && err == nil && cable {
			refused = s.trustAgain(q)
		}
		if refused != nil || err != nil {
			return refused, err
		}
	}
	return nil, nil
}

// reopenQueue is called on the queue's reactor, which must wait for it.
func (s *Stack) reopenQueue(i int, q *queue, m, was Mode) (refused, err error) {
	if err := q.sock.Close(); err != nil {
		return nil, err
	}
	sg := q.sock.SG()
	err = inNamespace(s.cfg.NetNS, func() error {
		opts := s.socketOptions(i, q.id, m)
		opts.SG = sg
		sock, err := rings.OpenSocket(s.region, opts)
		if err != nil {
			refused = err
			opts.Mode, opts.Shared = was, nil
			if sock, err = rings.OpenSocket(s.region, opts); err != nil {
				return err
			}
		}
		q.sock = sock
		return nil
	})
	if err == nil {
		err = s.program.SetSocket(q.id, q.sock.FD())
	}
	return refused, err
}
