package xdpd_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/sockets"
)

// echoOn serves TCP echo on one reactor, for connections that listener accepts there.
func echoOn(t *testing.T, r *reactor.Reactor, listener sockets.Handle) {
	t.Helper()
	p := reactor.NewPoller(r)
	buf := make([]byte, 65536)
	r.Enter()
	defer r.Leave()
	p.Serve(func(h *sockets.Host, now int64, e reactor.Event) {
		if e.Sock == listener {
			for c, errno := h.TCPAccept(listener); errno == 0; c, errno = h.TCPAccept(listener) {
				if err := p.Add(c, sockets.In, 0); err != nil {
					t.Error(err)
				}
			}
			return
		}
		n, errno := h.TCPRead(e.Sock, buf, now)
		if n == 0 {
			if errno != sockets.EAGAIN {
				h.Close(e.Sock, now)
			}
			return
		}
		if w, errno := h.TCPWrite(e.Sock, buf[:n], now); w != n || errno != 0 {
			t.Errorf("wrote %d of %d bytes: %v", w, n, errno)
		}
	})
	if err := p.Add(listener, sockets.In, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h, now, ok := r.Enter()
		if ok {
			h.Close(listener, now)
		}
		r.Leave()
	})
}

// echoAll opens and closes n connections of a kernel client, some at a time, and checks every byte that comes back.
func echoAll(t *testing.T, lab *netlab.Lab, port uint16, n int) {
	t.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	var clients sync.WaitGroup
	for i := range 64 {
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			sent, got := make([]byte, 4000), make([]byte, 4000)
			for left.Add(-1) >= 0 && !t.Failed() {
				c, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, port))
				if err != nil {
					t.Error(err)
					return
				}
				for range 1 + rng.IntN(3) {
					b := sent[:1+rng.IntN(len(sent)-1)]
					for i := range b {
						b[i] = byte(rng.Uint32())
					}
					if _, err := c.Write(b); err != nil {
						t.Error(err)
						break
					}
					if _, err := io.ReadFull(c, got[:len(b)]); err != nil || !bytes.Equal(got[:len(b)], b) {
						t.Errorf("after %d bytes: %v, or they differ", len(b), err)
						break
					}
				}
				c.Close()
			}
		})
	}
	clients.Wait()
}

// resizing changes the number of goroutines that run the reactors all the time, until the returned function is called.
func resizing(t *testing.T, stack *xdpd.Stack, most int) (stop func()) {
	quit := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-quit:
				return
			default:
			}
			if err := stack.Resize(1 + n%most); err != nil {
				t.Error(err)
				return
			}
		}
	})
	return func() { close(quit); done.Wait() }
}

// TestReactors: connections of one reactor whose segments come in on all queues, and connections that one reactor accepts
// and others have, while the goroutines that run them come and go. No byte is lost, and no frame.
func TestReactors(t *testing.T) {
	const conns = 10_000
	for _, queues := range []int{2, 4, 8} {
		for _, spread := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d queues, spread %v", queues, spread), func(t *testing.T) {
				lab := newLab(t, netlab.Options{Queues: queues})
				cfg := engineConfig(lab)
				cfg.Frames = 4096
				stack := openStack(t, lab, cfg)
				reactors := stack.Reactors()
				h, _, _ := reactors[0].Enter()
				l, errno := h.TCPListen(0, 7)
				var next atomic.Uint32
				if spread && errno == 0 {
					errno = h.TCPSpread(l, func(netip.AddrPort) int { return int(next.Add(1)) % queues })
				}
				reactors[0].Leave()
				if errno != 0 {
					t.Fatal(errno)
				}
				echoOn(t, reactors[0], l)
				for _, r := range reactors[1:] {
					if spread {
						h, _, _ := r.Enter()
						behind, errno := h.TCPListenBehind(0, 7)
						r.Leave()
						if errno != 0 {
							t.Fatal(errno)
						}
						echoOn(t, r, behind)
					}
				}
				stop := resizing(t, stack, queues)
				echoAll(t, lab, 7, conns)
				stop()
				eventually(t, "the connections' end", func() bool {
					open := 0
					for _, q := range getStats(t, stack).Queues {
						for _, c := range q.TCP {
							if c.State != "LISTEN" && c.State != "TIME-WAIT" {
								open++
							}
						}
					}
					return open == 0 || t.Failed()
				})
				// What the last packets brought may still be in the lane to another queue.
				var over, in, lost uint64
				var st xdpd.Stats
				eventually(t, "what was handed over", func() bool {
					st = getStats(t, stack)
					over, in, lost = 0, 0, st.Drops()["handover_full"]+st.Drops()["handover_no_frame"]
					for _, q := range st.Queues {
						over += q.Host.Stats[sockets.HandedOver]
						in += q.Host.Stats[sockets.HandedIn]
					}
					return over == in+lost
				})
				for i, q := range st.Queues {
					if accepted := q.Host.Stats[sockets.TCPAccepted]; (accepted > 0) != (spread || i == 0) || spread && accepted != conns/uint64(queues) {
						t.Errorf("reactor %d accepted %d connections", i, accepted)
					}
				}
				if over < conns {
					t.Errorf("%d packets handed over, %d taken, %d dropped between", over, in, lost)
				}
				t.Logf("%d packets were handed over; drops %v", over, st.Drops())
			})
		}
	}
}
