package sockets

import "testing"

// TestTCPFlagsInEveryState sends each set of flags, at each number that matters, to a connection in each state, and again,
// without any time in between: the books must balance after each, no segment is answered by more than one,
// and at the end nothing is left.
func TestTCPFlagsInEveryState(t *testing.T) {
	offsets := []uint32{0, 1, 1 << 16, 1 << 31, ^uint32(0), ^uint32(0) - 1<<16}
	for name := range states {
		for flags := range 64 {
			k, c := inState(t, name)
			for _, seq := range offsets {
				for _, acked := range offsets {
					g := c.seg(byte(flags), nil)
					g.seq += seq
					g.ack += acked
					for _, data := range [][]byte{nil, {1}, pattern(1460)} {
						g.data = data
						before := k.h.counters.Stats[TxFrames]
						c.inject(g)
						k.pump()
						if n := k.h.counters.Stats[TxFrames] - before; n > 1 {
							t.Fatalf("%s: %d answers to %+v", name, n, g)
						}
						k.check()
					}
				}
			}
			k.out = nil
			if t.Failed() {
				t.Fatalf("%s, flags %#x", name, flags)
			}
		}
	}
}
