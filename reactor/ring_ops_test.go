package reactor

import (
	"slices"
	"testing"

	"xdpd/rings"
	"xdpd/sockets"
)

// after moves the clock and takes what completes.
func (g *ringRig) after(ns int64) []rings.CQE {
	g.t.Helper()
	g.clock.AdvanceTo(g.clock.Now() + ns)
	return g.reap()
}

func timeout(user, ns, count uint64, flags uint32) rings.SQE {
	return rings.SQE{Opcode: rings.OpTimeout, Addr: ns, Off: count, OpFlags: flags, UserData: user}
}

func linkTimeout(user, ns uint64) rings.SQE {
	return rings.SQE{Opcode: rings.OpLinkTimeout, Addr: ns, UserData: user}
}

func timeoutRemove(user, target uint64) rings.SQE {
	return rings.SQE{Opcode: rings.OpTimeoutRemove, Addr: target, UserData: user}
}

func cancel(user, target uint64, flags uint32) rings.SQE {
	return rings.SQE{Opcode: rings.OpCancel, Addr: target, OpFlags: flags, UserData: user}
}

// with gives the SQE other flags.
func with(s rings.SQE, flags uint8) rings.SQE {
	s.Flags = flags
	return s
}

func TestRingTimeout(t *testing.T) {
	g := newRingRig(t, RingConfig{})
	g.want(g.do(timeout(1, 1000, 0, 0), timeout(2, 500, 0, 0), timeout(3, uint64(g.clock.Now())+700, 0, rings.TimeoutAbs), timeout(4, 0, 0, 0)),
		fails(4, sockets.ETIME))
	if _, deadline := g.r.Turn(); deadline != g.clock.Now()+500 {
		t.Fatalf("the reactor wants a turn in %d ns, not in 500", deadline-g.clock.Now())
	}
	g.want(g.after(499))
	g.want(g.after(1), fails(2, sockets.ETIME))
	g.want(g.after(1000), fails(3, sockets.ETIME), fails(1, sockets.ETIME))
	g.want(g.do(timeout(5, 5, 0, rings.TimeoutAbs)), fails(5, sockets.ETIME)) // long ago
	g.want(g.do(timeout(6, rings.MaxTimeout, 0, 0), timeoutRemove(7, 6)), fails(6, sockets.ECANCELED), cqe(7, 0))
	g.idle()
}

func TestRingTimeoutCount(t *testing.T) {
	g := newRingRig(t, RingConfig{})
	g.want(g.do(timeout(1, 1000, 2, 0), timeout(2, 1000, 1, 0), nop(3, 0)), cqe(3, 0), cqe(2, 0))
	// What a timeout completes with by itself counts for none; what is cancelled, and what is skipped, does and does not.
	g.want(g.do(timeout(4, 10, 0, 0)))
	g.want(g.after(10), fails(4, sockets.ETIME))
	g.want(g.do(nop(5, rings.SQESkipSuccess)))
	g.want(g.do(nop(6, 0)), cqe(6, 0), cqe(1, 0))
	g.want(g.do(timeout(7, 1000, 1, 0), timeout(8, 1000, 0, 0), timeoutRemove(9, 8)), fails(8, sockets.ECANCELED), cqe(9, 0), cqe(7, 0))
	g.want(g.do(timeout(10, 100, 1, 0)))
	g.want(g.after(100), fails(10, sockets.ETIME))
	g.idle()
}

func TestRingTimeoutMultishot(t *testing.T) {
	g := newRingRig(t, RingConfig{})
	g.want(g.do(timeout(1, 100, 3, rings.TimeoutMultishot)))
	for range 2 {
		g.want(g.after(100), more(1, -int32(sockets.ETIME)))
	}
	g.want(g.after(100), fails(1, sockets.ETIME))
	g.want(g.do(timeout(2, 100, 0, rings.TimeoutMultishot)))
	for range 50 {
		g.want(g.after(100), more(2, -int32(sockets.ETIME)))
	}
	g.want(g.do(cancel(3, 2, 0)), fails(2, sockets.ECANCELED), cqe(3, 0))
	g.idle()
}

