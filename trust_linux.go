package xdpd

import (
	"fmt"
	"time"

	"xdpd/rings"
)

const (
	// resetTime is how long a driver may take to find its link again: many reset the device for an XDP program or for a socket's
	// memory, and some (igb) negotiate anew.
	resetTime = 15 * time.Second
	// sendTime is how long a device may take to send one frame.
	sendTime = 3 * time.Second
)

// trust waits for the link that the driver reset, and then has each zero-copy socket send a frame: only what comes back is
// believed. rings.ErrUnsent: it did not.
func (s *Stack) trust() error {
	if !s.dev.cable || !rings.AwaitCarrier(s.dev.index, resetTime) {
		return nil // nothing can be sent: there is no cable
	}
	for _, q := range s.queues {
		if !q.sock.ZeroCopy() {
			continue
		}
		if err := q.sock.TrySend(q.pool, s.dev.mac, sendTime); err != nil {
			return untrusted(err)
		}
	}
	return nil
}

func untrusted(err error) error {
	return fmt.Errorf("xdpd: zero copy cannot be trusted: use copy mode: %w", err)
}

// carrier tells whether the interface has a carrier, or gets it in time.
func (s *Stack) carrier(limit time.Duration) (has bool) {
	_ = inNamespace(s.cfg.NetNS, func() error {
		has = rings.AwaitCarrier(s.dev.index, limit)
		return nil
	})
	return has
}

// trustAgain is trust for the socket of a queue that runs.
func (s *Stack) trustAgain(q *queue) error {
	if !q.sock.ZeroCopy() || !s.carrier(resetTime) {
		return nil
	}
	if err := q.reactor.TrySend(sendTime); err != nil {
		return untrusted(fmt.Errorf("interface %s queue %d: %w", s.iface(), q.id, err))
	}
	return nil
}
