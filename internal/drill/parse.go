package drill

import (
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Parse reads a script. Its errors begin with name:line.
func Parse(name, text string) (*Script, error) {
	s := &Script{Name: name}
	for i, line := range strings.Split(text, "\n") {
		code, comment, _ := strings.Cut(line, "//")
		if i == 0 {
			s.About = strings.TrimSpace(comment)
		}
		code = strings.TrimSpace(code)
		if code == "" {
			continue
		}
		if err := s.parseLine(i+1, code); err != nil {
			return nil, fmt.Errorf("%s:%d: %w\n\t%s", name, i+1, err, code)
		}
	}
	if len(s.Steps) == 0 {
		return nil, fmt.Errorf("%s:1: a script without steps", name)
	}
	return s, nil
}

func (s *Script) parseLine(n int, code string) error {
	first, rest, _ := strings.Cut(strings.ReplaceAll(code, "\t", " "), " ")
	rest = strings.TrimSpace(rest)
	if first == "config" {
		f := strings.Fields(rest)
		if len(f) != 2 {
			return fmt.Errorf("config wants a name and a value")
		}
		if len(s.Steps) > 0 {
			return fmt.Errorf("config stands in front of the first step")
		}
		s.Config = append(s.Config, Setting{n, f[0], f[1]})
		return nil
	}
	at, err := parseWhen(first)
	if err != nil {
		return err
	}
	step := Step{Line: n, Text: code, At: at, Count: 1}
	if err := step.parse(rest); err != nil {
		return err
	}
	if at.Any && step.Kind != Out || at.Range && step.Kind != Out {
		return fmt.Errorf("only a packet that is expected may come at a time left open")
	}
	s.Steps = append(s.Steps, step)
	return nil
}

// parseWhen reads ".1", "+.1", "+.1~+.3", ".1~.3" or "*".
func parseWhen(t string) (When, error) {
	if t == "*" {
		return When{Any: true}, nil
	}
	from, to, isRange := strings.Cut(t, "~")
	w := When{Relative: strings.HasPrefix(from, "+"), Range: isRange}
	var err error
	if w.From, err = parseSeconds(strings.TrimPrefix(from, "+")); err != nil {
		return w, err
	}
	w.To = w.From
	if isRange {
		if strings.HasPrefix(to, "+") != w.Relative {
			return w, fmt.Errorf("time %q: both ends are relative, or none", t)
		}
		if w.To, err = parseSeconds(strings.TrimPrefix(to, "+")); err != nil {
			return w, err
		}
		if w.To < w.From {
			return w, fmt.Errorf("time %q ends before it begins", t)
		}
	}
	return w, nil
}

func parseSeconds(t string) (int64, error) {
	v, err := strconv.ParseFloat(t, 64)
	if err != nil || v < 0 || v > 1e7 || strings.ContainsAny(t, "+-eExXpPnN_") {
		return 0, fmt.Errorf("%q is not a time: want seconds, such as .1, +.1, +.1~+.3 or *", t)
	}
	return int64(math.Round(v * 1e9)), nil
}

func (s *Step) parse(rest string) error {
	dir, body, _ := strings.Cut(rest, " ")
	switch dir {
	case "<":
		s.Kind = In
	case ">":
		s.Kind = Out
	case ">?":
		s.Kind, s.Optional = Out, true
	default:
		return s.parseCall(rest)
	}
	body = s.takeFlow(strings.TrimSpace(body))
	if kind, about, _ := strings.Cut(body, " "); kind == "icmp" {
		if s.Kind != In {
			return fmt.Errorf("ICMP errors can only be injected")
		}
		s.Kind = ICMP
		return s.parseICMP(about)
	}
	return s.parsePacket(body)
}

func (s *Step) takeFlow(body string) string {
	if !strings.HasPrefix(body, "@") {
		return body
	}
	flow, rest, _ := strings.Cut(body[1:], " ")
	s.Flow = flow
	return strings.TrimSpace(rest)
}

// parsePacket reads [marks] FLAGS SEQ:END(LEN) ack N win N urg N <options> xN.
func (s *Step) parsePacket(body string) error {
	p := &s.Packet
	*p = Packet{ECN: -1, DF: -1, Ack: Num{Any: true}, Win: Num{Any: true}, Urg: Num{Any: true}}
	if strings.HasPrefix(body, "[") {
		marks, rest, ok := strings.Cut(body[1:], "]")
		if !ok {
			return fmt.Errorf("marks without ]")
		}
		if err := p.parseMarks(marks); err != nil {
			return err
		}
		body = rest
	}
	if i := optionsAt(body); i >= 0 {
		head := body[:i]
		opts, tail, ok := strings.Cut(body[i+2:], ">")
		if !ok {
			return fmt.Errorf("options without >")
		}
		p.HasOptions = true
		if err := p.parseOptions(opts); err != nil {
			return err
		}
		body = head + " " + tail
	}
	f := strings.Fields(body)
	if len(f) < 2 {
		return fmt.Errorf("a packet wants flags and SEQ:END(LEN)")
	}
	if err := p.parseFlags(f[0]); err != nil {
		return err
	}
	if err := p.parseRange(f[1]); err != nil {
		return err
	}
	return s.parseFields(f[2:])
}

// optionsAt finds " <", but not the one of "win <100".
func optionsAt(body string) int {
	for i := 0; i+2 < len(body); i++ {
		if body[i:i+2] == " <" && (body[i+2] < '0' || body[i+2] > '9') {
			return i
		}
	}
	return -1
}

func (s *Step) parseFields(f []string) error {
	p := &s.Packet
	for len(f) > 0 {
		if n, ok := strings.CutPrefix(f[0], "x"); ok && len(f) == 1 {
			v, err := strconv.Atoi(n)
			if err != nil || v < 1 || v > 10000 || p.Len%v != 0 {
				return fmt.Errorf("%q: want x and a number that divides %d", f[0], p.Len)
			}
			s.Count = v
			return nil
		}
		to := map[string]*Num{"ack": &p.Ack, "win": &p.Win, "urg": &p.Urg}[f[0]]
		if to == nil || len(f) < 2 {
			return fmt.Errorf("%q: want ack N, win N, urg N or xN", strings.Join(f, " "))
		}
		n, err := parseNum(f[1])
		if err != nil || n.Last || s.Kind == In && (n.Any || n.Op != '=') {
			return fmt.Errorf("%s %q is not a number", f[0], f[1])
		}
		if f[0] != "ack" && !n.Any && (n.N < 0 || n.N > 0xffff) {
			return fmt.Errorf("%s %d does not fit into 16 bits", f[0], n.N)
		}
		*to = n
		f = f[2:]
	}
	if p.Flags&ACK == 0 && !p.Ack.Any && s.Kind == Out {
		return fmt.Errorf("ack is stated and the flags have no %q", ".")
	}
	return nil
}

func (p *Packet) parseMarks(list string) error {
	for m := range strings.SplitSeq(list, ",") {
		m = strings.TrimSpace(m)
		if i := slices.Index(ecnNames[:], m); i >= 0 {
			p.ECN = i
			continue
		}
		switch m {
		case "df":
			p.DF = 1
		case "nodf":
			p.DF = 0
		case "badsum":
			p.BadSum = true
		default:
			return fmt.Errorf("unknown mark %q: ect0, ect1, ce, noecn, df, nodf, badsum", m)
		}
	}
	return nil
}

func (p *Packet) parseFlags(t string) error {
	if t == "-" {
		return nil
	}
	for _, c := range t {
		i := strings.IndexRune(flagLetters, c)
		if i < 0 || p.Flags>>i&1 != 0 {
			return fmt.Errorf("flags %q: want each of %s at most once, or -", t, flagLetters)
		}
		p.Flags |= 1 << i
	}
	return nil
}

// parseRange reads SEQ:END(LEN), or *:*(LEN).
func (p *Packet) parseRange(t string) error {
	span, tail, ok := strings.Cut(t, "(")
	from, to, ok2 := strings.Cut(span, ":")
	length, end, ok3 := strings.Cut(tail, ")")
	n, err := strconv.Atoi(length)
	if !ok || !ok2 || !ok3 || end != "" || err != nil || n < 0 || n > 1<<20 {
		return fmt.Errorf("%q is not SEQ:END(LEN)", t)
	}
	p.Len = n
	if from == "*" && to == "*" {
		p.Seq = Num{Any: true}
		return nil
	}
	a, err1 := parseSeq(from)
	b, err2 := parseSeq(to)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("%q is not SEQ:END(LEN)", t)
	}
	if b-a != int64(n) {
		return fmt.Errorf("%q: from %d to %d is %d bytes", t, a, b, b-a)
	}
	p.Seq = Num{N: a, Op: '='}
	return nil
}

