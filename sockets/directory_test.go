package sockets

import (
	"math/rand/v2"
	"sync"
	"testing"

	"xdpd/proto"
)

// flows counts the entries.
func (d *Directory) flows() (n int) {
	for i := range d.parts {
		n += d.parts[i].n
	}
	return n
}

// TestDirectoryWalk does random things to a Directory and to a map, which must agree.
func TestDirectoryWalk(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	d, model := NewDirectory(), map[uint64]int{}
	for range 200_000 {
		// Few parts and few homes, so that runs are long and cross the table's end.
		hash := uint64(rng.IntN(3))<<56 | uint64(rng.IntN(40))<<30 | uint64(rng.IntN(4))
		host := rng.IntN(3)
		has, known := model[hash]
		switch rng.IntN(4) {
		case 0:
			d.set(hash, host)
			model[hash] = host
		case 1:
			d.del(hash, host)
			if known && has == host {
				delete(model, hash)
			}
		case 2:
			if got := d.claim(hash, host); got != (!known || has == host) {
				t.Fatalf("claim by %d of what %d has (%v): %v", host, has, known, got)
			} else if got {
				model[hash] = host
			}
		}
		want, ok := model[hash]
		if got, found := d.get(hash); found != ok || ok && got != want {
			t.Fatalf("get: %d, %v; want %d, %v", got, found, want, ok)
		}
	}
	if n := d.flows(); n != len(model) {
		t.Errorf("%d entries, want %d", n, len(model))
	}
	for hash, host := range model {
		d.del(hash, host)
	}
	for i := range d.parts {
		if d.parts[i].n != 0 || len(d.parts[i].slots) > 8 {
			t.Errorf("empty, a part has %d entries and %d slots", d.parts[i].n, len(d.parts[i].slots))
		}
	}
}

// TestDirectoryBinds: a specific address goes before all; of several Hosts a flow always gets the same, and all get some.
func TestDirectoryBinds(t *testing.T) {
	d := NewDirectory()
	any53, our53 := flowKey{LPort: 53}, flowKey{Local: usIP, LPort: 53}
	d.bind(bindKey{proto.ProtoUDP, any53}, 1)
	d.bind(bindKey{proto.ProtoUDP, any53}, 63)
	k := flowKey{Local: usIP, LPort: 53, Remote: peerIP, RPort: 7}
	seen := map[int]int{}
	for i := range uint64(1000) {
		host, ok := d.bound(proto.ProtoUDP, k, i*0x9e3779b97f4a7c15)
		if again, _ := d.bound(proto.ProtoUDP, k, i*0x9e3779b97f4a7c15); !ok || again != host {
			t.Fatal("not found, or not found again")
		}
		seen[host]++
	}
	if len(seen) != 2 || seen[1] < 300 || seen[63] < 300 {
		t.Errorf("1000 flows go to %v", seen)
	}
	d.bind(bindKey{proto.ProtoUDP, our53}, 2)
	if host, ok := d.bound(proto.ProtoUDP, k, 0); !ok || host != 2 {
		t.Errorf("the address's own socket is not preferred: %d", host)
	}
	if _, ok := d.bound(proto.ProtoTCP, k, 0); ok {
		t.Error("a UDP socket takes TCP")
	}
	d.unbind(bindKey{proto.ProtoUDP, our53}, 2)
	d.unbind(bindKey{proto.ProtoUDP, any53}, 1)
	if host, ok := d.bound(proto.ProtoUDP, k, 5<<32); !ok || host != 63 {
		t.Errorf("after two left: %d, %v", host, ok)
	}
}

// TestDirectoryClaimRace: of Hosts that claim a flow at the same time one gets it.
func TestDirectoryClaimRace(t *testing.T) {
	const flows = 200_000
	d := NewDirectory()
	var got [2]int
	var claimers sync.WaitGroup
	for host := range got {
		claimers.Go(func() {
			for i := range uint64(flows) {
				if d.claim(i*0x9e3779b97f4a7c15, host) {
					got[host]++
				}
			}
		})
	}
	claimers.Wait()
	if got[0]+got[1] != flows {
		t.Errorf("%d flows were claimed %d and %d times", flows, got[0], got[1])
	}
}
