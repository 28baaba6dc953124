package sockets

import (
	"bytes"
	"testing"
)

// tpeer is the far end of one connection, driven by the test: it sends what it is told and remembers only what every
// segment needs.
type tpeer struct {
	k            *kit
	sport, dport uint16
	iss, seq     uint32 // next to send
	irs, ack     uint32 // next expected
	wnd          uint16
	ts           bool
	tsval        uint32
	tsecr        uint32
}

func newPeer(k *kit, dport, sport uint16) *tpeer {
	return &tpeer{k: k, sport: sport, dport: dport, iss: 0xfffff000, seq: 0xfffff000, wnd: 65535}
}

// seg is the next segment with everything filled in but what the test changes.
func (p *tpeer) seg(flags uint8, data []byte) tcpSeg {
	s := tcpSeg{sport: p.sport, dport: p.dport, seq: p.seq, ack: p.ack, flags: flags, wnd: p.wnd, data: data}
	if p.ts {
		s.opts = optTS(p.tsval, p.tsecr)
	}
	return s
}

// inject hands segments to the Host without counting them as sent.
func (p *tpeer) inject(segs ...tcpSeg) {
	p.k.t.Helper()
	for _, s := range segs {
		p.k.inject(s.frame())
	}
}

// send sends data and moves on.
func (p *tpeer) send(flags uint8, data []byte) {
	p.k.t.Helper()
	p.inject(p.seg(flags, data))
	p.seq += uint32(len(data))
	if flags&(syn|fin) != 0 {
		p.seq++
	}
}

func (p *tpeer) ackAll() { p.k.t.Helper(); p.send(ack, nil) }

// reset ends the connection from the far end.
func (p *tpeer) reset() {
	p.k.t.Helper()
	p.inject(p.seg(rst|ack, nil))
}

// got takes what was sent to this peer; data in order moves the peer's ack on.
func (p *tpeer) got() []tcpSeg {
	p.k.t.Helper()
	var out []tcpSeg
	for _, s := range p.k.seen() {
		if s.typ != 0x0800 || s.ip.proto != 6 || s.tcp.dport != p.sport || s.tcp.sport != p.dport {
			p.k.t.Fatalf("sent something that is not of this connection: %+v", s)
		}
		if s.ip.dst != peerIP || s.ip.src != usIP || s.dst != peerMAC || s.src != usMAC {
			p.k.t.Fatalf("sent from %v to %v (%v)", s.ip.src, s.ip.dst, s.dst)
		}
		if p.ts && s.tcp.flags&rst == 0 {
			if len(s.tcp.opts) < 12 {
				p.k.t.Fatalf("no timestamps in %+v", s.tcp)
			}
			p.tsecr = uint32(s.tcp.opts[len(s.tcp.opts)-8])<<24 | uint32(s.tcp.opts[len(s.tcp.opts)-7])<<16 |
				uint32(s.tcp.opts[len(s.tcp.opts)-6])<<8 | uint32(s.tcp.opts[len(s.tcp.opts)-5])
		}
		if s.tcp.seq == p.ack {
			p.ack += uint32(len(s.tcp.data))
			if s.tcp.flags&fin != 0 {
				p.ack++
			}
		}
		out = append(out, s.tcp)
	}
	return out
}

// one expects exactly one segment.
func (p *tpeer) one() tcpSeg {
	p.k.t.Helper()
	got := p.got()
	if len(got) != 1 {
		p.k.t.Fatalf("%d segments, want one: %+v", len(got), got)
	}
	return got[0]
}

func (p *tpeer) none() {
	p.k.t.Helper()
	if got := p.got(); len(got) != 0 {
		p.k.t.Fatalf("%d segments, want none: %+v", len(got), got)
	}
}

// wantSeg compares flags, sequence number, acknowledgement and data; PSH does not matter.
func wantSeg(t testing.TB, s tcpSeg, flags uint8, seq, acked uint32, data []byte) {
	t.Helper()
	if s.flags&^psh != flags || s.seq != seq || flags&ack != 0 && s.ack != acked || !bytes.Equal(s.data, data) {
		t.Fatalf("segment flags %#x seq %d ack %d with %d bytes, want %#x, %d, %d, %d",
			s.flags, s.seq, s.ack, len(s.data), flags, seq, acked, len(data))
	}
}

// synSent sends a SYN with opts and reads the SYN-ACK.
func synSent(k *kit, p *tpeer, opts []byte) tcpSeg {
	k.t.Helper()
	s := p.seg(syn, nil)
	s.opts = opts
	p.inject(s)
	p.seq++
	got := k.one()
	sa := got.tcp
	if sa.flags != syn|ack || sa.ack != p.seq || sa.dport != p.sport || sa.sport != p.dport {
		k.t.Fatalf("answer to a SYN: %+v, want SYN-ACK of %d", sa, p.seq)
	}
	p.irs, p.ack = sa.seq, sa.seq+1
	return sa
}

