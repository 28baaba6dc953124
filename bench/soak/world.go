package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/sockets"
	"xdpd/xdpprog"
)

const (
	port = 7

	// maxPPS bounds what the sink must remember between two balances, the longest apart: a bit for each frame.
	maxPPS  = 10_000_000
	longest = xdpprog.MaxSeqs / maxPPS * time.Second
)

type options struct {
	length, every time.Duration
	conns         int
	size, flows   int
	rate          float64
	ledger        bool
	out           io.Writer
}

// world is the engine with the traffic around it.
type world struct {
	o      options
	lab    *netlab.Lab
	sink   *xdpprog.Sink
	stack  *xdpd.Stack
	source *xdpprog.Source
	asked  *egress // what the engine has the kernel send: it asks whose NAPI is whose by AF_PACKET
	echo   *echo
	peer   netlink.Link // the peer's end of the pair, in its namespace

	sunk xdpprog.SinkStats // what the sink counted before it was last reset

	listener net.Listener
	served   sync.WaitGroup // engine's goroutines
	clients  sync.WaitGroup // the peer's
	gate     sync.RWMutex   // read-locked by a client in a round
	cancel   context.CancelFunc
	broken   chan error
	rounds   atomic.Uint64
	bytes    atomic.Uint64 // sent, received and compared
	dials    atomic.Uint64
}

func newWorld(o options) (_ *world, err error) {
	if o.every <= 0 || o.length <= 0 || o.conns < 1 {
		return nil, errors.New("-for, -every and -conns must be above 0")
	}
	if o.every > longest {
		return nil, fmt.Errorf("-every %v: at most %v, since the sink keeps a bit for each frame", o.every, longest)
	}
	w := &world{o: o, broken: make(chan error, o.conns+1), cancel: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.lab, err = netlab.New(netlab.Options{}); err != nil {
		return nil, err
	}
	// The sink comes before the engine: what that says as it begins is counted too.
	if err := w.lab.Peer.Do(w.setUpPeer); err != nil {
		return nil, err
	}
	var mac net.HardwareAddr
	if err := w.lab.Engine.Do(func() error {
		link, err := netlink.LinkByName(w.lab.EngineDev)
		if err != nil {
			return err
		}
		mac = link.Attrs().HardwareAddr
		if w.asked, err = countEgress(link.Attrs().Index); err != nil {
			return err
		}
		w.stack, err = xdpd.Open(xdpd.Config{
			Interface: w.lab.EngineDev, Addrs: []netip.Prefix{netip.PrefixFrom(w.lab.EngineAddr, w.lab.Subnet.Bits())},
			RcvBuf: 8 << 20, Ledger: o.ledger,
		})
		return err
	}); err != nil {
		return nil, err
	}
	if w.echo, err = startEcho(w.stack.Reactors()[0]); err != nil {
		return nil, err
	}
	return w, w.lab.Peer.Do(func() (err error) {
		w.source, err = xdpprog.LoadSource(xdpprog.SourceConfig{
			Interface: w.lab.PeerDev, Ifindex: w.peer.Attrs().Index, SrcMAC: w.peer.Attrs().HardwareAddr, DstMAC: mac,
			Src: xdpprog.Addrs{First: w.lab.PeerAddr}, Dst: xdpprog.Addrs{First: w.lab.EngineAddr},
			SrcPort: xdpprog.Ports{First: 10000, Count: o.flows}, DstPort: xdpprog.Ports{First: port},
			Sizes: []int{o.size}, Rate: o.rate,
		})
		return err
	})
}

// setUpPeer loads the sink, and has the kernel count what it sends itself: nothing else tells that from what the source sends.
// A queue also holds back what the pair has no room for.
func (w *world) setUpPeer() (err error) {
	if w.peer, err = netlink.LinkByName(w.lab.PeerDev); err != nil {
		return err
	}
	if err := netlink.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: w.peer.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
		},
		QdiscType: "pfifo",
	}); err != nil {
		return fmt.Errorf("queue of %s: %w", w.lab.PeerDev, err)
	}
	w.sink, err = xdpprog.LoadSink(xdpprog.SinkConfig{
		Interface: w.lab.PeerDev, Ifindex: w.peer.Attrs().Index, Attach: xdpprog.Native, CheckSums: true,
		Seqs: uint64(w.o.every.Seconds() * maxPPS), Flows: w.o.flows,
	})
	return err
}

