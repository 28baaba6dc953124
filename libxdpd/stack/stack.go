//go:build cgo

// Stack is the engine as a C library: a stack in the caller's process, over a wire whose frames the caller reads and writes, with the
// caller's clock. libxdpd/src/xdpd_stack.h describes its calls.
//
//	go build -buildmode=c-shared -o libxdpd_stack.so ./libxdpd/stack
package main

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/rings/simnic"
	"xdpd/sockets"
	"xdpd/umem"
)

func main() {} // of a library: never called

const (
	chunk         = 4096
	ringSize      = 1024
	defaultFrames = 4096
	minFrames     = 64
	// maxTurns bounds what is done at one time of the clock. Something that has work for ever would otherwise never return.
	maxTurns = 1 << 16
	maxSent  = 1 << 14 // frames that wait for the caller; what is sent beyond is lost, and counted as output_full
)

// config is what a stack is made of; what is zero has its default.
type config struct {
	host   sockets.Config
	frames int
	now    int64
}

// stack is one reactor with its NIC, whose other side the caller is.
type stack struct {
	mu     sync.Mutex
	now    int64
	region *umem.Region
	nic    *simnic.SimNIC
	r      *reactor.Reactor
	host   *sockets.Host
	next   int64 // when a timer is due
	sent   []sentFrame
	full   uint64 // frames lost for want of a place in sent
	rings  map[uint32]*ring
	last   uint32 // number of a ring
	ended  bool
}

// sentFrame is a frame that waits to be taken by the caller.
type sentFrame struct {
	at    int64
	bytes []byte
}

// ring is one of the caller's, and the memory that both sides see.
type ring struct {
	*reactor.Ring
	share *rings.Share
}

// wire is the device of the reactor: what it is told to send is the caller's at once.
type wire struct {
	*simnic.SimNIC
	s *stack
}

func (w wire) Kick() error {
	if err := w.SimNIC.Kick(); err != nil {
		return err
	}
	for {
		n := w.Transmit(ringSize, w.s.keep)
		if w.Complete(n); n == 0 {
			return nil
		}
	}
}

// keep keeps a frame for the caller.
func (s *stack) keep(frame []byte) {
	if len(s.sent) == maxSent {
		s.full++
		return
	}
	s.sent = append(s.sent, sentFrame{s.now, slices.Clone(frame)})
}

func newStack(c config) (*stack, error) {
	if c.now < 0 {
		return nil, fmt.Errorf("the clock begins at %d", c.now)
	}
	c.frames = cmp.Or(c.frames, defaultFrames)
	if c.frames < minFrames {
		return nil, fmt.Errorf("%d frames; %d are the least", c.frames, minFrames)
	}
	c.host.MTU = cmp.Or(c.host.MTU, 1500)
	c.host.PacketFrames = sockets.MaxPacketFrames
	c.host.MAC = cmp.Or(c.host.MAC, proto.MAC{2, 0, 0, 0, 0, 1})
	region, err := umem.New(umem.Options{Frames: c.frames, ChunkSize: chunk})
	if err != nil {
		return nil, err
	}
	s := &stack{now: c.now, region: region, nic: simnic.NewSimNIC(region, ringSize, ringSize, ringSize, ringSize), rings: map[uint32]*ring{}}
	s.nic.SetScatter(true)
	port := *s.nic.Port()
	port.Dev = wire{s.nic, s}
	pool := umem.NewPool(region, 0, c.frames, nil)
	fill := min(ringSize, c.frames/4)
	c.host.FillFrames = fill
	if s.host, err = sockets.New(c.host, pool, c.now); err == nil {
		s.r, err = reactor.New(reactor.Config{
			Port: &port, Pool: pool, Host: s.host, FillFrames: fill, Clock: func() int64 { return s.now },
		})
	}
	if err != nil {
		return nil, errors.Join(err, region.Close())
	}
	s.run()
	return s, nil
}

func (s *stack) close() {
	s.ended = true
	for n := range s.rings {
		s.closeRing(n)
	}
	s.r.Stop()
	_ = s.r.Close()
	_ = s.region.Close()
}

// run does turns until one finds nothing to do, and says when a timer is due.
func (s *stack) run() int64 {
	for range maxTurns {
		worked, deadline := s.r.Turn()
		if s.next = deadline; !worked && deadline > s.now {
			break
		}
	}
	return s.due()
}

// due is when a timer is due, or math.MaxInt64. The reactor's and the Host's "never" are not the same number.
func (s *stack) due() int64 {
	if s.next >= math.MaxInt64/2 {
		return math.MaxInt64
	}
	return s.next
}

// advance moves the clock to now, with a stop at each timer on the way; with one, at the first only.
func (s *stack) advance(now int64, one bool) int64 {
	for s.run() <= now {
		if s.now = max(s.now, s.next); one {
			return s.run()
		}
	}
	s.now = max(s.now, now)
	return s.run()
}

// input has a frame arrive.
func (s *stack) input(frame []byte) unix.Errno {
	if len(frame) == 0 || len(frame) > sockets.MaxPacketFrames*(chunk-umem.Headroom) {
		return unix.EMSGSIZE
	}
	if !s.nic.Deliver(frame) {
		s.run() // the fill ring may be filled again
		if !s.nic.Deliver(frame) {
			return unix.ENOBUFS
		}
	}
	s.run()
	return 0
}

// output moves the oldest frame that was sent to buf.
func (s *stack) output(buf []byte) (n int, at int64, err unix.Errno) {
	if len(s.sent) == 0 {
		return 0, 0, 0
	}
	f := s.sent[0]
	if len(buf) < len(f.bytes) {
		return 0, 0, unix.EMSGSIZE
	}
	s.sent[0] = sentFrame{}
	s.sent = s.sent[1:]
	return copy(buf, f.bytes), f.at, 0
}

// newRing makes a ring over memory that the caller can see as a client of a daemon sees its own.
func (s *stack) newRing(entries uint32, data uint64) (uint32, *ring, unix.Errno) {
	if entries == 0 || entries > 1<<14 {
		return 0, nil, unix.EINVAL
	}
	hello := rings.ShareHello{SQEntries: entries, CQEntries: 2 * entries, Data: data}
	if _, err := rings.LayoutRing(hello.SQEntries, hello.CQEntries); err != nil || data > rings.MaxShareData {
		return 0, nil, unix.EINVAL
	}
	share, err := rings.NewShare(&hello)
	if err != nil {
		return 0, nil, unix.ENOMEM
	}
	q, err := reactor.NewRing(s.r, reactor.RingConfig{
		SQEntries: hello.SQEntries, CQEntries: hello.CQEntries, Area: share.Ring, Data: share.Data, Knock: true,
	})
	if err != nil {
		_ = share.Close()
		return 0, nil, unix.EMFILE
	}
	s.last++
	r := &ring{q, share}
	s.rings[s.last] = r
	return s.last, r, 0
}

func (s *stack) closeRing(n uint32) unix.Errno {
	q := s.rings[n]
	if q == nil {
		return unix.EBADF
	}
	delete(s.rings, n)
	q.Close()
	s.run() // the last frames of its sockets
	_ = q.share.Close()
	return 0
}

// counter finds a counter of the ledger by its name.
func (s *stack) counter(name string) (int64, unix.Errno) {
	if name == "output_full" {
		return int64(s.full), 0
	}
	c := s.host.Counters()
	for i := range sockets.NStats {
		if i.String() == name {
			return int64(c.Stats[i]), 0
		}
	}
	for i := range sockets.NDrops {
		if i.String() == name {
			return int64(c.Drops[i]), 0
		}
	}
	return 0, unix.ENOENT
}
