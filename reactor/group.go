package reactor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"xdpd/sockets"
)

// Group is the reactors of an interface: one for each of its queues, with their Hosts in one sockets.Directory. Packets that
// come in on the wrong queue are handed over by ring, without a copy. The reactors are run by loops, one goroutine each:
// as many as there are reactors, or fewer, and Resize changes that while they run.
type Group struct {
	reactors []*Reactor
	cfg      GroupConfig

	mu       sync.Mutex
	want     int
	loops    []*loop
	switched chan struct{} // closed when the loops that Resize asked for run, or the group ended
	ended    bool
	err      error
}

// GroupConfig describes a Group.
type GroupConfig struct {
	Loops int   // goroutines that run the reactors (default one for each)
	CPUs  []int // pins loop i to CPU i of the list; empty: not pinned
	// Stalled is told of turns that take longer than Stall (default 10 ms), once each, and must not block. nil: nobody looks,
	// and nothing is counted.
	Stalled func(Stall)
	Stall   time.Duration
}

// NewGroup makes a group of reactors that do not run yet. Their Hosts have the same Directory and number themselves as
// the list does (sockets.Config.Self). The errors name what does not fit.
func NewGroup(reactors []*Reactor, cfg GroupConfig) (*Group, error) {
	if len(reactors) == 0 || len(reactors) > sockets.MaxHosts {
		return nil, fmt.Errorf("reactor: a group of %d; it has 1 to %d reactors", len(reactors), sockets.MaxHosts)
	}
	if cfg.Loops == 0 {
		cfg.Loops = len(reactors)
	}
	if cfg.Stall <= 0 {
		cfg.Stall = defaultStall
	}
	g := &Group{reactors: reactors, cfg: cfg, switched: make(chan struct{})}
	if err := g.check(cfg.Loops); err != nil {
		return nil, err
	}
	g.want = cfg.Loops
	join(reactors)
	return g, nil
}

func (g *Group) check(loops int) error {
	switch {
	case loops < 1 || loops > len(g.reactors):
		return fmt.Errorf("reactor: %d loops for %d queues; there can be 1 to %d", loops, len(g.reactors), len(g.reactors))
	case len(g.cfg.CPUs) > 0 && loops > len(g.cfg.CPUs):
		return fmt.Errorf("reactor: %d loops and %d CPUs to pin them to: list one for each", loops, len(g.cfg.CPUs))
	}
	return nil
}

// Run runs the reactors until Stop or the end of ctx, and then returns nil. One that fails ends them all, and Run returns
// why.
func (g *Group) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, g.Stop)()
	if g.cfg.Stalled != nil {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go g.watch(ctx)
	}
	for g.generation() {
	}
	return g.err
}

// generation runs loops until all reactors ended (false), or Resize wants other ones.
func (g *Group) generation() (again bool) {
	g.mu.Lock()
	shares := make([][]*Reactor, g.want)
	for i, r := range g.reactors {
		shares[i%g.want] = append(shares[i%g.want], r)
	}
	g.loops = g.loops[:0]
	for _, share := range shares {
		g.loops = append(g.loops, newLoop(share))
	}
	var running sync.WaitGroup
	for i, l := range g.loops {
		pin, cpu := len(g.cfg.CPUs) > 0 && g.err == nil, 0 // after a failure, of pinning perhaps, they only end
		if pin {
			cpu = g.cfg.CPUs[i]
		}
		running.Go(func() {
			err := l.run(pin, cpu)
			for _, r := range l.reactors {
				if r.over {
					err = errors.Join(err, r.endedWith())
				}
			}
			if err != nil {
				g.fail(err)
			}
		})
	}
	close(g.switched)
	g.switched = make(chan struct{})
	g.mu.Unlock()
	running.Wait()
	for _, r := range g.reactors {
		again = again || !r.over
	}
	if !again {
		g.mu.Lock()
		g.ended = true
		close(g.switched)
		g.mu.Unlock()
	}
	return again
}

// endedWith is why a reactor that is over ended.
func (r *Reactor) endedWith() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// fail ends all reactors.
func (g *Group) fail(err error) {
	g.mu.Lock()
	if g.err == nil {
		g.err = err
	}
	g.mu.Unlock()
	for _, r := range g.reactors {
		r.Stop()
	}
}

// Stop ends Run after the turns in progress. Safe from any goroutine, any number of times.
func (g *Group) Stop() {
	for _, r := range g.reactors {
		r.Stop()
	}
}

// Loops is how many goroutines run the reactors.
func (g *Group) Loops() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.want
}

// Resize has n loops run the reactors from now on. Queues, connections and everything else stay where they are: only who
// runs them changes, between two turns. Errors say how many there can be, or that the group ended.
func (g *Group) Resize(n int) error {
	if err := g.check(n); err != nil {
		return err
	}
	g.mu.Lock()
	g.want = n
	running, switched := len(g.loops) > 0, g.switched
	for _, l := range g.loops {
		l.quit.Store(true)
	}
	g.mu.Unlock()
	if !running {
		return nil
	}
	for _, r := range g.reactors {
		r.wake.signal()
	}
	<-switched
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return ErrStopped
	}
	return nil
}
