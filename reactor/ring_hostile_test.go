package reactor

import (
	"bytes"
	"context"
	"encoding/binary"
	"flag"
	"hash/crc32"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// garbage hands out the bytes of a fuzz input; behind its end they are zero.
type garbage struct{ b []byte }

func (s *garbage) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return v
}

func (s *garbage) word() uint32 {
	return binary.LittleEndian.Uint32([]byte{s.byte(), s.byte(), s.byte(), s.byte()})
}

// FuzzRingArea has an application that writes anything anywhere in the shared memory while the engine runs. The engine
// may refuse, and must do nothing else: no panic, no byte outside of the area, no more requests and no more work in a turn than
// there may be, no frame kept, and nothing of it in another ring of the reactor, which goes on as if alone.
func FuzzRingArea(f *testing.F) {
	f.Add([]byte{0, 3, 2})
	f.Add(bytes.Repeat([]byte{4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 0, 255}, 40))
	f.Add(bytes.Repeat([]byte{5, 0, 14, 4, 0, 0, 1, 1, 6, 0, 1, 2, 3}, 60))
	f.Fuzz(func(t *testing.T, input []byte) {
		s := &garbage{input}
		g := newRig(t, options{frames: 64, ring: 16})
		layout, err := rings.LayoutRing(1<<(s.byte()%5), 1<<(s.byte()%5))
		if err != nil {
			t.Fatal(err)
		}
		const guard = 256
		all := rings.NewRingArea(rings.RingLayout{Size: layout.Size + 2*guard})
		area := all[guard : guard+layout.Size : guard+layout.Size]
		data := make([]byte, 4096)
		r := ringOn(g, RingConfig{
			SQEntries: layout.SQEntries, CQEntries: layout.CQEntries, Area: area, Requests: 8, Sockets: 4, Fixed: 2, Messages: 2,
			Data: data, Lends: 4, LendTable: 2048, Areas: [][]byte{make([]byte, 100)},
		})
		if _, err := r.q.AddPeer(r.q); err != nil {
			t.Fatal(err)
		}
		h := g.bind(echoPort)
		r.adopt(h)
		other := ringOn(g, RingConfig{SQEntries: 1, CQEntries: 2, Data: bytes.Repeat([]byte{0x5a}, 4096), Lends: 4})
		for len(s.b) > 0 {
			switch kind := s.byte() % 9; kind {
			case 0: // a word, most likely one of the head
				at := int(s.byte()) % 8 * 128
				if s.byte()%4 == 0 {
					at = int(s.word()%uint32(layout.Size)) &^ 3
				}
				binary.LittleEndian.PutUint32(area[at:], s.word())
			case 1, 2: // an index that is nearly right
				tail := (*uint32)(unsafe.Pointer(&area[256]))
				*tail += uint32(int8(s.byte()) % 8)
			case 3: // a CQ head that is
				head := (*uint32)(unsafe.Pointer(&area[512]))
				*head += uint32(int8(s.byte()) % 8)
			case 4, 5: // an SQE of anything, whose opcode the engine knows
				at := layout.SQEs + int(s.word()%layout.SQEntries)*64
				for k := range 64 {
					area[at+k] = s.byte()
				}
				if kind == 5 {
					for op := int(area[at]); ops[area[at]].issue == nil; op++ {
						area[at] = byte(op + 1)
					}
					area[at+2], area[at+3], area[at+42], area[at+43] = 0, 0, 0, 0
				}
			case 6:
				g.clock.AdvanceTo(g.clock.Now() + int64(s.byte()))
			case 8: // addresses, buffers, or the table of lent frames
				at, n := s.word()%4096, int(s.byte())
				copy(data[at:], s.b[:min(len(s.b), n)])
			case 7:
				g.nic.Deliver(g.udpFrame(echoPort, []byte("x"))) // or drop it: nobody reads them
			}
			other.push(nop(1, 0))
			g.r.Turn()
			if got := make([]rings.CQE, 2); other.c.Reap(got) != 1 || got[0] != cqe(1, 0) {
				t.Fatalf("another ring has completions %v", got)
			}
			if r.q.steps > maxSteps {
				t.Fatalf("%d steps in a turn", r.q.steps)
			}
			if r.q.used > 9 || r.q.backlog.n > len(r.q.backlog.ring) {
				t.Fatalf("%d requests, %d completions behind", r.q.used, r.q.backlog.n)
			}
		}
		r.q.Close()
		if r.q.used != 0 {
			t.Fatalf("%d requests outlive the ring", r.q.used)
		}
		if lent := g.pool.Ledger().Counts()[umem.Lent]; lent != 0 {
			t.Fatalf("%d frames are lent to nobody", lent)
		}
		if !bytes.Equal(other.q.data[4*rings.LentSize:], bytes.Repeat([]byte{0x5a}, 4096-4*rings.LentSize)) {
			t.Fatal("another ring's memory was written")
		}
		for i, b := range all {
			if b != 0 && (i < guard || i >= guard+layout.Size) {
				t.Fatalf("byte %d of the area was written", i-guard)
			}
		}
	})
}

