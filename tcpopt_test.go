package xdpd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
)

// eachPair runs a test on an accepted and on a dialled connection.
func eachPair(t *testing.T, f func(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, ours *xdpd.TCPConn, theirs *net.TCPConn)) {
	t.Run("accepted", func(t *testing.T) {
		lab, stack := engine(t, netlab.Options{})
		ours, theirs := pair(t, lab, listenTCP(t, stack, stack))
		theirs.SetDeadline(time.Now().Add(2 * patience))
		f(t, lab, stack, ours.(*xdpd.TCPConn), theirs.(*net.TCPConn))
	})
	t.Run("dialled", func(t *testing.T) {
		lab, stack := engine(t, netlab.Options{})
		ours, theirs := dialledPair(t, lab, stack)
		f(t, lab, stack, ours, theirs)
	})
}

func TestCloseRead(t *testing.T) {
	eachPair(t, func(t *testing.T, _ *netlab.Lab, _ *xdpd.Stack, ours *xdpd.TCPConn, theirs *net.TCPConn) {
		waiting := blocked(func() error {
			_, err := ours.Read(make([]byte, 1))
			return err
		})
		if err := ours.CloseRead(); err != nil {
			t.Fatal(err)
		}
		if err := await(t, waiting, "the end of a Read"); err != io.EOF {
			t.Errorf("a Read that waited: %v, want %v", err, io.EOF)
		}
		if n, err := ours.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("Read: %d, %v", n, err)
		}
		// More than any window: it is acknowledged, though nobody reads it.
		if _, err := theirs.Write(make([]byte, 16<<20)); err != nil {
			t.Errorf("the peer cannot write: %v", err)
		}
		if n, err := ours.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("Read: %d, %v", n, err)
		}
		if _, err := ours.Write([]byte("I can still talk")); err != nil {
			t.Fatal(err)
		}
		if err := expect(theirs, []byte("I can still talk")); err != nil {
			t.Error(err)
		}
		if err := theirs.CloseWrite(); err != nil {
			t.Error(err)
		}
		// Data that came after Close would be answered with a reset, as Linux does.
		eventually(t, "the peer's FIN", func() bool { return info(t, ours).State == "CLOSE-WAIT" })
		ours.Close()
		if b, err := io.ReadAll(theirs); len(b) != 0 || err != nil {
			t.Errorf("behind the end: %q, %v", b, err)
		}
	})
}

