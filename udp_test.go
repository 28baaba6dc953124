package xdpd_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/internal/seeds"
	"xdpd/sockets"
)

// echoSizes are the payloads to try: the small ones, all around each boundary between n and n+1 fragments, the largest,
// and random ones.
func echoSizes(mtu int, r *rand.Rand) []int {
	var sizes []int
	for n := range 33 {
		sizes = append(sizes, n)
	}
	per := (mtu - 20) &^ 7
	for edge := mtu - 28; edge < sockets.MaxUDP; edge += per {
		sizes = append(sizes, edge-1, edge, edge+1)
	}
	for range 100 {
		sizes = append(sizes, r.IntN(sockets.MaxUDP+1))
	}
	sizes = append(sizes, sockets.MaxUDP-1, sockets.MaxUDP)
	return slices.DeleteFunc(sizes, func(n int) bool { return n > sockets.MaxUDP })
}

// TestUDPEcho sends datagrams of many sizes from the kernel and back, with real checksums and with those that veth
// leaves partial.
func TestUDPEcho(t *testing.T) {
	for _, mtu := range []int{1500, 576, 3000, 9000, 65535} {
		for _, offload := range []bool{false, true} {
			t.Run(fmt.Sprintf("MTU%d/offload=%v", mtu, offload), func(t *testing.T) {
				o := netlab.Options{MTU: mtu, TxOffload: offload}
				lab, stack := engine(t, o)
				testUDPEcho(t, o, lab, stack, stack)
			})
		}
	}
}

// TestClientUDPEcho is the same over a daemon.
func TestClientUDPEcho(t *testing.T) {
	o := netlab.Options{MTU: 1500}
	lab, stack := engine(t, o)
	_, path := daemon(t, stack, nil)
	testUDPEcho(t, o, lab, stack, client(t, path))
}

func testUDPEcho(t *testing.T, o netlab.Options, lab *netlab.Lab, stack *xdpd.Stack, f netFace) {
	_, to := echoFace(t, lab, f)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	seed := seeds.One(t)
	r := rand.New(rand.NewPCG(seed, 0))
	sent := make([]byte, sockets.MaxUDP)
	for i := range sent {
		sent[i] = byte(r.Uint32())
	}
	got := make([]byte, sockets.MaxUDP+1)
	for _, size := range echoSizes(o.MTU, r) {
		question := sent[len(sent)-size:]
		if _, err := c.Write(question); err != nil {
			t.Fatalf("seed %d: send %d bytes: %v", seed, size, err)
		}
		n, err := c.Read(got)
		if err != nil {
			t.Fatalf("seed %d: %d bytes are not answered: %v", seed, size, err)
		}
		if !bytes.Equal(got[:n], question) {
			t.Fatalf("seed %d: %d bytes come back as %d, changed", seed, size, n)
		}
	}
	// Of a datagram in fragments the kernel makes the checksum itself, offload or not.
	// That of one in 65536 looks partial and is whole.
	if partial := counted(t, stack, sockets.RxPartialSum) > 4; partial != o.TxOffload {
		t.Errorf("with offload %v, partial checksums were seen: %v", o.TxOffload, partial)
	}
	if st := getStats(t, stack); len(st.Drops()) != 0 {
		t.Errorf("drops: %v", st.Drops())
	}
}

// TestUDPManySockets has several peers talk to several sockets at once.
func TestUDPManySockets(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	results := make(chan error)
	const services, peers, rounds = 4, 4, 200
	for s := range services {
		_, to := echo(t, lab, stack)
		for p := range peers {
			c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
			go func() {
				for i := range rounds {
					if err := tryAsk(c, fmt.Sprint(s, p, i), patience); err != nil {
						results <- fmt.Errorf("service %d, peer %d, round %d: %w", s, p, i, err)
						return
					}
				}
				results <- nil
			}()
		}
	}
	for range services * peers {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

// TestTwoAddresses: an engine with two addresses answers from the one it was asked at, also on a socket for both.
func TestTwoAddresses(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	second := lab.EngineAddr.Next()
	cfg.Addrs = append(cfg.Addrs, netip.PrefixFrom(second, 24))
	stack := openStack(t, lab, cfg)
	one := listen(t, stack, netip.AddrPortFrom(second, 700).String())
	go echoLoop(one)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(second, 700))
	ask(t, c, "a connected socket takes answers from this address only")
	ping(t, lab.Peer, second, 1)
	ping(t, lab.Peer, lab.EngineAddr, 1)
}