// workOf fills a ring with idle timeouts, submits chains, and gives the most work that one of the turns did until the last
// completion came.
func workOf(t *testing.T, idle int, list []rings.SQE) (most int) {
	t.Helper()
	r := newRingRig(t, RingConfig{SQEntries: 1024, CQEntries: 1 << 16, Requests: 1 << 15})
	for k := range idle {
		list = append([]rings.SQE{{Opcode: rings.OpTimeout, Addr: 1e15, UserData: uint64(k)}}, list...)
	}
	want := len(list) - idle
	for turns := 0; want > 0; turns++ {
		if turns > 10_000 {
			t.Fatalf("%d completions are missing", want)
		}
		n := min(len(list), 256)
		r.push(list[:n]...)
		list = list[n:]
		r.r.Turn()
		most = max(most, r.q.steps)
		for r.c.Reap(make([]rings.CQE, 1)) == 1 {
			want--
		}
		if len(list) == 0 && want > 0 && r.q.end.SQ.Avail() == 0 && !r.r.unfinished() {
			if at := r.q.r.ringDeadline(); at > r.clock.Now()+1e12 {
				t.Fatalf("%d completions are missing, and nobody will come for them", want)
			}
		}
	}
	return most
}

// A turn does so much for a ring and no more, however its requests hang together.
func TestRingWorkBounded(t *testing.T) {
	repeat := func(s rings.SQE, n int) (list []rings.SQE) {
		for range n {
			list = append(list, s)
		}
		list[n-1].Flags &^= rings.SQEHardLink | rings.SQELink
		return list
	}
	search := rings.SQE{Opcode: rings.OpCancel, OpFlags: rings.CancelAll | rings.CancelOp, Len: uint32(rings.OpRecv), Flags: rings.SQEHardLink}
	drain := repeat(nop(1, rings.SQELink), 20_000)
	drain[0].Flags |= rings.SQEDrain
	for _, test := range []struct {
		name string
		idle int
		list []rings.SQE
		most int
	}{
		{"searches in a chain", 4000, repeat(search, 2000), maxSteps + 4000 + 2*costRequest},
		{"a long chain", 0, repeat(nop(1, rings.SQELink), 20_000), maxSteps + 2*costRequest},
		{"a long chain behind a drain", 0, drain, maxSteps + 2*costRequest},
		{"timeouts that end at once", 0, append(repeat(rings.SQE{Opcode: rings.OpTimeout, Off: 20_001}, 20_000), nop(1, 0)), maxSteps + 2*256*costRequest},
		{"timeouts that one completion ends", 0, append(repeat(rings.SQE{Opcode: rings.OpTimeout, Addr: 1e15, Off: 1}, 20_000), nop(1, 0)), maxSteps + 2*costRequest},
	} {
		most := workOf(t, test.idle, test.list)
		if most > test.most {
			t.Errorf("%s: %d steps in a turn, at most %d may be", test.name, most, test.most)
		}
		if most < maxSteps/2 && test.name != "timeouts that end at once" {
			t.Errorf("%s: %d steps, too few to try the limit", test.name, most)
		}
	}
}