func TestRingTimeoutUpdate(t *testing.T) {
	g := newRingRig(t, RingConfig{})
	update := func(user, target, ns uint64, flags uint32) rings.SQE {
		s := timeoutRemove(user, target)
		s.Off, s.OpFlags = ns, flags
		return s
	}
	g.want(g.do(timeout(1, 100, 1, 0), with(update(2, 1, 500, rings.TimeoutUpdate), rings.SQESkipSuccess)))
	g.want(g.do(nop(3, 0)), cqe(3, 0)) // it counts no more
	g.want(g.after(499))
	g.want(g.after(1), fails(1, sockets.ETIME))
	g.want(g.do(timeout(4, 100, 0, 0), update(5, 4, uint64(g.clock.Now())+50, rings.TimeoutUpdate|rings.TimeoutAbs)), cqe(5, 0))
	g.want(g.after(50), fails(4, sockets.ETIME))
	g.want(g.do(update(6, 4, 1, rings.TimeoutUpdate)), fails(6, sockets.ENOENT))
	g.want(g.do(update(7, 4, 1, rings.LinkTimeoutUpdate)), fails(7, sockets.ENOENT))
	g.want(g.do(with(timeout(8, 1000, 0, 0), rings.SQELink), linkTimeout(9, 100), update(10, 9, 300, rings.LinkTimeoutUpdate)), cqe(10, 0))
	g.want(g.after(299))
	g.want(g.after(1), fails(9, sockets.ETIME), fails(8, sockets.ECANCELED))
	g.idle()
}

func TestRingMalformed(t *testing.T) {
	g := newRingRig(t, RingConfig{})
	for i, s := range []rings.SQE{
		{Opcode: rings.OpNop, Reserved: 1},
		{Opcode: rings.OpTimeout, Len: 1}, {Opcode: rings.OpTimeout, BufGroup: 1}, {Opcode: rings.OpTimeout, FileIndex: 1},
		{Opcode: rings.OpTimeout, OpFlags: 2}, {Opcode: rings.OpTimeout, OpFlags: 1 << 31}, {Opcode: rings.OpTimeout, Addr: rings.MaxTimeout + 1},
		{Opcode: rings.OpTimeout, Off: 1 << 32}, {Opcode: rings.OpTimeout, OpFlags: rings.TimeoutAbs | rings.TimeoutMultishot},
		{Opcode: rings.OpLinkTimeout}, // alone
		{Opcode: rings.OpTimeoutRemove, Len: 1}, {Opcode: rings.OpTimeoutRemove, OpFlags: rings.TimeoutAbs}, {Opcode: rings.OpTimeoutRemove, Off: 1},
		{Opcode: rings.OpTimeoutRemove, OpFlags: rings.TimeoutUpdate | 1<<6}, {Opcode: rings.OpTimeoutRemove, Flags: rings.SQEFixedSocket},
		{Opcode: rings.OpCancel, Off: 1}, {Opcode: rings.OpCancel, FileIndex: 1}, {Opcode: rings.OpCancel, OpFlags: 1 << 6},
		{Opcode: rings.OpCancel, OpFlags: rings.CancelAny | rings.CancelFD}, {Opcode: rings.OpCancel, OpFlags: rings.CancelAny | rings.CancelOp},
		{Opcode: rings.OpPollAdd, Len: 2}, {Opcode: rings.OpPollAdd, Off: 1}, {Opcode: rings.OpPollAdd, Addr: 1},
		{Opcode: rings.OpPollAdd, Len: rings.PollMulti, Flags: rings.SQESkipSuccess},
		{Opcode: rings.OpPollRemove, Len: rings.PollMulti}, {Opcode: rings.OpPollRemove, Len: 8}, {Opcode: rings.OpPollRemove, Off: 1},
		{Opcode: rings.OpPollRemove, OpFlags: 1},
		{Opcode: rings.OpMsg, Addr: 1}, {Opcode: rings.OpMsg, OpFlags: 1}, {Opcode: rings.OpMsg, FileIndex: 1},
	} {
		s.UserData = uint64(i)
		g.want(g.do(s), fails(uint64(i), sockets.EINVAL))
	}
	g.want(g.do(nop(1, rings.SQEBufferSelect)), fails(1, sockets.EOPNOTSUPP))
	for _, fd := range []int32{-1, 0, 1023, 1024, 1 << 30, -1 << 31} {
		g.want(g.do(rings.SQE{Opcode: rings.OpPollAdd, FD: fd}), fails(0, sockets.EBADF))
		g.want(g.do(rings.SQE{Opcode: rings.OpPollAdd, FD: fd, Flags: rings.SQEFixedSocket}), fails(0, sockets.EBADF))
		g.want(g.do(rings.SQE{Opcode: rings.OpCancel, FD: fd, OpFlags: rings.CancelFD}), fails(0, sockets.EBADF))
		g.want(g.do(rings.SQE{Opcode: rings.OpMsg, FD: fd}), fails(0, sockets.EBADF))
	}
	g.idle()
}

