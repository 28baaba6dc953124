package reactor

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"xdpd/proto"
	"xdpd/sockets"
)

// pollRig is a rig with a poller and two UDP sockets.
type pollRig struct {
	*rig
	p    *Poller
	a, b sockets.Handle
}

func newPollRig(t *testing.T) *pollRig {
	g := &pollRig{rig: newRig(t, options{})}
	g.p = NewPoller(g.r)
	g.a, g.b = g.bind(7), g.bind(8)
	return g
}

func (g *pollRig) add(s sockets.Handle, mask sockets.Ready, data uint64) {
	g.t.Helper()
	g.enter(func(*sockets.Host, int64) {
		if err := g.p.Add(s, mask, data); err != nil {
			g.t.Fatal(err)
		}
	})
}

// wait compares what Wait reports with want, data and readiness in order.
func (g *pollRig) wait(size int, want ...Event) {
	g.t.Helper()
	buf := make([]Event, size)
	n, err := g.p.Wait(buf, 0)
	if err != nil || fmt.Sprint(buf[:n]) != fmt.Sprint(append([]Event{}, want...)) {
		g.t.Fatalf("Wait gave %v, %v; want %v", buf[:n], err, want)
	}
}

func (g *pollRig) datagram(port uint16) {
	g.t.Helper()
	g.settle()
	g.deliver(g.udpFrame(port, []byte("hello")))
	g.settle()
}

func (g *pollRig) read(s sockets.Handle) {
	g.t.Helper()
	g.enter(func(h *sockets.Host, _ int64) {
		if _, err := h.UDPRecv(s, nil); err != 0 {
			g.t.Fatal(err)
		}
	})
}

func TestPollerLevelTriggered(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 11)
	g.add(g.b, sockets.In, 12)
	g.wait(8)
	g.datagram(7)
	g.datagram(7)
	ready := Event{g.a, sockets.In, 11}
	g.wait(8, ready)
	g.wait(8, ready) // nobody read: it is reported again
	g.read(g.a)
	g.wait(8, ready) // one is left
	g.read(g.a)
	g.wait(8)
	g.datagram(7)
	g.wait(8, ready)
}

// TestPollerFair: what does not fit into one Wait is first in the next.
func TestPollerFair(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 11)
	g.add(g.b, sockets.In, 12)
	g.datagram(7)
	g.datagram(8)
	a, b := Event{g.a, sockets.In, 11}, Event{g.b, sockets.In, 12}
	for range 3 {
		g.wait(1, a)
		g.wait(1, b)
	}
	g.wait(8, a, b)
}

func TestPollerAddReady(t *testing.T) {
	g := newPollRig(t)
	g.datagram(7)
	g.add(g.a, sockets.In, 1)
	g.wait(8, Event{g.a, sockets.In, 1})
	g.add(g.b, sockets.Out|sockets.In, 2) // nothing to read, but room to write
	g.wait(8, Event{g.a, sockets.In, 1}, Event{g.b, sockets.Out, 2})
}

func TestPollerMod(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 1)
	mod := func(mask sockets.Ready, data uint64) {
		g.enter(func(*sockets.Host, int64) {
			if err := g.p.Mod(g.a, mask, data); err != nil {
				t.Fatal(err)
			}
		})
	}
	mod(sockets.Out, 2)
	g.wait(8, Event{g.a, sockets.Out, 2})
	mod(sockets.In, 3)
	g.wait(8)
	g.datagram(7)
	g.wait(8, Event{g.a, sockets.In, 3})
	mod(0, 4)
	g.wait(8)
	mod(sockets.In, 5)
	g.wait(8, Event{g.a, sockets.In, 5})
}

func TestPollerDel(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 1)
	g.datagram(7)
	g.enter(func(*sockets.Host, int64) {
		if err := g.p.Del(g.a); err != nil {
			t.Fatal(err)
		}
	})
	g.wait(8)
	g.datagram(7)
	g.wait(8)
	g.add(g.a, sockets.In, 2) // back again, with what came meanwhile
	g.wait(8, Event{g.a, sockets.In, 2})
}