// Buffers of one byte make work of a window full of data, which waits for the next turn as well; nothing of it is lost, and
// a request behind it gets its turn.
func TestRingSmallBuffersBounded(t *testing.T) {
	for _, s := range []rings.SQE{
		selectBuf(rings.OpRecv, 1, 0, 7, rings.RecvBundle|rings.RecvMultishot),
		selectBuf(rings.OpRecv, 1, 0, 7, rings.RecvBundle),
		selectBuf(rings.OpRecv, 1, 0, 7, 0),
	} {
		const size, ringAt = 30_000, 1 << 17
		n := newRingNet(t, RingConfig{SQEntries: 4096, CQEntries: 1 << 16, Requests: 1 << 15})
		far := n.dialed(0)
		g, _ := rings.NewBufGiver(n.data[ringAt : ringAt+rings.BufRingMax*rings.BufEntrySize])
		n.res(rings.SQE{Opcode: rings.OpBufRing, Addr: ringAt, Len: rings.BufRingMax, BufGroup: 7}, 0)
		for i := range size {
			g.Add(rings.Buf{Addr: uint64(bufAt + i), Len: 1, ID: uint16(i)})
		}
		g.Publish()
		n.write(far, fill(make([]byte, size), 3))
		list := []rings.SQE{s}
		if s.IOPrio&rings.RecvMultishot == 0 {
			for len(list) < size/64 {
				list = append(list, s)
			}
		}
		n.push(list...)
		got, most := 0, 0
		for turns := 0; got < size && turns < 1000; turns++ {
			n.r.Turn()
			most = max(most, n.q.steps)
			for c, ok := n.c.Peek(); ok; c, ok = n.c.Peek() {
				n.c.Seen(1)
				got += int(max(c.Res, 0))
				if c.Flags&rings.CQEMore == 0 && len(list) < size {
					n.push(s)
				}
			}
		}
		if want := fill(make([]byte, size), 3); got != size || !bytes.Equal(n.bytes(bufAt, size), want) {
			t.Errorf("%d bytes of %d, or wrong ones", got, size)
		}
		if limit := maxSteps + maxBundle*costRequest + 3*costRequest; most > limit {
			t.Errorf("%+v: %d steps in a turn, at most %d may be", s, most, limit)
		}
		if most < 256*costRequest {
			t.Errorf("%d steps: nothing was counted", most)
		}
	}
}

// A search of all ports that finds none free takes longer than anything else that an SQE can ask for, and the one for who has a port nearly
// as long: one a turn.
func TestRingPortSearchBounded(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	h, _, _ := n.r.Enter()
	for port := uint16(32768); port < 61000; port++ { // net.ipv4.ip_local_port_range
		h.UDPBind(0, port)
		h.TCPBind(0, port)
	}
	n.r.Leave()
	n.res(opSocket(1, sockDgram), 0)
	n.res(opSocket(1, sockStream), 1)
	n.addr(0, 0, 0)
	n.addr(64, peerAddr, 80)
	n.addr(128, 0, 40_000)
	opAddr := func(op rings.Op, fd int32, at uint64) rings.SQE {
		return rings.SQE{Opcode: op, FD: fd, Addr: at, Off: rings.SockAddrSize, UserData: 2}
	}
	for _, test := range []struct {
		s    rings.SQE
		want sockets.Errno
	}{
		{opAddr(rings.OpBind, 0, 0), sockets.EADDRINUSE},
		{opAddr(rings.OpBind, 1, 0), sockets.EADDRINUSE},
		{opAddr(rings.OpBind, 0, 128), sockets.EADDRINUSE},
		{opAddr(rings.OpBind, 1, 128), sockets.EADDRINUSE},
		{opLen(rings.OpListen, 2, 1, 1), sockets.EADDRINUSE},
		{opAddr(rings.OpConnect, 1, 64), sockets.EADDRNOTAVAIL},
	} {
		const tries = 20
		for range tries {
			n.push(test.s)
		}
		for got := 0; got < tries; {
			before := n.q.counters.Submitted
			n.r.Turn()
			if did := n.q.counters.Submitted - before; did != 1 {
				t.Fatalf("%+v: %d searches in a turn", test.s, did)
			}
			for c, ok := n.c.Peek(); ok; c, ok = n.c.Peek() {
				n.want([]rings.CQE{c}, fails(2, test.want))
				n.c.Seen(1)
				got++
			}
		}
	}
}