// close takes everything down. It may be half up.
func (w *world) close() error {
	w.cancel()
	w.clients.Wait()
	var errs []error
	if w.source != nil {
		errs = append(errs, w.source.Close())
	}
	if w.listener != nil {
		errs = append(errs, w.listener.Close())
	}
	if w.stack != nil {
		errs = append(errs, w.stack.Close())
	}
	if w.asked != nil {
		errs = append(errs, w.asked.close())
	}
	w.served.Wait()
	if w.sink != nil {
		errs = append(errs, w.sink.Close())
	}
	if w.lab != nil {
		errs = append(errs, w.lab.Close())
	}
	return errors.Join(errs...)
}

// flood has the source send for a while.
func (w *world) flood(ctx context.Context, d time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	sent := make(chan error, 1)
	go func() { sent <- w.source.Run(ctx, 0) }()
	var err error
	select {
	case err = <-sent:
		if errors.Is(err, context.DeadlineExceeded) {
			return nil
		}
		return err
	case err = <-w.broken:
	case <-w.stack.Done():
		err = fmt.Errorf("the engine ended: %w", w.stack.Err())
	}
	cancel()
	<-sent
	return err
}

// settleLimit is how long everything may take to come to rest: TCP has retransmission timers to wait for.
const settleLimit = 3 * time.Minute

// settle lets the TCP clients end their rounds, waits until the books agree, and says what is in them; or which do not agree.
func (w *world) settle(ctx context.Context) (books, error) {
	deadline := time.Now().Add(settleLimit)
	shut := make(chan struct{})
	go func() {
		w.gate.Lock() // waits for the rounds that run; no other begins
		close(shut)
	}()
	select {
	case <-shut:
	case err := <-w.broken:
		go w.open(shut)
		return books{}, err
	case <-ctx.Done():
		go w.open(shut)
		return books{}, ctx.Err()
	}
	defer w.gate.Unlock()
	for {
		b, err := w.read()
		if err != nil {
			return b, err
		}
		off := b.check()
		if off == nil {
			return b, w.rewind(&b)
		}
		if time.Now().After(deadline) {
			return b, fmt.Errorf("the books do not agree:\n%w\n%s", errors.Join(off...), b.String())
		}
		select {
		case <-ctx.Done():
			return b, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// open unlocks the gate as soon as it is locked.
func (w *world) open(shut <-chan struct{}) {
	<-shut
	w.gate.Unlock()
}

// rewind gives the sink room for the sequence numbers to come. b are the books at rest.
func (w *world) rewind(b *books) error {
	if err := w.sink.Reset(b.source.Written); err != nil {
		return err
	}
	// An ARP request may have come since, and be counted on neither side of the reset.
	now, err := w.sink.Stats()
	if err != nil {
		return err
	}
	var after books
	if err := w.readVeth(&after); err != nil {
		return err
	}
	w.sunk = b.sink
	w.sunk.Passed += after.far.Packets - b.far.Packets - now.Frames - now.Passed
	return nil
}

// echo is the UDP handler on the reactor. Its counters are guarded by the reactor's lock.
type echo struct {
	reactor *reactor.Reactor
	poller  *reactor.Poller
	kept    bool // d could not be sent for want of frames: reception stops
	d       sockets.Datagram
	buf     [4096]byte

	received, sent, refused uint64
}

// echoBatch is what a turn receives at most, so that overload ends at the ring and not at the socket.
const echoBatch = 256

func startEcho(r *reactor.Reactor) (*echo, error) {
	e := &echo{reactor: r, poller: reactor.NewPoller(r)}
	h, _, ok := r.Enter()
	defer r.Leave()
	if !ok {
		return nil, reactor.ErrStopped
	}
	s, errno := h.UDPBind(0, port)
	if errno != 0 {
		return nil, fmt.Errorf("UDP port %d: %w", port, errno)
	}
	e.poller.Serve(e.ready)
	return e, e.poller.Add(s, sockets.In, 0)
}

func (e *echo) ready(h *sockets.Host, now int64, ev reactor.Event) {
	for range echoBatch {
		if !e.kept {
			var errno sockets.Errno
			if e.d, errno = h.UDPRecv(ev.Sock, e.buf[:]); errno != 0 {
				return
			}
			e.received++
		}
		errno := h.UDPSend(ev.Sock, e.buf[:e.d.N], e.d.Src, now)
		if full := errno == sockets.EAGAIN; full != e.kept {
			e.kept = full
			mask := sockets.In
			if full {
				mask = sockets.Out
			}
			_ = e.poller.Mod(ev.Sock, mask, 0) // the socket is in the poller: it just called us
		}
		switch {
		case e.kept:
			return
		case errno != 0:
			e.refused++
		default:
			e.sent++
		}
	}
}

// counts are consistent with each other.
func (e *echo) counts() (received, sent, refused uint64) {
	_, _, _ = e.reactor.Enter() // stopped or not, the lock is held
	defer e.reactor.Leave()
	return e.received, e.sent, e.refused
}
