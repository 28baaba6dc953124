package reactor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"xdpd/proto"
	"xdpd/sockets"
)

// office is a rig that runs, with a listener whose connections a pool echoes; who says "block" has his worker for ever.
type office struct {
	*rig
	w       *Workers
	blocked chan struct{} // a token for each worker that blocks
	release chan struct{}
	most    atomic.Int64 // workers at work at a time
	dialed  uint64
}

func newOffice(t *testing.T, workers int) *office {
	o := &office{rig: newRig(t, options{realTime: true}), blocked: make(chan struct{}, workers), release: make(chan struct{})}
	o.meet()
	p := NewPoller(o.r)
	o.w = NewWorkers(o.r, workers, o.work)
	o.enter(func(h *sockets.Host, _ int64) {
		l, errno := h.TCPListen(0, echoPort)
		if errno != 0 {
			t.Fatal(errno)
		}
		p.Serve(func(h *sockets.Host, _ int64, e Event) {
			for c, errno := h.TCPAccept(l); errno == 0; c, errno = h.TCPAccept(l) {
				if err := o.w.Add(c, sockets.In, uint64(c)); err != nil {
					t.Error(err)
				}
			}
		})
		if err := p.Add(l, sockets.In, 0); err != nil {
			t.Fatal(err)
		}
	})
	o.run()
	return o
}

func (o *office) work(e Event) sockets.Ready {
	for n := int64(o.w.Busy()); ; {
		if was := o.most.Load(); n <= was || o.most.CompareAndSwap(was, n) {
			break
		}
	}
	buf := make([]byte, 100)
	h, now, _ := o.r.Enter()
	n, errno := h.TCPRead(e.Sock, buf, now)
	o.r.Leave()
	switch {
	case errno == sockets.EAGAIN:
		o.t.Error("a worker was called for nothing")
		return sockets.In
	case errno != 0 || n == 0 || e.Data != uint64(e.Sock):
		o.t.Errorf("event %+v: %d, %v", e, n, errno)
	case string(buf[:n]) == "panic":
		panic("this was a worker")
	case string(buf[:n]) == "bye":
		h, now, _ := o.r.Enter()
		h.Close(e.Sock, now)
		o.r.Leave()
		return 0
	case string(buf[:n]) == "block":
		o.blocked <- struct{}{}
		<-o.release
	}
	h, now, _ = o.r.Enter()
	defer o.r.Leave()
	if _, errno := h.TCPWrite(e.Sock, buf[:n], now); errno != 0 {
		o.t.Error(errno)
	}
	return sockets.In
}

// dial opens a connection from a port of the peer.
func (o *office) dial(port uint16) *client {
	o.t.Helper()
	c := &client{port: port, seq: 100}
	o.put(func() []byte { return c.frame(o.rig, echoPort, proto.SYN, "") })
	o.hears("the SYN-ACK", c, func(h proto.TCP) bool { c.ack = h.Seq + 1; return h.Flags == proto.SYN|proto.ACK })
	o.put(func() []byte { return c.frame(o.rig, echoPort, proto.ACK, "") })
	o.dialed++
	o.until("accept", func() bool { return o.host.Counters().Stats[sockets.TCPAccepted] == o.dialed })
	return c
}

// hears waits for a segment to c.
func (o *office) hears(what string, c *client, ok func(proto.TCP) bool) {
	o.t.Helper()
	o.until(what, func() bool {
		for _, b := range o.sent {
			if eth, _ := proto.ParseEthernet(b); eth.Type != proto.EtherIPv4 {
				continue
			}
			if h, fault := proto.ParseTCP(b[34:]); fault == proto.OK && h.DstPort == c.port && ok(h) {
				return true
			}
		}
		return false
	})
}

func (o *office) say(c *client, text string) {
	o.put(func() []byte { return c.frame(o.rig, echoPort, proto.ACK|proto.PSH, text) })
}

// ask says something and waits for it to be sent back.
func (o *office) ask(c *client, text string) {
	o.t.Helper()
	o.say(c, text)
	o.hears("the echo of "+text, c, func(h proto.TCP) bool { return h.Ack == c.seq && h.Seq == c.ack && h.Flags&proto.PSH != 0 })
	c.ack += uint32(len(text))
}