func TestRingLink(t *testing.T) {
	const link, hard, skip = rings.SQELink, rings.SQEHardLink, rings.SQESkipSuccess
	g := newRingRig(t, RingConfig{})
	bad := func(user uint64, flags uint8) rings.SQE { return with(timeoutRemove(user, 99), flags) } // ENOENT, when it runs
	malformed := func(user uint64, flags uint8) rings.SQE {
		return rings.SQE{Opcode: 200, UserData: user, Flags: flags}
	}
	g.want(g.do(with(timeout(1, 100, 0, rings.TimeoutEtimeOK), link), nop(2, link), nop(3, 0), nop(4, 0)), cqe(4, 0))
	g.want(g.after(100), fails(1, sockets.ETIME), cqe(2, 0), cqe(3, 0))
	// A failure breaks the chain, and only it; a hard link holds.
	g.want(g.do(bad(1, link), nop(2, link), nop(3, 0), nop(4, 0)), fails(1, sockets.ENOENT), fails(2, sockets.ECANCELED), fails(3, sockets.ECANCELED), cqe(4, 0))
	g.want(g.do(bad(1, hard), nop(2, link), nop(3, 0)), fails(1, sockets.ENOENT), cqe(2, 0), cqe(3, 0))
	g.want(g.do(with(timeout(1, 10, 0, 0), link), nop(2, 0)))
	g.want(g.after(10), fails(1, sockets.ETIME), fails(2, sockets.ECANCELED))
	// What is malformed breaks a chain before it begins, hard or not, wherever in it it stands.
	g.want(g.do(nop(1, hard), malformed(2, hard), nop(3, hard), nop(4, 0), nop(5, 0)),
		fails(1, sockets.ECANCELED), fails(2, sockets.EINVAL), fails(3, sockets.ECANCELED), fails(4, sockets.ECANCELED), cqe(5, 0))
	g.want(g.do(nop(1, link), malformed(2, 0), nop(3, 0)), fails(1, sockets.ECANCELED), fails(2, sockets.EINVAL), cqe(3, 0))
	// A chain is closed by its last SQE, however late that is submitted.
	g.want(g.do(nop(1, link)))
	g.want(g.do(nop(2, 0)), cqe(1, 0), cqe(2, 0))
	// Who fails with SKIP_SUCCESS speaks for the rest; who is cancelled without speaks although it has it.
	g.want(g.do(bad(1, link|skip), nop(2, link), nop(3, 0)), fails(1, sockets.ENOENT))
	g.want(g.do(bad(1, link), nop(2, link|skip), nop(3, skip)), fails(1, sockets.ENOENT), fails(2, sockets.ECANCELED), fails(3, sockets.ECANCELED))
	g.idle()
}