// dial opens a connection to our port with a plain SYN: MSS 1460 and window scaling 0.
func dial(k *kit, dport, sport uint16) *tpeer {
	k.t.Helper()
	return dialOpts(k, dport, sport, concat(optMSS(1460), optWScale(0)))
}

func dialOpts(k *kit, dport, sport uint16, opts []byte) *tpeer {
	k.t.Helper()
	p := newPeer(k, dport, sport)
	synSent(k, p, opts)
	p.ackAll()
	return p
}

// conn is a connection both of whose ends are there.
type conn struct {
	*tpeer
	h Handle
	l Handle
}

const svc = 80

// established opens a listener and a connection to it.
func established(t testing.TB, set ...func(*Config)) (*kit, conn) {
	t.Helper()
	k := newKit(t, set...)
	l, err := k.h.TCPListen(0, svc)
	if err != 0 {
		t.Fatalf("TCPListen: %v", err)
	}
	c := conn{tpeer: dial(k, svc, 1000), l: l}
	if c.h, err = k.h.TCPAccept(l); err != 0 {
		t.Fatalf("TCPAccept: %v", err)
	}
	c.none()
	k.events()
	return k, c
}

func (c conn) tcb() *tcb { return c.k.h.tcp.at(c.h.index()) }

func (c conn) wantState(want tcpState) {
	c.k.t.Helper()
	if got := c.tcb().state; got != want {
		c.k.t.Fatalf("state %s, want %s", tcpStateNames[got], tcpStateNames[want])
	}
}

// gone reports whether the record of the connection was freed.
func (c conn) gone() bool { return !c.tcb().used || c.tcb().gen != c.h.gen() }

func (c conn) write(data []byte) {
	c.k.t.Helper()
	n, err := c.k.h.TCPWrite(c.h, data, c.k.now)
	if n != len(data) || err != 0 {
		c.k.t.Fatalf("TCPWrite of %d bytes = %d, %v", len(data), n, err)
	}
}

// read reads all there is.
func (c conn) read() []byte {
	c.k.t.Helper()
	var out []byte
	buf := make([]byte, 1000)
	for c.tcb().rcvBytes > 0 {
		n, err := c.k.h.TCPRead(c.h, buf, c.k.now)
		if err != 0 || n == 0 {
			c.k.t.Fatalf("TCPRead = %d, %v with %d bytes there", n, err, c.tcb().rcvBytes)
		}
		out = append(out, buf[:n]...)
	}
	return out
}

func (c conn) wantRead(want []byte) {
	c.k.t.Helper()
	if got := c.read(); !bytes.Equal(got, want) {
		c.k.t.Fatalf("read %d bytes, want %d, or they differ", len(got), len(want))
	}
}

// wantEOF expects the end of the stream, or the error before it. Where the peer's FIN came, the end was there before the
// error, which waits for who asks.
func (c conn) wantEOF(first Errno) {
	c.k.t.Helper()
	buf := make([]byte, 10)
	if first != 0 && c.tcb().rcvFIN {
		defer func() {
			if err := c.k.h.TCPError(c.h); err != first {
				c.k.t.Fatalf("TCPError = %v, want %v", err, first)
			}
		}()
	} else if first != 0 {
		if n, err := c.k.h.TCPRead(c.h, buf, c.k.now); n != 0 || err != first {
			c.k.t.Fatalf("TCPRead = %d, %v; want %v", n, err, first)
		}
	}
	if n, err := c.k.h.TCPRead(c.h, buf, c.k.now); n != 0 || err != 0 {
		c.k.t.Fatalf("TCPRead = %d, %v; want the end of the stream", n, err)
	}
}

// tsConn is an established connection with timestamps.
func tsConn(t testing.TB, set ...func(*Config)) (*kit, conn) {
	t.Helper()
	k := newKit(t, set...)
	l, _ := k.h.TCPListen(0, svc)
	c := conn{tpeer: newPeer(k, svc, 1000), l: l}
	c.tsval = 5000
	sa := synSent(k, c.tpeer, concat(optMSS(1460), optTS(5000, 0), optWScale(0)))
	if len(sa.opts) != 20 {
		t.Fatalf("options of the SYN-ACK: % x, want MSS, timestamps and window scale", sa.opts)
	}
	c.ts, c.tsecr = true, uint32(sa.opts[8])<<24|uint32(sa.opts[9])<<16|uint32(sa.opts[10])<<8|uint32(sa.opts[11])
	c.ackAll()
	var err Errno
	if c.h, err = k.h.TCPAccept(l); err != 0 {
		t.Fatalf("TCPAccept: %v", err)
	}
	c.none()
	k.events()
	return k, c
}