// TestRingCrowd: who connects and closes, again and again, to peers that never close does not fill the engine with connections of nobody.
func TestRingCrowd(t *testing.T) {
	n := newRingNet(t, RingConfig{Sockets: 1, Frames: 50})
	var l sockets.Handle
	n.onPeer(func(h *sockets.Host, _ int64) { l, _ = h.TCPListen(0, 80) })
	for range crowd + backlogCrowd + 50 {
		n.res(opSocket(1, sockStream), 0)
		n.res(n.opAddr(rings.OpConnect, 2, 0, peerAddr, 80), 0)
		n.res(opClose(3, 0), 0)
		n.onPeer(func(h *sockets.Host, _ int64) { h.TCPAccept(l) })
	}
	n.pass(1e8)
	if got := len(n.r.host.TCPSockets()); got > crowd+backlogCrowd || got < backlogCrowd {
		t.Errorf("the Host has %d connections for a ring of one socket", got)
	}
}

// TestRingsShareTurn: rings that are never done share the time of a turn, and each comes to its turn as often as the others.
func TestRingsShareTurn(t *testing.T) {
	now := int64(1e12)
	g := newRig(t, options{change: func(c *Config, _ *sockets.Config) {
		c.Clock = func() int64 { now += turnNS / 2; return now } // a ring takes half a turn
	}})
	var list []*ringRig
	for range 10 {
		list = append(list, ringOn(g, RingConfig{SQEntries: 1, CQEntries: 1 << 10}))
	}
	for turn := range 100 {
		before := uint64(0)
		for _, r := range list {
			before += r.q.counters.Completed
			for r.c.Submit(); ; r.c.Submit() {
				slot := r.c.SQE()
				if slot == nil {
					break
				}
				*slot = nop(1, 0)
			}
		}
		if worked, _ := g.r.Turn(); !worked || !g.r.unfinished() {
			t.Fatal("a turn that left rings waiting says that it had no work")
		}
		after := uint64(0)
		for _, r := range list {
			after += r.q.counters.Completed
		}
		if did := after - before; did < 1 || did > 3 {
			t.Fatalf("turn %d served %d rings", turn, did)
		}
	}
	for i, r := range list {
		if got := r.q.counters.Completed; got < 10 {
			t.Errorf("ring %d was served %d times in 100 turns", i, got)
		}
	}
}

// TestRingUserDataSpread: what is looked for by user data is found by few looks, wherever in it programs keep their numbers.
func TestRingUserDataSpread(t *testing.T) {
	for shift := 0; shift <= 48; shift += 4 {
		const n = 4096
		r := newRingRig(t, RingConfig{Requests: n, CQEntries: 2 * n})
		for i := range uint64(n) {
			r.push(timeout(i<<shift, 1e15, 0, 0))
			if i%256 == 255 {
				r.settle()
			}
		}
		for i := range uint64(n) {
			r.push(opCancel(0, (n-1-i)<<shift))
			if r.r.Turn(); r.q.steps > 40+4*costRequest {
				t.Fatalf("numbers shifted by %d: %d looks for one", shift, r.q.steps-3*costRequest)
			}
		}
		if got := r.reap(); len(got) != 2*n {
			t.Fatalf("%d completions, want %d", len(got), 2*n)
		}
		r.idle()
	}
}

var ringStress = flag.Duration("ringstress", 300*time.Millisecond, "how long the ring stress runs")