func TestRingDrain(t *testing.T) {
	const drain, link = rings.SQEDrain, rings.SQELink
	g := newRingRig(t, RingConfig{})
	g.want(g.do(timeout(1, 100, 0, 0), nop(2, 0), nop(3, drain), nop(4, 0)), cqe(2, 0))
	g.want(g.after(100), fails(1, sockets.ETIME), cqe(3, 0), cqe(4, 0))
	// What follows waits for the drained one, too.
	g.want(g.do(with(timeout(1, 100, 0, 0), drain), nop(2, 0)))
	g.want(g.after(100), fails(1, sockets.ETIME), cqe(2, 0))
	// Anywhere in a chain it drains all of it.
	g.want(g.do(timeout(1, 100, 0, 0), with(timeout(2, 50, 0, rings.TimeoutEtimeOK), link), nop(3, drain), nop(4, 0)))
	g.want(g.after(100), fails(1, sockets.ETIME))
	g.want(g.after(50), fails(2, sockets.ETIME), cqe(3, 0), cqe(4, 0))
	g.want(g.do(nop(1, drain), nop(2, drain)), cqe(1, 0), cqe(2, 0))
	g.idle()
}

func TestRingLinkTimeout(t *testing.T) {
	const link = rings.SQELink
	g := newRingRig(t, RingConfig{})
	// In time, at once or not.
	g.want(g.do(nop(1, link), with(linkTimeout(2, 100), link), nop(3, 0)), cqe(1, 0), fails(2, sockets.ECANCELED), cqe(3, 0))
	g.want(g.do(with(timeout(1, 50, 0, rings.TimeoutEtimeOK), link), with(linkTimeout(2, 100), link), nop(3, 0)))
	g.want(g.after(50), fails(1, sockets.ETIME), fails(2, sockets.ECANCELED), cqe(3, 0))
	// Too late.
	g.want(g.do(with(timeout(1, 500, 0, 0), link), with(linkTimeout(2, 100), link), nop(3, 0)))
	g.want(g.after(100), fails(2, sockets.ETIME), fails(1, sockets.ECANCELED), fails(3, sockets.ECANCELED))
	// It starts when what it guards starts.
	g.want(g.do(with(timeout(1, 500, 0, rings.TimeoutEtimeOK), link), with(timeout(2, 500, 0, 0), link), linkTimeout(3, 100)))
	g.want(g.after(500), fails(1, sockets.ETIME))
	g.want(g.after(100), fails(3, sockets.ETIME), fails(2, sockets.ECANCELED))
	// Never started, guard and all.
	g.want(g.do(with(timeoutRemove(1, 99), link), nop(2, link), linkTimeout(3, 100)), fails(1, sockets.ENOENT), fails(2, sockets.ECANCELED), fails(3, sockets.ECANCELED))
	// Nothing guards a guard.
	g.want(g.do(nop(1, link), with(linkTimeout(2, 1), link), linkTimeout(3, 1)), fails(1, sockets.ECANCELED), fails(2, sockets.ECANCELED), fails(3, sockets.EINVAL))
	g.want(g.do(with(timeout(1, 500, 0, 0), link), rings.SQE{Opcode: rings.OpLinkTimeout, Off: 1, UserData: 2}), fails(1, sockets.ECANCELED), fails(2, sockets.EINVAL))
	// Who cancels what is guarded ends the guard; the guard itself cannot be found.
	g.want(g.do(with(timeout(1, 500, 0, 0), link), linkTimeout(2, 100)))
	g.want(g.do(cancel(3, 2, 0)), fails(3, sockets.ENOENT))
	g.want(g.do(cancel(3, 1, 0)), fails(1, sockets.ECANCELED), fails(2, sockets.ECANCELED), cqe(3, 0))
	g.want(g.do(with(timeout(1, 50, 0, 0), link), with(linkTimeout(2, 100), rings.SQESkipSuccess)))
	g.want(g.after(50), fails(1, sockets.ETIME))
	g.idle()
}

