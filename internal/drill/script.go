// Package drill runs scripts that say, packet by packet and call by call, what a TCP does: a subset of the language of
// Google's packetdrill, on a wire that exists only in memory and a clock that only the script moves.
//
//	// RFC 9293 3.5: a connection is opened, takes a byte and acknowledges it
//	0    listen
//	+0   < S 0:0(0) win 32792 <mss 1460,sackOK,nop,wscale 7>
//	+0   > S. 0:0(0) ack 1 <mss 1460,nop,nop,sackOK,nop,wscale 7>
//	+.1  < . 1:1(0) ack 1 win 257
//	+0   accept
//	+0   < P. 1:2(1) ack 1 win 257
//	+.04 > . 1:1(0) ack 2
//	+0   read 10 = 1
//
// A line is a time and a step. Times are seconds: "+.1" after the step before, ".1" since the start, "+.1~+.3" between
// the two, "*" whenever it comes. A packet that was sent and that no line expects fails the script, and so does one that
// comes more than Tolerance late.
//
// "<" packets arrive at the host, ">" packets are expected from it, ">?" packets may come. Sequence numbers count from the
// first SYN of their direction. What an expectation does not state is not compared: win, ack, options; PSH is compared
// only if it is stated. Before the flags (SFRPUEW and "." for ACK, "-" for none) may stand marks, [ect0,ect1,ce,noecn,
// df,nodf,badsum], and behind the packet xN: N packets of equal size, or N times the same when it carries nothing.
// Options: mss N, wscale N, sackOK, sack A:B C:D, TS val V ecr E, nop, eol, hex bytes; "..." at the end permits others.
// Timestamps of the host count from the first it sent; "*" is any, and "ecr last" echoes the latest.
//
// "< icmp unreachable frag_needed mtu 1300 [1:1461(1460)]" is an ICMP error about a packet of the host's.
//
// Calls are steps, with what they must return behind "=": see calls.go. Every byte of data in either direction is one of
// a pattern and is checked. "@name" in front of a packet or a call means another connection than the first.
package drill

import (
	"fmt"
	"strings"
)

// Tolerance is how much later than stated a packet may come, in ns: a host's timers have a grain.
const Tolerance = 4_000_000

// Script is a parsed script.
type Script struct {
	Name   string
	About  string // the comment on its first line
	Config []Setting
	Steps  []Step
}

// Setting is a line "config name value" in front of the steps.
type Setting struct {
	Line        int
	Name, Value string
}

// Kind says what a step does.
type Kind uint8

// Kinds of steps.
const (
	In   Kind = iota // a packet arrives
	ICMP             // an ICMP error arrives
	Out              // a packet is expected
	Call             // a socket call or an assertion
)

// Step is one line of a script.
type Step struct {
	Line     int
	Text     string
	At       When
	Kind     Kind
	Flow     string
	Optional bool // ">?"
	Count    int
	Packet   Packet // also what an ICMP error quotes
	Error    ICMPError
	Args     []string // the call and its arguments
	Want     string   // what stands behind "="; "" when nothing does
}

// When is the time of a step, in ns.
type When struct {
	Relative, Any, Range bool
	From, To             int64
}

// ICMPError is an ICMP message to inject.
type ICMPError struct {
	Type, Code byte
	MTU        uint16
}

// TCP flags.
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

const flagLetters = "FSRP.UEW"

// Num is a number in a script, which may be left open.
type Num struct {
	N    int64
	Any  bool // "*"
	Last bool // "last"
	Op   byte // '=', or '<' and '>' in an expectation
}

func (n Num) String() string {
	switch {
	case n.Any:
		return "*"
	case n.Last:
		return "last"
	case n.Op == '<' || n.Op == '>':
		return fmt.Sprintf("%c%d", n.Op, n.N)
	}
	return fmt.Sprint(n.N)
}

// is reports whether got is what n says.
func (n Num) is(got int64) bool {
	switch {
	case n.Any:
		return true
	case n.Op == '<':
		return got < n.N
	case n.Op == '>':
		return got > n.N
	}
	return got == n.N
}

// Packet is a TCP segment in the numbers of a script.
type Packet struct {
	ECN    int // -1: not stated; else the IP header's two bits
	DF     int // -1: not stated; else 0 or 1
	BadSum bool
	Flags  byte
	Seq    Num
	Len    int
	Ack    Num // Any: not stated
	Win    Num
	Urg    Num

	HasOptions, More bool // More: "..." permits options beyond those listed
	Options          []Option
}

// Option kinds that scripts name. Others are written in hex.
const (
	optEnd    = 0
	optNop    = 1
	optMSS    = 2
	optWScale = 3
	optSACKOK = 4
	optSACK   = 5
	optTS     = 8
)

// Option is a TCP option.
type Option struct {
	Kind     byte
	N        int // of mss and wscale
	Val, Ecr Num
	Blocks   [][2]int64
	Raw      []byte // all bytes of an option given in hex
}

func (o Option) String() string {
	if o.Raw != nil {
		return fmt.Sprintf("hex %x", o.Raw)
	}
	switch o.Kind {
	case optEnd:
		return "eol"
	case optNop:
		return "nop"
	case optMSS:
		return fmt.Sprintf("mss %d", o.N)
	case optWScale:
		return fmt.Sprintf("wscale %d", o.N)
	case optSACKOK:
		return "sackOK"
	case optSACK:
		s := "sack"
		for _, b := range o.Blocks {
			s += fmt.Sprintf(" %d:%d", b[0], b[1])
		}
		return s
	}
	return fmt.Sprintf("TS val %v ecr %v", o.Val, o.Ecr)
}

var ecnNames = [...]string{"noecn", "ect1", "ect0", "ce"}

// String writes the packet as a script does.
func (p Packet) String() string {
	var marks []string
	if p.ECN >= 0 {
		marks = append(marks, ecnNames[p.ECN])
	}
	if p.DF >= 0 {
		marks = append(marks, [...]string{"nodf", "df"}[p.DF])
	}
	if p.BadSum {
		marks = append(marks, "badsum")
	}
	var b strings.Builder
	if len(marks) > 0 {
		fmt.Fprintf(&b, "[%s] ", strings.Join(marks, ","))
	}
	for i, c := range flagLetters {
		if p.Flags>>i&1 != 0 {
			b.WriteRune(c)
		}
	}
	if p.Flags == 0 {
		b.WriteByte('-')
	}
	if p.Seq.Any {
		fmt.Fprintf(&b, " *:*(%d)", p.Len)
	} else {
		fmt.Fprintf(&b, " %d:%d(%d)", p.Seq.N, p.Seq.N+int64(p.Len), p.Len)
	}
	for _, f := range []struct {
		name string
		n    Num
	}{{"ack", p.Ack}, {"win", p.Win}, {"urg", p.Urg}} {
		if !f.n.Any {
			fmt.Fprintf(&b, " %s %v", f.name, f.n)
		}
	}
	if p.HasOptions {
		var opts []string
		for _, o := range p.Options {
			opts = append(opts, o.String())
		}
		if p.More {
			opts = append(opts, "...")
		}
		fmt.Fprintf(&b, " <%s>", strings.Join(opts, ","))
	}
	return b.String()
}
