package main

import (
	"net"
	"strings"
	"testing"
)

func TestFaultTable(t *testing.T) {
	rows := []faultRow{{faultKey{"loss-1", "send"}, map[string][]transfer{
		"xdpd":  {{goodput: 10, segments: 100, retransmits: 1}, {goodput: 30, segments: 100, retransmits: 3}, {goodput: 12, segments: 100}},
		"linux": {{goodput: 10, segments: 200, retransmits: 2}, {goodput: 10, segments: 100}, {goodput: 10, segments: 50, retransmits: 2}},
	}}}
	got := faultRatios(rows)
	want := ratio{Work: "tcp-goodput xdpd send loss-1", Against: "linux", Ratio: 1.2, Low: 1, High: 3, Rounds: 3}
	if len(got) != 1 || got[0] != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, cell := range []string{"loss-1", "send", "10.00", "12.00", "1.00"} {
		if text := faultTable(rows); !strings.Contains(text, " "+cell+" ") {
			t.Errorf("no %s in\n%s", cell, text)
		}
	}
	rows = append(rows, faultRow{faultKey{"loss-1", "receive"}, map[string][]transfer{"xdpd": {{}}}})
	if whole := (&faultBench{}).complete(rows); len(whole) != 1 {
		t.Errorf("%d rows have both stacks, not 1", len(whole))
	}
}

// spoiler changes one byte of what is read.
type spoiler struct {
	net.Conn
	at int
}

func (s *spoiler) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if s.at >= 0 && s.at < n {
		b[s.at] ^= 1
	}
	s.at -= n
	return n, err
}

// TestStream lets a byte change on the way: that must not count as arrived.
func TestStream(t *testing.T) {
	pair := func() (a, b net.Conn) {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if a, err = net.Dial("tcp4", ln.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if b, err = ln.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close(); b.Close() })
		return a, b
	}
	a, b := pair()
	if goodput, err := stream(a, b, 0.05, 1); err != nil || goodput <= 0 {
		t.Errorf("%f Mbit/s, %v", goodput, err)
	}
	a, b = pair()
	if _, err := stream(a, &spoiler{b, 12345}, 0.05, 1); err == nil || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("a byte that changed is not seen: %v", err)
	}
}

func TestParseFaults(t *testing.T) {
	b, err := parseFaults([]string{"-cases", "loss-10,clean", "-duties", "receive", "-seed", "7", "-rounds", "2"})
	if err != nil || names(b.cases) != "clean,loss-10" || names(b.duties) != "receive" || b.seed != 7 || b.rounds != 2 {
		t.Errorf("%+v, %v", b, err)
	}
	for _, bad := range []string{"-cases=sunshine", "-duties=rest", "-rounds=0", "-seconds=-1", "what"} {
		if _, err := parseFaults([]string{bad}); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}
