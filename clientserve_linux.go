package xdpd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
)

// ClientServer hands out rings of a stack.
type ClientServer struct {
	st       *Stack
	policies []ClientPolicy
	l        *net.UnixListener
	owners   portOwners
	serving  sync.WaitGroup
	doors    doors
	rests    rests

	mu      sync.Mutex
	clients map[uint64]*client
	past    []pastClient
	next    uint64
	refused uint64
	closed  bool
}

// ClientView is what is told of a client.
type ClientView struct {
	ID       uint64             `json:"id"`
	PID      int32              `json:"pid"`
	UID      uint32             `json:"uid"`
	GID      uint32             `json:"gid"`
	Policy   string             `json:"policy"`
	Reactor  int                `json:"reactor"`
	Memory   uint64             `json:"memory"`
	Sockets  int                `json:"sockets"`
	Requests int                `json:"requests"`
	Since    time.Time          `json:"since"`
	Counters rings.RingCounters `json:"counters"`
	Frames   sockets.AccountUse `json:"frames"`
	HeldBack uint64             `json:"held_back"` // connections and data to send that had to wait because of the policy's rates
	Knocks   uint64             `json:"knocks"`    // wake-ups of the engine
	Limits   ClientLimits       `json:"limits"`
	Lends    int                `json:"lends"` // frames that may be lent to it: not 0, and it has all of the packet memory
}

// ClientLimits is what a client may have: what it asked for, and what its policy says.
type ClientLimits struct {
	Sockets  int           `json:"sockets"`
	Requests int           `json:"requests"`
	CPU      int           `json:"cpu"`
	Rates    reactor.Rates `json:"rates"`
}

// client is a process with a ring.
type client struct {
	view   ClientView
	policy *ClientPolicy
	conn   *net.UnixConn
	share  *rings.Share
	ring   *reactor.Ring
	r      *reactor.Reactor
	bell   int // another descriptor of the connection, for the reactor
	knocks atomic.Uint64
}

// pastClient is one that is gone, whose connections may still have something to send.
type pastClient struct {
	policy *ClientPolicy
	frames func() int
}

// ServeClients serves applications in processes of their own at l, a listener of type unixpacket, until Close. A process is admitted by the first policy that names
// its user or group.
func (st *Stack) ServeClients(l *net.UnixListener, policies []ClientPolicy) (*ClientServer, error) {
	s := &ClientServer{st: st, l: l, clients: map[uint64]*client{}, doors: doors{of: map[uint32]*door{}}}
	s.owners.ports, s.owners.free = map[ownedPort][]portOwner{}, map[freeKey]int{}
	for _, p := range policies {
		if err := p.Check(); err != nil {
			return nil, err
		}
		s.policies = append(s.policies, p.withDefaults())
	}
	if err := takeNoRights(l); err != nil {
		return nil, err
	}
	s.serving.Go(s.accept)
	return s, nil
}

// Close throws all clients out. Once more does nothing.
func (s *ClientServer) Close() error {
	err := s.l.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.mu.Lock()
	s.closed = true
	for _, c := range s.clients {
		_ = c.conn.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
	return err
}

// Clients tells who is there, oldest first, and how many were refused.
func (s *ClientServer) Clients() (list []ClientView, refused uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.clients {
		v := c.view
		c.r.Enter()
		v.Counters, v.Sockets, v.Requests = c.ring.Counters(), c.ring.Sockets(), c.ring.InFlight()
		v.Frames = c.ring.Held()
		connects, sends := c.ring.HeldBack()
		v.HeldBack, v.Knocks = connects+sends, c.knocks.Load()
		c.r.Leave()
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b ClientView) int { return int(a.ID) - int(b.ID) })
	return list, s.refused
}

// Evict throws a client out: its sockets are closed, its peers get a FIN or a reset.
func (s *ClientServer) Evict(id uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[id]
	if c == nil {
		return fmt.Errorf("there is no client %d", id)
	}
	return c.conn.Close()
}