// TestWorkersBlock: one connection's work never ends, another's packets are answered: by the other worker, and when that
// one blocks as well, by the reactor.
func TestWorkersBlock(t *testing.T) {
	o := newOffice(t, 2)
	a, b, c := o.dial(5000), o.dial(5001), o.dial(5002)
	o.ask(a, "hello")
	o.say(a, "block")
	await(t, "the worker", o.blocked)
	for i := range 200 {
		o.ask(b, fmt.Sprint("still there ", i))
		o.ask(c, fmt.Sprint("here too ", i))
	}
	o.say(b, "block")
	await(t, "the other worker", o.blocked)
	o.say(c, "to be acknowledged")
	o.hears("an ACK", c, func(h proto.TCP) bool { return h.Ack == c.seq })
	for i := range uint16(100) { // the reactor accepts
		o.dial(6000 + i)
	}
	if n := o.w.Busy(); n != 2 {
		t.Errorf("%d workers are busy", n)
	}
	end, cancel := context.WithCancel(t.Context())
	cancel()
	if err := o.w.Close(end); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "2 of 2 workers") {
		t.Errorf("Close while they work: %v", err)
	}
	close(o.release)
	if err := o.w.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
	o.enter(func(h *sockets.Host, _ int64) {
		if err := o.w.Add(0, sockets.In, 0); !errors.Is(err, ErrClosed) {
			t.Errorf("Add behind Close: %v", err)
		}
	})
}

// TestWorkersMany: more connections than workers. All are served, by no more workers than there are, and none is called for
// a connection that another has, or that has nothing; what a worker closes is gone.
func TestWorkersMany(t *testing.T) {
	o := newOffice(t, 3)
	var clients []*client
	for i := range uint16(20) {
		clients = append(clients, o.dial(5000+i))
	}
	for i := range 50 {
		for _, c := range clients {
			o.say(c, fmt.Sprint("number ", i))
		}
		for _, c := range clients {
			c.ack += uint32(len(fmt.Sprint("number ", i)))
			o.hears("all echoes", c, func(h proto.TCP) bool { return h.Ack == c.seq && h.Seq+uint32(len(fmt.Sprint("number ", i))) == c.ack })
		}
		o.enter(func(*sockets.Host, int64) { o.sent = nil })
	}
	if n := o.most.Load(); n < 1 || n > 3 {
		t.Errorf("%d of 3 workers were at work", n)
	}
	for _, c := range clients {
		o.say(c, "bye")
		o.hears("FIN", c, func(h proto.TCP) bool { return h.Flags&proto.FIN != 0 })
	}
	o.until("all to be idle", func() bool { return o.w.Busy() == 0 })
	o.enter(func(*sockets.Host, int64) {
		if n := o.watched(); n != 1 { // the listener
			t.Errorf("%d sockets are in pollers", n)
		}
	})
	if err := o.w.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestWorkersEnd: the end of the reactor is the end of its workers.
func TestWorkersEnd(t *testing.T) {
	o := newOffice(t, 4)
	o.ask(o.dial(5000), "hello")
	o.r.Stop()
	ended := make(chan struct{})
	go func() {
		o.w.running.Wait()
		close(ended)
	}()
	await(t, "the workers' end", ended)
	if err := o.w.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestWorkersPanic: a panic is not swallowed: it ends the process, here a child of this one.
func TestWorkersPanic(t *testing.T) {
	const mark = "XDPD_TEST_PANIC"
	if os.Getenv(mark) != "" {
		o := newOffice(t, 2)
		o.ask(o.dial(5000), "panic")
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestWorkersPanic$")
	cmd.Env = append(os.Environ(), mark+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), "panic: this was a worker") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestWorkersDone: a socket with which the work is done is out of the pool, and may be put in again.
func TestWorkersDone(t *testing.T) {
	g := newPollRig(t)
	w := NewWorkers(g.r, 1, func(Event) sockets.Ready { return 0 })
	for range 3 {
		var err error
		if g.enter(func(*sockets.Host, int64) { err = w.Add(g.a, sockets.In, 0) }); err != nil {
			t.Fatal(err)
		}
		g.datagram(7)
		g.until("the worker to be done", func() bool { return g.watched() == 0 })
	}
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
