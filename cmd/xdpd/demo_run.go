package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

// demo drives the engine from the peer's namespace.
type demo struct {
	lab    *netlab.Lab
	to     netip.AddrPort // the echo service
	live   *liveLine
	report *demoReport
}

const (
	replyTimeout   = time.Second
	smallDatagram  = 64
	largeDatagram  = 1400
	window         = 64 // datagrams in flight
	tcpConnections = 4
	tcpBlock       = 64 << 10
)

// run does the four parts, each for its share of the time.
func (d *demo) run(ctx context.Context, total time.Duration) error {
	for _, part := range []struct {
		name  string
		share float64
		f     func(ctx context.Context, until time.Time) error
	}{
		{"ICMP echo", 0.15, d.icmp}, {"UDP echo, one at a time", 0.2, d.udpOneAtATime},
		{fmt.Sprintf("UDP echo, %d in flight", window), 0.3, d.udpWindow}, {"TCP echo", 0.35, d.tcp},
	} {
		stop := d.live.start(part.name)
		err := part.f(ctx, time.Now().Add(time.Duration(part.share*float64(total))))
		stop()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// going tells whether a part may go on. Parts look at it once a round trip.
func going(ctx context.Context, until time.Time) bool {
	return ctx.Err() == nil && time.Now().Before(until)
}

// newHistogram is for round trips of 1 ns to 10 s, to three digits.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(10*time.Second), 3) }

// record cannot fail: round trips end with replyTimeout.
func record(h *hdrhistogram.Histogram, rtt time.Duration) { _ = h.RecordValue(int64(rtt)) }

func (d *demo) icmp(ctx context.Context, until time.Time) error {
	p, err := newPinger(d.lab.Peer, d.to.Addr())
	if err != nil {
		return err
	}
	defer p.close()
	r := &d.report.ICMP
	r.RTT = newHistogram()
	for r.Sent == 0 || going(ctx, until) {
		r.Sent++
		rtt, ok, err := p.ping(replyTimeout)
		if err != nil {
			return err
		}
		if ok {
			r.Received++
			record(r.RTT, rtt)
			d.live.add(1, 0)
		}
	}
	return nil
}

// pattern is what datagrams are filled with: each takes a piece that starts elsewhere, so that a reply with another's
// content, or a piece of it, is found out.
var pattern = func() []byte {
	b := make([]byte, 4*tcpBlock)
	rng := rand.NewChaCha8([32]byte{'x', 'd', 'p', 'd'})
	_, _ = rng.Read(b) // never fails
	return b
}()

// fill writes datagram number seq: the number, and then its piece of the pattern.
func fill(b []byte, seq uint64) {
	binary.BigEndian.PutUint64(b, seq)
	copy(b[8:], pattern[seq*61%uint64(len(pattern)-len(b)):])
}

// number is what a datagram says it is; one that is too short says what none does.
func number(b []byte) uint64 {
	if len(b) < 8 {
		return 1<<64 - 1
	}
	return binary.BigEndian.Uint64(b)
}

// sound reports whether b is datagram number seq to the byte.
func sound(b []byte, seq uint64, size int) bool {
	if len(b) != size || number(b) != seq {
		return false
	}
	from := seq * 61 % uint64(len(pattern)-size)
	return bytes.Equal(b[8:], pattern[from:int(from)+size-8])
}

func (d *demo) udpOneAtATime(ctx context.Context, until time.Time) error {
	c, err := newClient(d.lab.Peer, unix.SOCK_DGRAM, 0, d.to)
	if err != nil {
		return err
	}
	defer c.close()
	r := &d.report.UDP
	r.RTT = newHistogram()
	var b [smallDatagram]byte
	isReply := func(reply []byte) bool {
		seq := number(reply)
		if seq > r.Sent || !sound(reply, seq, len(b)) {
			r.Wrong++
			return false
		}
		return seq == r.Sent // else it is a late one
	}
	for r.Sent == 0 || going(ctx, until) {
		r.Sent++
		fill(b[:], r.Sent)
		rtt, ok, err := c.exchange(b[:], isReply, replyTimeout)
		if err != nil {
			return err
		}
		if ok {
			r.Received++
			record(r.RTT, rtt)
			d.live.add(1, 0)
		}
	}
	return nil
}

// udpWindow keeps some datagrams in flight: a new one for each that comes back. What does not come back is given up after
// replyTimeout without any reply.
func (d *demo) udpWindow(ctx context.Context, until time.Time) error {
	c, err := newClient(d.lab.Peer, unix.SOCK_DGRAM, 0, d.to)
	if err != nil {
		return err
	}
	defer c.close()
	r := &d.report.Window
	var b [largeDatagram]byte
	flying, late := make(map[uint64]struct{}, window), make(map[uint64]struct{})
	start := time.Now()
	for last := start; ; {
		more := r.Sent == 0 || going(ctx, until)
		if !more && len(flying) == 0 || ctx.Err() != nil {
			break
		}
		for more && len(flying) < window {
			fill(b[:], r.Sent)
			ok, err := c.send(b[:])
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			flying[r.Sent] = struct{}{}
			r.Sent++
		}
		got, err := collect(c, r, flying, late)
		switch {
		case err != nil:
			return err
		case got > 0:
			last = time.Now()
			r.Took = last.Sub(start)
			d.live.add(uint64(got), uint64(got*largeDatagram))
		case time.Since(last) > replyTimeout:
			maps.Copy(late, flying)
			clear(flying)
			last = time.Now()
		default:
			runtime.Gosched()
		}
	}
	return nil
}

// collect takes the replies that are there, and looks into each. One of late does not count any more.
func collect(c *client, r *demoEcho, flying, late map[uint64]struct{}) (got int, err error) {
	for range window {
		b, err := c.receive()
		if b == nil || err != nil {
			return got, err
		}
		seq := number(b)
		_, expected := flying[seq]
		_, tooLate := late[seq]
		switch {
		case !expected && !tooLate || !sound(b, seq, largeDatagram):
			r.Wrong++ // changed, or twice
		case tooLate:
			delete(late, seq)
		default:
			delete(flying, seq)
			r.Received++
			got++
		}
	}
	return got, nil
}

// tcp sends on several connections at once, and compares the digests of what went out and what came back.
func (d *demo) tcp(ctx context.Context, until time.Time) error {
	r := &d.report.TCP
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range tcpConnections {
		var c net.Conn
		err := d.lab.Peer.Do(func() (err error) {
			dialer := net.Dialer{Timeout: 5 * time.Second}
			c, err = dialer.DialContext(ctx, "tcp4", d.to.String())
			return err
		})
		if err != nil {
			return err
		}
		conns = append(conns, c)
		if err := c.SetDeadline(until.Add(10 * time.Second)); err != nil { // to drain, on a slow machine too
			return err
		}
	}
	defer context.AfterFunc(ctx, func() {
		for _, c := range conns {
			_ = c.SetDeadline(time.Now()) // ends what waits on it
		}
	})()
	start := time.Now()
	streams := make([]stream, len(conns))
	var work sync.WaitGroup
	for i, c := range conns {
		s := &streams[i]
		s.conn, s.seed = c.(*net.TCPConn), uint64(i)
		work.Go(func() { s.sendErr = s.send(ctx, until) })
		work.Go(func() { s.receiveErr = s.receive(d.live) })
	}
	work.Wait()
	r.Took = time.Since(start)
	r.Connections = len(conns)
	for i := range streams {
		s := &streams[i]
		if err := errors.Join(s.sendErr, s.receiveErr); err != nil {
			return err
		}
		r.Bytes += s.sent
		if s.sent != s.received || s.out != s.in {
			r.Wrong++
		}
	}
	return nil
}

// stream is one connection's two directions.
type stream struct {
	conn                *net.TCPConn
	seed                uint64
	sent, received      uint64
	out, in             [sha256.Size]byte
	sendErr, receiveErr error
}

func (s *stream) send(ctx context.Context, until time.Time) error {
	rng, sum := rand.New(rand.NewPCG(s.seed, 0)), sha256.New()
	for s.sent == 0 || going(ctx, until) {
		from := rng.IntN(len(pattern) - tcpBlock)
		n, err := s.conn.Write(pattern[from : from+tcpBlock])
		sum.Write(pattern[from : from+n])
		s.sent += uint64(n)
		if err != nil {
			return err
		}
	}
	sum.Sum(s.out[:0])
	return s.conn.CloseWrite()
}

func (s *stream) receive(live *liveLine) error {
	sum, buf := sha256.New(), make([]byte, tcpBlock)
	for {
		n, err := s.conn.Read(buf)
		sum.Write(buf[:n])
		s.received += uint64(n)
		live.add(0, uint64(n))
		if errors.Is(err, io.EOF) {
			sum.Sum(s.in[:0])
			return nil
		}
		if err != nil {
			return err
		}
	}
}
