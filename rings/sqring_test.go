package rings_test

import (
	"errors"
	"math/rand/v2"
	"testing"
	"unsafe"

	"xdpd/rings"
)

// The sizes and offsets are struct io_uring_sqe's and io_uring_cqe's (include/uapi/linux/io_uring.h).
func TestRingEntryLayout(t *testing.T) {
	var s rings.SQE
	var c rings.CQE
	for _, f := range []struct {
		name      string
		got, want uintptr
	}{
		{"sqe", unsafe.Sizeof(s), 64}, {"cqe", unsafe.Sizeof(c), 16},
		{"opcode", unsafe.Offsetof(s.Opcode), 0}, {"flags", unsafe.Offsetof(s.Flags), 1}, {"ioprio", unsafe.Offsetof(s.IOPrio), 2},
		{"fd", unsafe.Offsetof(s.FD), 4}, {"off", unsafe.Offsetof(s.Off), 8}, {"addr", unsafe.Offsetof(s.Addr), 16},
		{"len", unsafe.Offsetof(s.Len), 24}, {"msg_flags", unsafe.Offsetof(s.OpFlags), 28}, {"user_data", unsafe.Offsetof(s.UserData), 32},
		{"buf_group", unsafe.Offsetof(s.BufGroup), 40}, {"personality", unsafe.Offsetof(s.Reserved), 42},
		{"file_index", unsafe.Offsetof(s.FileIndex), 44}, {"addr3", unsafe.Offsetof(s.Addr3), 48},
		{"cqe user_data", unsafe.Offsetof(c.UserData), 0}, {"cqe res", unsafe.Offsetof(c.Res), 8}, {"cqe flags", unsafe.Offsetof(c.Flags), 12},
	} {
		if f.got != f.want {
			t.Errorf("%s: %d, want %d", f.name, f.got, f.want)
		}
	}
}

func TestLayoutRing(t *testing.T) {
	for _, n := range [][2]uint32{{0, 1}, {1, 0}, {3, 4}, {4, 3}, {1 << 21, 1}, {1, 1 << 21}, {^uint32(0), 1}} {
		if _, err := rings.LayoutRing(n[0], n[1]); err == nil {
			t.Errorf("%d and %d entries are accepted", n[0], n[1])
		}
	}
	l, err := rings.LayoutRing(8, 16)
	if want := (rings.RingLayout{SQEntries: 8, CQEntries: 16, SQEs: 1024, CQEs: 1024 + 8*64, Size: 1024 + 8*64 + 16*16}); err != nil || l != want {
		t.Errorf("layout %+v, %v; want %+v", l, err, want)
	}
}

// Both ends over one area: entries pass, flags pass, and nothing outside of the area is written.
func TestRingArea(t *testing.T) {
	l, err := rings.LayoutRing(4, 8)
	if err != nil {
		t.Fatal(err)
	}
	big := rings.NewRingArea(rings.RingLayout{Size: l.Size + 256})
	for i := range big {
		big[i] = 0xa5
	}
	area := big[128 : 128+l.Size]
	if _, _, err := rings.App(area); !errors.Is(err, rings.ErrRingArea) {
		t.Errorf("no ring yet: %v, want ErrRingArea", err)
	}
	e := l.Engine(area)
	a, got, err := rings.App(area)
	if err != nil || got != l {
		t.Fatalf("the area says %+v, %v; want %+v", got, err, l)
	}
	for round := range uint64(20) {
		idx, n := a.SQ.Reserve(5)
		if n != 4 {
			t.Fatalf("%d free SQEs, want 4", n)
		}
		for k := range n {
			*a.SQ.Slot(idx + k) = rings.SQE{UserData: round*4 + uint64(k), Addr3: ^uint64(0)}
		}
		a.SQ.Submit(n)
		idx, n = e.SQ.Peek(9)
		if n != 4 {
			t.Fatalf("%d SQEs came, want 4", n)
		}
		at, room := e.CQ.Reserve(n)
		if room != n {
			t.Fatalf("room for %d CQEs, want %d", room, n)
		}
		for k := range n {
			s := e.SQ.Read(idx + k)
			if s.UserData != round*4+uint64(k) || s.Addr3 != ^uint64(0) {
				t.Fatalf("SQE %+v", s)
			}
			*e.CQ.Slot(at + k) = rings.CQE{UserData: s.UserData, Res: -int32(k)}
		}
		e.SQ.Release(n)
		e.CQ.Submit(n)
		if e.Seen(at + n) {
			t.Fatal("the CQEs are seen before they are taken")
		}
		idx, n = a.CQ.Peek(9)
		for k := range n {
			if c := a.CQ.Read(idx + k); c.UserData != round*4+uint64(k) || c.Res != -int32(k) {
				t.Fatalf("CQE %+v", c)
			}
		}
		a.CQ.Release(n)
		if n != 4 || !e.Seen(at+n) {
			t.Fatalf("%d CQEs, seen %v", n, e.Seen(at+n))
		}
	}
	for i, b := range big {
		if (i < 128 || i >= 128+l.Size) && b != 0xa5 {
			t.Fatalf("byte %d before or behind the area was written", i-128)
		}
	}
}

