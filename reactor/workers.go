package reactor

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"xdpd/sockets"
)

// Workers is a pool of goroutines for business logic that may block or compute: the reactor goes on with everybody's packets
// meanwhile. It is a Poller with OneShot registrations: a worker takes one ready socket, works for it without the lock, and
// registers it again. While no worker is free, ready sockets wait in the order in which they became ready.
type Workers struct {
	p       *Poller
	work    Work
	size    int
	busy    atomic.Int64
	running sync.WaitGroup
}

// Work serves a ready socket on a worker: e is as from Poller.Wait. It calls the Host between Enter and Leave, and must have
// left when it returns. No other worker has the socket meanwhile. It returns what to wait for next; 0: the pool is done with
// the socket, as with one that it closed. A panic in it ends the process, as in any goroutine.
type Work func(e Event) (next sockets.Ready)

// NewWorkers starts size workers for sockets of r. Close ends them, and so does the end of r.
func NewWorkers(r *Reactor, size int, work Work) *Workers {
	if size < 1 {
		panic("reactor: a pool without workers")
	}
	w := &Workers{p: NewPoller(r), work: work, size: size}
	for range size {
		w.running.Go(w.run)
	}
	return w
}

// Add has the pool work for s when it is ready for any of mask; Err and Hup always count. The caller holds the reactor's lock
// (Enter). Errors as Poller.Add.
func (w *Workers) Add(s sockets.Handle, mask sockets.Ready, data uint64) error {
	return w.p.Add(s, mask|OneShot, data)
}

// Del has the pool work for s no more, once the worker that has it returns. The caller holds the lock. Errors: ErrNotAdded.
func (w *Workers) Del(s sockets.Handle) error { return w.p.Del(s) }

// Busy is how many of the workers are at work.
func (w *Workers) Busy() int { return int(w.busy.Load()) }

func (w *Workers) run() {
	var e [1]Event
	for {
		n, err := w.p.Wait(e[:], -1)
		if err != nil {
			return
		}
		if n == 0 {
			continue
		}
		w.busy.Add(1)
		next := w.work(e[0])
		w.busy.Add(-1)
		w.p.r.Enter()
		if next == 0 {
			_ = w.p.Del(e[0].Sock) // that it was closed, here or before, is no error
		} else {
			_ = w.p.Mod(e[0].Sock, next|OneShot, e[0].Data)
		}
		w.p.r.Leave()
	}
}

// Close has the workers take no more sockets, and waits for those at work, until ctx ends. The sockets stay open. The error
// says how many are still at work; each ends when its work does.
func (w *Workers) Close(ctx context.Context) error {
	w.p.Close()
	ended := make(chan struct{})
	go func() {
		w.running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		if w.Busy() == 0 {
			return nil // they are on their way out
		}
		return fmt.Errorf("reactor: %d of %d workers are still at work: %w", w.Busy(), w.size, ctx.Err())
	}
}
