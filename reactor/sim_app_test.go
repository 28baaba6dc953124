package reactor_test

import (
	"net/netip"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

const (
	waitSockets = 8
	discardPort = 99 // where the program sends by itself
)

// app is the program on the engine: echo services that run on the reactor, a socket that nobody reads, and sockets that
// are read after Poller.Wait.
type app struct {
	w     *world
	serve *reactor.Poller
	wait  *reactor.Poller
	socks []*appSock // served ones; an Event's Data is the index
	mute  sockets.Handle
	waits [waitSockets]sockets.Handle
	masks [waitSockets]sockets.Ready
	buf   []byte
	evs   [64]reactor.Event

	received  uint64 // datagrams taken by UDPRecv
	discarded uint64 // datagrams in a queue that was closed
	sends     uint64
}

// appSock is a served socket.
type appSock struct {
	h       sockets.Handle
	port    uint16 // UDP
	conn    bool
	open    bool
	dst     netip.AddrPort
	pending []byte // to be echoed when there is room
	waiting bool   // for Out
}

func newApp(w *world) *app {
	a := &app{w: w, serve: reactor.NewPoller(w.r), wait: reactor.NewPoller(w.r), buf: make([]byte, 1<<16)}
	return a
}

func (a *app) start() {
	a.w.enter(func(int64) {
		a.serve.Serve(a.handle)
		for _, port := range echoPorts {
			a.openEcho(port)
		}
		if a.w.p.tcp {
			h, err := a.w.host.TCPListen(0, tcpPort)
			a.okay(err)
			a.add(&appSock{h: h, port: tcpPort, conn: true})
		}
		if !a.w.p.clean {
			var err sockets.Errno
			a.mute, err = a.w.host.UDPBind(0, mutePort)
			a.okay(err)
		}
	})
}

func (a *app) okay(err sockets.Errno) {
	if err != 0 {
		a.w.fail("set-up: %v", err)
	}
}

func (a *app) add(s *appSock) {
	s.open = true
	a.w.must(a.serve.Add(s.h, sockets.In, uint64(len(a.socks))))
	a.socks = append(a.socks, s)
}

func (a *app) openEcho(port uint16) {
	h, err := a.w.host.UDPBind(0, port)
	a.okay(err)
	a.add(&appSock{h: h, port: port})
}

// handle is the reactor.Handler of the served sockets.
func (a *app) handle(h *sockets.Host, now int64, e reactor.Event) {
	s := a.socks[e.Data]
	switch {
	case !s.open:
		a.w.fail("an event for a socket that was closed before: %+v", e)
	case e.Ready == 0 || e.Sock != s.h:
		a.w.fail("an event for nothing: %+v", e)
	case s.port == 0:
		a.handleConn(h, now, s)
	case s.conn:
		a.accept(h, s)
	default:
		a.handleUDP(h, now, s)
	}
}

// await changes what the socket is reported for: Out while something waits to be sent, else In.
func (a *app) await(s *appSock, e *reactor.Poller) {
	mask, waiting := sockets.In, s.pending != nil
	if waiting {
		mask = sockets.Out
	}
	if waiting != s.waiting {
		s.waiting = waiting
		a.w.must(e.Mod(s.h, mask, a.index(s)))
	}
}

func (a *app) index(s *appSock) uint64 {
	for i := len(a.socks) - 1; ; i-- {
		if a.socks[i] == s {
			return uint64(i)
		}
	}
}

func (a *app) handleUDP(h *sockets.Host, now int64, s *appSock) {
	defer a.await(s, a.serve)
	for range a.w.p.perCall {
		if s.pending == nil {
			d, err := h.UDPRecv(s.h, a.buf)
			if err == sockets.EAGAIN {
				return
			}
			if err != 0 || d.N != d.Size {
				a.w.fail("UDPRecv: %v, %+v", err, d)
			}
			a.received++
			a.w.udp.arrived(s.port, a.buf[:d.N], d.Size, d.Src)
			s.pending, s.dst = append([]byte{}, a.buf[:d.N]...), d.Src
		}
		switch err := h.UDPSend(s.h, s.pending, s.dst, now); err {
		case sockets.EAGAIN:
			return
		case 0, sockets.EMSGSIZE: // more frames than the Host may ever use
			s.pending = nil
		default:
			a.w.fail("UDPSend: %v", err)
		}
	}
}

func (a *app) accept(h *sockets.Host, s *appSock) {
	for {
		c, err := h.TCPAccept(s.h)
		if err == sockets.EAGAIN {
			return
		}
		a.okay(err)
		_, remote := h.TCPAddr(c)
		a.w.tcp.accepted(remote)
		a.add(&appSock{h: c, dst: remote})
	}
}

func (a *app) handleConn(h *sockets.Host, now int64, s *appSock) {
	for range a.w.p.perCall {
		if len(s.pending) > 0 {
			n, err := h.TCPWrite(s.h, s.pending, now)
			if err == sockets.EAGAIN {
				break
			}
			if err != 0 {
				a.closeConn(h, now, s)
				return
			}
			if s.pending = s.pending[n:]; len(s.pending) > 0 {
				break
			}
			s.pending = nil
		}
		n, err := h.TCPRead(s.h, a.buf[:1+a.w.rng.IntN(8000)], now)
		if err == sockets.EAGAIN {
			break
		}
		if err != 0 || n == 0 {
			a.closeConn(h, now, s)
			return
		}
		s.pending = append([]byte{}, a.buf[:n]...)
	}
	a.await(s, a.serve)
}

func (a *app) closeConn(h *sockets.Host, now int64, s *appSock) {
	s.open = false
	a.okay(h.Close(s.h, now))
}

// delivered is how many datagrams the Host gave to sockets.
func (a *app) delivered() uint64 {
	n := a.received + a.discarded
	for _, u := range a.w.host.UDPSockets() {
		n += uint64(u.Datagrams)
	}
	return n
}

func (a *app) closeUDP(s sockets.Handle, now int64) {
	local, remote := a.w.host.UDPAddr(s)
	for _, u := range a.w.host.UDPSockets() {
		if u.Local == local && u.Remote == remote {
			a.discarded += uint64(u.Datagrams)
		}
	}
	a.okay(a.w.host.Close(s, now))
}

// act is what the program does by itself in a step.
func (a *app) act() {
	if a.w.p.clean {
		return
	}
	rng := a.w.rng
	for a.w.chance(0.3) {
		switch i := rng.IntN(len(a.waits)); rng.IntN(8) {
		case 0, 1, 2:
			a.toggleWait(i)
		case 3, 4:
			a.readWait(i)
		case 5:
			a.sendSelf(i)
		case 6:
			a.reopenEcho()
		case 7:
			a.dropConn()
		}
	}
}

// toggleWait opens or closes a socket of the waiting poller; every other one is connected.
func (a *app) toggleWait(i int) {
	a.w.enter(func(now int64) {
		if a.waits[i] != 0 {
			a.closeUDP(a.waits[i], now)
			a.waits[i] = 0
			return
		}
		h, err := a.w.host.UDPBind(engineAddr, waitPort+uint16(i))
		a.okay(err)
		if i%2 == 0 {
			a.okay(a.w.host.UDPConnect(h, stationAddr(0), 20000))
		}
		a.waits[i], a.masks[i] = h, []sockets.Ready{sockets.In, sockets.In | sockets.Out}[a.w.rng.IntN(2)]
		a.w.must(a.wait.Add(h, a.masks[i], uint64(i)))
	})
}

func (a *app) readWait(i int) {
	if a.waits[i] == 0 {
		return
	}
	a.w.enter(func(int64) {
		for range a.w.rng.IntN(4) {
			d, err := a.w.host.UDPRecv(a.waits[i], a.buf[:[]int{16, 65536}[a.w.rng.IntN(2)]])
			switch err {
			case 0:
				a.received++
				a.w.udp.arrived(waitPort+uint16(i), a.buf[:d.N], d.Size, d.Src)
			case sockets.EAGAIN, sockets.ECONNREFUSED, sockets.EHOSTUNREACH, sockets.ENETUNREACH, sockets.EMSGSIZE,
				sockets.EPROTO, sockets.ENOPROTOOPT:
			default:
				a.w.fail("UDPRecv: %v", err)
			}
		}
	})
}

// sendSelf sends to a station, to nobody, and to where there is no route.
func (a *app) sendSelf(i int) {
	if a.waits[i] == 0 {
		return
	}
	a.sends++
	id := 1<<63 | a.sends
	size := max(8, a.w.udp.size())
	dst := []proto.Addr{a.w.peer.any().ip, farNet + 9, nobodyAddr + proto.Addr(a.w.rng.IntN(30)), 0x08080808}[a.w.rng.IntN(4)]
	b := make([]byte, size)
	fillPayload(b, id)
	if dst != 0x08080808 {
		a.w.udp.unsolicited[id] = size
	}
	a.w.enter(func(now int64) {
		err := a.w.host.UDPSend(a.waits[i], b, netip.AddrPortFrom(dst.Netip(), discardPort), now)
		if dst == 0x08080808 && err == 0 {
			a.w.fail("a datagram without a route was taken")
		}
	})
}

func (a *app) reopenEcho() {
	for i, s := range a.socks {
		if !s.open || s.port == 0 || s.conn || !a.w.chance(0.3) {
			continue
		}
		a.w.enter(func(now int64) {
			s.open = false
			if a.w.chance(0.3) { // out of the poller first, by hand
				a.w.must(a.serve.Del(a.socks[i].h))
			}
			a.closeUDP(s.h, now)
			a.openEcho(s.port)
		})
		return
	}
}

// dropConn ends a connection, or the listener with all that wait in it, in the middle of things.
func (a *app) dropConn() {
	for _, s := range a.socks {
		if !s.open || !s.conn && s.port != 0 || !a.w.chance(a.w.p.earlyGo) {
			continue
		}
		a.w.enter(func(now int64) {
			switch {
			case s.conn:
				s.open = false
				a.okay(a.w.host.Close(s.h, now))
				h, err := a.w.host.TCPListen(0, tcpPort)
				a.okay(err)
				a.add(&appSock{h: h, port: tcpPort, conn: true})
			case a.w.chance(0.3):
				a.w.tcp.excuse(s.dst)
				_ = a.w.host.TCPShutdown(s.h, now) // ENOTCONN: the peer was first
			case a.w.chance(0.5):
				a.w.tcp.excuse(s.dst)
				s.open = false
				a.okay(a.w.host.TCPAbort(s.h, now))
			default:
				a.w.tcp.excuse(s.dst)
				a.closeConn(a.w.host, now, s)
			}
		})
		return
	}
}

// poll compares what Wait reports with what is ready: all of it, and nothing else.
func (a *app) poll() {
	n, err := a.wait.Wait(a.evs[:], 0)
	a.w.must(err)
	var got [waitSockets]sockets.Ready
	for _, e := range a.evs[:n] {
		if got[e.Data] != 0 || e.Sock != a.waits[e.Data] {
			a.w.fail("Wait reports %+v twice, or it was closed", e)
		}
		got[e.Data] = e.Ready
	}
	a.w.enter(func(int64) {
		if a.w.host.PendingEvents() { // the next turn tells
			return
		}
		for i, h := range a.waits {
			want := sockets.Ready(0)
			if h != 0 {
				want = a.w.host.Ready(h) & (a.masks[i] | sockets.Err | sockets.Hup)
			}
			if got[i] != want {
				a.w.fail("Wait reports %#x for socket %d, it is ready for %#x", got[i], i, want)
			}
		}
	})
}

// checkIdle: when nothing happens any more no echo waits in the program, and none in a queue that it should read.
func (a *app) checkIdle() {
	a.poll()
	for _, s := range a.socks {
		if s.open && s.port != 0 && !s.conn && (s.pending != nil || a.w.host.Ready(s.h)&sockets.In != 0) {
			a.w.fail("the echo service on port %d was not told: %d bytes wait to be sent, ready for %#x",
				s.port, len(s.pending), a.w.host.Ready(s.h))
		}
	}
}

// closeUnread closes what nobody reads: it may hold all the memory there is for received data.
func (a *app) closeUnread() {
	a.w.enter(func(now int64) {
		if a.mute != 0 {
			a.closeUDP(a.mute, now)
		}
		for i, h := range a.waits {
			if h != 0 {
				a.closeUDP(h, now)
				a.waits[i] = 0
			}
		}
	})
}

func (a *app) closeAll() {
	a.w.enter(func(now int64) {
		for _, s := range a.socks {
			if !s.open {
				continue
			}
			s.open = false
			if s.port != 0 && !s.conn {
				a.closeUDP(s.h, now)
				continue
			}
			a.okay(a.w.host.Close(s.h, now))
		}
	})
}