func TestRingFlags(t *testing.T) {
	l, _ := rings.LayoutRing(1, 1)
	area := rings.NewRingArea(l)
	e := l.Engine(area)
	a, _, err := rings.App(area)
	if err != nil {
		t.Fatal(err)
	}
	e.SetOverflow(true)
	e.SQ.SetNeedWakeup(true)
	if !a.Overflow() || !a.SQ.NeedWakeup() {
		t.Error("the SQ flags do not come through")
	}
	e.SQ.SetNeedWakeup(false)
	if !a.Overflow() || a.SQ.NeedWakeup() {
		t.Error("one SQ flag takes the other with it")
	}
	e.SetOverflow(false)
	if a.Overflow() {
		t.Error("overflow stays")
	}
	if wake, event := e.Sleeper(5, 5); wake || !event {
		t.Errorf("at the start: wake %v, eventfd %v", wake, event)
	}
	a.Sleep(^uint32(0))
	a.DisableEventFD(true)
	if wake, event := e.Sleeper(^uint32(0)-1, ^uint32(0)-1); wake || event {
		t.Errorf("before the wanted tail: wake %v, eventfd %v", wake, event)
	}
	if wake, _ := e.Sleeper(1, 1); !wake {
		t.Error("no wake-up behind the wanted tail, across the wrap")
	}
	if wake, _ := e.Sleeper(1, ^uint32(0)-1); wake {
		t.Error("a quiet completion wakes")
	}
	a.WantQuiet(true)
	if wake, _ := e.Sleeper(1, ^uint32(0)-1); !wake {
		t.Error("a quiet completion does not wake who wants it to")
	}
	a.WantQuiet(false)
	a.Awake()
	if wake, event := e.Sleeper(1, 1); wake || event {
		t.Errorf("awake: wake %v, eventfd %v", wake, event)
	}
	a.DisableEventFD(false)
	if _, event := e.Sleeper(1, 1); !event {
		t.Error("the eventfd stays disabled")
	}
	want := rings.RingCounters{Submitted: 1, Completed: 2, Overflows: 3, Refused: 4, BadIndex: 5}
	e.Publish(&want)
	if got := a.Counters(); got != want {
		t.Errorf("counters %+v, want %+v", got, want)
	}
}

// An area that somebody else wrote is refused, or gives an end that stays inside of it.
func TestRingAreaHostile(t *testing.T) {
	l, _ := rings.LayoutRing(4, 4)
	rng := rand.New(rand.NewPCG(1, 2))
	accepted := 0
	for range 20_000 {
		area := rings.NewRingArea(l)
		l.Engine(area)
		for range 1 + rng.IntN(3) {
			area[rng.IntN(32)] = byte(rng.IntN(256)) >> rng.IntN(8)
		}
		a, got, err := rings.App(area[:len(area)-8*rng.IntN(2)])
		if err != nil {
			continue
		}
		accepted++
		if got.Size > len(area) {
			t.Fatalf("an area of %d bytes is taken for one of %d", len(area), got.Size)
		}
		idx, n := a.SQ.Reserve(got.SQEntries)
		for k := range n {
			*a.SQ.Slot(idx + k) = rings.SQE{}
		}
		for k := range got.CQEntries {
			a.CQ.Read(k)
		}
	}
	if accepted < 100 {
		t.Errorf("only %d areas were accepted", accepted)
	}
}