func (s *ClientServer) accept() {
	for {
		conn, err := s.l.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: somebody may go
			continue
		}
		cred, err := peerCred(conn)
		wait, ok := time.Duration(0), false
		if err == nil {
			wait, ok = s.doors.enter(cred.Uid, time.Now())
		}
		if !ok {
			conn.Close()
			s.refuse()
			time.Sleep(refuseRest)
			continue
		}
		s.serving.Go(func() {
			defer conn.Close()
			time.Sleep(wait)
			s.serve(conn, cred)
		})
	}
}

func (s *ClientServer) refuse() {
	s.mu.Lock()
	s.refused++
	s.mu.Unlock()
}

// serve is a connection's life.
func (s *ClientServer) serve(conn *net.UnixConn, cred *unix.Ucred) {
	c, err := s.welcome(conn, cred)
	s.doors.leave(cred.Uid)
	if err != nil {
		s.refuse()
		w := rings.ShareWelcome{Magic: rings.ShareMagic, Version: rings.ShareVersion, Errno: uint32(unix.EACCES)}
		if errno := unix.Errno(0); errors.As(err, &errno) {
			w.Errno = uint32(errno)
		}
		copy(w.Reason[:len(w.Reason)-1], err.Error())
		_ = rings.SendShare(conn, &w) // it went away, or does not listen
		return
	}
	if c.answer(&s.rests) {
		c.finish()
	}
	s.end(c)
}

// finishTime is how long what an application submitted before it went may take to begin.
const finishTime = 100 * time.Millisecond

// finish has the reactor take what is left in the SQ: a program that writes a datagram and exits has sent it, as with the kernel.
func (c *client) finish() {
	for until := time.Now().Add(finishTime); time.Now().Before(until); time.Sleep(finishTime / 100) {
		_, _, ok := c.r.Enter()
		left := c.ring.Unread()
		c.r.Leave() // takes them, if nobody else does
		if left == 0 || !ok {
			return
		}
	}
}

// end gives back what a client had; only then is it gone, so that its place is not taken before its memory is free.
func (s *ClientServer) end(c *client) {
	rest := pastClient{c.policy, c.ring.Rest()}
	c.close()
	s.mu.Lock()
	delete(s.clients, c.view.ID)
	s.past = append(s.past, rest)
	s.mu.Unlock()
}

// refusal is why a process gets no ring, with the errno that its library shows.
func refusal(errno unix.Errno, format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errno)...)
}

// welcome does the handshake.
func (s *ClientServer) welcome(conn *net.UnixConn, cred *unix.Ucred) (c *client, err error) {
	// What it asks is read before anything is refused: a connection that is closed unread is reset, and nobody sees why.
	if err := conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return nil, err
	}
	h, err := rings.RecvHello(conn)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(s.policies, func(p ClientPolicy) bool { return p.admits(cred.Uid, cred.Gid) })
	if i < 0 {
		return nil, refusal(unix.EACCES, "no policy admits uid %d, gid %d", cred.Uid, cred.Gid)
	}
	p := &s.policies[i]
	if h.Sockets == 0 {
		h.Sockets = uint32(p.Sockets)
		if h.Fixed < h.Sockets { // else it is told that there are not so many
			h.Sockets -= h.Fixed
		}
	}
	h.Requests = cmp.Or(h.Requests, uint32(p.Requests))
	if err := p.allows(h); err != nil {
		return nil, err
	}
	if c, err = s.newClient(conn, cred, p, h); err != nil {
		return nil, err
	}
	w := c.share.Welcome()
	w.Reactor, w.Reactors = uint32(c.view.Reactor), uint32(len(s.st.Reactors()))
	if host, _, ok := c.r.Enter(); ok {
		w.MTU = uint32(host.MTU())
	}
	c.r.Leave()
	err = rings.SendShare(conn, &w, c.share.FD())
	if err == nil && h.Version == rings.ShareVersionFrames {
		err = s.sendFrames(conn, c)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		s.end(c)
		return nil, err
	}
	return c, nil
}

