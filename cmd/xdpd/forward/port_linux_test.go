package forward

import (
	"slices"
	"strings"
	"testing"

	"xdpd/rings"
	"xdpd/xdpprog"
)

// TestModes: where a frame does not hold in zero copy what the MTU allows, it is copy mode, or an error if zero copy is demanded.
func TestModes(t *testing.T) {
	zero, copied, both := []rings.Mode{rings.ZeroCopy}, []rings.Mode{rings.Copy}, []rings.Mode{rings.ZeroCopy, rings.Copy}
	for _, c := range []struct {
		driver     string
		mtu, chunk int
		mode       rings.Mode
		want       []rings.Mode // nil: an error
	}{
		{"virtio_net", 1500, 2048, rings.Best, both}, {"virtio_net", 3818, 4096, rings.Best, both},
		{"igb", 1000, 2048, rings.Best, both}, {"igb", 1500, 2048, rings.Best, copied},
		{"igb", 3050, 4096, rings.Best, both}, {"igb", 3051, 4096, rings.Best, copied},
		{"igb", 3050, 4096, rings.ZeroCopy, zero}, {"igb", 3051, 4096, rings.ZeroCopy, nil},
		{"igb", 3051, 4096, rings.Copy, copied},
	} {
		p := port{name: "eth0", driver: c.driver, mtu: c.mtu}
		got, err := p.modes(c.mode, xdpprog.BestAttach, c.chunk)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) || err != nil && !strings.Contains(err.Error(), "copy mode") {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
	p := port{name: "eth0", driver: "ice", mtu: 1500}
	if got, err := p.modes(rings.Best, xdpprog.Generic, 2048); err != nil || !slices.Equal(got, copied) {
		t.Errorf("with a generic program: %v, %v", got, err)
	}
	if _, err := p.modes(rings.ZeroCopy, xdpprog.Generic, 2048); err == nil || !strings.Contains(err.Error(), "--attach native") {
		t.Errorf("with a generic program: %v", err)
	}
}
