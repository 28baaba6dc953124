package xdpd

import (
	"strings"
	"testing"
)

// TestFitZeroCopy: no packet has more frames than the driver sends as one in zero copy; an MTU that needs more goes without.
func TestFitZeroCopy(t *testing.T) {
	for _, c := range []struct {
		driver             string
		mtu, chunk, packet int
		segs, want         int
		why                string
	}{
		{"ice", 1500, 2048, 1, 5, 1, ""},
		{"ice", 9000, 4096, 18, 5, 5, ""},
		{"mlx5_core", 9000, 4096, 18, 3, 3, ""},
		{"mlx5_core", 9000, 4096, 18, 2, 18, "packets of 2 frames at most"},
		{"i40e", 9000, 4096, 18, 64, 18, ""},
		{"veth", 65535, 4096, 18, 0, 18, ""},
		{"virtio_net", 9000, 4096, 18, 1, 18, ""}, // the kernel refuses XDP_USE_SG
		{"igb", 1500, 2048, 1, 1, 1, "an MTU up to"},
	} {
		d := device{driver: c.driver, mtu: c.mtu}
		got, why := fitZeroCopy(d, c.chunk, c.packet, c.segs)
		if got != c.want || (why == "") != (c.why == "") || !strings.Contains(why, c.why) {
			t.Errorf("%+v: %d frames, %q", c, got, why)
		}
	}
}

// TestLeaveZeroCopy: an MTU that the driver would cut up means copy mode, or the engine's end where zero copy was demanded.
func TestLeaveZeroCopy(t *testing.T) {
	s := openInLab(t)
	why := tooLong("igb", 1500, s.region.ChunkSize())
	if why == "" {
		t.Fatal("igb has no such MTU")
	}
	s.leaveZeroCopy(why)
	if s.Mode() != Copy || s.Err() != nil {
		t.Errorf("mode %v, %v", s.Mode(), s.Err())
	}
	s.mu.Lock()
	s.mode = ZeroCopy
	s.mu.Unlock()
	s.leaveZeroCopy(why)
	<-s.Done()
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "start the engine again") {
		t.Errorf("it ended with %v", err)
	}
}