func TestRingCancel(t *testing.T) {
	g := newRingRig(t, RingConfig{})
	one := timeout(1, 1000, 0, 0)
	g.want(g.do(cancel(9, 1, 0)), fails(9, sockets.ENOENT))
	g.want(g.do(cancel(9, 1, rings.CancelAll)), cqe(9, 0))
	// The oldest, then the next.
	g.want(g.do(timeout(1, 1000, 0, 0), timeout(1, 2000, 0, 0), timeout(2, 3000, 0, 0), cancel(9, 1, 0)), fails(1, sockets.ECANCELED), cqe(9, 0))
	g.want(g.after(1000)) // that was the one of 1000 ns
	g.want(g.do(one, cancel(9, 1, rings.CancelAll)), fails(1, sockets.ECANCELED), fails(1, sockets.ECANCELED), cqe(9, 2))
	g.want(g.do(one, cancel(9, 0, rings.CancelAny)), fails(2, sockets.ECANCELED), fails(1, sockets.ECANCELED), cqe(9, 2))
	// By opcode, with and without user data.
	s := cancel(9, 1, rings.CancelOp|rings.CancelAll)
	s.Len = uint32(rings.OpNop)
	g.want(g.do(one, s), cqe(9, 0))
	s.Len = uint32(rings.OpTimeout)
	s.OpFlags |= rings.CancelUserData
	g.want(g.do(timeout(2, 1000, 0, 0), s), fails(1, sockets.ECANCELED), cqe(9, 1))
	s.OpFlags &^= rings.CancelUserData
	g.want(g.do(s), fails(2, sockets.ECANCELED), cqe(9, 1))
	// What has not started cannot be cancelled.
	g.want(g.do(with(timeout(1, 100, 0, rings.TimeoutEtimeOK), rings.SQELink), timeout(2, 100, 0, 0), cancel(9, 2, 0)), fails(9, sockets.ENOENT))
	g.want(g.after(100), fails(1, sockets.ETIME))
	g.want(g.do(cancel(9, 2, 0)), fails(2, sockets.ECANCELED), cqe(9, 0))
	// A hard link goes on behind what was cancelled.
	g.want(g.do(with(one, rings.SQEHardLink), nop(2, 0), cancel(9, 1, 0)), fails(1, sockets.ECANCELED), cqe(9, 0), cqe(2, 0))
	g.idle()
}

// As many as may be in flight, and one more; what ends them can still be submitted.
func TestRingFull(t *testing.T) {
	g := newRingRig(t, RingConfig{Requests: 4})
	for i := range uint64(4) {
		g.want(g.do(timeout(i, 1000, 0, 0)))
	}
	g.want(g.do(timeout(4, 1000, 0, 0)), fails(4, sockets.ENOMEM))
	g.want(g.do(nop(5, 0)), cqe(5, 0))
	g.want(g.do(nop(5, rings.SQELink), nop(6, 0), nop(7, 0)), fails(5, sockets.ENOMEM), fails(6, sockets.ECANCELED), cqe(7, 0))
	g.want(g.do(cancel(8, 2, 0)), fails(2, sockets.ECANCELED), cqe(8, 0))
	g.want(g.do(nop(1, rings.SQELink), nop(2, rings.SQELink), nop(3, 0)), fails(1, sockets.ECANCELED), fails(2, sockets.ENOMEM), fails(3, sockets.ECANCELED))
	if c := g.q.Counters(); c.Refused != 5 {
		t.Errorf("%d SQEs refused, want 5", c.Refused)
	}
	g.want(g.do(cancel(8, 0, rings.CancelAny)), fails(0, sockets.ECANCELED), fails(1, sockets.ECANCELED), fails(3, sockets.ECANCELED), cqe(8, 3))
	g.idle()
}

// Whatever the CQ holds, all completions come, in order, and none is consumed while others wait.
func TestRingOverflow(t *testing.T) {
	for size := uint32(1); size <= 64; size *= 2 {
		g := newRingRig(t, RingConfig{SQEntries: 32, CQEntries: size})
		for i := range uint64(32) {
			g.push(timeout(i, 100, 0, 0))
		}
		g.settle()
		g.clock.AdvanceTo(g.clock.Now() + 100)
		g.settle()
		g.push(nop(100, 0), nop(101, 0))
		g.settle()
		if over := g.c.Overflow(); over != (size < 34) {
			t.Fatalf("CQ of %d: overflow %v", size, over)
		}
		if n := g.c.app.SQ.Pending(); (n != 0) != (size < 34) {
			t.Fatalf("CQ of %d: %d SQEs not consumed", size, n)
		}
		got := g.reap()
		for i, c := range got {
			if i < 32 && c != fails(uint64(i), sockets.ETIME) || i >= 32 && c != cqe(uint64(i-32+100), 0) {
				t.Fatalf("CQ of %d: completion %d is %v", size, i, c)
			}
		}
		if len(got) != 34 || g.c.Overflow() {
			t.Fatalf("CQ of %d: %d completions, overflow %v", size, len(got), g.c.Overflow())
		}
		if c := g.q.Counters(); c.Submitted != 34 || c.Completed != 34 || (c.Overflows == 0) != (size >= 34) {
			t.Fatalf("CQ of %d: counters %+v", size, c)
		}
		g.idle()
	}
}

