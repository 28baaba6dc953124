package xdpd_test

import (
	"errors"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

// loopOf is a Loop of a daemon's client, and what makes it.
func loopOf(t *testing.T) (*netlab.Lab, *xdpd.ClientServer, xdpd.Loop, xdpd.Poller) {
	t.Helper()
	lab, stack := engine(t, netlab.Options{})
	s, path := daemon(t, stack, nil)
	l, err := client(t, path).Loop(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	p, err := l.Poller()
	if err != nil {
		t.Fatal(err)
	}
	return lab, s, l, p
}

// TestClientLoop: sockets and pollers of a daemon's client: who waits is woken by events, by Wake, by the time, and by Close.
func TestClientLoop(t *testing.T) {
	lab, _, l, p := loopOf(t)
	h, now, ok := l.Enter()
	if !ok {
		t.Fatal("it is gone")
	}
	lis, errno := h.TCPListen(0, 80)
	udp, errno2 := h.UDPBind(0, 53)
	ln := kernelSide(lab.Peer, lab.PeerAddr).open(t)
	to := netip.MustParseAddrPort(ln.Addr().String())
	remote, _ := proto.AddrFrom(to.Addr())
	out, errno3 := h.TCPDial(0, 0, remote, to.Port(), now)
	if errno+errno2+errno3 != 0 {
		t.Fatal(errno, errno2, errno3)
	}
	for data, s := range []sockets.Handle{lis, udp, out} {
		mask := sockets.In
		if s == out {
			mask = sockets.Out | reactor.OneShot
		}
		if err := p.Add(s, mask, uint64(data)); err != nil {
			t.Error(err)
		}
		if err := p.Add(s, mask, 0); !errors.Is(err, reactor.ErrExists) {
			t.Errorf("once more: %v", err)
		}
	}
	l.Leave()
	buf := make([]reactor.Event, 8)
	if _, err := p.Wait(nil, 0); !errors.Is(err, reactor.ErrInvalid) {
		t.Errorf("Wait for nothing: %v", err)
	}
	if n, err := p.Wait(buf, patience); n != 1 || err != nil || buf[0] != (reactor.Event{Sock: out, Ready: sockets.Out, Data: 2}) {
		t.Fatalf("connected: %d %v %+v", n, err, buf[0])
	}
	if n, err := p.Wait(buf, time.Millisecond); n != 0 || err != nil {
		t.Errorf("nothing happens: %d, %v", n, err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	sent := make([]byte, 300_000) // more than a call holds
	for i := range sent {
		sent[i] = byte(i * 11)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		got, err := io.ReadAll(c)
		if err != nil || string(got) != string(sent) {
			t.Errorf("the kernel read %d bytes of %d, or others: %v", len(got), len(sent), err)
		}
		c.Close()
	})
	for rest := sent; ; {
		n, errno := h.TCPWrite(out, rest, 0)
		if rest = rest[n:]; errno != 0 && errno != sockets.EAGAIN {
			t.Fatal(errno)
		} else if len(rest) == 0 {
			break
		}
		if err := p.Mod(out, sockets.Out|reactor.OneShot, 2); err != nil {
			t.Fatal(err)
		}
		if n, err := p.Wait(buf, patience); n != 1 || err != nil {
			t.Fatalf("room: %d, %v", n, err)
		}
	}
	h.TCPShutdown(out, 0)
	wg.Wait()
	if local, far := h.TCPAddr(out); local.Addr() != lab.EngineAddr || far != to {
		t.Errorf("from %v to %v", local, far)
	}
	h.Close(out, 0)
	if _, errno := h.TCPRead(out, nil, 0); errno != sockets.EBADF {
		t.Errorf("a closed socket: %v", errno)
	}
	if err := p.Del(out); !errors.Is(err, reactor.ErrNotAdded) {
		t.Errorf("a closed socket: %v", err)
	}
	woken := make(chan error, 1)
	for range 3 {
		go func() {
			n, err := p.Wait(buf, -1)
			if n != 0 {
				err = errors.New("an event")
			}
			woken <- err
		}()
		p.Wake()
		if err := await(t, woken, "the end of a Wait"); err != nil {
			t.Error(err)
		}
	}
	peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 53))
	if _, err := peer.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	if n, err := p.Wait(buf, patience); n != 1 || err != nil || buf[0].Sock != udp {
		t.Fatalf("a datagram: %d %v %+v", n, err, buf[0])
	}
	data := make([]byte, 100)
	d, errno := h.UDPRecv(udp, data)
	if errno != 0 || string(data[:d.N]) != "question" || d.Size != 8 || d.More {
		t.Errorf("datagram %+v %q: %v", d, data[:d.N], errno)
	}
	if errno := h.UDPSend(udp, []byte("answer"), d.Src, 0); errno != 0 {
		t.Error(errno)
	}
	_ = peer.SetReadDeadline(time.Now().Add(patience))
	if n, err := peer.Read(data); err != nil || string(data[:n]) != "answer" {
		t.Errorf("%q, %v", data[:n], err)
	}
	go func() {
		_, err := p.Wait(buf, -1)
		woken <- err
	}()
	p.Close()
	if err := await(t, woken, "the end of a Wait"); !errors.Is(err, reactor.ErrClosed) {
		t.Errorf("Wait of a closed poller: %v", err)
	}
	if err := p.Add(udp, sockets.In, 0); !errors.Is(err, reactor.ErrClosed) {
		t.Errorf("Add to a closed poller: %v", err)
	}
}

// TestClientLoopGone: when the daemon throws the client out, everything ends with an error, and a handler is not called any more.
func TestClientLoopGone(t *testing.T) {
	_, s, l, p := loopOf(t)
	h, _, _ := l.Enter()
	lis, errno := h.TCPListen(0, 80)
	if errno != 0 {
		t.Fatal(errno)
	}
	l.Leave()
	ended := make(chan error, 1)
	go func() {
		_, err := p.Wait(make([]reactor.Event, 1), -1)
		ended <- err
	}()
	list, _ := s.Clients()
	if err := s.Evict(list[len(list)-1].ID); err != nil {
		t.Fatal(err)
	}
	if err := await(t, ended, "the end of a Wait"); !errors.Is(err, reactor.ErrClosed) || !errors.Is(err, xdpd.ErrDaemonGone) {
		t.Errorf("Wait: %v", err)
	}
	if _, errno := h.TCPAccept(lis); errno != sockets.EBADF {
		t.Errorf("accept: %v", errno)
	}
	if _, _, ok := l.Enter(); ok {
		t.Error("it says that it is not gone")
	}
	l.Leave()
}

// TestLoops: a stack's loop is its reactor.
func TestLoops(t *testing.T) {
	_, stack := engine(t, netlab.Options{})
	if _, err := stack.Loop(1); err == nil {
		t.Error("a loop of a reactor that there is not")
	}
	loops, err := stack.Loops()
	if err != nil || len(loops) != 1 {
		t.Fatalf("%d loops, %v", len(loops), err)
	}
	p, err := loops[0].Poller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	h, _, _ := loops[0].Enter()
	s, errno := h.UDPBind(0, 53)
	if errno != 0 || p.Add(s, sockets.Out, 5) != nil {
		t.Error(errno)
	}
	loops[0].Leave()
	buf := make([]reactor.Event, 1)
	if n, err := p.Wait(buf, patience); n != 1 || err != nil || buf[0].Data != 5 {
		t.Errorf("%d, %v, %+v", n, err, buf[0])
	}
	h, now, _ := loops[0].Enter()
	h.Close(s, now)
	loops[0].Leave()
	if err := loops[0].Close(); err != nil {
		t.Error(err)
	}
}
