package xdpd_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/sockets"
)

// TestNeighbourSilent sends to an address that nobody has: the datagrams wait for it, not many of them, are dropped with
// a count when it does not answer, and a connected socket is told.
func TestNeighbourSilent(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	nobody := netip.AddrPortFrom(lab.EngineAddr.Next(), 9)
	c := listen(t, stack, ":0")
	const n = 1000
	for range n {
		if _, err := c.WriteToUDPAddrPort(make([]byte, 100), nobody); err != nil {
			t.Fatal(err)
		}
	}
	st := getStats(t, stack)
	waiting := n - st.Drops()["neigh_queue_full"]
	if held := uint64(framesHeld(&st)); waiting == 0 || waiting > 100 || held > waiting+10 {
		t.Errorf("of %d datagrams %d wait for an address, in %d frames", n, waiting, held)
	}
	// The queue is full: what is dropped at once cannot bring an error. Another address has a queue of its own.
	other, err := stack.DialUDP(netip.AddrPortFrom(nobody.Addr().Next(), 9))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Write([]byte("is anybody there?")); err != nil {
		t.Fatal(err)
	}
	ping(t, lab.Peer, lab.EngineAddr, 1) // others do not have to wait
	other.SetReadDeadline(time.Now().Add(patience))
	if _, err := other.Read(make([]byte, 1)); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("read: %v, want %v", err, unix.EHOSTUNREACH)
	}
	eventually(t, "the end of the wait", func() bool { return drops(t, stack, "neigh_failed") == waiting+1 })
	c.SetReadDeadline(time.Unix(1, 0))
	if _, _, err := c.ReadFrom(make([]byte, 1)); errors.Is(err, unix.EHOSTUNREACH) {
		t.Error("a socket that is not connected was told of an error that may not concern it")
	}
}

// TestReaderAsleep has a socket that nobody reads fill its own limit, or that of all sockets, while everything else goes
// on; and then somebody reads.
func TestReaderAsleep(t *testing.T) {
	for _, c := range []struct {
		name   string
		rcvBuf int
		reason string
	}{
		{"socket", 32 * 2048, "udp_queue_full"},
		{"all", 0, "rx_mem_limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab := newLab(t, netlab.Options{})
			cfg := engineConfig(lab)
			cfg.Frames, cfg.RcvBuf = 256, c.rcvBuf
			testReaderAsleep(t, lab, openStack(t, lab, cfg), c.reason)
		})
	}
}

func testReaderAsleep(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, reason string) {
	conn := listen(t, stack, ":800")
	peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 800))
	conn.SetReadDeadline(time.Now().Add(patience))
	settle := barrier(t, lab)
	const n = 500
	buf := make([]byte, 16)
	for range 3 {
		before := drops(t, stack, reason)
		for i := range n {
			if _, err := peer.Write([]byte("datagram")); err != nil {
				t.Fatal(err)
			}
			if i%16 == 15 { // the fill ring is small here, and what the kernel drops is not our subject
				settle()
			}
		}
		settle()
		ping(t, lab.Peer, lab.EngineAddr, 5, pingWait)
		st := getStats(t, stack)
		queued, dropped := st.Queues[0].UDP[0].Datagrams, int(st.Drops()[reason]-before)
		if queued == 0 || dropped == 0 || queued+dropped != n {
			t.Errorf("of %d datagrams %d are queued and %d dropped as %s; all drops: %v", n, queued, dropped, reason, st.Drops())
		}
		if got := st.Queues[0].Frames.Rx; got != queued || got > st.Queues[0].Frames.RxLimit {
			t.Errorf("%d datagrams are held in %d frames, of which %d are allowed", queued, got, st.Queues[0].Frames.RxLimit)
		}
		for range queued {
			if _, _, err := conn.ReadFrom(buf); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := peer.Write([]byte("again")); err != nil {
			t.Fatal(err)
		}
		if k, _, err := conn.ReadFrom(buf); err != nil || string(buf[:k]) != "again" {
			t.Errorf("when the reader is awake: %q, %v", buf[:k], err)
		}
	}
}

// TestSystemCalls holds the reactor while 256 datagrams arrive. To receive and to answer them all may cost at most one
// system call for 32 of them.
func TestSystemCalls(t *testing.T) {
	lab := newLab(t, netlab.Options{Veth: "an emulated NIC is slow to wake, and is kicked until it does"})
	cfg := engineConfig(lab)
	cfg.Ledger = false
	stack := openStack(t, lab, cfg)
	serveUDPEcho(t, stack, 7)
	peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 7))
	ask(t, peer, "so that both know each other")
	const etherMarker = 0x88b5 // IEEE 802 local experimental: the steering program passes it to the kernel
	out := openWire(t, lab.Peer, lab.PeerDev, etherMarker)
	marks := openWire(t, lab.Engine, lab.EngineDev, etherMarker)
	r := stack.Reactors()[0]
	const n = 256
	arrive := func() reactor.Counters {
		r.Enter()
		defer r.Leave()
		before := r.Counters()
		for i := range n {
			if _, err := peer.Write(make([]byte, 64)); err != nil {
				t.Fatal(err)
			}
			if i%32 == 31 { // what a NIC of few buffers loses is not our subject
				out.send(ethernet(marks.mac, out.mac, etherMarker, []byte{255, byte(i)}))
				marks.next("a marker between them", func(frame []byte) bool { return frame[14] == 255 && frame[15] == byte(i) })
			}
		}
		// When are they all in the RX ring? veth's NAPI takes frames in order, at most 64 a poll, and ends each poll by
		// publishing what it redirected (drivers/net/veth.c, veth_poll). So the 65th frame behind the last datagram is
		// seen only when that has been published.
		for k := range byte(65) {
			out.send(ethernet(marks.mac, out.mac, etherMarker, []byte{k}))
			if k%16 == 0 { // a page for each can be more than the socket holds
				marks.next("a marker behind them", func(frame []byte) bool { return frame[14] == k })
			}
		}
		return before
	}
	for range 10 {
		before := arrive()
		buf := make([]byte, 128)
		for i := range n {
			if _, err := peer.Read(buf); err != nil {
				t.Fatalf("answer %d: %v", i, err)
			}
		}
		r.Enter()
		after := r.Counters()
		r.Leave()
		calls, frames := after.Syscalls()-before.Syscalls(), after.RxFrames-before.RxFrames
		if frames != n || calls*32 > frames {
			t.Errorf("%d system calls for %d frames received and answered: before %+v, after %+v", calls, frames, before, after)
		}
	}
}

// serveUDPEcho runs an echo service on every reactor, until the test ends.
func serveUDPEcho(t *testing.T, stack *xdpd.Stack, port uint16) {
	t.Helper()
	for _, r := range stack.Reactors() {
		poller := reactor.NewPoller(r)
		var buf [2048]byte
		h, _, _ := r.Enter()
		s, errno := h.UDPBind(0, port)
		poller.Serve(func(h *sockets.Host, now int64, e reactor.Event) {
			for {
				d, errno := h.UDPRecv(e.Sock, buf[:])
				if errno != 0 {
					return
				}
				h.UDPSend(e.Sock, buf[:d.N], d.Src, now)
			}
		})
		err := poller.Add(s, sockets.In, 0)
		r.Leave()
		if errno != 0 || err != nil {
			t.Fatal(errno, err)
		}
		t.Cleanup(func() {
			h, now, ok := r.Enter()
			if ok {
				h.Close(s, now)
			}
			r.Leave()
		})
	}
}
