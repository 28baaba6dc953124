package main

import (
	"context"
	"fmt"
	"runtime/debug"

	"xdpd/reactor"
	"xdpd/sockets"
)

// waitLoops are the loops of which a crowd has one active connection, called with how many others there are.
var waitLoops = map[string]func(c *crowd, n int) error{"wait": (*crowd).waits, "event": (*crowd).events}

var waitRows = []instrRow{
	{"wait", "Poller.Wait that reports 1 socket"},
	{"event", "1 byte received, Poller.Wait, and read"},
}

// waitFew is how many connections many are compared with.
const waitFew = 10

// countWaits prints the table of a crowd's loops: with few connections, and with many.
func countWaits(ctx context.Context, exe string, chosen []instrRow, many, n int) error {
	rows := [][]string{{"work, with one connection active", "loop", fmt.Sprintf("of %d", waitFew), fmt.Sprintf("of %d", many), "ratio"}}
	for _, r := range chosen {
		if waitLoops[r.loop] == nil {
			continue
		}
		var v [2]float64
		for i, conns := range []int{waitFew, many} {
			var err error
			if v[i], err = perCall(ctx, exe, r.loop, fmt.Sprint(conns), n); err != nil {
				return fmt.Errorf("%s: %w", r.loop, err)
			}
		}
		rows = append(rows, []string{
			r.what, r.loop, fmt.Sprintf("%.0f", v[0]), fmt.Sprintf("%.0f", v[1]), fmt.Sprintf("%.3f", v[1]/v[0]),
		})
	}
	if len(rows) > 1 {
		fmt.Printf("\n%s", table(rows))
	}
	return nil
}

// waitLoop runs a loop n times on one of some connections, all of which are in a Poller.
func waitLoop(name string, conns, n int) error {
	debug.SetGCPercent(-1)
	now := int64(1e12) // virtual, so that two runs do the same
	c, err := newCrowd(withPoller, conns, func() int64 { return now }, func(ns int64) { now += ns })
	if err != nil {
		return err
	}
	defer c.close()
	return waitLoops[name](c, n)
}

// one takes the only event from the Poller.
func (c *crowd) one(buf []reactor.Event) (reactor.Event, error) {
	if k, err := c.p.Wait(buf, 0); k != 1 || err != nil {
		return reactor.Event{}, fmt.Errorf("a Wait reported %d sockets: %w", k, err)
	}
	if e := buf[0]; e.Data != uint64(c.active()) || e.Ready != sockets.In {
		return e, fmt.Errorf("a Wait reported %v of connection %d", e.Ready, e.Data)
	}
	return buf[0], nil
}

// active is the connection that is.
func (c *crowd) active() int { return len(c.snd) / 2 }

// waits asks n times for a socket that stays ready.
func (c *crowd) waits(n int) error {
	if !c.offer(c.active(), 1) {
		return errUseless
	}
	c.turn(nil)
	buf := make([]reactor.Event, 64)
	for range n {
		if _, err := c.one(buf); err != nil {
			return err
		}
	}
	return nil
}

// events has n bytes come in, each of which is reported and read.
func (c *crowd) events(n int) error {
	buf, data := make([]reactor.Event, 64), make([]byte, 64)
	for range n {
		if !c.offer(c.active(), 1) {
			return errUseless
		}
		c.turn(nil)
		c.pass(50_000)
		e, err := c.one(buf)
		if err != nil {
			return err
		}
		h, now, _ := c.r.Enter()
		k, errno := h.TCPRead(e.Sock, data, now)
		c.r.Leave()
		if k != 1 || errno != 0 {
			return fmt.Errorf("read %d bytes: %w", k, errno)
		}
	}
	return nil
}
