package faces

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/internal/seeds"
	"xdpd/sockets"
)

// bed is an engine with a Loop.
type bed struct {
	*netlab.Lab
	t  *testing.T
	st *xdpd.Stack
	l  Loop
}

// eachFace runs a test on the poller and on the ring. At its end nothing may be left.
func eachFace(t *testing.T, conns int, test func(b *bed)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, face := range []string{"poller", "ring"} {
		t.Run(face, func(t *testing.T) {
			lab, err := netlab.New(netlab.Options{NICs: netlab.NICs()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { lab.Close() })
			st, err := xdpd.Open(xdpd.Config{
				Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Ledger: true,
				Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { st.Close() })
			loops, err := New(st, face, conns)
			if err != nil {
				t.Fatal(err)
			}
			b := &bed{lab, t, st, loops[0]}
			test(b)
			b.l.Close()
			if b.l.Conns() != 0 {
				t.Errorf("%d connections are left", b.l.Conns())
			}
			if b.l.Post(func() { t.Error("called after the end") }) {
				t.Error("a closed loop takes calls")
			}
			b.eventually("the end of all sockets", b.rest)
		})
	}
}

// rest tells whether no socket is open and no received frame is held.
func (b *bed) rest() bool {
	stats, err := b.st.Stats()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, q := range stats.Queues {
		for _, c := range q.TCP {
			if c.State != "TIME-WAIT" {
				return false
			}
		}
		if q.Frames.Rx > 0 {
			return false
		}
	}
	return true
}

func (b *bed) eventually(what string, done func() bool) {
	b.t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("never came: %s", what)
		}
	}
}

func (b *bed) listen(port uint16, accept func() Stream) {
	b.t.Helper()
	if err := b.l.Listen(port, accept); err != nil {
		b.t.Fatal(err)
	}
}

