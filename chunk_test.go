package xdpd

import "testing"

// TestChunkFor: frames hold a packet in every mode that the engine may be switched to.
func TestChunkFor(t *testing.T) {
	for _, c := range []struct {
		driver       string
		mtu          int
		size, frames int
		zeroCopy     bool
	}{
		{"veth", 1500, 2048, 1, true}, {"veth", 3000, 4096, 1, true}, {"veth", 9000, 4096, 18, true},
		{"igb", 1000, 2048, 1, true}, {"igb", 1500, 4096, 1, true}, {"igb", 3050, 4096, 1, true}, {"igb", 3051, 4096, 1, false},
	} {
		for _, mode := range []Mode{Best, Copy, ZeroCopy} {
			cfg := Config{Interface: "eth0", Mode: mode}
			size, frames, err := cfg.chunkFor(c.driver, c.mtu)
			if err != nil || size != c.size || frames != c.frames {
				t.Errorf("%s, MTU %d, mode %d: frames of %d, %d to a packet, %v", c.driver, c.mtu, mode, size, frames, err)
			}
			if _, why := fitZeroCopy(device{driver: c.driver, mtu: c.mtu}, size, frames, 0); (why == "") != c.zeroCopy {
				t.Errorf("%s, MTU %d: %q", c.driver, c.mtu, why)
			}
		}
	}
}
