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
			return fmt.Errorf("xdpd: zero copy cannot be trusted: use copy mode: %w", err)
		}
	}
	return nil
}
