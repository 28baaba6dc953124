package xdpd_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
)

// TestClientHog: a client that reads nothing of many sockets, and writes to peers that read nothing, holds its share of the packet memory and
// no more. Another client's bytes come through all the while, and when the hog is gone so is what it held.
func TestClientHog(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	cfg.Frames = 2048
	stack := openStack(t, lab, cfg)
	s, path := daemon(t, stack, func(p *xdpd.ClientPolicy) { p.Frames = 20 })
	stop := make(chan struct{})
	wg := echoes(t, client(t, path), lab, lab.EngineAddr, stop)
	hog, err := xdpd.Connect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	sides := []side{clientSide(hog, lab.EngineAddr), kernelSide(lab.Peer, lab.PeerAddr)}
	for range 4 { // connections that are filled from both ends
		ours, theirs, err := connect(sides[0], sides[1].open(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []net.Conn{ours, theirs} {
			t.Cleanup(func() { c.Close() })
			go func() { _, _ = c.Write(make([]byte, 64<<20)) }()
		}
	}
	deaf, err := hog.ListenPacket("udp", ":4000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deaf.Close() })
	flood := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 4000))
	mine := func() (v xdpd.ClientView) {
		list, _ := s.Clients()
		return list[len(list)-1]
	}
	eventually(t, "the hog to hold all that it may, both ways", func() bool {
		_, _ = flood.Write(make([]byte, 1000))
		f := mine().Frames
		if f.RX > f.RXLimit || f.TX > f.TXLimit || f.RXLimit == 0 {
			t.Fatalf("it holds %+v", f)
		}
		return f.Dropped > 0 && f.TX >= f.TXLimit*3/4
	})
	st := getStats(t, stack)
	if f := st.Queues[0].Frames; f.Rx > f.RxLimit/2 || f.Tx > f.TxLimit/2 || st.Drops()["rx_mem_limit"] != 0 {
		t.Errorf("all together hold %+v; drops %v", f, st.Drops())
	}
	// Nothing of the other's is lost for want of memory, now that the hog has it.
	before := drops(t, stack, "rx_mem_limit")
	pc, err := client(t, path).ListenPacket("udp", ":4001")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 4001))
	_ = pc.SetReadDeadline(time.Now().Add(patience))
	for range 100 {
		if _, err := peer.Write([]byte("through")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		if n, _, err := pc.ReadFrom(buf); err != nil || string(buf[:n]) != "through" {
			t.Fatalf("beside a hog: %q, %v", buf[:n], err)
		}
	}
	if n := drops(t, stack, "rx_mem_limit"); n != before {
		t.Errorf("%d packets dropped for want of memory for all", n-before)
	}
	close(stop)
	wg.Wait()
	if err := hog.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "what the hog held to be free", func() bool {
		f := getStats(t, stack).Queues[0].Frames
		return f.Rx+f.Tx <= 16
	})
}

// TestClientHogGone: who fills the memory with data that nobody takes, dies, and comes again counts as a client as long as it is held.
func TestClientHogGone(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	_, path := daemon(t, stack, func(p *xdpd.ClientPolicy) { p.Clients = 2 })
	var there []net.Conn
	for range 2 {
		c, err := xdpd.Connect(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs, err := connect(clientSide(c, lab.EngineAddr), kernelSide(lab.Peer, lab.PeerAddr).open(t))
		if err != nil {
			t.Fatal(err)
		}
		there = append(there, theirs)
		_ = ours.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		_, _ = ours.Write(make([]byte, 64<<20)) // until the peer's buffers are full
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	refused := func() bool {
		c, err := xdpd.Connect(t.Context(), path)
		if err == nil {
			c.Close()
		} else if !strings.Contains(err.Error(), "are gone whose peers have not taken all") {
			t.Errorf("who is refused hears %v", err)
		}
		return err != nil
	}
	eventually(t, "both to be gone, and counted", refused)
	for _, c := range there {
		c.Close()
	}
	eventually(t, "what they wrote to be given up", func() bool { return !refused() })
}
