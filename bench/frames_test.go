package main

import (
	"testing"

	"xdpd/umem"
)

// frameUse is what becomes of frames in a loop.
type frameUse struct {
	held  uint64 // received ones that are kept for a reader: whoever reads copies out of them
	freed uint64 // received ones with nothing to keep
	taken uint64 // free ones that are filled, by copying or with headers alone
	sent  uint64 // given to the device
}

func usedFrames(l *umem.Ledger) frameUse {
	return frameUse{
		held: l.Moves(umem.RX, umem.Held), freed: l.Moves(umem.RX, umem.Free),
		taken: l.Moves(umem.Free, umem.Held), sent: l.Moves(umem.Held, umem.TX),
	}
}

// TestFramesTouched: how many frames a packet takes on its way, to the frame. More would be another copy, another ACK, or one
// that is allocated where the received one would do.
func TestFramesTouched(t *testing.T) {
	const n = 1600
	for _, c := range []struct {
		loop string
		want frameUse // for n packets, or connections
	}{
		{"udp", frameUse{held: n, taken: n, sent: n}},
		{"receive", frameUse{held: n, taken: n / instrTurn, sent: n / instrTurn}}, // an ACK for a turn
		{"send", frameUse{freed: n / 2, taken: n, sent: n}},                       // ACKs come for two segments each
		{"ask", frameUse{held: n, taken: n, sent: n}},
		{"syn", frameUse{freed: 3 * n, taken: 3 * n, sent: 3 * n}},
	} {
		t.Run(c.loop, func(t *testing.T) {
			var ledger *umem.Ledger
			owners := func(frames int) *umem.Ledger {
				ledger = umem.NewLedger(frames)
				return ledger
			}
			var run func(n int) error
			if nicLoops[c.loop] != nil {
				d, err := newDatagrams(c.loop, owners)
				if err != nil {
					t.Fatal(err)
				}
				run = d.echoes
			} else {
				b, err := newBare(owners)
				if err != nil {
					t.Fatal(err)
				}
				if err := b.connect(); err != nil {
					t.Fatal(err)
				}
				run = func(n int) error {
					b.got = 0
					return instrLoops[c.loop](b, n)
				}
			}
			if c.loop != "syn" { // whose connections are new only once
				if err := run(n); err != nil {
					t.Fatal(err)
				}
			}
			was := usedFrames(ledger)
			if err := run(n); err != nil {
				t.Fatal(err)
			}
			got := usedFrames(ledger)
			got = frameUse{got.held - was.held, got.freed - was.freed, got.taken - was.taken, got.sent - was.sent}
			if got != c.want {
				t.Errorf("%d packets used %+v frames, want %+v", n, got, c.want)
			}
		})
	}
}
