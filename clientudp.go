package xdpd

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
)

// datagrams are what a UDP socket of a Client receives and sends.
//
// A reader that waits has a RECVFROM under way. Where datagrams come faster than they are read, there are more of them, up to readAhead, so that the
// engine fills many while it is awake and wakes the reader once: as many as the socket has credit for, of which a Client's sockets share as
// many as half of the buffers, for buffers that nobody empties are missing to others.
//
// A datagram to an address that was sent to, or received from, goes without waiting for the engine's answer. If it has an error all the same, the
// next write returns it, as the kernel's does with what ICMP brings.
type datagrams struct {
	s    *session
	recv reactor.CallSink // d itself, and its sending half: sinks are told by pointers
	send reactor.CallSink

	source atomic.Uint32 // IPv4 address that the last one came from; 0: none
	sentTo atomic.Uint32 // and that was sent to without an error

	mu      sync.Mutex
	call    call // the number of all RECVFROMs
	kept    bool // there is one
	queue   [readAhead]received
	first   int
	n       int
	armed   int           // RECVFROMs under way
	cancels int           // CANCELs that are being submitted
	credit  int           // how many may be, and be unread, without a reader
	busy    bool          // the engine had more behind the last one
	dry     bool          // there was no buffer
	err     sockets.Errno // of the last RECVFROM that had one
	late    sockets.Errno // and of a datagram that was sent
	posted  int           // datagrams that went without waiting, and of which nothing was heard yet
	sent    chan struct{} // closed when posted is 0, if somebody waits for that
	closed  bool
	ready   chan struct{} // a token: something changed
}

type received struct {
	buf uint16
	n   int32
}

const (
	readAhead   = 64
	maxDatagram = 65507
)

type sendSink struct{ d *datagrams }

func newDatagrams(s *session) *datagrams {
	d := &datagrams{s: s, ready: make(chan struct{}, 1)}
	d.recv, d.send = d, sendSink{d}
	return d
}

// Completed implements reactor.CallSink for what was posted.
func (k sendSink) Completed(o call, res int32, _ uint32) {
	o.Free()
	k.d.mu.Lock()
	defer k.d.mu.Unlock()
	if res < 0 {
		k.d.late = sockets.Errno(-res)
	}
	if k.d.posted--; k.d.posted == 0 && k.d.sent != nil {
		close(k.d.sent)
		k.d.sent = nil
	}
}

// Completed implements reactor.CallSink for RECVFROMs.
func (d *datagrams) Completed(_ call, res int32, flags uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.armed = max(d.armed-1, 0) // the ring's end is told, whether there are some or not
	switch errno := sockets.Errno(-res); {
	case res >= 0 && flags&rings.CQEBuffer != 0 && d.closed:
		d.s.GiveBack(uint16(flags >> rings.CQEBufferShift))
	case res >= 0 && flags&rings.CQEBuffer != 0:
		d.queue[(d.first+d.n)%readAhead] = received{uint16(flags >> rings.CQEBufferShift), res}
		d.n++
		d.busy = flags&rings.CQESockNonempty != 0
	case errno == sockets.ENOBUFS:
		d.dry = true
	case errno != sockets.ECANCELED:
		d.err = errno
	}
	d.forget()
	select {
	case d.ready <- struct{}{}:
	default:
	}
}

// forget gives the number of a socket that is closed back, when nothing of it is under way. The caller holds the lock.
func (d *datagrams) forget() {
	if d.kept && d.closed && d.armed == 0 && d.cancels == 0 {
		d.kept = false
		d.call.Free()
	}
}

// close gives back what the socket held.
func (d *datagrams) close() {
	if d.s.Use() != nil {
		return
	}
	defer d.s.Unuse()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for ; d.n > 0; d.n-- {
		d.s.GiveBack(d.queue[d.first].buf)
		d.first = (d.first + 1) % readAhead
	}
	d.s.ahead.Add(int32(-d.credit))
	d.credit = 0
	d.forget()
}