// TestLinger: with 0 what was written is thrown away with a reset; otherwise it is delivered after Close.
func TestLinger(t *testing.T) {
	for _, sec := range []int{-1, 0, 5} {
		t.Run(fmt.Sprint(sec), func(t *testing.T) {
			eachPair(t, func(t *testing.T, _ *netlab.Lab, stack *xdpd.Stack, ours *xdpd.TCPConn, theirs *net.TCPConn) {
				if err := ours.SetLinger(sec); err != nil {
					t.Fatal(err)
				}
				// As much as fits while the peer does not read.
				want := random(uint64(sec), 32<<20)
				ours.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
				n, err := ours.Write(want)
				if !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
					t.Fatalf("32 MiB were written to a peer that does not read: %v", err)
				}
				if err := ours.Close(); err != nil {
					t.Fatal(err)
				}
				if sec == 0 {
					if countState(t, stack, "ESTABLISHED") != 0 {
						t.Error("the connection is still there")
					}
					if _, err := io.Copy(io.Discard, theirs); !errors.Is(err, unix.ECONNRESET) {
						t.Errorf("the peer reads: %v, want %v", err, unix.ECONNRESET)
					}
					return
				}
				if err := expect(theirs, want[:n]); err != nil {
					t.Error(err)
				}
				if k, err := theirs.Read(make([]byte, 1)); k != 0 || err != io.EOF {
					t.Errorf("behind the end: %d, %v", k, err)
				}
			})
		})
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// loseAddress makes the peer deaf and dumb, with the link up, until the end of the test.
func loseAddress(t *testing.T, lab *netlab.Lab) {
	t.Helper()
	change := func(do func(netlink.Link, *netlink.Addr) error) {
		in(t, lab.Peer, func() error {
			link, err := netlink.LinkByName(lab.PeerDev)
			if err != nil {
				return err
			}
			return do(link, &netlink.Addr{IPNet: &net.IPNet{IP: lab.PeerAddr.AsSlice(), Mask: net.CIDRMask(24, 32)}})
		})
	}
	change(netlink.AddrDel)
	t.Cleanup(func() { change(netlink.AddrAdd) })
}

// TestNoDelay: with Nagle's algorithm a second small segment waits for the first one's acknowledgement, which does not come.
func TestNoDelay(t *testing.T) {
	for _, noDelay := range []bool{true, false} {
		t.Run(fmt.Sprint(noDelay), func(t *testing.T) {
			lab, stack := engine(t, netlab.Options{})
			ours, _ := dialledPair(t, lab, stack)
			if err := ours.SetNoDelay(noDelay); err != nil {
				t.Fatal(err)
			}
			acknowledged(t, ours)
			loseAddress(t, lab)
			want := 1
			if noDelay {
				want = 5
			}
			for range 5 {
				if _, err := ours.Write([]byte{1}); err != nil {
					t.Fatal(err)
				}
				getStats(t, stack) // a turn goes by
			}
			eventually(t, fmt.Sprintf("%d bytes in flight", want), func() bool { return info(t, ours).InFlight == want })
			if got := info(t, ours).SendQueue; got != 5 {
				t.Errorf("%d bytes are queued, not 5", got)
			}
			if err := ours.SetLinger(0); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// acknowledged sends a byte and waits until nothing is in flight any more.
func acknowledged(t *testing.T, c *xdpd.TCPConn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an acknowledgement", func() bool { return info(t, c).SendQueue == 0 })
}

func TestKeepAlive(t *testing.T) {
	eachPair(t, func(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, ours *xdpd.TCPConn, _ *net.TCPConn) {
		timer := func(what string, from, to time.Duration) {
			t.Helper()
			eventually(t, what, func() bool {
				i := info(t, ours)
				return i.Timer == "keepalive" && i.TimerIn > int64(from) && i.TimerIn <= int64(to)
			})
		}
		off := func() {
			t.Helper()
			eventually(t, "no timer", func() bool { return info(t, ours).Timer == "" })
		}
		set := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		const def = 15 * time.Second
		timer("the default", 0, def)
		set(ours.SetKeepAlive(false))
		off()
		set(ours.SetKeepAlive(true))
		timer("the default again", 0, def)
		set(ours.SetKeepAlivePeriod(time.Hour))
		timer("an hour", def, time.Hour)
		set(ours.SetKeepAliveConfig(net.KeepAliveConfig{Enable: false, Idle: 2 * time.Hour, Interval: -1, Count: -1}))
		off()
		set(ours.SetKeepAlive(true))
		timer("two hours, said while it was off", time.Hour, 2*time.Hour)
		set(ours.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: -1}))
		timer("what it was", time.Hour, 2*time.Hour)
		set(ours.SetKeepAlivePeriod(0))
		timer("the default for zero", 0, def)

		loseAddress(t, lab)
		set(ours.SetKeepAliveConfig(net.KeepAliveConfig{
			Enable: true, Idle: 10 * time.Millisecond, Interval: 10 * time.Millisecond, Count: 3,
		}))
		ours.SetReadDeadline(time.Now().Add(patience))
		if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, unix.ETIMEDOUT) {
			t.Errorf("Read from a peer that went away: %v, want %v", err, unix.ETIMEDOUT)
		}
	})
}

// TestKeepAliveAnswered: a peer that is there keeps the connection, however silent.
func TestKeepAliveAnswered(t *testing.T) {
	eachPair(t, func(t *testing.T, _ *netlab.Lab, stack *xdpd.Stack, ours *xdpd.TCPConn, theirs *net.TCPConn) {
		before := getStats(t, stack).Queues[0].Reactor.RxFrames
		// A kernel answers probes of one connection twice a second.
		err := ours.SetKeepAliveConfig(net.KeepAliveConfig{
			Enable: true, Idle: 20 * time.Millisecond, Interval: 20 * time.Millisecond, Count: 127,
		})
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "answers", func() bool { return getStats(t, stack).Queues[0].Reactor.RxFrames >= before+3 })
		if _, err := theirs.Write([]byte("still here")); err != nil {
			t.Fatal(err)
		}
		if err := expect(ours, []byte("still here")); err != nil {
			t.Error(err)
		}
	})
}

func TestInfo(t *testing.T) {
	eachPair(t, func(t *testing.T, _ *netlab.Lab, _ *xdpd.Stack, ours *xdpd.TCPConn, theirs *net.TCPConn) {
		if _, err := theirs.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "100 bytes", func() bool { return info(t, ours).RecvQueue == 100 })
		i := info(t, ours)
		if i.Local.String() != ours.LocalAddr().String() || i.Remote.String() != ours.RemoteAddr().String() || i.State != "ESTABLISHED" {
			t.Errorf("%+v", i)
		}
		if i.BytesReceived != 100 || i.MSS <= 0 || i.Cwnd <= 0 || i.SndWnd <= 0 || !i.SACK || !i.TS || i.Congestion == "" {
			t.Errorf("%+v", i)
		}
		if _, err := io.ReadFull(ours, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	})
}

// TestAfterClose: every method says net.ErrClosed.
func TestAfterClose(t *testing.T) {
	eachPair(t, func(t *testing.T, _ *netlab.Lab, _ *xdpd.Stack, ours *xdpd.TCPConn, _ *net.TCPConn) {
		local, remote := ours.LocalAddr(), ours.RemoteAddr()
		if err := ours.Close(); err != nil {
			t.Fatal(err)
		}
		for name, f := range connMethods() {
			err := f(ours)
			var e *net.OpError
			if !errors.Is(err, net.ErrClosed) || !errors.As(err, &e) || e.Source.String() != local.String() || e.Addr.String() != remote.String() {
				t.Errorf("%s: %v, want %v", name, err, net.ErrClosed)
			}
		}
	})
}

// connMethods is every method that can fail.
func connMethods() map[string]func(*xdpd.TCPConn) error {
	return map[string]func(*xdpd.TCPConn) error{
		"Read": func(c *xdpd.TCPConn) error {
			_, err := c.Read(make([]byte, 1+rand.IntN(10000)))
			return err
		},
		"Write": func(c *xdpd.TCPConn) error {
			_, err := c.Write(make([]byte, 1+rand.IntN(10000)))
			return err
		},
		"ReadFrom": func(c *xdpd.TCPConn) error {
			_, err := c.ReadFrom(io.LimitReader(zeros{}, 10000))
			return err
		},
		"WriteTo": func(c *xdpd.TCPConn) error {
			_, err := c.WriteTo(onlyWriter{io.Discard})
			return err
		},
		"Info": func(c *xdpd.TCPConn) error {
			_, err := c.Info()
			return err
		},
		"CloseRead":          (*xdpd.TCPConn).CloseRead,
		"CloseWrite":         (*xdpd.TCPConn).CloseWrite,
		"Close":              (*xdpd.TCPConn).Close,
		"SetDeadline":        func(c *xdpd.TCPConn) error { return c.SetDeadline(time.Now().Add(time.Millisecond)) },
		"SetReadDeadline":    func(c *xdpd.TCPConn) error { return c.SetReadDeadline(time.Time{}) },
		"SetWriteDeadline":   func(c *xdpd.TCPConn) error { return c.SetWriteDeadline(time.Time{}) },
		"SetNoDelay":         func(c *xdpd.TCPConn) error { return c.SetNoDelay(rand.IntN(2) == 0) },
		"SetLinger":          func(c *xdpd.TCPConn) error { return c.SetLinger(rand.IntN(2)) },
		"SetKeepAlive":       func(c *xdpd.TCPConn) error { return c.SetKeepAlive(rand.IntN(2) == 0) },
		"SetKeepAlivePeriod": func(c *xdpd.TCPConn) error { return c.SetKeepAlivePeriod(time.Minute) },
		"SetKeepAliveConfig": func(c *xdpd.TCPConn) error { return c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true}) },
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// TestAllAtOnce calls everything from everywhere, on connections that live for a short while. What comes back does not
// matter; that it comes back, and leaves nothing behind, does.
func TestAllAtOnce(t *testing.T) {
	_, stack, roles := bothWays(t, netlab.Options{})
	for _, r := range roles[:2] { // a client's connections have fewer methods
		t.Run(r.name, func(t *testing.T) {
			ln := r.server.open(t)
			for round := range 30 {
				c, s, err := connect(r.client, ln)
				if err != nil {
					t.Fatal(err)
				}
				ours, is := c.(*xdpd.TCPConn)
				theirs := s
				if !is {
					ours, theirs = s.(*xdpd.TCPConn), c
				}
				var all sync.WaitGroup
				all.Go(func() { _, _ = io.Copy(theirs, theirs) }) // an echo, until something ends it
				for name, f := range connMethods() {
					if name == "Close" || round%3 > 0 && (name == "CloseRead" || name == "CloseWrite") {
						continue
					}
					all.Go(func() {
						for range 50 {
							if errors.Is(f(ours), net.ErrClosed) {
								return
							}
						}
					})
				}
				time.Sleep(time.Duration(round%10) * time.Millisecond)
				for range 2 {
					all.Go(func() { ours.Close() })
				}
				all.Go(func() {
					time.Sleep(time.Millisecond)
					theirs.Close()
				})
				done := blocked(func() error {
					all.Wait()
					return nil
				})
				if err := await(t, done, "the end of all calls"); err != nil {
					t.Error(err)
				}
			}
			quiet(t, stack)
		})
	}
}

// TestReadersWait: what came in one piece is for everybody who waits for a part of it.
func TestReadersWait(t *testing.T) {
	eachPair(t, func(t *testing.T, _ *netlab.Lab, _ *xdpd.Stack, ours *xdpd.TCPConn, theirs *net.TCPConn) {
		const readers = 4
		for range 50 {
			var results []<-chan error
			for range readers {
				results = append(results, blocked(func() error {
					_, err := ours.Read(make([]byte, 1))
					return err
				}))
			}
			if _, err := theirs.Write(make([]byte, readers)); err != nil {
				t.Fatal(err)
			}
			for _, r := range results {
				if err := await(t, r, "a byte for each"); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
