package reactor

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/rings"
	"xdpd/sockets"
)

// The random program: two rings on one reactor do what a seed says, hostile SQEs among it, in step with a model each.
// Every completion must be the model's, in the same order. XDPD_SEED as in the simulation.

var ringSteps = flag.Int("ringsteps", 1000, "steps of the random ring program a seed")

func TestRingRandom(t *testing.T) {
	first, n := seeds.Range(t, 400)
	total := map[string]int{}
	seeds.Each(t, first, n, func(seed uint64) error { return ringProgram(t, seed, total) })
	t.Logf("%d seeds from %d: %v", n, first, total)
	for _, what := range []string{
		"overflow", "multishot stopped", "more", "count", "link", "silent", "guard", "guard update", "expired", "poll update",
		"timeout update", "cancelled", "no room", "drained", "completions",
		sockets.ENOMEM.Error(), sockets.EINVAL.Error(), sockets.EOPNOTSUPP.Error(), sockets.ECANCELED.Error(),
	} {
		if n >= 100 && total[what] == 0 {
			t.Errorf("%q never happened: the program does not try what it should", what)
		}
	}
}

// ringPlayer is a ring and its model.
type ringPlayer struct {
	*ringRig
	m     *ringModel
	socks map[int]modelSocket
	idled int // steps in a row in which a drain kept everything else waiting
}

type modelSocket struct {
	h    sockets.Handle
	port uint16
}

func ringProgram(t *testing.T, seed uint64, total map[string]int) (err error) {
	rng := rand.New(rand.NewPCG(seed, 0x5e))
	g := newRig(t, options{frames: 512, ring: 256, noLedger: true})
	g.settle()
	var players [2]*ringPlayer
	step := 0
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("step %d: %v\n%s", step, r, debug.Stack())
		}
	}()
	for i := range players {
		players[i] = newPlayer(g, rng, uint16(6000+10*i))
	}
	for i, p := range players {
		for _, to := range []*ringPlayer{p, players[1-i]} {
			if _, err := p.q.AddPeer(to.q); err != nil {
				return err
			}
			p.m.peers = append(p.m.peers, to.m)
		}
	}
	for ; step < *ringSteps; step++ {
		p := players[rng.IntN(2)]
		switch rng.IntN(8) {
		case 0, 1, 2:
			p.submit(rng)
		case 3, 4:
			if p.idled < 30 { // a repeated timeout ends when the CQ is full
				p.take(rng.IntN(2 * p.m.size))
			}
		case 5:
			if p.idled > 30 {
				g.clock.AdvanceTo(g.clock.Now() + 3000)
			}
			g.clock.AdvanceTo(g.clock.Now() + rng.Int64N(300))
		default:
			p.traffic(rng)
		}
		ringTurn(g, players)
		for _, p := range players {
			if p.idled++; !p.m.drain && p.m.held == nil || p.m.used == 0 {
				p.idled = 0
			}
		}
	}
	for i := range 10_000 { // whatever there is ends
		busy := false
		g.clock.AdvanceTo(g.clock.Now() + 3000)
		for _, p := range players {
			busy = busy || p.m.used > 0 || len(p.m.sq)+len(p.m.cq)+len(p.m.mail)+len(p.m.backlog) > 0 || p.m.broken
			if len(p.m.sq) == 0 && (p.m.broken || len(p.m.open) > 0) {
				p.send(rings.SQE{Opcode: rings.OpNop})
			} else if len(p.m.sq) == 0 && p.m.used > 0 {
				p.send(rings.SQE{Opcode: rings.OpCancel, OpFlags: rings.CancelAny})
			}
			p.traffic(rng)
			if i%200 == 0 { // a repeated timeout that all else waits for ends when the CQ is full
				p.take(1 << 20)
			}
		}
		ringTurn(g, players)
		if !busy {
			break
		}
	}
	for _, p := range players {
		if p.m.used > 0 { // a drain waits for what never ends
			total["stuck"]++
		} else if err := p.left(); err != nil {
			return err
		}
		for what, n := range p.m.ended {
			total[what] += n
		}
		if p.q.Close(); p.q.used != 0 {
			return fmt.Errorf("%d requests outlive the ring", p.q.used)
		}
	}
	total["steps"] += step
	return nil
}