// TestRingStress has both ends run on goroutines of their own, awake and asleep, with chains and a CQ that is too small.
// Every SQE and every CQE carries a checksum; each must come once, and those of a chain in order.
func TestRingStress(t *testing.T) {
	for _, size := range []uint32{1, 4, 256} {
		for _, spin := range []time.Duration{1, 50 * time.Microsecond} {
			g := ringOn(newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = spin }}),
				RingConfig{SQEntries: 64, CQEntries: size, Requests: 256, Messages: 256})
			self, err := g.q.AddPeer(g.q)
			if err != nil {
				t.Fatal(err)
			}
			s := &stress{g: g, self: self, until: time.Now().Add(*ringStress / 6), tokens: make(chan struct{}, 200)}
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- g.r.Run(ctx) }()
			s.run()
			stop()
			if err := await(t, "the end of Run", ended); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// stress is a submitter and a reaper of one ring.
type stress struct {
	g      *ringRig
	self   int32
	until  time.Time
	tokens chan struct{} // one for each completion that is owed
	sent   uint64
}

// sealed is a number with its checksum.
func sealed(n uint64) uint64 {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], uint32(n))
	return n<<32 | uint64(crc32.ChecksumIEEE(b[:]))
}

func (s *stress) run() {
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() { s.submit(); close(done) })
	wg.Go(func() {
		for s.reap(done); ; { // after a failure the submitter must not wait for ever
			select {
			case <-s.tokens:
			case <-done:
				return
			}
		}
	})
	wg.Wait()
	s.g.until("the ring to be empty", func() bool { return s.g.q.used == 0 && s.g.q.mail.n.Load() == 0 })
}

// submit sends pairs: something, and linked to it a message to ourselves or nothing at all.
func (s *stress) submit() {
	c := s.g.c
	for n := uint64(0); time.Now().Before(s.until); n += 2 {
		s.put(rings.SQE{Opcode: rings.OpNop, Flags: rings.SQELink, UserData: sealed(n)})
		next := rings.SQE{Opcode: rings.OpNop, UserData: sealed(n + 1)}
		switch n / 2 % 8 {
		case 0:
			next = rings.SQE{Opcode: rings.OpTimeout, Addr: n % 50_000, OpFlags: rings.TimeoutEtimeOK, UserData: sealed(n + 1)}
		case 1: // its completion is the message
			next = rings.SQE{Opcode: rings.OpMsg, FD: s.self, Off: sealed(n + 1), Flags: rings.SQESkipSuccess}
		}
		s.put(next)
		if n%14 == 0 {
			c.Submit()
		}
		if n%4096 == 0 {
			time.Sleep(100 * time.Microsecond) // so that the engine falls asleep, sometimes
		}
		s.sent = n + 2
	}
	c.Submit()
}

func (s *stress) put(e rings.SQE) {
	select {
	case s.tokens <- struct{}{}:
	default:
		s.g.c.Submit()
		s.tokens <- struct{}{}
	}
	for {
		if slot := s.g.c.SQE(); slot != nil {
			*slot = e
			return
		}
		s.g.c.Submit()
		runtime.Gosched()
	}
}

func (s *stress) reap(done <-chan struct{}) {
	c, t := s.g.c, s.g.t
	seen := map[uint64]bool{}
	next := uint64(0) // the first of which not all is seen
	for got := uint64(0); ; {
		select {
		case <-done:
			if got == s.sent {
				return
			}
		default:
		}
		n, err := c.Wait(1+int(got%3), time.Millisecond)
		if err != nil {
			t.Error(err)
			return
		}
		for ; n > 0; n-- {
			e, ok := c.Peek()
			if !ok {
				break
			}
			id := e.UserData >> 32
			if e.UserData != sealed(id) || seen[id] || id < next || e.Res < 0 && e.Res != -int32(sockets.ETIME) {
				t.Errorf("completion %+v (%d): torn, failed, or come twice", e, id)
				return
			}
			if id%2 == 1 && id-1 >= next && !seen[id-1] {
				t.Errorf("completion %d before %d, to which it is linked", id, id-1)
				return
			}
			for seen[id] = true; seen[next]; next++ {
				delete(seen, next)
			}
			c.Seen(1)
			got++
			<-s.tokens
		}
	}
}
