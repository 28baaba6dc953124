package sockets

import (
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
	"xdpd/umem"
)

// TestRouterChurn: neighbours, ports and tables come and go while packets do, and every frame and entry is accounted for.
func TestRouterChurn(t *testing.T) {
	first, n := seeds.Range(t, 60)
	for seed := first; seed < first+uint64(n); seed++ {
		rng := rand.New(rand.NewPCG(seed, 11))
		k, r := newRouterKit(t, 3, 1500)
		host := func() (int, proto.Addr) {
			p := rng.IntN(3)
			return p, addr4(10, 0, byte(p), byte(1+rng.IntN(40)))
		}
		for range 1500 {
			port, a := host()
			switch rng.IntN(12) {
			case 0:
				r.SetNeighbour(port, a, stationMAC(port, int(a&0xff)), true, k.now)
			case 1:
				r.SetNeighbour(port, a, proto.MAC{}, false, k.now)
			case 2:
				r.ForgetNeighbour(port, a, k.now)
			case 3:
				if rng.IntN(20) == 0 {
					r.KeepNeighbours(func(int, proto.Addr) bool { return rng.IntN(2) == 0 }, k.now)
				}
			case 4:
				if rng.IntN(10) == 0 {
					c := r.Port(port)
					c.Up, c.MTU = rng.IntN(2) == 0, 600+rng.IntN(900)
					if err := r.SetPort(port, c); err != nil {
						t.Fatal(err)
					}
				}
			case 5:
				k.now += rng.Int64N(2e9)
				r.Tick(k.now)
			case 6:
				for range rng.IntN(4) {
					r.PopResolve()
				}
			default:
				_, src := host()
				h := proto.IPv4{Src: src, Dst: a, TTL: uint8(1 + rng.IntN(3)), DF: rng.IntN(2) == 0}
				k.deliver(0, ipFrame(h, nil, rng.IntN(1400)))
			}
			if rng.IntN(3) == 0 {
				k.all()
			}
			checkNeighbours(t, seed, k, r)
		}
		for i := range 3 {
			c := r.Port(i)
			c.Up = false
			if err := r.SetPort(i, c); err != nil {
				t.Fatal(err)
			}
		}
		k.all()
		k.books(0)
	}
}

func checkNeighbours(t *testing.T, seed uint64, k *fwdKit, r *Router) {
	t.Helper()
	waiting, open := 0, 0
	for _, i := range r.neigh.index.all() {
		e := r.neigh.entries.at(i)
		frames := 0
		for f := e.head; f != umem.None; f = k.pool.Buf(f).Next {
			frames++
		}
		if waiting += frames; frames != int(e.waiting) || frames > 0 && e.valid {
			t.Fatalf("seed %d: %d packets wait for %+v", seed, frames, e)
		}
		if !e.valid {
			open++
		}
	}
	queued := 0
	for i := range k.ports {
		queued += r.TxPending(i)
	}
	if held := int(k.ledger.Counts()[umem.Held]); waiting != r.neigh.waiting || open != len(r.neigh.open) || held != waiting+queued {
		t.Fatalf("seed %d: %d wait, counted %d; %d are asked for, listed %d; %d frames held, %d queued", seed, waiting, r.neigh.waiting,
			open, len(r.neigh.open), held, queued)
	}
}