// next takes what is there: a datagram, or an error. Of neither there is nothing.
func (d *datagrams) next() (r received, ok bool, errno sockets.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n > 0 {
		r = d.queue[d.first]
		d.first, d.n = (d.first+1)%readAhead, d.n-1
		if d.armed == 0 && d.credit < readAhead && (d.n > 0 || d.busy) {
			d.grow()
		}
		return r, true, 0
	}
	errno, d.err = d.err, 0
	return r, false, errno
}

// grow doubles the credit, if the others leave as much. The caller holds the lock.
func (d *datagrams) grow() {
	more := min(max(d.credit, 2), readAhead-d.credit)
	if int(d.s.ahead.Add(int32(more))) > clientCalls.Buffers/2 {
		d.s.ahead.Add(int32(-more))
		return
	}
	d.credit += more
}

// arm submits RECVFROMs: when half of what may be is read, and for a reader that waits at least one. One that finds all of them under way
// is faster than the peers, and gives half of its credit back.
func (c *ClientConn) arm(waits bool) error {
	d := c.in
	c.mu.RLock() // nothing is submitted for somebody else's number
	defer c.mu.RUnlock()
	if c.closed {
		return net.ErrClosed
	}
	d.mu.Lock()
	if waits && d.credit > 1 && d.armed == d.credit {
		d.s.ahead.Add(int32(-d.credit / 2))
		d.credit -= d.credit / 2
	}
	most, have := d.credit, d.armed+d.n
	if waits {
		most = max(most, 1)
	}
	n := most - have
	if n <= 0 || have > most/2 {
		d.mu.Unlock()
		return nil
	}
	if !d.kept {
		o, err := d.s.Begin()
		if err != nil {
			d.mu.Unlock()
			return err
		}
		o.Keep(&d.recv)
		d.call, d.kept = o, true
	}
	d.armed += n
	d.mu.Unlock()
	return d.call.Again(&rings.SQE{Opcode: rings.OpRecvFrom, Flags: rings.SQEBufferSelect, FD: c.fd, Len: uint32(clientCalls.Chunk)}, n)
}

// readDatagram receives a datagram. What of it does not fit is lost.
func (c *ClientConn) readDatagram(b []byte) (n int, from netip.AddrPort, err error) {
	stop := c.rd.wait()
	if err := c.turn(c.reading, stop); err != nil {
		return 0, from, c.fail("read", err)
	}
	defer func() { <-c.reading }()
	if err := c.s.Use(); err != nil {
		return 0, from, c.fail("read", err)
	}
	defer c.s.Unuse()
	d := c.in
	for {
		r, ok, errno := d.next()
		if ok {
			mem := c.s.Buffer(r.buf)[:r.n]
			h, _ := rings.ParseRecvHeader(mem)
			n = copy(b, mem[rings.RecvHeaderSize:])
			c.s.GiveBack(r.buf)
			if a := h.Src.Addr(); a.Is4() {
				d.source.Store(addrWord(a))
			}
			return n, h.Src, c.arm(false)
		}
		switch {
		case errno != 0 && c.s.Gone():
			errno, err = 0, ErrDaemonGone
		case errno == 0:
			err = c.awaitDatagram(stop)
		}
		if err != nil || errno != 0 {
			return 0, from, c.fail("read", c.outcome("read", 1, errno, err, stop))
		}
	}
}

// awaitDatagram waits until something happened.
func (c *ClientConn) awaitDatagram(stop <-chan struct{}) error {
	d := c.in
	d.mu.Lock()
	dry := d.dry
	d.dry = false
	d.mu.Unlock()
	happened := (<-chan struct{})(d.ready)
	if dry { // all buffers are full: the datagrams wait in the engine
		happened = c.s.Freed()
	} else if err := c.arm(true); err != nil {
		return err
	}
	select {
	case <-happened:
		return nil
	case <-c.done:
	case <-stop:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.armed > 0 && d.armed+d.n > d.credit && !d.closed { // what has no credit is not received for nobody
		d.cancels++ // the number must not be another's before this is submitted
		d.mu.Unlock()
		d.call.Cancel()
		d.mu.Lock()
		d.cancels--
		d.forget()
	}
	return reactor.ErrCallStopped
}

// ReadFrom reads a datagram; what of it does not fit is lost.
func (c *ClientConn) ReadFrom(b []byte) (n int, from net.Addr, err error) {
	n, a, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(a), nil
}

// ReadFromUDPAddrPort is ReadFrom without an allocation.
func (c *ClientConn) ReadFromUDPAddrPort(b []byte) (n int, from netip.AddrPort, err error) {
	if c.in == nil {
		return 0, from, c.fail("read", unix.EOPNOTSUPP)
	}
	return c.readDatagram(b)
}

// WriteTo sends a datagram.
func (c *ClientConn) WriteTo(b []byte, to net.Addr) (int, error) {
	a, ok := to.(*net.UDPAddr)
	if !ok || a == nil {
		return 0, c.fail("write", unix.EINVAL)
	}
	return c.WriteToUDPAddrPort(b, a.AddrPort())
}

// WriteToUDPAddrPort is WriteTo without an allocation.
func (c *ClientConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if c.remote.IsValid() || c.in == nil {
		return 0, c.fail("write", net.ErrWriteToConnected)
	}
	if to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port()); to.Addr().Is6() {
		return 0, c.fail("write", unix.EINVAL)
	}
	return c.sendDatagram(b, to)
}

