package drill

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sample = `// RFC 9293 3.5: sample
config backlog 2

0 listen
+0 < [ect0,ce] SEW 0:0(0) win 32792 <mss 1460,sackOK,TS val 5 ecr 0,nop,wscale 7> // comment
+.1~+.3 > [df] S. 0:0(0) ack 1 win <100 <mss 1460,...>
* >? @b .U *:*(10) ack * urg 4 <sack 1:2 3:4,hex fd03aa,eol>
.5	< - -5:-5(0) ack 3
+0	> P. 1:14601(14600) ack 1 x10
+0 < icmp unreachable frag_needed mtu 1300 [1:1461(1460)]
+0 @b accept = EAGAIN
+0 read 10 = EOF
+0 keepalive 10 .5 3
`

func TestParse(t *testing.T) {
	s, err := Parse("sample", sample)
	if err != nil {
		t.Fatal(err)
	}
	if s.About != "RFC 9293 3.5: sample" || len(s.Config) != 1 || s.Config[0] != (Setting{2, "backlog", "2"}) {
		t.Errorf("head: %q %v", s.About, s.Config)
	}
	want := []struct {
		line int
		kind Kind
		flow string
		text string
	}{
		{4, Call, "", ""},
		{5, In, "", "[ce] SEW 0:0(0) win 32792 <mss 1460,sackOK,TS val 5 ecr 0,nop,wscale 7>"},
		{6, Out, "", "[df] S. 0:0(0) ack 1 win <100 <mss 1460,...>"},
		{7, Out, "b", ".U *:*(10) urg 4 <sack 1:2 3:4,hex fd03aa,eol>"},
		{8, In, "", "- -5:-5(0) ack 3"},
		{9, Out, "", "P. 1:14601(14600) ack 1"},
		{10, ICMP, "", ""},
		{11, Call, "b", ""},
		{12, Call, "", ""},
		{13, Call, "", ""},
	}
	if len(s.Steps) != len(want) {
		t.Fatalf("%d steps, want %d", len(s.Steps), len(want))
	}
	for i, w := range want {
		got := s.Steps[i]
		if got.Line != w.line || got.Kind != w.kind || got.Flow != w.flow {
			t.Errorf("step %d: line %d kind %d flow %q, want %+v", i, got.Line, got.Kind, got.Flow, w)
		}
		if w.text != "" && got.Packet.String() != w.text {
			t.Errorf("step %d: %s, want %s", i, got.Packet, w.text)
		}
	}
	if w := s.Steps[2].At; w != (When{Relative: true, Range: true, From: 1e8, To: 3e8}) {
		t.Errorf("a range is %+v", w)
	}
	if w := s.Steps[4].At; w != (When{From: 5e8, To: 5e8}) {
		t.Errorf("an absolute time is %+v", w)
	}
	if !s.Steps[3].At.Any || !s.Steps[3].Optional || s.Steps[5].Count != 10 {
		t.Errorf("%+v\n%+v", s.Steps[3], s.Steps[5])
	}
	if s.Steps[6].Error != (ICMPError{3, 4, 1300}) || s.Steps[6].Packet.Len != 1460 {
		t.Errorf("an ICMP error is %+v", s.Steps[6])
	}
	if s.Steps[7].Want != "EAGAIN" || s.Steps[8].Want != "EOF" {
		t.Errorf("results: %q, %q", s.Steps[7].Want, s.Steps[8].Want)
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"+0", "no step"},
		{"x listen", "not a time"},
		{"+1e9 listen", "not a time"},
		{"+.3~+.1 > . 1:1(0)", "ends before it begins"},
		{"+.1~.2 > . 1:1(0)", "both ends"},
		{"* listen", "time left open"},
		{"* < . 1:1(0)", "time left open"},
		{"+0 listne", "unknown step"},
		{"+0 listen 80", "usage: listen"},
		{"+0 read x", "usage: read N"},
		{"+0 read 5 = EWHAT", "no result"},
		{"+0 accept = 5", "no result"},
		{"+0 nodelay = EAGAIN", "usage: nodelay"},
		{"+0 nodelay maybe", "usage: nodelay"},
		{"+0 poll IN|OUT", "usage: poll"},
		{"+0 shutdown both", "usage: shutdown"},
		{"+0 error EWHAT", "usage: error"},
		{"+0 keepalive 1 x 2", "not a time"},
		{"+0 counter x *", "usage: counter"},
		{"+0 again x", "usage: again"},
		{"+0 write 5 =", "nothing behind ="},
		{"+0 <", "a packet wants"},
		{"+0 < Q 0:0(0)", "flags"},
		{"+0 < SS 0:0(0)", "flags"},
		{"+0 < . 1:5(3)", "is 4 bytes"},
		{"+0 < . 1-5(4)", "not SEQ:END(LEN)"},
		{"+0 < . 1:5(4", "not SEQ:END(LEN)"},
		{"+0 < . 99999999999:99999999999(0)", "not SEQ:END(LEN)"},
		{"+0 < . 1:1(0) ack", "want ack N"},
		{"+0 < . 1:1(0) ack x", "not a number"},
		{"+0 < . 1:1(0) ack *", "not a number"},
		{"+0 < . 1:1(0) win 65536", "16 bits"},
		{"+0 < . 1:1(0) wni 5", "want ack N"},
		{"+0 > R 1:1(0) ack 5", "the flags have no"},
		{"+0 < . 1:11(10) x3", "divides 10"},
		{"+0 < [ect9] . 1:1(0)", "unknown mark"},
		{"+0 < [ect0 . 1:1(0)", "marks without"},
		{"+0 < . 1:1(0) <mss 5", "options without"},
		{"+0 < . 1:1(0) <mss>", "want mss N"},
		{"+0 < . 1:1(0) <mss 65536>", "option"},
		{"+0 < . 1:1(0) <hex 0>", "option"},
		{"+0 < . 1:1(0) <sack 1-2>", "not A:B"},
		{"+0 < . 1:1(0) <TS val x ecr 1>", "option"},
		{"+0 < . 1:1(0) <...,nop>", "option"},
		{"+0 < icmp unreachable port", "quoted packet"},
		{"+0 < icmp unreachable moon [1:1(0)]", "unknown ICMP"},
		{"+0 < icmp unreachable frag_needed mtu 70000 [1:1(0)]", "16 bits"},
		{"+0 > icmp unreachable port [1:1(0)]", "only be injected"},
		{"config x", "a name and a value"},
		{"+0 listen\nconfig mtu 5", "in front of the first step"},
	} {
		_, err := Parse("f.pkt", "\n"+c.line)
		line := "f.pkt:2:"
		if strings.Contains(c.line, "\n") {
			line = "f.pkt:3:"
		}
		if err == nil || !strings.HasPrefix(err.Error(), line) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s ... %s", c.line, err, line, c.want)
		}
	}
	if _, err := Parse("f.pkt", "// nothing\n"); err == nil {
		t.Error("a script without steps is no error")
	}
}

