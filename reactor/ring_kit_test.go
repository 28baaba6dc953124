package reactor

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"xdpd/rings"
	"xdpd/sockets"
)

// ringRig is a rig with a ring. The test runs the reactor by Turn.
type ringRig struct {
	*rig
	q   *Ring
	c   *RingClient
	mem []byte // its data, as the application sees it
}

func newRingRig(t testing.TB, cfg RingConfig) *ringRig {
	t.Helper()
	return ringOn(newRig(t, options{}), cfg)
}

func ringOn(g *rig, cfg RingConfig) *ringRig {
	g.t.Helper()
	join := func(q *Ring) (*RingClient, []byte) { return q.Client(), cfg.Data }
	if sharedRings {
		join = shareRing(g.t, g.r, &cfg)
	}
	q, err := NewRing(g.r, cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(q.Close)
	c, mem := join(q)
	return &ringRig{g, q, c, mem}
}

// push puts SQEs in the SQ and submits them.
func (g *ringRig) push(list ...rings.SQE) {
	g.t.Helper()
	for _, s := range list {
		slot := g.c.SQE()
		if slot == nil {
			g.t.Fatal("the SQ is full")
		}
		*slot = s
	}
	if n := g.c.Submit(); n != len(list) {
		g.t.Fatalf("submitted %d SQEs, want %d", n, len(list))
	}
}

// reap does turns and takes all completions.
func (g *ringRig) reap() (all []rings.CQE) {
	g.t.Helper()
	buf := make([]rings.CQE, 64)
	for {
		g.settle()
		n := g.c.Reap(buf)
		if n == 0 {
			return all
		}
		all = append(all, buf[:n]...)
	}
}

// do submits SQEs and takes what completes.
func (g *ringRig) do(list ...rings.SQE) []rings.CQE {
	g.t.Helper()
	g.push(list...)
	return g.reap()
}

// want checks completions, in order.
func (g *ringRig) want(got []rings.CQE, want ...rings.CQE) {
	g.t.Helper()
	if !slices.Equal(got, want) {
		g.t.Fatalf("completions %v, want %v", got, want)
	}
}

// idle checks that nothing is left in the ring.
func (g *ringRig) idle() {
	g.t.Helper()
	if err := g.left(); err != nil {
		g.t.Fatal(err)
	}
}

// left says what is left in the ring.
func (g *ringRig) left() error {
	q := g.q
	if q.used != 0 || q.pending.head != 0 || len(q.timers.reqs)+len(q.counts.reqs) != 0 || q.startQ.head != 0 || q.held.head != 0 || q.backlog.n != 0 {
		return fmt.Errorf("%d requests left; timers %d, counts %d, backlog %d", q.used, len(q.timers.reqs), len(q.counts.reqs), q.backlog.n)
	}
	for _, l := range q.byUser {
		if l != (list{}) {
			return errors.New("a request is left in the table by user data")
		}
	}
	for s := range q.socks.socks {
		if q.socks.socks[s].queues != [waitPoll + 1]list{} {
			return fmt.Errorf("a request is left at socket %d", s)
		}
	}
	if n := int(q.mail.room.Load()); n != messages(q) {
		return fmt.Errorf("room for %d messages, want %d", n, messages(q))
	}
	return nil
}

// messages is how many messages may wait.
func messages(q *Ring) int { return len(q.backlog.ring) - 2*(q.limit+1) - 1 - len(q.lends.list) }

func nop(user uint64, flags uint8) rings.SQE {
	return rings.SQE{Opcode: rings.OpNop, Flags: flags, UserData: user}
}

func cqe(user uint64, res int32) rings.CQE { return rings.CQE{UserData: user, Res: res} }

func fails(user uint64, err sockets.Errno) rings.CQE { return cqe(user, -int32(err)) }

func more(user uint64, res int32) rings.CQE {
	return rings.CQE{UserData: user, Res: res, Flags: rings.CQEMore}
}