func newPlayer(g *rig, rng *rand.Rand, port uint16) *ringPlayer {
	pow := func(limit int) uint32 { return 1 << rng.IntN(limit) }
	cfg := RingConfig{
		SQEntries: pow(6), CQEntries: pow(6), Requests: 1 + rng.IntN(40), Sockets: 8, Fixed: 4, Messages: 1 + rng.IntN(4),
	}
	p := &ringPlayer{ringRig: ringOn(g, cfg), socks: map[int]modelSocket{}}
	p.m = &ringModel{limit: cfg.Requests, room: cfg.Messages, size: int(cfg.CQEntries), socks: map[int]*modelSock{}, ended: map[string]int{}}
	for i, n := range []int{0, 1, 2, 1000} {
		h := g.bind(port + uint16(i))
		g.enter(func(*sockets.Host, int64) {
			s, _, err := p.q.addSock(uint32(n / 1000))
			if err != 0 {
				panic(err)
			}
			p.q.setHandle(s, h)
		})
		p.socks[n], p.m.socks[n] = modelSocket{h, port + uint16(i)}, &modelSock{}
	}
	return p
}

// ringTurn does a turn of the reactor and of the models.
func ringTurn(g *rig, players [2]*ringPlayer) {
	g.r.Turn()
	for _, p := range players {
		p.m.turn(g.clock.Now())
	}
	for i, p := range players {
		if got, want := int(p.c.app.CQ.Avail()), p.m.in; got != want {
			panic(fmt.Sprintf("ring %d: %d completions in the CQ, the model has %d", i, got, want))
		}
		if p.q.used != p.m.used || p.q.backlog.n != len(p.m.backlog) || p.c.Overflow() != (len(p.m.backlog) > 0) {
			panic(fmt.Sprintf("ring %d: %d requests, %d completions behind a full CQ, overflow %v; the model has %d and %d",
				i, p.q.used, p.q.backlog.n, p.c.Overflow(), p.m.used, len(p.m.backlog)))
		}
		if n := int(p.c.app.SQ.Pending()); n != len(p.m.sq) {
			panic(fmt.Sprintf("ring %d: %d SQEs not consumed, the model has %d", i, n, len(p.m.sq)))
		}
	}
}

// take takes completions, and each must be the model's.
func (p *ringPlayer) take(limit int) {
	n := 0
	for ; n < limit; n++ {
		c, ok := p.c.Peek()
		if ok != (p.m.in > 0) {
			panic(fmt.Sprintf("a completion: %v; the model has %d", ok, p.m.in))
		}
		if !ok {
			break
		}
		if c != p.m.cq[0] {
			rest := []rings.CQE{c}
			for p.c.Seen(1); ; p.c.Seen(1) {
				if c, ok = p.c.Peek(); !ok {
					break
				}
				rest = append(rest, c)
			}
			panic(fmt.Sprintf("completions %v, behind them %v; the model has %v and %v", rest, p.q.backlog.ring[p.q.backlog.head:p.q.backlog.head+p.q.backlog.n], p.m.cq, p.m.backlog))
		}
		p.m.cq = p.m.cq[1:]
		p.m.in--
		p.m.ended["completions"]++
		p.c.Seen(1)
	}
}

func (p *ringPlayer) send(list ...rings.SQE) {
	for _, s := range list {
		if slot := p.c.SQE(); slot != nil {
			*slot = s
			p.m.sq = append(p.m.sq, s)
		}
	}
	p.c.Submit()
}

func (p *ringPlayer) submit(rng *rand.Rand) {
	for range 1 + rng.IntN(6) {
		s := randomSQE(rng)
		if rng.IntN(6) == 0 && p.c.app.SQ.Free() > 1 {
			s.Flags |= rings.SQELink
			p.send(s, rings.SQE{Opcode: rings.OpLinkTimeout, Addr: rng.Uint64N(1000), UserData: rng.Uint64N(8), Flags: uint8(rng.IntN(2) * rings.SQELink)})
			continue
		}
		p.send(s)
	}
}

// traffic has datagrams come in, or go to the application.
func (p *ringPlayer) traffic(rng *rand.Rand) {
	for _, n := range []int{0, 1, 2, 1000} {
		k, s := p.m.socks[n], p.socks[n]
		switch rng.IntN(3) {
		case 0:
			if k.queued < 4 {
				p.deliver(p.udpFrame(s.port, []byte("x")))
				k.queued++
				k.event = true
			}
		case 1:
			if k.queued > 0 {
				p.enter(func(h *sockets.Host, _ int64) {
					if _, err := h.UDPRecv(s.h, make([]byte, 4)); err != 0 {
						panic(err)
					}
				})
				k.queued--
			}
		}
	}
}

// knownOps are the operations that the model knows.
var knownOps = []rings.Op{
	rings.OpNop, rings.OpPollAdd, rings.OpPollRemove, rings.OpTimeout, rings.OpTimeoutRemove, rings.OpCancel, rings.OpLinkTimeout, rings.OpMsg,
}

func known(op rings.Op) bool {
	for _, o := range knownOps {
		if o == op {
			return true
		}
	}
	return ops[op].issue == nil
}

