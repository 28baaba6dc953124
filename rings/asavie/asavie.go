// Package asavie puts a socket of github.com/asavie/xdp v0.3.3 on the far side
// of our rings, so that a program which has one can come over. It is a bridge,
// not the hot path: every descriptor is copied once more, and that library has
// no memory barriers of its own.
//
// Who holds which frame: from New on, all frames belong to the port. The
// library's free lists (GetDescs) are not asked any more; they only mirror what
// its Fill, Receive, Transmit and Complete are told. What Complete does not
// tell, the addresses, is read from its completion ring before calling it.
package asavie

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/asavie/xdp"
	"golang.org/x/sys/unix"

	"xdpd/rings"
	"xdpd/umem"
)

// Adapter is a port whose rings are of plain memory, of the library's sizes,
// and the pump between them and the library's. It is for the goroutine that
// runs the port, which must call WakeRX every turn: the port's fill ring always
// asks for it.
type Adapter struct {
	sock   *xdp.Socket
	far    farRings
	region *umem.Region
	port   rings.Port

	fill *rings.Consumer[uint64]
	rx   *rings.Producer[rings.Desc]
	tx   *rings.Consumer[rings.Desc]
	comp *rings.Producer[uint64]

	handed    uint32 // TX entries given to the library and not taken by the kernel yet
	descs     []xdp.Desc
	rxInvalid uint64 // fill entries outside the region
	txInvalid uint64 // TX entries outside the region
}

var errClosed = fmt.Errorf("asavie: the socket is closed: %w", rings.ErrDeviceDown)

// New takes over s. It must have both an RX and a TX ring, frames of 2048 or
// 4096 bytes, and nothing filled, received, sent or completed that the caller
// has not dealt with.
func New(s *xdp.Socket) (*Adapter, error) {
	far, err := lookInside(s)
	if err != nil {
		return nil, err
	}
	if s.NumFilled() != 0 || s.NumReceived() != 0 || s.NumTransmitted() != 0 || s.NumCompleted() != 0 {
		return nil, errors.New("asavie: the socket has frames under way: hand it over before using it")
	}
	region, err := umem.Wrap(far.umem, far.frameSize)
	if err != nil {
		return nil, fmt.Errorf("asavie: SocketOptions.FrameSize of the socket: %w", err)
	}
	fill, comp := rings.NewPlain[uint64](far.fillSize), rings.NewPlain[uint64](uint32(len(far.comp.descs)))
	rx, tx := rings.NewPlain[rings.Desc](far.rxSize), rings.NewPlain[rings.Desc](far.txSize)
	a := &Adapter{
		sock: s, far: far, region: region,
		fill: fill.Consumer(), rx: rx.Producer(), tx: tx.Consumer(), comp: comp.Producer(),
		descs: make([]xdp.Desc, 0, max(far.fillSize, far.txSize)),
	}
	a.port = rings.Port{Fill: fill.Producer(), RX: rx.Consumer(), TX: tx.Producer(), Comp: comp.Consumer(), Dev: a}
	a.tx.SetNeedWakeup(true)
	a.fill.SetNeedWakeup(true)
	return a, nil
}

// Port is our side of the socket.
func (a *Adapter) Port() *rings.Port { return &a.port }

// Region is the library's packet memory. It dies with Close.
func (a *Adapter) Region() *umem.Region { return a.region }

// Kick pumps all rings and makes the kernel send; 32 frames a call, for the
// library cannot ask for more. What the kernel did not take stays in the port's
// TX ring.
func (a *Adapter) Kick() error {
	if a.sock.FD() < 0 {
		return errClosed
	}
	a.pump()
	a.gatherTX()
	if len(a.descs) == 0 && a.handed == 0 {
		return nil
	}
	a.handed += uint32(len(a.descs))
	err := transmit(a.sock, a.descs)
	a.releaseTX()
	return err
}

// WakeRX pumps the fill, RX and completion rings. When nothing moves it asks
// the kernel whether the device is still there.
func (a *Adapter) WakeRX() error {
	if a.sock.FD() < 0 {
		return errClosed
	}
	if a.pump() {
		return nil
	}
	_, _, err := unix.Recvfrom(a.sock.FD(), nil, unix.MSG_DONTWAIT)
	var errno unix.Errno
	if errors.As(err, &errno) {
		return rings.DataPathError("wake RX", "a socket of asavie/xdp", errno)
	}
	return err
}

// pump moves what there is room for, and says whether anything moved.
func (a *Adapter) pump() bool {
	a.releaseTX()
	comp, fill, rx := a.pumpComp(), a.pumpFill(), a.pumpRX()
	return comp || fill || rx
}