func parseSeq(t string) (int64, error) {
	v, err := strconv.ParseInt(t, 10, 64)
	if err == nil && (v < -1<<32 || v > 1<<32) {
		err = strconv.ErrRange
	}
	return v, err
}

func parseNum(t string) (Num, error) {
	switch {
	case t == "*":
		return Num{Any: true}, nil
	case t == "last":
		return Num{Last: true}, nil
	}
	n := Num{Op: '='}
	if len(t) > 1 && (t[0] == '<' || t[0] == '>') {
		n.Op, t = t[0], t[1:]
	}
	v, err := parseSeq(t)
	n.N = v
	return n, err
}

func (p *Packet) parseOptions(list string) error {
	list = strings.TrimSpace(list)
	if list == "" {
		return nil
	}
	items := strings.Split(list, ",")
	for i, item := range items {
		f := strings.Fields(item)
		if len(f) == 1 && f[0] == "..." && i == len(items)-1 {
			p.More = true
			return nil
		}
		o, err := parseOption(f)
		if err != nil {
			return fmt.Errorf("option %q: %w", strings.TrimSpace(item), err)
		}
		p.Options = append(p.Options, o)
	}
	return nil
}

func parseOption(f []string) (Option, error) {
	bad := fmt.Errorf("want mss N, wscale N, sackOK, sack A:B ..., TS val V ecr E, nop, eol or hex BYTES")
	if len(f) == 0 {
		return Option{}, bad
	}
	switch {
	case f[0] == "nop" && len(f) == 1:
		return Option{Kind: optNop}, nil
	case f[0] == "eol" && len(f) == 1:
		return Option{Kind: optEnd}, nil
	case f[0] == "sackOK" && len(f) == 1:
		return Option{Kind: optSACKOK}, nil
	case f[0] == "mss" && len(f) == 2:
		n, err := strconv.ParseUint(f[1], 10, 16)
		return Option{Kind: optMSS, N: int(n)}, err
	case f[0] == "wscale" && len(f) == 2:
		n, err := strconv.ParseUint(f[1], 10, 8)
		return Option{Kind: optWScale, N: int(n)}, err
	case f[0] == "hex" && len(f) == 2:
		raw, err := hex.DecodeString(f[1])
		if err == nil && (len(raw) == 0 || len(raw) > 40) {
			err = fmt.Errorf("%d bytes", len(raw))
		}
		var kind byte
		if len(raw) > 0 {
			kind = raw[0]
		}
		return Option{Kind: kind, Raw: raw}, err
	case f[0] == "TS" && len(f) == 5 && f[1] == "val" && f[3] == "ecr":
		val, err := parseNum(f[2])
		if err != nil {
			return Option{}, err
		}
		ecr, err := parseNum(f[4])
		return Option{Kind: optTS, Val: val, Ecr: ecr}, err
	case f[0] == "sack" && len(f) > 1 && len(f) < 6:
		o := Option{Kind: optSACK}
		for _, b := range f[1:] {
			from, to, ok := strings.Cut(b, ":")
			x, err1 := parseSeq(from)
			y, err2 := parseSeq(to)
			if !ok || err1 != nil || err2 != nil {
				return o, fmt.Errorf("block %q is not A:B", b)
			}
			o.Blocks = append(o.Blocks, [2]int64{x, y})
		}
		return o, nil
	}
	return Option{}, bad
}