// randomSQE is most often sensible, sometimes nearly so, and sometimes anything at all.
func randomSQE(rng *rand.Rand) rings.SQE {
	var s rings.SQE
	for {
		if rng.IntN(20) == 0 {
			s = garbageSQE(rng)
		} else {
			s = sensibleSQE(rng)
		}
		if known(s.Opcode) {
			return s
		}
	}
}

func garbageSQE(rng *rand.Rand) rings.SQE {
	var b [64]byte
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	s := rings.SQE{
		Opcode: b[0], Flags: b[1] & byte(rng.Uint32()) &^ (rings.SQEDrain * byte(rng.IntN(2))), IOPrio: binary.LittleEndian.Uint16(b[2:]), FD: int32(binary.LittleEndian.Uint32(b[4:])),
		Off: binary.LittleEndian.Uint64(b[8:]), Addr: binary.LittleEndian.Uint64(b[16:]), Len: binary.LittleEndian.Uint32(b[24:]),
		OpFlags: binary.LittleEndian.Uint32(b[28:]), UserData: binary.LittleEndian.Uint64(b[32:]), BufGroup: binary.LittleEndian.Uint16(b[40:]),
		Reserved: binary.LittleEndian.Uint16(b[42:]), FileIndex: binary.LittleEndian.Uint32(b[44:]), Addr3: binary.LittleEndian.Uint64(b[48:]),
	}
	if rng.IntN(2) == 0 { // else it would never get further than the first check
		s.Opcode, s.IOPrio, s.Reserved = knownOps[rng.IntN(len(knownOps))], 0, 0
	}
	if s.Opcode == rings.OpPollAdd {
		s.OpFlags |= 1 // one for nothing would never end, and a drain wait for it for ever
	}
	return s
}

func sensibleSQE(rng *rand.Rand) rings.SQE {
	user := func() uint64 { return rng.Uint64N(8) }
	s := rings.SQE{Opcode: knownOps[rng.IntN(len(knownOps))], UserData: user()}
	if rng.IntN(3) == 0 {
		s.Flags = [...]uint8{rings.SQELink, rings.SQELink, rings.SQEHardLink, rings.SQESkipSuccess, rings.SQELink | rings.SQESkipSuccess,
			rings.SQEAsync, rings.SQEBufferSelect}[rng.IntN(7)]
	}
	if rng.IntN(4) == 0 {
		s.Flags |= rings.SQEFixedSocket
	}
	if rng.IntN(40) == 0 {
		s.Flags |= rings.SQEDrain
	}
	oneOf := func(flags ...uint32) uint32 { return flags[rng.IntN(len(flags))] }
	switch s.Opcode {
	case rings.OpPollAdd:
		s.FD, s.OpFlags, s.Len = int32(rng.IntN(5))-1, oneOf(1, 1, 1, 4, 5), oneOf(0, 1)
	case rings.OpPollRemove:
		s.Addr, s.Len = user(), oneOf(0, 0, 2, 3, 4, 6, 7)
		if s.Len&2 != 0 {
			s.OpFlags = oneOf(1, 1, 4, 5)
		}
		if s.Len&4 != 0 {
			s.Off = user()
		}
	case rings.OpTimeout:
		s.Addr, s.OpFlags, s.Off = rng.Uint64N(2000), oneOf(0, 0, 0, 32, 64, 96), uint64(oneOf(0, 0, 1, 2, 5))
	case rings.OpLinkTimeout:
		s.Addr = rng.Uint64N(1000)
	case rings.OpTimeoutRemove:
		if s.Addr, s.OpFlags = user(), oneOf(0, 0, 2, 16, 18, 1); s.OpFlags&18 != 0 {
			s.Off = rng.Uint64N(2000)
		}
		s.Flags &^= rings.SQEFixedSocket
	case rings.OpCancel:
		s.Addr, s.OpFlags, s.FD = user(), oneOf(0, 0, 0, 1, 2, 3, 2|16, 3|16, 4, 8|3, 32, 33, 33|16, 35), int32(rng.IntN(4))
		if s.OpFlags == 4 && rng.IntN(4) != 0 {
			s.OpFlags = 0
		}
		if s.OpFlags&32 != 0 {
			s.Len = uint32(knownOps[rng.IntN(len(knownOps))])
		}
	case rings.OpMsg:
		s.FD, s.Off, s.Len = int32(rng.IntN(4))-1, rng.Uint64(), rng.Uint32()
		if rng.IntN(3) == 0 {
			s.OpFlags, s.FileIndex = 2, rng.Uint32()
		}
	}
	if rng.IntN(30) == 0 {
		s.BufGroup = 1
	}
	return s
}
