package sockets

import (
	"bytes"
	"testing"
)

// narrowPath is a peer behind a path that swallows packets above a size without a word; it SACKs.
type narrowPath struct {
	conn
	data []byte
	have []bool
	next int // bytes that came in sequence
	size int // largest segment that passes
	lost int
	most int // largest that passed
}

// take delivers what fits and answers it.
func (p *narrowPath) take(segs []tcpSeg) {
	for _, s := range segs {
		at := int(s.seq - p.irs - 1)
		if len(s.data) == 0 {
			continue
		}
		if len(s.data) > p.size {
			p.lost++
			continue
		}
		p.most = max(p.most, len(s.data))
		if !bytes.Equal(s.data, p.data[at:at+len(s.data)]) {
			p.k.t.Fatalf("byte %d and on differ", at)
		}
		for i := range s.data {
			p.have[at+i] = true
		}
		for p.next < len(p.have) && p.have[p.next] {
			p.next++
		}
		p.ack = p.irs + 1 + uint32(p.next)
		a := p.seg(ack, nil)
		if at > p.next { // one block is enough for the sender to see what is missing before it
			end := at + len(s.data)
			for at > p.next && p.have[at-1] {
				at--
			}
			a.opts = concat([]byte{1, 1, 5, 10}, be32(p.irs+1+uint32(at)), be32(p.irs+1+uint32(end)))
		}
		p.inject(a)
	}
}

// TestTCPBlackHole: on a path that swallows large packets data arrives all the same, in smaller segments (RFC 4821 7.7), and
// when the path takes larger ones again the segments grow, without the window being cut for the probes that were lost.
func TestTCPBlackHole(t *testing.T) {
	const total = 4 << 20
	k := newKit(t, func(c *Config) { c.SndBuf = 64 << 10 })
	l, _ := k.h.TCPListen(0, svc)
	p := &narrowPath{data: pattern(total), have: make([]bool, total), size: 1200}
	p.conn = conn{tpeer: dialOpts(k, svc, 1000, concat(optMSS(1460), []byte{4, 2}, []byte{1, 1})), l: l}
	p.h, _ = k.h.TCPAccept(l)
	k.sent()
	written, wide := 0, false
	for step := 0; p.next < total; step++ {
		if step > 500_000 {
			t.Fatalf("stuck at byte %d", p.next)
		}
		some := 20_000
		if wide {
			some = 8000 // so that it takes longer than the pause between two searches
		}
		n, _ := k.h.TCPWrite(p.h, p.data[written:min(total, written+some)], k.now)
		written += n
		before := k.h.counters.Stats[TCPRecoveries]
		var segs []tcpSeg
		for _, s := range k.seen() {
			segs = append(segs, s.tcp)
		}
		p.take(segs)
		k.sleep(300 * ms)
		if mss := int(p.tcb().mss); p.next > 100_000 {
			if mss > p.size {
				t.Fatalf("segments of %d bytes, %d pass", mss, p.size)
			}
		}
		if p.next > 100_000 && k.h.counters.Stats[TCPRecoveries] != before {
			t.Errorf("at byte %d the window was cut", p.next)
		}
		if p.next > total/2 && !wide {
			if p.most < p.size-2*plpmtuNear {
				t.Errorf("the search ended at %d bytes, %d pass", p.most, p.size)
			}
			if p.lost > 40 {
				t.Errorf("%d segments were lost on the way", p.lost)
			}
			wide, p.size = true, 1460
		}
	}
	if p.most != 1460 {
		t.Errorf("segments of %d bytes at last, 1460 pass", p.most)
	}
	if k.h.counters.Stats[TCPPathMTU] != 1 {
		t.Errorf("the black hole was found %d times", k.h.counters.Stats[TCPPathMTU])
	}
}