// icmpErrors names the errors of RFC 792 and RFC 1812 5.2.7 that concern a transport.
var icmpErrors = map[string]ICMPError{
	"unreachable net":              {3, 0, 0},
	"unreachable host":             {3, 1, 0},
	"unreachable protocol":         {3, 2, 0},
	"unreachable port":             {3, 3, 0},
	"unreachable frag_needed":      {3, 4, 0},
	"unreachable source_route":     {3, 5, 0},
	"unreachable admin_prohibited": {3, 13, 0},
	"source_quench":                {4, 0, 0},
	"time_exceeded ttl":            {11, 0, 0},
	"time_exceeded reassembly":     {11, 1, 0},
	"parameter_problem":            {12, 0, 0},
}

// parseICMP reads TYPE CODE [mtu N] [SEQ:END(LEN)], the last being the packet of the host's that the error quotes.
func (s *Step) parseICMP(body string) error {
	about, quote, ok := strings.Cut(body, "[")
	quote, tail, ok2 := strings.Cut(quote, "]")
	if !ok || !ok2 || strings.TrimSpace(tail) != "" {
		return fmt.Errorf("an ICMP error ends with the quoted packet, [SEQ:END(LEN)]")
	}
	if err := s.Packet.parseRange(quote); err != nil {
		return err
	}
	about, mtu, hasMTU := strings.Cut(about, "mtu ")
	e, known := icmpErrors[strings.Join(strings.Fields(about), " ")]
	if !known {
		return fmt.Errorf("unknown ICMP error %q", strings.TrimSpace(about))
	}
	if hasMTU {
		n, err := strconv.ParseUint(strings.TrimSpace(mtu), 10, 16)
		if err != nil {
			return fmt.Errorf("mtu %q does not fit into 16 bits", mtu)
		}
		e.MTU = uint16(n)
	}
	s.Error = e
	return nil
}