// TestPollerErrorsReported: Err needs no mask.
func TestPollerErrorsReported(t *testing.T) {
	g := newPollRig(t)
	g.meet()
	g.enter(func(h *sockets.Host, now int64) {
		if err := h.UDPConnect(g.a, peerAddr, peerPort.Port()); err != 0 {
			t.Fatal(err)
		}
	})
	g.add(g.a, 0, 1)
	g.wait(8)
	g.enter(func(h *sockets.Host, now int64) {
		if err := h.UDPSend(g.a, []byte("is anybody there?"), peerPort, now); err != 0 {
			t.Fatal(err)
		}
	})
	g.settle()
	quote := g.sent[0][14:]
	n := proto.PutEthernet(g.frame[:], ourMAC, peerMAC, proto.EtherIPv4)
	n += proto.PutIPv4(g.frame[n:], &proto.IPv4{
		Src: peerAddr, Dst: ourAddr, TTL: 64, Proto: proto.ProtoICMP, TotalLen: uint16(28 + len(quote)),
	})
	icmp := g.frame[n : n+8+len(quote)]
	proto.PutICMP(icmp, proto.ICMPUnreachable, proto.UnreachPort, 0)
	copy(icmp[8:], quote)
	proto.SetICMPChecksum(icmp)
	g.deliver(g.frame[:n+len(icmp)])
	g.settle()
	g.wait(8, Event{g.a, sockets.Err, 1})
}

// TestPollerClosedSocket: it leaves by itself, at once from the ready list, and soon from the tables.
func TestPollerClosedSocket(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 1)
	g.add(g.b, sockets.In, 2)
	g.datagram(7)
	g.datagram(8)
	closeIt := func(s sockets.Handle) {
		g.enter(func(h *sockets.Host, now int64) {
			if err := h.Close(s, now); err != 0 {
				t.Fatal(err)
			}
		})
	}
	closeIt(g.a)
	g.wait(8, Event{g.b, sockets.In, 2})
	g.read(g.b)
	g.wait(8)
	closeIt(g.b) // while not ready
	g.settle()
	if n := g.watched(); n != 0 || g.r.sinks.Len() != 0 {
		t.Errorf("closed sockets are left over: %d in the poller, %d in the reactor", n, g.r.sinks.Len())
	}
	again := g.bind(7) // the same slot and port, another socket
	g.add(again, sockets.In, 3)
	g.datagram(7)
	g.wait(8, Event{again, sockets.In, 3})
}

func TestPollerErrors(t *testing.T) {
	g := newPollRig(t)
	other := NewPoller(g.r)
	check := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) || (got == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	g.enter(func(h *sockets.Host, now int64) {
		check("Mod before Add", g.p.Mod(g.a, sockets.In, 0), ErrNotAdded)
		check("Del before Add", g.p.Del(g.a), ErrNotAdded)
		check("Add", g.p.Add(g.a, sockets.In, 0), nil)
		check("Add again", g.p.Add(g.a, sockets.In, 0), ErrExists)
		check("Del elsewhere", other.Del(g.a), ErrNotAdded)
		check("Del", g.p.Del(g.a), nil)
		check("Add elsewhere after Del", other.Add(g.a, sockets.In, 0), nil)
		check("Add of nothing", g.p.Add(0, sockets.In, 0), ErrBadSocket)
		if err := h.Close(g.b, now); err != 0 {
			t.Fatal(err)
		}
		check("Add of a closed socket", g.p.Add(g.b, sockets.In, 0), ErrBadSocket)
	})
	other.Close()
	other.Close()
	g.enter(func(*sockets.Host, int64) {
		check("Add to a closed poller", other.Add(g.a, sockets.In, 0), ErrClosed)
		check("Mod in a closed poller", other.Mod(g.a, sockets.In, 0), ErrNotAdded)
		check("Add after the other poller's end", g.p.Add(g.a, sockets.In, 0), nil)
	})
	_, err := other.Wait(make([]Event, 1), 0)
	check("Wait on a closed poller", err, ErrClosed)
	stop := g.run()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, _, ok := g.r.Enter(); ok {
		t.Error("Enter of a stopped reactor says ok")
	}
	check("Add on a stopped reactor", g.p.Add(g.a, sockets.In, 0), ErrClosed)
	check("Mod on a stopped reactor", g.p.Mod(g.a, sockets.In, 0), ErrNotAdded)
	g.r.Leave()
	_, err = g.p.Wait(make([]Event, 1), -1)
	check("Wait on a stopped reactor", err, ErrClosed)
}

