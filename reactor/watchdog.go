package reactor

import (
	"context"
	"reflect"
	"runtime"
	"strings"
	"time"
)

// Stall is a turn that did not end: a handler blocks, or computes for too long, while packets wait.
type Stall struct {
	Reactor int
	// Handler is the function that was running: one that Poller.Serve, RingClient.Serve or By was given. Empty: none of them
	// was; then somebody keeps the lock (Enter without Leave), or the machine gives the reactor no time.
	Handler string
	For     time.Duration
}

const defaultStall = 10 * time.Millisecond

// watch looks for turns that do not end, and tells of each once.
func (g *Group) watch(ctx context.Context) {
	told := make([]int64, len(g.reactors))
	tick := time.NewTicker(max(g.cfg.Stall/2, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for i, r := range g.reactors {
			since := r.turnAt.Load()
			if took := r.now() - since; since != 0 && since != told[i] && took > int64(g.cfg.Stall) {
				told[i] = since
				s := Stall{Reactor: i, For: time.Duration(took)}
				if name := r.handling.Load(); name != nil {
					s.Handler = *name
				}
				r.stalls.Add(1)
				g.cfg.Stalled(s)
			}
		}
	}
}

// funcName is the name of a handler, for the watchdog. It is found once, so that a call costs two stores.
func funcName(f any) *string {
	name := strings.TrimSuffix(runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name(), "-fm") // a method value
	return &name
}

// lock and unlock are the loop's. Who keeps the lock from it stalls it as a handler does.
func (r *Reactor) lock() {
	if !r.mu.TryLock() {
		r.turnAt.CompareAndSwap(0, r.now())
		r.mu.Lock()
	}
}

func (r *Reactor) unlock() {
	r.turnAt.Store(0)
	r.mu.Unlock()
}