// A multishot request that finds the CQ full ends: its last completion waits like any other.
func TestRingMultishotFull(t *testing.T) {
	g := newRingRig(t, RingConfig{CQEntries: 2})
	g.push(timeout(1, 10, 0, rings.TimeoutMultishot))
	g.settle()
	for range 5 {
		g.clock.AdvanceTo(g.clock.Now() + 10)
		g.settle()
	}
	e := -int32(sockets.ETIME)
	g.want(g.reap(), more(1, e), more(1, e), cqe(1, e))
	g.idle()
}

func TestRingMsg(t *testing.T) {
	g := newRingRig(t, RingConfig{Messages: 2})
	other := ringOn(g.rig, RingConfig{CQEntries: 1, Messages: 2})
	to, err := g.q.AddPeer(other.q)
	if err != nil {
		t.Fatal(err)
	}
	msg := func(user uint64) rings.SQE {
		return rings.SQE{Opcode: rings.OpMsg, FD: to, Off: 1000 + user, Len: uint32(user), UserData: user}
	}
	pass := msg(2)
	pass.OpFlags, pass.FileIndex = rings.MsgFlagsPass, 0xabcd
	g.want(g.do(msg(1), pass), cqe(1, 0), cqe(2, 0))
	g.want(other.reap(), cqe(1001, 1), rings.CQE{UserData: 1002, Res: 2, Flags: 0xabcd})
	// One fits into the CQ, two behind it; the fourth has no place.
	g.want(g.do(msg(1)), cqe(1, 0))
	g.want(g.do(msg(2), msg(3), msg(4)), cqe(2, 0), cqe(3, 0), fails(4, sockets.EOVERFLOW))
	g.want(other.reap(), cqe(1001, 1), cqe(1002, 2), cqe(1003, 3))
	self, _ := g.q.AddPeer(g.q)
	s := msg(5)
	s.FD = self
	g.want(g.do(s), cqe(5, 0), cqe(1005, 5))
	other.idle()
	other.q.Close()
	g.want(g.do(msg(1)), fails(1, sockets.EBADFD))
	g.idle()
}

// A poll reports what there is, what comes, and what comes again.
func TestRingPoll(t *testing.T) {
	g := newRingRig(t, RingConfig{})
	g.meet()
	s := g.bind(echoPort)
	fd := g.adopt(s)
	poll := func(user uint64, mask sockets.Ready, flags uint32) rings.SQE {
		return rings.SQE{Opcode: rings.OpPollAdd, FD: fd, OpFlags: uint32(mask), Len: flags, UserData: user}
	}
	recv := func() {
		g.enter(func(h *sockets.Host, _ int64) {
			if _, err := h.UDPRecv(s, make([]byte, 9)); err != 0 {
				t.Fatal(err)
			}
		})
	}
	datagram := func() []rings.CQE { g.deliver(g.udpFrame(echoPort, []byte("x"))); return g.reap() }
	in, out := int32(sockets.In), int32(sockets.Out)
	g.want(g.do(poll(1, sockets.Out, 0)), cqe(1, out))
	g.want(g.do(poll(1, sockets.In, 0), poll(2, sockets.In|sockets.Out, rings.PollMulti)), more(2, out))
	g.want(datagram(), cqe(1, in), more(2, in|out))
	g.want(g.do(poll(3, sockets.In, 0)), cqe(3, in)) // still
	g.want(datagram(), more(2, in|out))
	// Change what and for whom; taken away, it says so.
	update := rings.SQE{Opcode: rings.OpPollRemove, Addr: 2, Off: 4, OpFlags: uint32(sockets.In), Len: rings.PollUpdateEvents | rings.PollUpdateUserData | rings.PollMulti, UserData: 9}
	g.want(g.do(update), more(4, in), cqe(9, 0))
	g.want(g.do(update), fails(9, sockets.ENOENT))
	g.want(datagram(), more(4, in))
	for range 3 {
		recv()
	}
	g.want(g.reap())
	g.want(g.do(rings.SQE{Opcode: rings.OpPollRemove, Addr: 2, UserData: 9}), fails(9, sockets.ENOENT))
	g.want(g.do(rings.SQE{Opcode: rings.OpPollRemove, Addr: 4, UserData: 9}), fails(4, sockets.ECANCELED), cqe(9, 0))
	// By socket.
	byFD := rings.SQE{Opcode: rings.OpCancel, FD: fd, OpFlags: rings.CancelFD | rings.CancelAll, UserData: 9}
	g.want(g.do(poll(1, sockets.In, 0), poll(2, sockets.In, 0), timeout(3, 1000, 0, 0), byFD), fails(1, sockets.ECANCELED), fails(2, sockets.ECANCELED), cqe(9, 2))
	// A guard works for polls.
	g.want(g.do(with(poll(1, sockets.In, 0), rings.SQELink), linkTimeout(2, 100)))
	g.want(g.after(100), fails(2, sockets.ETIME), fails(1, sockets.ECANCELED))
	g.want(g.do(poll(1, 0, 0)))
	g.enter(func(h *sockets.Host, now int64) { h.Close(s, now) })
	g.want(g.reap(), cqe(1, int32(sockets.Err|sockets.Hup)))
	g.want(g.do(cancel(9, 3, 0)), fails(3, sockets.ECANCELED), cqe(9, 0))
	g.idle()
}

