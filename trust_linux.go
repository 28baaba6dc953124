package xdpd

import (
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/proto"
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
	if !s.dev.cable || !s.awaitCarrier() {
		return nil // nothing can be sent: there is no cable
	}
	for _, q := range s.queues {
		if !q.sock.ZeroCopy() {
			continue
		}
		if err := q.sock.TrySend(q.pool, trialFrame(s.dev.mac), sendTime); err != nil {
			return fmt.Errorf("xdpd: zero copy cannot be trusted: use copy mode: %w", err)
		}
	}
	return nil
}

// awaitCarrier waits until the interface has a carrier, for a limited time.
func (s *Stack) awaitCarrier() bool {
	for end := time.Now().Add(resetTime); time.Now().Before(end); time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByIndex(s.dev.index)
		if err != nil || link.Attrs().RawFlags&unix.IFF_UP == 0 {
			return false
		}
		if link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
			return true
		}
	}
	return false
}

// trialFrame is what nobody listens to: from the device to itself, which no switch passes on, of the EtherType for local
// experiments (IEEE 802-2014, 9.2.4).
func trialFrame(mac proto.MAC) []byte {
	frame := make([]byte, 60)
	copy(frame, mac[:])
	copy(frame[6:], mac[:])
	frame[12], frame[13] = 0x88, 0xb5
	return frame
}