// sendFrames gives a client the packet memory, if its policy says so.
func (s *ClientServer) sendFrames(conn *net.UnixConn, c *client) error {
	f := rings.ShareFrames{Magic: rings.ShareMagic, Lends: uint32(c.view.Lends)}
	if c.view.Lends == 0 {
		return rings.SendShare(conn, &f)
	}
	f.Table, f.Size = uint64(len(c.share.Data)-c.view.Lends*rings.LentSize), uint64(len(s.st.region.Mem()))
	return rings.SendShare(conn, &f, s.st.region.FD())
}

func (p *ClientPolicy) allows(h *rings.ShareHello) error {
	switch {
	case h.Magic != rings.ShareMagic || h.Version != rings.ShareVersion && h.Version != rings.ShareVersionFrames:
		return refusal(unix.EPROTO, "a client of version %d; this is version %d", h.Version, rings.ShareVersion)
	case h.SQEntries > clientEntries || h.CQEntries > clientEntries:
		return refusal(unix.EINVAL, "rings of %d and %d entries; at most %d can be", h.SQEntries, h.CQEntries, clientEntries)
	case h.Data > p.Memory:
		return refusal(unix.ENOMEM, "%d bytes of memory; %s may have %d", h.Data, p.Name, p.Memory)
	case int64(h.Sockets)+int64(h.Fixed) > int64(p.Sockets):
		return refusal(unix.EMFILE, "%d sockets; %s may have %d", int64(h.Sockets)+int64(h.Fixed), p.Name, p.Sockets)
	case p.lends(h)*rings.LentSize > int(min(h.Data, rings.MaxShareData)):
		return refusal(unix.EINVAL, "%d bytes of memory hold no table of %d lent frames", h.Data, p.Lends)
	case int64(h.Requests) > int64(p.Requests):
		return refusal(unix.EAGAIN, "%d requests; %s may have %d", h.Requests, p.Name, p.Requests)
	}
	return nil
}

// lends is how many frames a client is to have.
func (p *ClientPolicy) lends(h *rings.ShareHello) int {
	if h.Version != rings.ShareVersionFrames {
		return 0
	}
	return p.Lends
}

func (s *ClientServer) newClient(conn *net.UnixConn, cred *unix.Ucred, p *ClientPolicy, h *rings.ShareHello) (c *client, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := s.forget(p)
	n := gone
	for _, c := range s.clients {
		if c.policy == p {
			n++
		}
	}
	switch {
	case s.closed:
		return nil, refusal(unix.ESHUTDOWN, "the engine ends")
	case n >= p.Clients && gone > 0:
		return nil, refusal(unix.EUSERS, "%d clients of %s are there, and %d are gone whose peers have not taken all; %d may be", n-gone, p.Name, gone, p.Clients)
	case n >= p.Clients:
		return nil, refusal(unix.EUSERS, "%d clients of %s are there, as many as may be", n, p.Name)
	}
	share, err := rings.NewShare(h)
	if err != nil {
		return nil, err
	}
	c = &client{policy: p, conn: conn, share: share, bell: -1}
	defer func(c *client) { // which is nil again when an error is returned
		if err != nil {
			c.close()
		}
	}(c)
	if c.bell, err = dupConn(conn); err != nil {
		return nil, err
	}
	reactors := s.st.Reactors()
	number := int(h.Reactor % uint32(len(reactors)))
	c.r = reactors[number]
	cfg := reactor.RingConfig{
		Ports:     clientPorts{&s.owners, cred.Uid, s.st.ringPorts()},
		SQEntries: h.SQEntries, CQEntries: h.CQEntries, Requests: int(h.Requests), Sockets: int(h.Sockets), Fixed: int(h.Fixed),
		Area: share.Ring, Data: share.Data, Bell: c.wake, Guard: p, CPU: p.CPU, Frames: p.Frames, Rates: p.Rates,
	}
	if n := p.lends(h); n > 0 {
		cfg.Lends, cfg.LendTable = n, uint64(len(share.Data)-n*rings.LentSize)
	}
	switch c.ring, err = reactor.NewRing(c.r, cfg); {
	case errors.Is(err, reactor.ErrRingClosed):
		err = refusal(unix.ESHUTDOWN, "the engine ends")
	case errors.Is(err, reactor.ErrTooManyRings):
		err = refusal(unix.EUSERS, "reactor %d has as many rings as it may", number)
	}
	if err != nil {
		return nil, err
	}
	s.next++
	c.view = ClientView{
		ID: s.next, PID: cred.Pid, UID: cred.Uid, GID: cred.Gid, Policy: p.Name, Reactor: number,
		Memory: share.Welcome().Size, Since: time.Now(), Lends: p.lends(h),
		Limits: ClientLimits{Sockets: int(h.Sockets + h.Fixed), Requests: int(h.Requests), CPU: p.CPU, Rates: p.Rates},
	}
	s.clients[c.view.ID] = c
	return c, nil
}

