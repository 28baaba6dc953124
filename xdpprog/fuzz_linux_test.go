package xdpprog

import (
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
)

// maxPlainFrame is well below what a test run takes for a program without frags: a page less head and tail room.
const maxPlainFrame = 3000

// fit makes a frame of any bytes one that a test run accepts.
func fit(b []byte) []byte {
	if len(b) > maxPlainFrame {
		b = b[:maxPlainFrame]
	}
	return append(b[:len(b):len(b)], make([]byte, max(0, 14-len(b)))...)
}

// forget empties the fragment table of a rig and its model.
func forget(r *rig, m *model) {
	r.t.Helper()
	var key steerFragKey
	for r.p.objs.Fragments.NextKey(nil, &key) == nil {
		if err := r.p.objs.Fragments.Delete(key); err != nil {
			r.t.Fatal(err)
		}
	}
	clear(m.claimed)
}

// FuzzSteer runs two frames, one after the other, through the program and the model: two, because the first may be the
// first fragment of the second. The kernel shows no coverage, but the model branches as it does. To look
// for long, give -fuzzminimizetime=10x: minimizing takes a minute for every new input otherwise.
func FuzzSteer(f *testing.F) {
	rigs := [...]*rig{newRig(f, Own, false), newRig(f, Share, false)}
	cases := verdictCases()
	for i, c := range cases {
		f.Add(c.frame, cases[(i+1)%len(cases)].frame)
	}
	head, tail := toUs(udpNr), toUs(udpNr)
	head.frag, tail.frag = more, later
	f.Add(ether(ipv4T, head.bytes(udp(9, 53))), ether(ipv4T, tail.bytes(udp(9, 9))))
	f.Add(ether(ipv4T, tail.bytes(udp(9, 9)), vlan), ether(ipv4T, head.bytes(udp(9, 53)), qinq, vlan))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		for s, r := range rigs {
			r.t = t
			m := newModel(Steer(s))
			forget(r, m)
			for _, frame := range [][]byte{fit(first), fit(second)} {
				if got, want := r.run(frame, nil), m.verdict(frame); got != want {
					t.Errorf("steer %d, frame %x: %s, the model says %s", s, frame, got, want)
				}
			}
		}
	})
}

// TestMutated holds the program against the model for frames that are nearly sound, which is where rules differ.
func TestMutated(t *testing.T) {
	seed := seeds.One(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	cases := verdictCases()
	hits := map[string]int{}
	for _, s := range []Steer{Own, Share} {
		r, m := newRig(t, s, false), newModel(s)
		m.probe = true
		if err := r.p.Probe(4000); err != nil {
			t.Fatal(err)
		}
		for range 5000 {
			frame := mutate(rng, cases[rng.IntN(len(cases))].frame)
			got, want := r.run(frame, nil), m.verdict(frame)
			if got != want {
				t.Fatalf("seed %d: steer %d, frame %x: %s, the model says %s", seed, s, frame, got, want)
			}
			hits[got]++
		}
	}
	for _, name := range verdictNames {
		if hits[name] == 0 && name != "pass_no_socket" && name != "drop_no_room" {
			t.Errorf("seed %d: no frame ended in %s", seed, name)
		}
	}
}

// mutate changes a few of the bytes that the rules look at, and sometimes the tags or the length.
func mutate(rng *rand.Rand, frame []byte) []byte {
	frame = append([]byte(nil), frame...)
	if rng.IntN(4) == 0 {
		frame = ether(be.Uint16(frame[12:]), frame[14:], [][]uint16{{vlan}, {qinq, vlan}, {vlan, vlan, vlan}}[rng.IntN(3)]...)
	}
	for range rng.IntN(4) {
		at := 12 + rng.IntN(min(60, len(frame)-12))
		switch rng.IntN(3) {
		case 0:
			frame[at] = byte(rng.Uint32())
		case 1:
			frame[at] ^= 1 << rng.IntN(8)
		case 2:
			frame[at] = []byte{0, 1, 4, 5, 6, 17, 0x20, 0x45, 53, 80, 0xff}[rng.IntN(11)]
		}
	}
	switch rng.IntN(6) {
	case 0:
		frame = frame[:14+rng.IntN(len(frame)-13)]
	case 1:
		frame = append(frame, make([]byte, rng.IntN(20))...)
	}
	return frame
}
