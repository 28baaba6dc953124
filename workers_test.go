package xdpd_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/sockets"
)

// TestWorkersAside: business logic that never ends has the workers of one reactor but one; the connections of all kernel
// clients are served, and new ones accepted.
func TestWorkersAside(t *testing.T) {
	lab, stack := engine(t, netlab.Options{Queues: 2})
	socks, err := stack.ListenReactors(7)
	if err != nil {
		t.Fatal(err)
	}
	const workers = 3
	blocked, release := make(chan int, 2*workers), make(chan struct{})
	for i, r := range stack.Reactors() {
		w := reactor.NewWorkers(r, workers, func(e reactor.Event) sockets.Ready {
			buf := make([]byte, 100)
			h, now, ok := r.Enter()
			n, errno := h.TCPRead(e.Sock, buf, now)
			r.Leave()
			if ok && string(buf[:n]) == "block" {
				blocked <- i
				<-release
			}
			h, now, ok = r.Enter()
			defer r.Leave()
			if !ok || errno != 0 || n == 0 {
				h.Close(e.Sock, now)
				return 0
			}
			h.TCPWrite(e.Sock, buf[:n], now)
			return sockets.In
		})
		p := reactor.NewPoller(r)
		r.Enter()
		p.Serve(func(h *sockets.Host, _ int64, e reactor.Event) {
			for c, errno := h.TCPAccept(e.Sock); errno == 0; c, errno = h.TCPAccept(e.Sock) {
				if err := w.Add(c, sockets.In, 0); err != nil {
					t.Error(err)
				}
			}
		})
		err := p.Add(socks[i], sockets.In, 0)
		r.Leave()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			h, now, ok := r.Enter()
			if ok {
				h.Close(socks[i], now)
			}
			r.Leave()
			if err := w.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	at := netip.AddrPortFrom(lab.EngineAddr, 7)
	busy := make(map[int]int)
	var waiting []*net.TCPConn
	for busy[0] < workers-1 || busy[1] < workers-1 {
		c, err := kernelTCP(t, lab.Peer, at)
		if err != nil {
			t.Fatal(err)
		}
		local := netip.MustParseAddrPort(c.LocalAddr().String())
		on := -1
		eventually(t, "the connection", func() bool {
			for i, q := range getStats(t, stack).Queues {
				for _, k := range q.TCP {
					if k.Remote == local && k.State == "ESTABLISHED" {
						on = i
					}
				}
			}
			return on >= 0
		})
		if busy[on] == workers-1 {
			c.Close()
			continue
		}
		if _, err := c.Write([]byte("block")); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
		select {
		case i := <-blocked:
			busy[i]++
		case <-time.After(patience):
			t.Fatal("no worker takes it")
		}
	}
	for i := range 40 {
		c, err := kernelTCP(t, lab.Peer, at)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 10 {
			ask(t, c, fmt.Sprint("client ", i, ", question ", n))
		}
		c.Close()
	}
	close(release)
	for _, c := range waiting {
		if _, err := io.ReadFull(c, make([]byte, len("block"))); err != nil {
			t.Error(err)
		}
		c.Close()
	}
	noConnections(t, stack)
}