type waited struct {
	events []Event
	err    error
}

func (g *pollRig) waitOn(timeout time.Duration) <-chan waited {
	c := make(chan waited, 1)
	go func() {
		buf := make([]Event, 4)
		n, err := g.p.Wait(buf, timeout)
		c <- waited{buf[:n], err}
	}()
	return c
}

// waiters counts the goroutines that block in Wait.
func (p *Poller) waiters() (n int) {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	for w := p.waiting.head; w != nil; w = w.next {
		n++
	}
	return n
}

// awaitWaiters returns when n goroutines block in Wait.
func (g *pollRig) awaitWaiters(n int) {
	g.t.Helper()
	g.until("goroutines in Wait", func() bool { return g.p.waiters() == n })
}

// TestPollerWaitTimeout: the end of the time is no error, and comes to the microsecond in the turn that is told as due.
func TestPollerWaitTimeout(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 1)
	c, late := g.waitOn(1001*time.Microsecond), g.waitOn(time.Second)
	g.awaitWaiters(2)
	start := g.clock.Now()
	if _, deadline := g.r.Turn(); deadline != start+1_001_000 {
		t.Errorf("the reactor wants its turn %d ns on, not after 1001 µs", deadline-start)
	}
	g.clock.AdvanceTo(start + 1_000_999)
	g.r.Turn()
	if g.p.waiters() != 2 {
		t.Error("a Wait was over before its time")
	}
	g.clock.AdvanceTo(start + 1_001_000)
	g.r.Turn()
	if w := await(t, "the timeout", c); len(w.events) != 0 || w.err != nil {
		t.Errorf("Wait gave %+v", w)
	}
	if g.p.waiters() != 1 {
		t.Error("a Wait was over before its time")
	}
	g.p.Wake()
	await(t, "Wake", late)
	g.datagram(7)
	for _, timeout := range []time.Duration{-1, 0, time.Hour} {
		if w := await(t, "what is ready", g.waitOn(timeout)); len(w.events) != 1 || w.err != nil {
			t.Errorf("Wait(%v) gave %+v", timeout, w)
		}
	}
}

func TestPollerWaitWokenByDatagram(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 1)
	for _, timeout := range []time.Duration{-1, time.Hour} {
		c := g.waitOn(timeout)
		g.awaitWaiters(1)
		g.datagram(7)
		if w := await(t, "the datagram", c); len(w.events) != 1 || w.err != nil || w.events[0] != (Event{g.a, sockets.In, 1}) {
			t.Errorf("Wait gave %+v", w)
		}
		g.read(g.a)
	}
}

// TestPollerWaitChain: a socket that one waiter took and left ready is there for the other ones too, as in epoll
// (ep_done_scan wakes the next): the first may be busy for long.
func TestPollerWaitChain(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 1)
	c1, c2 := g.waitOn(-1), g.waitOn(-1)
	g.awaitWaiters(2)
	g.datagram(7)
	for _, c := range []<-chan waited{c1, c2} {
		if w := await(t, "the socket that is ready", c); len(w.events) != 1 || w.err != nil {
			t.Errorf("Wait gave %+v", w)
		}
	}
}

// TestPollerCloseEndsWaits: all of them, and no socket with them.
func TestPollerCloseEndsWaits(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 1)
	var cs []<-chan waited
	for range 3 {
		cs = append(cs, g.waitOn(-1))
	}
	g.awaitWaiters(3)
	g.p.Close()
	for _, c := range cs {
		if w := await(t, "Close", c); !errors.Is(w.err, ErrClosed) {
			t.Errorf("Wait gave %+v", w)
		}
	}
	g.enter(func(h *sockets.Host, _ int64) {
		if !h.Open(g.a) {
			t.Error("Close of a poller closed a socket")
		}
	})
}