// forget lets go of clients that hold nothing any more, and says how many of a policy still do. They count as clients: else who writes
// to peers that take nothing, dies and comes again would hold more each time.
func (s *ClientServer) forget(policy *ClientPolicy) (n int) {
	s.past = slices.DeleteFunc(s.past, func(c pastClient) bool {
		if c.frames() == 0 {
			return true
		}
		if c.policy == policy {
			n++
		}
		return false
	})
	return n
}

// close gives back what a client had.
func (c *client) close() {
	if c.ring != nil {
		c.ring.Close()
	}
	_ = c.share.Close() // after the ring: the engine looks into this memory
	if c.bell >= 0 {
		_ = unix.Close(c.bell)
	}
}

// answer has the reactor look at the ring when the application, which saw it asleep, knocks; until the connection ends, as it does
// with the process, however that came. It reports whether it was the application that ended it.
func (c *client) answer(rests *rests) bool {
	var b [1]byte
	for rest := knockRest; ; {
		if n, err := c.conn.Read(b[:]); n == 0 || err != nil {
			return !errors.Is(err, net.ErrClosed)
		}
		c.knocks.Add(1)
		for range knocksHeard {
			n, err := unix.Read(c.bell, b[:])
			if err != nil {
				break
			}
			if n == 0 {
				return true
			}
		}
		c.r.Enter()
		behind := c.ring.Knocked()
		c.r.Leave()
		if behind { // who submits pays with his share of the time
			rest = knockRest
			continue
		}
		rests.rest(rest)
		rest = min(2*rest, knockRestMax)
	}
}

// wake knocks at an application that sleeps. One that has not heard as many knocks as the socket holds is awake, or past help.
func (c *client) wake() { _ = unix.Send(c.bell, knock, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL) }

var knock = []byte{1}

// takeNoRights has the kernel refuse descriptors that a client sends along (SO_PASSRIGHTS, Linux 6.16). Nobody wants them, and the last
// close of a file can take as long as its owner likes. An older kernel throws them away when the message is read.
func takeNoRights(l *net.UnixListener) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0) }); e != nil {
		return e
	}
	if errors.Is(err, unix.ENOPROTOOPT) {
		err = nil
	}
	return err
}

// dupConn gives another descriptor of a connection.
func dupConn(conn *net.UnixConn) (fd int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	if e := raw.Control(func(of uintptr) { fd, err = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return -1, e
	}
	return fd, err
}

func peerCred(conn *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return nil, e
	}
	return cred, err
}

// ListenClients makes the socket at path. Everybody may connect (mode 0666): who is let in is for the policies, which see the credentials.
func ListenClients(ctx context.Context, path string) (*net.UnixListener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil { // the umask took it from the file
		return nil, errors.Join(err, l.Close())
	}
	return l.(*net.UnixListener), nil
}
