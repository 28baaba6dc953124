package sockets_test

import (
	"strings"
	"testing"

	"xdpd/internal/drill"
	"xdpd/umem"
)

// drillSample passes as it stands. Each of its expectations is made wrong in TestDrillFails.
const drillSample = `// RFC 9293 3.5: sample
0    listen
+0   < S 0:0(0) win 32792 <mss 1460,nop,nop,TS val 700 ecr 0,nop,wscale 7>
+0   > [noecn] S. 0:0(0) ack 1 win >1000 <mss 1460,TS val 0 ecr 700,...>
+.1  < . 1:1(0) ack 1 win 257 <nop,nop,TS val 800 ecr last>
+0   accept
+0   poll -IN OUT
+0   info state ESTABLISHED
+0   < P. 1:2(1) ack 1 <nop,nop,TS val 800 ecr last>
+.04 > . 1:1(0) ack 2 win >10 <nop,nop,TS val 140 ecr 800>
+0   read 10 = 1
+0   read 10 = EAGAIN
+0   write 2000
+0   > . 1:1449(1448) ack 2
+0   > P. 1449:2001(552) ack 2
+.2~+.4 > . 1:1449(1448) ack 2
+0   counter tcp_retransmits 1
+.1  quiet
`

func drillErr(t *testing.T, text string) error {
	t.Helper()
	s, err := drill.Parse("self", text)
	if err != nil {
		t.Fatal(err)
	}
	return drill.Run(s, newDrillHost(t, s.Config))
}

func TestDrillFails(t *testing.T) {
	if err := drillErr(t, drillSample); err != nil {
		t.Fatalf("the sample as it stands: %v", err)
	}
	for _, c := range []struct{ from, to, want string }{
		{"S. 0:0(0) ack 1 win >1000", "S. 0:0(0) ack 2 win >1000", "self:4: another packet came: ack"},
		{"S. 0:0(0)", "S.E 0:0(0)", "came: flags"},
		{"[noecn] S.", "[ect0] S.", "came: ECN mark"},
		{"win >1000", "win <1000", "came: win"},
		{"win >1000", "win 5", "came: win"},
		{"win >1000", "urg 5", "came: urg"},
		{"<mss 1460,TS", "<mss 1400,TS", "came: options"},
		{"val 0 ecr 700,...>", "val 0 ecr 701,...>", "came: options"},
		{"val 0 ecr 700,...>", "val 100 ecr 700,...>", "came: options"},
		{"val 0 ecr 700,...>", "val 0 ecr 700>", "came: options"},
		{"<nop,nop,TS val 140 ecr 800>", "<>", "came: options"},
		{"<nop,nop,TS val 140 ecr 800>", "<nop,nop,sack 5:6>", "came: options"},
		{"> . 1:1449(1448)", "> . 2:1450(1448)", "came: sequence number"},
		{"> . 1:1449(1448)", "> . 1:1450(1449)", "came: length"},
		{"+0   > . 1:1449(1448)", "+0   > P. 1:1449(1448)", "came: flags"},
		{"+0   > . 1:1449(1448)", "+0   > @b . 1:1449(1448)", "came: connection"},
		{"+.04 >", "+.03 >", "no packet came until"},
		{"+.04 >", "+.05 >", "the packet came at 0.140"},
		{"+.04 > . 1:1(0) ack 2", "+.1 >? . 1:1(0) ack 3", "a packet that no line expects"},
		{"+.2~+.4 >", "+.1~+.2 >", "no packet came until"},
		{"+.1  quiet", "+.9  quiet", "a packet that no line expects"},
		{"+.2~+.4 > . 1:1449(1448) ack 2\n", "", "is 0, want 1"},
		{"+0   > P. 1449:2001(552) ack 2\n", "", "another packet came"},
		{"+.1  quiet", "+0   poll IN", "ready for OUT"},
		{"poll -IN OUT", "poll -OUT", "ready for OUT"},
		{"info state ESTABLISHED", "info state CLOSED", "state is ESTABLISHED, want CLOSED"},
		{"info state ESTABLISHED", "info rtt 0.2", "rtt is 0.1, want 0.2"},
		{"info state ESTABLISHED", "info rtt <0.1", "rtt is 0.1, want <0.1"},
		{"info state ESTABLISHED", "info what 1", "no field"},
		{"info state ESTABLISHED", "accept", "accept returned EAGAIN"},
		{"info state ESTABLISHED", "close = EBADF", "close returned none"},
		{"read 10 = 1\n", "read 10 = 2\n", "read 10 returned 1"},
		{"read 10 = EAGAIN", "read 10 = EOF", "read 10 returned EAGAIN"},
		{"read 10 = EAGAIN", "error ECONNRESET", "pending error is"},
		{"write 2000", "write 2000 = 1999", "write 2000 returned 2000"},
		{"tcp_retransmits 1", "tcp_retransmits 2", "tcp_retransmits is 1"},
		{"tcp_retransmits 1", "tcp_what 2", "no counter"},
		{"+0   counter", ".1   counter", "it is 0.4"},
	} {
		text := strings.Replace(drillSample, c.from, c.to, 1)
		if text == drillSample {
			t.Fatalf("the sample has no %q", c.from)
		}
		if err := drillErr(t, text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with %q for %q: %v\n\twant %q", c.to, c.from, err, c.want)
		}
	}
}

// TestDrillFinish: what a script leaves behind fails it, and so does a name that does not fit.
func TestDrillFinish(t *testing.T) {
	s, err := drill.Parse("self", drillSample)
	if err != nil {
		t.Fatal(err)
	}
	h := newDrillHost(t, nil)
	h.pool.Get(umem.Held)
	if err := drill.Run(s, h); err == nil || !strings.Contains(err.Error(), "2047 of 2048 free") {
		t.Errorf("with a frame lost: %v", err)
	}
	for _, c := range []struct{ name, about, want string }{
		{"x/rfc793/3.5-open.pkt", "RFC 793 3.5: open", ""},
		{"x/rfc793/3.5-open.pkt", "RFC 793 3.4: open", "want it as"},
		{"x/rfc793/3.5-open.pkt", "RFC 9293 3.5: open", "want it as"},
		{"x/rfc793/3.5-open.pkt", "RFC 9293: open", "first line"},
	} {
		err := checkName(c.name, c.about)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s with %q: %v, want %q", c.name, c.about, err, c.want)
		}
	}
}
