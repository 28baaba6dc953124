package reactor

import (
	"net/netip"

	"xdpd/proto"
	"xdpd/sockets"
)

// Spread chooses the reactor of each new connection where the main reactor, the first, accepts for all: RoundRobin,
// LeastConns, or By a function. Group.Listen calls it once, and what it returns for every connection, on the main reactor.
type Spread func(g *Group) (choose func(peer netip.AddrPort) int)

// RoundRobin gives connections to the sub-reactors, all but the main one, in turn. A group of one is its own.
func RoundRobin(g *Group) func(netip.AddrPort) int {
	first, next := g.subs(), 0
	return func(netip.AddrPort) int {
		at := first + next
		next = (next + 1) % (len(g.reactors) - first)
		return at
	}
}

// LeastConns gives a connection to the sub-reactor that has the fewest, of several to each in turn.
func LeastConns(g *Group) func(netip.AddrPort) int {
	first, next := g.subs(), 0
	dir := g.reactors[0].host.Directory()
	return func(netip.AddrPort) int {
		subs := len(g.reactors) - first
		best, fewest := 0, -1
		for i := range subs {
			at := first + (next+i)%subs
			if n := dir.Conns(at); fewest < 0 || n < fewest {
				best, fewest = at, n
			}
		}
		next = (best - first + 1) % subs
		return best
	}
}

// By gives a connection to the reactor that choose names: by the peer's address, or whatever it knows. The main reactor keeps
// those for which it names itself, 0, or one that there is not. choose must not block: the watchdog names it.
func By(choose func(peer netip.AddrPort) int) Spread {
	name := funcName(choose)
	return func(g *Group) func(netip.AddrPort) int {
		main := g.reactors[0]
		return func(peer netip.AddrPort) int {
			main.handling.Store(name)
			to := choose(peer)
			main.handling.Store(nil)
			if to >= len(g.reactors) {
				to = 0
			}
			return to
		}
	}
}

// subs is the number of the first sub-reactor.
func (g *Group) subs() int { return min(1, len(g.reactors)-1) }

// Listen opens a TCP listener on an address of ours, or on all (zero), and a port, or a free one (zero): a socket on each
// reactor, by their order, all on one port, each with the connections of its reactor to be accepted.
//
// With spread nil every reactor does the handshakes of what its queue receives, as sockets with SO_REUSEPORT: the device
// distributes. Else the main reactor does them all, and hands each connection over to the one that spread chooses as soon as
// it is established. A group of one is the same either way. Errors: EADDRNOTAVAIL, EADDRINUSE; ErrStopped.
func (g *Group) Listen(local proto.Addr, port uint16, spread Spread) (socks []sockets.Handle, err error) {
	defer func() {
		if err != nil {
			g.closeAll(socks)
			socks = nil
		}
	}()
	for i, r := range g.reactors {
		s, errno := sockets.Handle(0), sockets.Errno(0)
		h, _, ok := r.Enter()
		switch {
		case !ok:
			err = ErrStopped
		case i == 0 || spread == nil:
			s, errno = h.TCPListen(local, port)
		default:
			s, errno = h.TCPListenBehind(local, port)
		}
		if i == 0 && ok && errno == 0 {
			at, _ := h.TCPAddr(s)
			port = at.Port() // the others get the same
		}
		r.Leave()
		if errno != 0 {
			err = errno
		}
		if err != nil {
			return socks, err
		}
		socks = append(socks, s)
	}
	if spread == nil || len(g.reactors) == 1 {
		return socks, nil
	}
	// Last: until here the main reactor keeps what comes, and then there is somebody to give it to.
	h, _, ok := g.reactors[0].Enter()
	defer g.reactors[0].Leave()
	if !ok {
		return socks, ErrStopped
	}
	if errno := h.TCPSpread(socks[0], spread(g)); errno != 0 {
		return socks, errno
	}
	return socks, nil
}

// closeAll closes the sockets that Listen opened so far.
func (g *Group) closeAll(socks []sockets.Handle) {
	for i, s := range socks {
		h, now, ok := g.reactors[i].Enter()
		if ok {
			h.Close(s, now)
		}
		g.reactors[i].Leave()
	}
}