// TestServe: handlers run in the turn, at most as many as a turn receives, and what is left comes in the next.
func TestServe(t *testing.T) {
	g := &pollRig{rig: newRig(t, options{frames: 2048, ring: 512})}
	g.p = NewPoller(g.r)
	const n = budget + 10
	calls := map[uint64]int{}
	g.enter(func(*sockets.Host, int64) {
		g.p.Serve(func(h *sockets.Host, now int64, e Event) {
			calls[e.Data]++
			if now != g.clock.Now() || e.Ready != sockets.In {
				t.Errorf("the handler is called with %+v at %d", e, now)
			}
			if _, err := h.UDPRecv(e.Sock, nil); err != 0 {
				t.Error(err)
			}
		})
	})
	for i := range uint64(n) {
		g.add(g.bind(uint16(1000+i)), sockets.In, i)
	}
	g.settle()
	for i := range n {
		g.deliver(g.udpFrame(uint16(1000+i), nil))
		if i == 50 { // a turn receives no more than its budget
			g.r.receive(g.clock.Now())
		}
	}
	g.r.Turn()
	if len(calls) != budget {
		t.Errorf("%d handlers ran in one turn, want %d", len(calls), budget)
	}
	if worked, _ := g.r.Turn(); !worked || len(calls) != n {
		t.Errorf("%d handlers ran in two turns, want %d", len(calls), n)
	}
	if worked, _ := g.r.Turn(); worked {
		t.Error("a turn without work found some")
	}
	for data, k := range calls {
		if k != 1 {
			t.Errorf("handler %d ran %d times for one datagram", data, k)
		}
	}
}

// TestServeMany: of many pollers with handlers a turn serves those that have something, and asks no other, be it that a
// socket became ready before Serve or after, or that a poller was closed in between.
func TestServeMany(t *testing.T) {
	g := newPollRig(t)
	calls := map[int]int{}
	var all []*Poller
	var socks []sockets.Handle
	for i := range 100 {
		p, s := NewPoller(g.r), g.bind(uint16(1000+i))
		all, socks = append(all, p), append(socks, s)
		g.enter(func(*sockets.Host, int64) {
			if err := p.Add(s, sockets.In, 0); err != nil {
				t.Fatal(err)
			}
		})
		if i == 3 {
			g.datagram(1003)
		}
		g.enter(func(*sockets.Host, int64) {
			p.Serve(func(h *sockets.Host, _ int64, e Event) {
				calls[i]++
				if _, err := h.UDPRecv(e.Sock, nil); err != 0 {
					t.Error(err)
				}
			})
		})
	}
	if len(g.r.due) != 1 || !g.r.unfinished() {
		t.Errorf("%d pollers are due, want the one whose socket was ready", len(g.r.due))
	}
	g.settle()
	for _, i := range []int{3, 50, 50, 99} {
		g.datagram(uint16(1000 + i))
	}
	if want := map[int]int{3: 2, 50: 2, 99: 1}; !maps.Equal(calls, want) {
		t.Errorf("calls by poller %v, want %v", calls, want)
	}
	if worked, _ := g.r.Turn(); worked || len(g.r.due) != 0 || g.r.unfinished() {
		t.Errorf("%d pollers are due, and nothing came", len(g.r.due))
	}
	g.deliver(g.udpFrame(1004, nil))
	g.r.receive(g.clock.Now())
	g.enter(func(*sockets.Host, int64) {
		if err := all[4].Mod(socks[4], sockets.In, 0); err != nil || len(g.r.due) != 1 {
			t.Errorf("%v; %d pollers are due", err, len(g.r.due))
		}
	})
	all[4].Close()
	g.settle()
	if calls[4] != 0 || len(g.r.due) != 0 {
		t.Errorf("a closed poller was served %d times", calls[4])
	}
}
