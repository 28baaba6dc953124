package reactor

import (
	"bytes"
	"testing"

	"xdpd/rings"
	"xdpd/sockets"
)

// A device that may look at what is in front of every frame finds there that nothing is asked of it; of one that does not
// look, nothing is written there.
func TestAskNothing(t *testing.T) {
	for _, looks := range []bool{false, true} {
		g := newRig(t, options{change: func(c *Config, _ *sockets.Config) {
			c.Port.Metadata = looks
			mem := c.Pool.Region().Mem()
			for i := range mem {
				mem[i] = 0xff
			}
		}})
		g.settle()
		g.deliver(g.arpFrame(1))
		g.settle()
		if len(g.sent) != 1 {
			t.Fatalf("%d frames were sent", len(g.sent))
		}
		mem := g.pool.Region().Mem()
		at := bytes.Index(mem, g.sent[0])
		_, field, ok := rings.Asked(mem[at-rings.TXMetadata : at])
		if ok != looks || field != 0 {
			t.Errorf("the device looks: %v; in front of the frame is % x", looks, mem[at-rings.TXMetadata:at])
		}
	}
}
