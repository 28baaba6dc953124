package xdpd_test

import (
	"errors"
	"net/netip"
	"testing"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
)

// trustedRing is a ring of a daemon that lends its client frames.
func trustedRing(t testing.TB, stack *xdpd.Stack) *xdpd.RemoteRing {
	t.Helper()
	_, path := daemon(t, stack, func(p *xdpd.ClientPolicy) { p.Lends = ringLends })
	return remoteRing(t, path, xdpd.RemoteConfig{Data: ringData, ZeroCopy: true})
}

func remoteRing(t testing.TB, path string, cfg xdpd.RemoteConfig) *xdpd.RemoteRing {
	t.Helper()
	q, err := xdpd.OpenRing(t.Context(), path, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Close() })
	return q
}

// TestClientNotTrusted: without a word in the policy nobody is given packet memory, whatever he asks for; nor who does not ask.
func TestClientNotTrusted(t *testing.T) {
	_, stack := engine(t, netlab.Options{})
	s, path := daemon(t, stack, nil)
	_, trusting := daemon(t, stack, func(p *xdpd.ClientPolicy) { p.Lends = ringLends })
	for _, q := range []*xdpd.RemoteRing{
		remoteRing(t, path, xdpd.RemoteConfig{Data: ringData, ZeroCopy: true}), remoteRing(t, trusting, xdpd.RemoteConfig{Data: ringData}),
	} {
		if res := ringAsk(t, q.RingClient, rings.SQE{Opcode: rings.OpFrameGet}); q.Lends != 0 || res != -int32(sockets.ENOBUFS) {
			t.Errorf("%d frames may be lent, FRAME_GET gives %d", q.Lends, res)
		}
	}
	if list, _ := s.Clients(); list[0].Lends != 0 {
		t.Errorf("the list says %d", list[0].Lends)
	}
	if _, err := xdpd.OpenRing(t.Context(), trusting, xdpd.RemoteConfig{Data: 100, ZeroCopy: true}); err == nil {
		t.Error("a table of lent frames where there is no room for it")
	}
}

// TestClientZeroCopyGone: what a client had lent, in all states, is back when it is gone, and others have it.
func TestClientZeroCopyGone(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	s, path := daemon(t, stack, func(p *xdpd.ClientPolicy) { p.Lends = ringLends })
	peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 53))
	for range 20 {
		q := remoteRing(t, path, xdpd.RemoteConfig{Data: ringData, ZeroCopy: true})
		rings.PutSockAddr(q.Data, netip.AddrPortFrom(netip.IPv4Unspecified(), 53))
		for _, sqe := range []rings.SQE{{Opcode: rings.OpSocket, FD: 2, Off: 2}, {Opcode: rings.OpBind, Off: 16}} {
			if res := ringAsk(t, q.RingClient, sqe); res < 0 {
				t.Fatal(sockets.Errno(-res))
			}
		}
		for range ringLends / 4 {
			if _, err := peer.Write([]byte("question")); err != nil {
				t.Fatal(err)
			}
			*q.SQE() = rings.SQE{Opcode: rings.OpRecvZC}
			q.Submit()
			if n, err := q.Wait(1, patience); n == 0 || err != nil {
				t.Fatal(err)
			}
			c, _ := q.Peek()
			q.Seen(1)
			l, b := q.Lent(c.Buffer())
			if string(b) != "question" || l.Src.String() != peer.LocalAddr().String() {
				t.Fatalf("%q from %v", b, l.Src)
			}
			if res := ringAsk(t, q.RingClient, rings.SQE{Opcode: rings.OpFrameGet}); res <= 0 {
				t.Fatal(sockets.Errno(-res))
			}
		}
		list, _ := s.Clients()
		if n := getStats(t, stack).Queues[0].Frames.Owners["lent"]; n != ringLends/2 || list[0].Lends != ringLends || list[0].Frames.RX != n/2 {
			t.Errorf("%d frames lent, want %d; %+v", n, ringLends/2, list[0])
		}
		if err := s.Evict(list[0].ID); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all frames to be back", func() bool { return getStats(t, stack).Queues[0].Frames.Owners["lent"] == 0 })
		for _, err := q.Wait(1, -1); !errors.Is(err, reactor.ErrRingClosed); _, err = q.Wait(1, -1) {
			q.Seen(1)
		}
		if err := q.Close(); err != nil {
			t.Error(err)
		}
		eventually(t, "the client to be gone", func() bool { list, _ := s.Clients(); return len(list) == 0 })
	}
}