// FuzzParse: no text makes the parser panic, and a packet that it takes is the same when it is written and read again.
func FuzzParse(f *testing.F) {
	f.Add(sample)
	files, err := filepath.Glob("../../sockets/testdata/drill/*/*.pkt")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("f", text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f:") {
				t.Fatalf("an error without its place: %v", err)
			}
			return
		}
		for _, step := range s.Steps {
			if step.Kind != In && step.Kind != Out {
				continue
			}
			sign := map[Kind]string{In: "< ", Out: "> "}[step.Kind]
			again, err := Parse("g", "+0 "+sign+step.Packet.String())
			if err != nil {
				t.Fatalf("%q of %q is not read: %v", step.Packet, step.Text, err)
			}
			if got := again.Steps[0].Packet.String(); got != step.Packet.String() {
				t.Fatalf("%q became %q", step.Packet, got)
			}
		}
	})
}

func TestDiffer(t *testing.T) {
	step := func(line string) *Packet {
		s, err := Parse("f", "+0 > "+line)
		if err != nil {
			t.Fatal(err)
		}
		return &s.Steps[0].Packet
	}
	got := step("[ect0,df] P.U 1:11(10) ack 5 win 100 urg 3 <nop,nop,TS val 100 ecr 7>")
	for _, c := range []struct{ want, differs string }{
		{".U 1:11(10)", ""},
		{"P.U 1:11(10) ack 5 win 100 urg 3 <nop,nop,TS val 98 ecr 7>", ""},
		{".U *:*(10) <TS val * ecr 7,...>", ""},
		{".U 1:11(10) <...>", ""},
		{"[df] .U 1:11(10)", ""},
		{"[nodf] .U 1:11(10)", "DF"},
		{"[ce] .U 1:11(10)", "ECN mark"},
		{". 1:11(10)", "flags"},
		{".U 2:12(10)", "sequence number"},
		{".U 1:12(11)", "length"},
		{".U 1:11(10) ack 6", "ack"},
		{".U 1:11(10) win >100", "win"},
		{".U 1:11(10) urg 4", "urg"},
		{".U 1:11(10) <nop,nop>", "options"},
		{".U 1:11(10) <nop,TS val 100 ecr 7>", "options"},
		{".U 1:11(10) <nop,nop,TS val 100 ecr 8>", "options"},
		{".U 1:11(10) <nop,nop,TS val 120 ecr 7>", "options"},
	} {
		if d := strings.Join(differ(step(c.want), got), ","); d != c.differs {
			t.Errorf("%s: differs in %q, want %q", c.want, d, c.differs)
		}
	}
	for _, c := range []struct{ want, got string }{
		{". 1:1(0) urg 0", ". 1:1(0)"},
		{". 1:1(0) ack 0", "R 1:1(0)"},
		{"P. 1:1(0)", ". 1:1(0)"},
	} {
		if len(differ(step(c.want), step(c.got))) == 0 {
			t.Errorf("%s is taken for %s", c.got, c.want)
		}
	}
}