func addrWord(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

func (c *ClientConn) sendDatagram(b []byte, to netip.AddrPort) (int, error) {
	d, stop := c.in, c.wd.wait()
	if err := c.turn(c.writing, stop); err != nil {
		return 0, c.fail("write", err)
	}
	defer func() { <-c.writing }()
	if len(b) > maxDatagram {
		return 0, c.fail("write", os.NewSyscallError("write", sockets.EMSGSIZE))
	}
	d.mu.Lock()
	late := d.late
	d.late = 0
	d.mu.Unlock()
	if late != 0 && !c.s.Gone() {
		return 0, c.fail("write", c.outcome("write", 0, late, nil, stop))
	}
	o, err := c.s.BeginData(stop, c.done)
	if err != nil {
		return 0, c.fail("write", c.outcome("write", 0, 0, err, stop))
	}
	sqe := rings.SQE{Opcode: rings.OpSend, Addr: o.Base() + rings.SockAddrSize, Len: uint32(copy(o.Mem()[rings.SockAddrSize:], b))}
	dst := c.remote.Addr()
	if to.IsValid() {
		rings.PutSockAddr(o.Mem(), to)
		sqe.Off, sqe.FileIndex = o.Base(), rings.SockAddrSize
		dst = to.Addr()
	}
	word := uint32(0)
	if dst.Is4() {
		word = addrWord(dst)
	}
	if word != 0 && (word == d.source.Load() || word == d.sentTo.Load()) {
		if err := c.post(o, &sqe); err != nil {
			return 0, c.fail("write", err)
		}
		return len(b), nil
	}
	defer o.End()
	res, errno, err := c.do(o, &sqe, stop)
	if err := c.outcome("write", 1, errno, err, stop); err != nil {
		return 0, c.fail("write", err)
	}
	d.sentTo.Store(word)
	return res, nil
}

// post submits an operation without waiting for it.
func (c *ClientConn) post(o call, sqe *rings.SQE) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		o.End()
		return net.ErrClosed
	}
	sqe.FD = c.fd
	c.in.mu.Lock()
	c.in.posted++
	c.in.mu.Unlock()
	err := o.Post(sqe, &c.in.send)
	if err != nil {
		c.in.mu.Lock()
		c.in.posted--
		c.in.mu.Unlock()
	}
	return err
}

// closeWait is how long Close waits for datagrams that were written and wait for the device, or for their rate. What is left then is lost.
const closeWait = time.Second

func (d *datagrams) drain() {
	d.mu.Lock()
	if d.posted == 0 {
		d.mu.Unlock()
		return
	}
	if d.sent == nil {
		d.sent = make(chan struct{})
	}
	sent := d.sent
	d.mu.Unlock()
	d.s.Hear(1) // these completions are quiet
	defer d.s.Hear(-1)
	select {
	case <-sent:
	case <-time.After(closeWait):
	}
}

// Close closes the socket: what was written still goes out, what was received and not read is lost, of TCP with a reset.
func (c *ClientConn) Close() error {
	if c.in != nil {
		c.in.drain()
	}
	err := c.clientSock.Close()
	if c.in != nil {
		c.in.close()
	}
	return err
}
