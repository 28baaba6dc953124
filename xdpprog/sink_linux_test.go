package xdpprog

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stamped is a frame as a Source writes it.
func stamped(mark uint16, age time.Duration, seq uint64, more string) []byte {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err)
	}
	p := be.AppendUint16(nil, mark)
	p = be.AppendUint64(p, uint64(now.Nano()-int64(age)))
	p = append(be.AppendUint64(p, seq), more...)
	l4 := be.AppendUint16(be.AppendUint16(nil, 5000), 6000)
	l4 = append(be.AppendUint16(l4, uint16(8+len(p))), 0, 0)
	l4 = append(l4, p...)
	ip := toUs(unix.IPPROTO_UDP).bytes(l4)
	be.PutUint16(ip[10:], sum16(ip[:20]))
	pseudo := be.AppendUint16(append(append([]byte(nil), ip[12:20]...), 0, unix.IPPROTO_UDP), uint16(len(l4)))
	be.PutUint16(ip[26:], sum16(pseudo, l4))
	return append(append(append(append([]byte(nil), targetMAC...), sourceMAC...), 8, 0), ip...)
}

// Each frame moves just the counters that it should.
func TestSinkCounts(t *testing.T) {
	enterNS(t)
	engine, _ := newVeth(t, 1500, 1)
	s := startSink(t, SinkConfig{
		Interface: "engine0", Ifindex: engine.Attrs().Index, CheckSums: true, FirstSeq: 1000, Seqs: 130, Flows: 2,
	})
	damaged := func(b []byte, at int) []byte { b[at] ^= 0x10; return b }
	partial := stamped(DefaultMark, 0, 1007, "xyz")
	be.PutUint16(partial[40:], ^sum16(partial[26:34], []byte{0, 17}, partial[38:40]))
	padded := append(stamped(DefaultMark, 0, 1009, ""), 1, 2, 3)
	none := stamped(DefaultMark, 0, 1011, "")
	none[40], none[41] = 0, 0
	ours := SinkStats{Frames: 1}
	with := func(change func(*SinkStats)) SinkStats { st := ours; change(&st); return st }
	good := func(st *SinkStats) { st.Unique, st.InOrder = 1, 1 }
	for _, c := range []struct {
		name  string
		frame []byte
		want  SinkStats
	}{
		{"the first", stamped(DefaultMark, 0, 1001, ""), with(good)},
		{"the first of the other flow", stamped(DefaultMark, 0, 1002, "odd"), with(good)},
		{"the next", stamped(DefaultMark, 0, 1003, strings.Repeat("long", 300)), with(good)},
		{"again", stamped(DefaultMark, 0, 1003, ""), with(func(st *SinkStats) { st.Duplicates, st.Late = 1, 1 })},
		{"partial sum", partial, with(func(st *SinkStats) { st.PartialSum, st.Unique, st.Ahead, st.Gap = 1, 1, 1, 1 })},
		{"padded", padded, with(good)},
		{"no sum", none, with(good)},
		{"late", stamped(DefaultMark, 0, 1005, ""), with(func(st *SinkStats) { st.Unique, st.Late = 1, 1 })},
		{"below", stamped(DefaultMark, 0, 999, ""), with(func(st *SinkStats) { st.Outside, st.Late = 1, 1 })},
		{"above", stamped(DefaultMark, 0, 1130, ""), with(func(st *SinkStats) { st.Outside, st.Ahead, st.Gap = 1, 1, 63 })},
		{"bad UDP sum", damaged(stamped(DefaultMark, 0, 1020, "tail"), 63), with(func(st *SinkStats) { st.BadSum = 1 })},
		{"bad IPv4 sum", damaged(stamped(DefaultMark, 0, 1020, ""), 22), with(func(st *SinkStats) { st.BadSum = 1 })},
		{"bad length", damaged(stamped(DefaultMark, 0, 1020, ""), 39), with(func(st *SinkStats) { st.BadSum = 1 })},
		{"another mark", stamped(0x1234, 0, 1020, ""), SinkStats{Passed: 1}},
		{"too short", stamped(DefaultMark, 0, 1020, "")[:59], SinkStats{Passed: 1}},
		{"ARP", ether(unix.ETH_P_ARP, arp(ourAddr)), SinkStats{Passed: 1}},
		{"TCP", damaged(stamped(DefaultMark, 0, 1020, ""), 23), SinkStats{Passed: 1}},
	} {
		before := sinkStats(t, s)
		action, _, err := s.objs.Sink.Test(c.frame)
		if err != nil {
			t.Fatal(err)
		}
		wantAction := uint32(1) // XDP_DROP
		if c.want.Passed > 0 {
			wantAction = 2 // XDP_PASS
		} else {
			c.want.Bytes = uint64(len(c.frame))
		}
		now := sinkStats(t, s)
		if n := now.Latency.Count() - before.Latency.Count(); n != c.want.Unique+c.want.Duplicates+c.want.Outside {
			t.Errorf("%s: %d latencies", c.name, n)
		}
		if got := minus(now, before); got != c.want || action != wantAction {
			t.Errorf("%s: action %d, %+v, want %d, %+v", c.name, action, got, wantAction, c.want)
		}
	}
	missing, err := s.Missing(130, 3)
	if want := []SeqRange{{1000, 1}, {1004, 1}, {1006, 1}}; err != nil || !slices.Equal(missing, want) {
		t.Errorf("missing %v, want %v: %v", missing, want, err)
	}
	missing, err = s.Missing(130, 100)
	if last := len(missing) - 1; err != nil || last != 5 || missing[last] != (SeqRange{1012, 118}) {
		t.Errorf("missing %v: %v", missing, err)
	}
	if _, err := s.Missing(131, 1); err == nil {
		t.Error("more than there are")
	}
	if err := s.Reset(5000); err != nil {
		t.Fatal(err)
	}
	if st := sinkStats(t, s); st != (SinkStats{}) {
		t.Errorf("after Reset: %+v", st)
	}
	if _, _, err := s.objs.Sink.Test(stamped(DefaultMark, 0, 5000, "")); err != nil {
		t.Fatal(err)
	}
	missing, err = s.Missing(130, 3)
	if err != nil || !slices.Equal(missing, []SeqRange{{5001, 129}}) || sinkStats(t, s).Unique != 1 || sinkStats(t, s).InOrder != 1 {
		t.Errorf("after Reset and a frame: missing %v, %+v: %v", missing, sinkStats(t, s), err)
	}
}