// adopt puts a socket of the Host into the ring's table.
func (g *ringRig) adopt(h sockets.Handle) (fd int32) {
	g.t.Helper()
	g.enter(func(*sockets.Host, int64) {
		s, n, err := g.q.addSock(0)
		if err != 0 {
			g.t.Fatal(err)
		}
		g.q.setHandle(s, h)
		fd = n
	})
	return fd
}

func TestRingSockTable(t *testing.T) {
	g := newRingRig(t, RingConfig{Sockets: 70, Fixed: 3})
	q := g.q
	add := func(index uint32) (int32, sockets.Errno) {
		_, fd, err := q.addSock(index)
		return fd, err
	}
	for i := range int32(70) {
		if fd, err := add(0); fd != i || err != 0 {
			t.Fatalf("number %d is %d, %v", i, fd, err)
		}
	}
	if _, err := add(0); err != sockets.EMFILE {
		t.Errorf("one too many: %v, want EMFILE", err)
	}
	for _, fd := range []uint32{65, 3, 64} {
		q.dropSock(fd)
	}
	for _, want := range []int32{3, 64, 65} {
		if fd, err := add(0); fd != want || err != 0 {
			t.Errorf("the lowest free number is %d, %v; want %d", fd, err, want)
		}
	}
	var slots []int32
	for _, index := range []uint32{2, rings.FileIndexAlloc, rings.FileIndexAlloc} {
		fd, err := add(index)
		if err != 0 {
			t.Fatal(err)
		}
		slots = append(slots, fd)
	}
	if !slices.Equal(slots, []int32{0, 0, 2}) { // who chose a slot is told 0
		t.Errorf("slots %v, want 0 (for slot 1), 0, 2", slots)
	}
	if _, err := add(rings.FileIndexAlloc); err != sockets.ENFILE {
		t.Errorf("no slot: %v, want ENFILE", err)
	}
	if _, err := add(4); err != sockets.EINVAL {
		t.Errorf("slot 3 of 3: %v, want EINVAL", err)
	}
	if _, err := add(1); err != 0 { // replaces what is there
		t.Errorf("slot 0 again: %v", err)
	}
	if _, ok := q.socks.lookup(69, false); !ok {
		t.Error("number 69 is gone")
	}
	if _, ok := q.socks.lookup(70, false); ok {
		t.Error("a number beyond the table finds a slot")
	}
	if s, ok := q.socks.lookup(0, true); !ok || s != 70 {
		t.Errorf("slot 0 is place %d, %v", s, ok)
	}
}