// tryDial connects from the peer's kernel.
func (b *bed) tryDial(port uint16) (c net.Conn, err error) {
	err = b.Peer.Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", netip.AddrPortFrom(b.EngineAddr, port).String(), 20*time.Second)
		return err
	})
	if err == nil {
		b.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (b *bed) dial(port uint16) *net.TCPConn {
	b.t.Helper()
	c, err := b.tryDial(port)
	if err != nil {
		b.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// wantReset reads until the end, which must be a reset.
func (b *bed) wantReset(what string, c net.Conn) {
	b.t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
		b.t.Errorf("%s: the peer sees %v, want a reset", what, err)
	}
}

// wantNobody connects where a connection is reset at once, perhaps before connect(2) has returned.
func (b *bed) wantNobody(what string, port uint16) {
	b.t.Helper()
	c, err := b.tryDial(port)
	if err == nil {
		b.wantReset(what, c)
	} else if !errors.Is(err, unix.ECONNRESET) {
		b.t.Errorf("%s: connecting gives %v", what, err)
	}
}

// script is a Stream that does as its fields say. Those without atomics are set before, or used on the loop.
type script struct {
	conn     Conn
	room     atomic.Int64
	deadline time.Time
	q        []byte // to be sent
	ended    bool
	taken    atomic.Int64
	open     chan Conn
	closed   chan error
}

func newScript(room int) *script {
	s := &script{open: make(chan Conn, 2), closed: make(chan error, 2)}
	s.room.Store(int64(room))
	return s
}

func (s *script) Open(c Conn) {
	s.conn = c
	s.open <- c
}
func (s *script) Room() int                  { return int(s.room.Load()) }
func (s *script) Take(b []byte)              { s.taken.Add(int64(len(b))) }
func (s *script) End()                       { s.ended = true }
func (s *script) Next() (b []byte, fin bool) { return s.q, s.ended }
func (s *script) Sent(n int)                 { s.q = s.q[n:] }
func (s *script) Deadline() time.Time        { return s.deadline }
func (s *script) Closed(err error)           { s.closed <- err }

// wantClosed waits for Closed, which is called once.
func (b *bed) wantClosed(what string, s *script, want error) {
	b.t.Helper()
	select {
	case err := <-s.closed:
		if !errors.Is(err, want) {
			b.t.Errorf("%s: closed with %v, want %v", what, err, want)
		}
	case <-time.After(20 * time.Second):
		b.t.Fatalf("%s: never closed", what)
	}
	if len(s.closed) > 0 {
		b.t.Errorf("%s: closed twice", what)
	}
}

// TestDeadline: a connection whose time is over is reset.
func TestDeadline(t *testing.T) {
	eachFace(t, 10, func(b *bed) {
		s := newScript(1000)
		s.deadline = time.Now().Add(100 * time.Millisecond)
		b.listen(80, func() Stream { return s })
		c := b.dial(80)
		b.wantReset("deadline", c)
		b.wantClosed("deadline", s, os.ErrDeadlineExceeded)
	})
}

// TestLimit: beyond it connections are reset and dials fail; one that ends makes room.
func TestLimit(t *testing.T) {
	eachFace(t, 2, func(b *bed) {
		t := b.t
		got := make(chan *script, 10)
		b.listen(80, func() Stream {
			s := newScript(1000)
			got <- s
			return s
		})
		c1, _ := b.dial(80), b.dial(80)
		s1, s2 := <-got, <-got
		<-s1.open
		<-s2.open
		b.wantNobody("one too many", 80)
		dialled := newScript(1)
		b.l.Post(func() { b.l.Dial(netip.AddrPortFrom(b.PeerAddr, 1), dialled) })
		b.wantClosed("a dial", dialled, sockets.EMFILE)
		if err := c1.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		b.wantClosed("the first", s1, nil)
		b.eventually("room", func() bool { return b.l.Conns() == 1 })
		b.eventually("a place", func() bool { // a ring's is free a moment later
			_, _ = b.tryDial(80)
			select {
			case s := <-got:
				<-s.open
				return true
			case <-time.After(100 * time.Millisecond):
				return false
			}
		})
	})
}

// TestDial: what becomes of it.
func TestDial(t *testing.T) {
	eachFace(t, 10, func(b *bed) {
		t := b.t
		var ln net.Listener
		if err := b.Peer.Do(func() (err error) {
			ln, err = net.Listen("tcp4", netip.AddrPortFrom(b.PeerAddr, 0).String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		dial := func(to netip.AddrPort, s *script) {
			if !b.l.Post(func() { b.l.Dial(to, s) }) {
				t.Fatal("the loop has ended")
			}
		}
		s := newScript(1000)
		s.q = []byte("hello")
		dial(ln.Addr().(*net.TCPAddr).AddrPort(), s)
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		<-s.open
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
			t.Errorf("the backend reads %q, %v", got, err)
		}
		c.Close()
		b.wantClosed("a good one", s, nil)
		refused, silent, nowhere := newScript(1), newScript(1), newScript(1)
		dial(netip.AddrPortFrom(b.PeerAddr, 1), refused)
		b.wantClosed("a port that nobody has", refused, sockets.ECONNREFUSED)
		dial(netip.AddrPortFrom(netip.MustParseAddr("10.77.0.99"), 1), silent)
		b.wantClosed("a host that is not there", silent, sockets.EHOSTUNREACH)
		dial(netip.AddrPortFrom(netip.MustParseAddr("10.99.0.1"), 1), nowhere)
		b.wantClosed("a network without a route", nowhere, sockets.ENETUNREACH)
		late := newScript(1)
		late.deadline = time.Now().Add(50 * time.Millisecond)
		dial(netip.AddrPortFrom(netip.MustParseAddr("10.77.0.98"), 1), late)
		b.wantClosed("no time", late, os.ErrDeadlineExceeded)
		given := newScript(1)
		b.l.Post(func() { b.l.Dial(netip.AddrPortFrom(netip.MustParseAddr("10.77.0.97"), 1), given).Abort() })
		b.wantClosed("one that is given up", given, net.ErrClosed)
	})
}

// TestListen: a port that is taken, and the end of listening, which ends nothing else.
func TestListen(t *testing.T) {
	eachFace(t, 10, func(b *bed) {
		t := b.t
		s := newScript(1000)
		b.listen(80, func() Stream { return s })
		if err := b.l.Listen(80, func() Stream { return nil }); !errors.Is(err, sockets.EADDRINUSE) {
			t.Errorf("a port that is taken gives %v", err)
		}
		c := b.dial(80)
		<-s.open
		b.listen(81, func() Stream { return nil })
		b.wantNobody("nobody wants it", 81)
		b.l.StopListening()
		b.eventually("refusal", func() bool {
			_, err := b.tryDial(80)
			return errors.Is(err, unix.ECONNREFUSED)
		})
		if _, err := c.Write([]byte("12345")); err != nil {
			t.Fatal(err)
		}
		b.eventually("what came on the connection", func() bool { return s.taken.Load() == 5 })
	})
}

// TestRoom: a Stream without room is given nothing, until it says that it has some. A reset it hears of all the same.
func TestRoom(t *testing.T) {
	eachFace(t, 10, func(b *bed) {
		t := b.t
		s := newScript(0)
		b.listen(80, func() Stream { return s })
		c := b.dial(80)
		conn := <-s.open
		if _, err := c.Write(make([]byte, 40_000)); err != nil {
			t.Fatal(err)
		}
		if n := s.taken.Load(); n != 0 {
			t.Errorf("given %d bytes without room", n)
		}
		s.room.Store(7)
		b.l.Post(conn.Wake)
		b.eventually("all of it, by sevens", func() bool { return s.taken.Load() == 40_000 })
		s.room.Store(0)
		b.l.Post(conn.Wake)
		if _, err := c.Write([]byte("more")); err != nil {
			t.Fatal(err)
		}
		_ = c.SetLinger(0)
		c.Close()
		b.wantClosed("a reset", s, sockets.ECONNRESET)
	})
}

// TestClose resets what is open.
func TestClose(t *testing.T) {
	eachFace(t, 200, func(b *bed) {
		got := make(chan *script, 200)
		b.listen(80, func() Stream {
			s := newScript(1000)
			s.q = make([]byte, 1<<20) // which the peer does not read
			got <- s
			return s
		})
		var conns []*net.TCPConn
		for range 100 {
			conns = append(conns, b.dial(80))
		}
		var scripts []*script
		for range conns {
			s := <-got
			<-s.open
			scripts = append(scripts, s)
		}
		b.l.Close()
		for i, c := range conns {
			b.wantClosed("at the end", scripts[i], net.ErrClosed)
			b.wantReset("at the end", c)
		}
	})
}

// whim echoes, with room and at times as it likes.
type whim struct {
	r     *rand.Rand
	l     Loop
	conn  Conn
	q     Queue
	ended bool
	shy   bool // says that there is no room, once
	over  chan error
}

func (w *whim) Open(c Conn) { w.conn = c }
func (w *whim) Room() int {
	if w.shy = !w.shy && w.r.IntN(4) == 0; w.shy {
		w.l.Post(w.conn.Wake)
		return 0
	}
	return min(w.q.Room(), 1+w.r.IntN(40_000))
}
func (w *whim) Take(b []byte) { w.q.Put(b) }
func (w *whim) End()          { w.ended = true }
func (w *whim) Next() (b []byte, fin bool) {
	return w.q.Bytes(), w.ended
}
func (w *whim) Sent(n int)              { w.q.Drop(n) }
func (w *whim) Deadline() (d time.Time) { return d }
func (w *whim) Closed(err error)        { w.over <- err }

// TestWhim: whatever room a Stream has, every byte goes through it once and in order.
func TestWhim(t *testing.T) {
	seed := seeds.One(t)
	eachFace(t, 20, func(b *bed) {
		t := b.t
		over := make(chan error, 10)
		n := uint64(0)
		b.listen(7, func() Stream {
			n++
			return &whim{r: rand.New(rand.NewPCG(seed, n)), l: b.l, over: over}
		})
		done := make(chan error, 10)
		for i := range 10 {
			c := b.dial(7)
			text := make([]byte, 500_000+i)
			rand.NewChaCha8([32]byte{byte(seed), byte(i)}).Read(text)
			go func() {
				_, err := c.Write(text)
				if err = errors.Join(err, c.CloseWrite()); err != nil {
					done <- err
				}
			}()
			go func() {
				got, err := io.ReadAll(c)
				if err == nil && !bytes.Equal(got, text) {
					err = errors.New("other bytes come back")
				}
				done <- err
			}()
		}
		for range 10 {
			if err := errors.Join(<-done, <-over); err != nil {
				t.Error(err)
			}
		}
	})
}

// mirror is a Splicer that echoes.
type mirror struct {
	*whim
	passed int
}

func (m *mirror) Splicer() Splicer { return m }
func (m *mirror) Onto() Conn       { return m.conn }
func (m *mirror) Passed(n int)     { m.passed += n }

// TestSplice: what is passed on is every byte, on a ring in the frames in which it came, also beside some that are stuck.
func TestSplice(t *testing.T) {
	seed := seeds.One(t)
	eachFace(t, 100, func(b *bed) {
		t := b.t
		over := make(chan error, 100)
		b.listen(7, func() Stream {
			return &mirror{whim: &whim{r: rand.New(rand.NewPCG(seed, 0)), l: b.l, over: over}}
		})
		var stuck []*net.TCPConn
		for range 4 {
			c := b.dial(7)
			_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
			for n := 1; n > 0; {
				n, _ = c.Write(make([]byte, 1<<20))
			}
			stuck = append(stuck, c)
		}
		const size = 2 << 20
		text := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(seed)}).Read(text)
		for range 3 {
			c := b.dial(7)
			done := make(chan error, 1)
			go func() {
				_, err := c.Write(text)
				done <- errors.Join(err, c.CloseWrite())
			}()
			got, err := io.ReadAll(c)
			if err = errors.Join(err, <-done); err != nil || !bytes.Equal(got, text) {
				t.Errorf("of %d bytes come back %d, %v", size, len(got), err)
			}
			c.Close()
			if err := <-over; err != nil {
				t.Error(err)
			}
		}
		if l, ok := b.l.(*ringLoop); ok {
			reactor := b.st.Reactors()[0]
			reactor.Enter()
			n := l.q.Counters()
			reactor.Leave()
			if n.SentZC < 3*size/1500 || n.CopiedZC > size/4 {
				t.Errorf("%d frames are sent as they lie, %d bytes are copied", n.SentZC, n.CopiedZC)
			}
		}
		for _, c := range stuck {
			_ = c.SetLinger(0)
			c.Close()
		}
	})
}

// TestQueue against a plain slice.
func TestQueue(t *testing.T) {
	r := rand.New(rand.NewPCG(seeds.One(t), 0))
	var q Queue
	var want []byte
	for range 100_000 {
		if r.IntN(2) == 0 {
			b := make([]byte, r.IntN(min(q.Room(), 3000)+1))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			q.Put(b)
			want = append(want, b...)
		} else {
			n := r.IntN(len(want) + 1)
			q.Drop(n)
			want = want[n:]
		}
		if !bytes.Equal(q.Bytes(), want) || q.Room() != QueueSize-len(want) {
			t.Fatal("the queue has other bytes")
		}
		if len(want) == 0 && q.buf != nil {
			t.Fatal("an empty queue holds memory")
		}
	}
}