// minus is the difference of all counters, without latencies.
func minus(a, b SinkStats) SinkStats {
	return SinkStats{
		Frames: a.Frames - b.Frames, Bytes: a.Bytes - b.Bytes, BadSum: a.BadSum - b.BadSum,
		PartialSum: a.PartialSum - b.PartialSum, Unique: a.Unique - b.Unique, Duplicates: a.Duplicates - b.Duplicates,
		Outside: a.Outside - b.Outside, InOrder: a.InOrder - b.InOrder, Ahead: a.Ahead - b.Ahead, Gap: a.Gap - b.Gap,
		Late: a.Late - b.Late, Passed: a.Passed - b.Passed,
	}
}

// The program finds the same bucket as the Go side, over the whole range.
func TestSinkLatency(t *testing.T) {
	enterNS(t)
	engine, _ := newVeth(t, 1500, 1)
	s := startSink(t, SinkConfig{Ifindex: engine.Attrs().Index})
	for _, age := range []time.Duration{-time.Hour, time.Millisecond, 50 * time.Millisecond, time.Second, time.Minute, time.Hour} {
		if err := s.Reset(0); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.objs.Sink.Test(stamped(DefaultMark, age, 0, "")); err != nil {
			t.Fatal(err)
		}
		h := sinkStats(t, s).Latency
		exact, told := h.Mean(), float64(h.Quantile(1))
		if age < 0 && exact != 0 || age > 0 && exact < float64(age) {
			t.Errorf("of %v: %v", age, exact)
		}
		if h.Count() != 1 || age < 30*time.Minute && (told < 0.97*exact || told > 1.03*exact) {
			t.Errorf("of %v: %d values, %v told of %v", age, h.Count(), told, exact)
		}
		if h.counts[bucketOf(h.sum)] != 1 {
			t.Errorf("of %v: not in bucket %d", age, bucketOf(h.sum))
		}
	}
}

func TestSinkErrors(t *testing.T) {
	enterNS(t)
	engine, _ := newVeth(t, 1500, 1)
	d, err := LoadDrop("engine0", engine.Attrs().Index, BestAttach)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSink(SinkConfig{Interface: "engine0", Ifindex: engine.Attrs().Index}); !errors.Is(err, ErrBusy) {
		t.Errorf("a second program: %v", err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if attachedXDP(t, engine).Attached {
		t.Error("still attached after Close")
	}
	for want, c := range map[string]SinkConfig{
		"no such device":   {Ifindex: 12345},
		"interface index":  {},
		"at most":          {Ifindex: 1, Seqs: MaxSeqs + 1},
		"not in 0..":       {Ifindex: 1, Flows: -1},
		"attach to : mode": {Ifindex: 1, Attach: 9},
	} {
		if _, err := LoadSink(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
}
