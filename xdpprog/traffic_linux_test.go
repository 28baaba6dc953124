package xdpprog

import (
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

var (
	sourceMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	targetMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// oneFlow is a source's configuration of one flow out of dev.
func oneFlow(dev netlink.Link) SourceConfig {
	return SourceConfig{
		Interface: dev.Attrs().Name, Ifindex: dev.Attrs().Index,
		SrcMAC: sourceMAC, DstMAC: targetMAC,
		Src: Addrs{First: peerAddr}, Dst: Addrs{First: ourAddr},
		SrcPort: Ports{First: 1000}, DstPort: Ports{First: 7},
	}
}

func startSource(t *testing.T, c SourceConfig) *Source {
	t.Helper()
	s, err := LoadSource(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func startSink(t *testing.T, c SinkConfig) *Sink {
	t.Helper()
	s, err := LoadSink(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func sourceStats(t *testing.T, s *Source) SourceStats {
	t.Helper()
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func sinkStats(t *testing.T, s *Sink) SinkStats {
	t.Helper()
	st, err := s.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// sinkUntil reads the sink until it has taken n frames: the last of them may still be in the device's ring.
func sinkUntil(t *testing.T, s *Sink, n uint64) SinkStats {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		st := sinkStats(t, s)
		if st.Frames >= n {
			return st
		}
		if time.Now().After(deadline) {
			t.Fatalf("the sink has %d frames, want %d", st.Frames, n)
		}
	}
}

// Every sequence number arrives once, in order, with right checksums; or its loss is counted.
func TestSourceToSink(t *testing.T) {
	for name, change := range map[string]func(*SourceConfig){
		"one flow":      func(*SourceConfig) {},
		"many flows":    func(c *SourceConfig) { c.SrcPort.Count, c.Src.Count = 1000, 250 },
		"random flows":  func(c *SourceConfig) { c.SrcPort.Count, c.RandomFlows = 5000, true },
		"IMIX":          func(c *SourceConfig) { c.Sizes, c.Pattern = IMIX, []byte("odd") },
		"odd sizes":     func(c *SourceConfig) { c.Sizes, c.Pattern = []int{65, 127, 129, 191, 1501}, []byte{1, 2, 255} },
		"no UDP sum":    func(c *SourceConfig) { c.NoUDPSum, c.Pattern = true, []byte("x") },
		"another mark":  func(c *SourceConfig) { c.Mark = 0xfe01 },
		"far sequences": func(c *SourceConfig) { c.FirstSeq = 1<<40 - 77 },
		"by a rate":     func(c *SourceConfig) { c.Rate = 400_000 },
	} {
		t.Run(name, func(t *testing.T) {
			enterNS(t)
			engine, peer := newVeth(t, 1500, 1)
			c := oneFlow(peer)
			change(&c)
			source := startSource(t, c)
			sink := startSink(t, SinkConfig{
				Ifindex: engine.Attrs().Index, Attach: Native, Mark: c.Mark, CheckSums: true,
				FirstSeq: c.FirstSeq, Seqs: 200_000, Flows: source.Flows(), RandomFlows: c.RandomFlows,
			})
			for range 2 { // a second run goes on
				if err := source.Run(t.Context(), 50_000); err != nil {
					t.Fatal(err)
				}
			}
			st := sourceStats(t, source)
			if st.Written != 100_000 || st.Sent+st.Dropped != st.Written || st.Sent == 0 || st.RedirectErrors != 0 {
				t.Errorf("source: %+v", st)
			}
			got := sinkUntil(t, sink, st.Sent)
			if got.Frames != st.Sent || got.Unique != st.Sent || got.Latency.Count() != st.Sent {
				t.Errorf("%d sent, %d frames taken, %d unique, %d latencies", st.Sent, got.Frames, got.Unique, got.Latency.Count())
			}
			if got.BadSum+got.PartialSum+got.Duplicates+got.Outside+got.Late != 0 {
				t.Errorf("bad sums, duplicates or late frames: %+v", got)
			}
			if got.InOrder+got.Ahead != st.Sent || st.Dropped == 0 && (got.Ahead != 0 || got.Bytes != st.Bytes) {
				t.Errorf("%d in order, %d ahead, %d of %d bytes", got.InOrder, got.Ahead, got.Bytes, st.Bytes)
			}
			var missing uint64
			ranges, err := sink.Missing(st.Written, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range ranges {
				missing += r.Count
			}
			if missing != st.Dropped {
				t.Errorf("%d missing, %d dropped", missing, st.Dropped)
			}
		})
	}
}