func (a *Adapter) pumpFill() bool {
	idx, got := a.fill.Peek(uint32(a.sock.NumFreeFillSlots()))
	a.descs = a.descs[:0]
	for i := range got {
		addr := a.fill.Read(idx + i)
		if _, ok := a.region.FrameOf(addr); !ok {
			a.rxInvalid++ // the library would panic, the kernel counts
			continue
		}
		a.descs = append(a.descs, xdp.Desc{Addr: addr})
	}
	a.sock.Fill(a.descs)
	a.fill.Release(got)
	return got > 0
}

func (a *Adapter) pumpRX() bool {
	idx, got := a.rx.Reserve(uint32(a.sock.NumReceived()))
	for i, d := range a.sock.Receive(int(got)) {
		*a.rx.Slot(idx + uint32(i)) = rings.Desc(d)
	}
	a.rx.Submit(got)
	return got > 0
}

// pumpComp reads the addresses, which the kernel posts in the order in which
// the frames were freed, and then has the library take the entries.
func (a *Adapter) pumpComp() bool {
	cons, avail := a.far.comp.peek()
	idx, got := a.comp.Reserve(avail)
	for i := range got {
		*a.comp.Slot(idx + i) = a.far.comp.descs[(cons+i)&uint32(len(a.far.comp.descs)-1)]
	}
	a.sock.Complete(int(got))
	a.comp.Submit(got)
	return got > 0
}

// gatherTX collects in descs what goes to the library now: from the first entry
// it does not have yet, up to its free slots or the next bad entry. A bad one
// waits until it is the oldest, for entries leave in order.
func (a *Adapter) gatherTX() {
	a.descs = a.descs[:0]
	for {
		idx, got := a.tx.Peek(a.handed + uint32(a.sock.NumFreeTxSlots()))
		for i := a.handed; i < got; i++ {
			d := a.tx.Read(idx + i)
			if _, ok := a.region.FrameOf(d.Addr); !ok {
				break
			}
			a.descs = append(a.descs, xdp.Desc(d))
		}
		if len(a.descs) > 0 || a.handed > 0 || got == 0 {
			return
		}
		a.txInvalid++ // the library would panic, the kernel counts
		a.tx.Release(1)
	}
}

// releaseTX releases what the kernel has taken out of the library's TX ring.
func (a *Adapter) releaseTX() {
	waiting := a.far.txSize - uint32(a.sock.NumFreeTxSlots())
	a.tx.Release(a.handed - waiting)
	a.handed = waiting
}

// transmit sends. The library publishes descs, all of them, before it calls
// sendto, and panics on most errnos of that.
func transmit(s *xdp.Socket, descs []xdp.Desc) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = sendError(p)
		}
	}()
	s.Transmit(descs)
	return nil
}

// sendError makes an error of the panic "sendto failed with rc=… and errno=…";
// any other panic goes on.
func sendError(p any) error {
	if cause, ok := p.(error); ok {
		if _, number, ok := strings.Cut(cause.Error(), "sendto failed with rc="); ok {
			_, number, _ = strings.Cut(number, "errno=")
			if errno, err := strconv.Atoi(number); err == nil {
				return rings.DataPathError("kick TX", "a socket of asavie/xdp", syscall.Errno(errno))
			}
		}
	}
	panic(p)
}

// FD is the socket, -1 after Close. POLLIN says that the library's RX ring has
// entries; WakeRX fetches them.
func (a *Adapter) FD() int { return a.sock.FD() }

// Stats are the kernel's counters, and the entries it never saw because the
// library could not have passed them on.
func (a *Adapter) Stats() (rings.Stats, error) {
	if a.sock.FD() < 0 {
		return rings.Stats{}, errClosed
	}
	st, err := a.sock.Stats()
	if err != nil {
		return rings.Stats{}, fmt.Errorf("asavie: read the statistics: %w", err)
	}
	k := st.KernelStats
	return rings.Stats{
		RxDropped: k.Rx_dropped, RxInvalidDescs: k.Rx_invalid_descs + a.rxInvalid,
		TxInvalidDescs: k.Tx_invalid_descs + a.txInvalid, RxRingFull: k.Rx_ring_full,
		RxFillRingEmpty: k.Rx_fill_ring_empty_descs, TxRingEmptyDescs: k.Tx_ring_empty_descs,
	}, nil
}

// Close closes the library's socket, and unmaps its rings, which the library
// forgets: they would keep the queue taken until the process ends. Closing twice
// does nothing.
func (a *Adapter) Close() error {
	if a.sock.FD() < 0 {
		return nil
	}
	var errs []error
	for _, mem := range a.far.maps {
		if err := syscall.Munmap(mem); err != nil {
			errs = append(errs, fmt.Errorf("asavie: unmap a ring: %w", err))
		}
	}
	if err := a.sock.Close(); err != nil {
		errs = append(errs, fmt.Errorf("asavie: close: %w", err))
	}
	return errors.Join(errs...)
}
