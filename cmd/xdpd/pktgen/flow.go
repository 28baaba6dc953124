package pktgen

import (
	"fmt"

	"xdpd/proto"
)

// MaxFlows is how many flows there may be.
const MaxFlows = 1_000_000

// Flows are the flows in their order: source ports go round first, then destination ports, source addresses, destination
// addresses. Packet n is of flow n % N. As xdpprog.SourceConfig.
type Flows struct {
	Src   Addrs `json:"src"`
	Dst   Addrs `json:"dst"`
	Sport Ports `json:"sport"`
	Dport Ports `json:"dport"`
	N     int   `json:"flows"`
}

// settle gives N its default, all that the ranges have, and holds it against them. A source port that was not given
// becomes a range as large as needed.
func (f *Flows) settle() error {
	if f.Dport == (Ports{}) {
		f.Dport = Ports{9, 9} // discard, as the kernel's pktgen
	}
	rest := product(f.Src.n(), f.Dst.n(), f.Dport.n())
	if f.Sport == (Ports{}) {
		f.Sport = Ports{firstPort, firstPort}
		if f.N > rest {
			f.Sport.Last = uint16(min(firstPort+(f.N+rest-1)/rest-1, 65535))
		}
	}
	all := product(rest, f.Sport.n())
	if f.N == 0 {
		f.N = min(all, MaxFlows)
	}
	if f.N < 0 || f.N > MaxFlows {
		return fmt.Errorf("--flows %d: there may be 1 to %d", f.N, MaxFlows)
	}
	if f.N > all {
		return fmt.Errorf("--flows %d: the addresses and ports make %d: widen --src, --dst, --sport or --dport", f.N, all)
	}
	return nil
}

// product is that of the numbers, or MaxFlows if it is more.
func product(numbers ...int) int {
	p := 1
	for _, n := range numbers {
		p = min(MaxFlows, p*min(MaxFlows, n))
	}
	return p
}

// firstPort is the first source port where none is given.
const firstPort = 1024

// flow is where a packet goes from and to.
type flow struct {
	src, dst     proto.Addr
	sport, dport uint16
}

// at is flow i, below N.
func (f *Flows) at(i int) (to flow) {
	digit := func(n int) int {
		d := i % n
		i /= n
		return d
	}
	to.sport = f.Sport.First + uint16(digit(f.Sport.n()))
	to.dport = f.Dport.First + uint16(digit(f.Dport.n()))
	to.src = f.Src.First + proto.Addr(digit(f.Src.n()))
	to.dst = f.Dst.First + proto.Addr(digit(f.Dst.n()))
	return to
}
