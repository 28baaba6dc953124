package drill

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Sock names a socket of the host.
type Sock uint64

// Host is what a script drives: a stack at 10.0.0.1 with MAC 02:00:00:00:00:01 that knows its neighbour 10.0.0.2 with MAC
// 02:00:00:00:00:02, and sends only when Tick or Output is called. All calls happen at the time of the last Tick.
type Host interface {
	Tick(now int64)
	Deadline() int64 // when Tick has work again; math.MaxInt64: never
	Input(frame []byte)
	Output() [][]byte // the frames sent since the last call

	Listen(port uint16) (Sock, syscall.Errno)
	Accept(Sock) (Sock, syscall.Errno)
	Connect(addr uint32, port uint16) (Sock, syscall.Errno)
	Read(Sock, []byte) (int, syscall.Errno)
	Write(Sock, []byte) (int, syscall.Errno)
	Shutdown(s Sock, how string) syscall.Errno // "rd", "wr", "rdwr"
	Close(Sock) syscall.Errno
	Abort(Sock) syscall.Errno
	Error(Sock) syscall.Errno // as SO_ERROR
	Set(s Sock, option string, args []string) syscall.Errno
	Ready(Sock) []string // of IN, OUT, ERR, HUP, RDHUP
	// Info tells what is known of a connection by field name in lower case, times in ns, also when its owner closed it;
	// nil when there is none.
	Info(s Sock, remotePort uint16) map[string]any
	Counter(name string) (uint64, bool)

	// Finish closes everything, lets all time pass and tells what is left that should not be.
	Finish() error
}

// call describes what stands in a script: how many arguments, and what it does.
type call struct {
	min, max int
	usage    string
	run      func(*runner, *Step, *flow) error
}

var calls map[string]call

func init() {
	calls = map[string]call{
		"listen":       {0, 0, "listen", (*runner).listen},
		"accept":       {0, 0, "accept [= ERRNO]", (*runner).accept},
		"connect":      {0, 0, "connect [= ERRNO]", (*runner).connect},
		"read":         {1, 1, "read N [= N | EOF | ERRNO]", (*runner).read},
		"write":        {1, 1, "write N [= N | ERRNO]", (*runner).write},
		"shutdown":     {1, 1, "shutdown rd|wr|rdwr [= ERRNO]", (*runner).shutdown},
		"close":        {0, 0, "close [= ERRNO]", (*runner).close},
		"unlisten":     {0, 0, "unlisten", (*runner).unlisten},
		"abort":        {0, 0, "abort [= ERRNO]", (*runner).abort},
		"nodelay":      {1, 1, "nodelay on|off", (*runner).set},
		"keepalive":    {3, 3, "keepalive IDLE INTERVAL COUNT", (*runner).set},
		"congestion":   {1, 1, "congestion NAME [= ERRNO]", (*runner).set},
		"user_timeout": {1, 1, "user_timeout SECONDS", (*runner).set},
		"poll":         {1, 5, "poll [-]IN [-]OUT [-]ERR [-]HUP [-]RDHUP", (*runner).poll},
		"error":        {1, 1, "error ERRNO|none", (*runner).sockError},
		"info":         {2, 2, "info FIELD VALUE", (*runner).info},
		"counter":      {2, 2, "counter NAME VALUE", (*runner).counter},
		"quiet":        {0, 0, "quiet", func(*runner, *Step, *flow) error { return nil }},
		"ignore":       {0, 0, "ignore", func(*runner, *Step, *flow) error { return nil }},
		"again":        {1, 1, "again OFFSET", (*runner).again},
	}
}

// Socket calls and assertions, each on the socket of its @name:
//
//	listen, accept, connect, read N, write N, shutdown rd|wr|rdwr, close, abort, unlisten: as in POSIX
//	nodelay on|off, keepalive IDLE INTERVAL COUNT, congestion NAME, user_timeout SECONDS
//	poll IN -OUT          the socket is ready to be read and not to be written
//	error ECONNRESET      the pending error, which is taken; "none" when there is none
//	info cwnd 14600       a field of what is known of the connection; also <N, >N; times in seconds. "info state none":
//	                      there is no such connection
//	counter NAME 2        a counter has risen by 2 since the script began
//	quiet                 nothing was sent up to here
//	ignore                what was sent up to here does not matter
//	again 1000            what comes is another connection of the same ports; the peer's SYN has number 1000 in terms of
//	                      the last one's
//
// read and write return all of N unless "= N" says otherwise; the others return no error.
func (s *Step) parseCall(rest string) error {
	s.Kind = Call
	rest = s.takeFlow(rest)
	text, want, has := strings.Cut(rest, "=")
	s.Args, s.Want = strings.Fields(text), strings.TrimSpace(want)
	if has && s.Want == "" {
		return fmt.Errorf("nothing behind =")
	}
	if len(s.Args) == 0 {
		return fmt.Errorf("a time and no step")
	}
	c, ok := calls[s.Args[0]]
	if !ok {
		return fmt.Errorf("unknown step %q: want <, >, >?, or a call", s.Args[0])
	}
	if n := len(s.Args) - 1; n < c.min || n > c.max || has && !strings.Contains(c.usage, "=") {
		return fmt.Errorf("usage: %s", c.usage)
	}
	return s.checkCall(c)
}

// checkCall finds mistakes that need no run to be found.
func (s *Step) checkCall(c call) error {
	name, args := s.Args[0], s.Args[1:]
	bad := fmt.Errorf("usage: %s", c.usage)
	if s.Want != "" && s.Want != "EOF" && errnos[s.Want] == 0 {
		if n, err := strconv.Atoi(s.Want); err != nil || n < 0 || name != "read" && name != "write" {
			return fmt.Errorf("%q is no result that %s has", s.Want, name)
		}
	}
	switch name {
	case "read", "write":
		if n, err := strconv.Atoi(args[0]); err != nil || n < 0 || n > 64<<20 {
			return bad
		}
	case "again":
		if _, err := parseSeq(args[0]); err != nil {
			return bad
		}
	case "shutdown":
		if !slices.Contains([]string{"rd", "wr", "rdwr"}, args[0]) {
			return bad
		}
	case "nodelay":
		if args[0] != "on" && args[0] != "off" {
			return bad
		}
	case "keepalive", "user_timeout":
		for _, a := range args {
			if _, err := parseSeconds(a); err != nil {
				return err
			}
		}
	case "poll":
		for _, a := range args {
			if !slices.Contains([]string{"IN", "OUT", "ERR", "HUP", "RDHUP"}, strings.TrimPrefix(a, "-")) {
				return bad
			}
		}
	case "error":
		if args[0] != "none" && errnos[args[0]] == 0 {
			return bad
		}
	case "counter":
		if n, err := parseNum(args[1]); err != nil || n.Any || n.Last {
			return bad
		}
	}
	return nil
}

var errnos = map[string]syscall.Errno{
	"EAGAIN": syscall.EAGAIN, "EADDRINUSE": syscall.EADDRINUSE, "EADDRNOTAVAIL": syscall.EADDRNOTAVAIL,
	"EBADF": syscall.EBADF, "ECONNREFUSED": syscall.ECONNREFUSED, "ECONNRESET": syscall.ECONNRESET,
	"EHOSTUNREACH": syscall.EHOSTUNREACH, "EINVAL": syscall.EINVAL, "EMSGSIZE": syscall.EMSGSIZE,
	"ENETUNREACH": syscall.ENETUNREACH, "ENOENT": syscall.ENOENT, "ENOPROTOOPT": syscall.ENOPROTOOPT,
	"ENOTCONN": syscall.ENOTCONN, "EPIPE": syscall.EPIPE, "EPROTO": syscall.EPROTO, "ETIMEDOUT": syscall.ETIMEDOUT,
	"EISCONN": syscall.EISCONN, "ECONNABORTED": syscall.ECONNABORTED,
}

func errName(e syscall.Errno) string {
	for name, v := range errnos {
		if v == e {
			return name
		}
	}
	if e == 0 {
		return "none"
	}
	return e.Error()
}

// wantErr compares what a call returned with what stands behind "=".
func wantErr(s *Step, got syscall.Errno) error {
	if want := errnos[s.Want]; got != want {
		return fmt.Errorf("%s returned %s, want %s", s.Args[0], errName(got), errName(want))
	}
	return nil
}

func (r *runner) listen(s *Step, f *flow) error {
	l, e := r.host.Listen(f.localPort)
	f.listener = l
	return wantErr(s, e)
}

func (r *runner) accept(s *Step, f *flow) error {
	l := f.listener
	if l == 0 { // of another flow: all arrive at the same port
		l = r.flow("").listener
	}
	c, e := r.host.Accept(l)
	if e == 0 {
		f.sock = c
	}
	return wantErr(s, e)
}

func (r *runner) connect(s *Step, f *flow) error {
	f.localPort = 0 // the SYN tells
	f.active = true
	f.remotePort = connectPort + f.index
	c, e := r.host.Connect(peerAddr, f.remotePort)
	f.sock = c
	return wantErr(s, e)
}

func (r *runner) read(s *Step, f *flow) error {
	n, _ := strconv.Atoi(s.Args[1])
	b := make([]byte, n)
	got, e := r.host.Read(f.sock, b)
	want := s.Want
	if want == "EOF" {
		want = "0"
	}
	if err := result(s, got, n, e, want); err != nil {
		return err
	}
	for i := range got {
		if b[i] != pattern(f.peerISN, f.readOff+int64(i)) {
			return fmt.Errorf("byte %d of the stream is wrong", f.readOff+int64(i))
		}
	}
	f.readOff += int64(got)
	return nil
}

func (r *runner) write(s *Step, f *flow) error {
	n, _ := strconv.Atoi(s.Args[1])
	b := make([]byte, n)
	for i := range b {
		b[i] = pattern(^f.peerISN, f.writeOff+int64(i))
	}
	got, e := r.host.Write(f.sock, b)
	f.writeOff += int64(got)
	return result(s, got, n, e, s.Want)
}

// result checks a byte count or an errno against want; "" means n.
func result(s *Step, got, n int, e syscall.Errno, want string) error {
	if want == "" {
		want = strconv.Itoa(n)
	}
	have := strconv.Itoa(got)
	if e != 0 {
		have = errName(e)
	}
	if have != want {
		return fmt.Errorf("%s %d returned %s, want %s", s.Args[0], n, have, want)
	}
	return nil
}

func (r *runner) shutdown(s *Step, f *flow) error {
	return wantErr(s, r.host.Shutdown(f.sock, s.Args[1]))
}
func (r *runner) close(s *Step, f *flow) error    { return wantErr(s, r.host.Close(f.sock)) }
func (r *runner) abort(s *Step, f *flow) error    { return wantErr(s, r.host.Abort(f.sock)) }
func (r *runner) unlisten(s *Step, f *flow) error { return wantErr(s, r.host.Close(f.listener)) }
func (r *runner) set(s *Step, f *flow) error {
	return wantErr(s, r.host.Set(f.sock, s.Args[0], s.Args[1:]))
}

func (r *runner) poll(s *Step, f *flow) error {
	sock := f.sock
	if sock == 0 {
		sock = f.listener
	}
	got := r.host.Ready(sock)
	for _, a := range s.Args[1:] {
		name, not := strings.CutPrefix(a, "-")
		if slices.Contains(got, name) == not {
			return fmt.Errorf("ready for %s", strings.Join(got, ", "))
		}
	}
	return nil
}

func (r *runner) sockError(s *Step, f *flow) error {
	if got := r.host.Error(f.sock); got != errnos[s.Args[1]] {
		return fmt.Errorf("the pending error is %s, want %s", errName(got), s.Args[1])
	}
	return nil
}

// times are the fields of Info that scripts state in seconds.
var times = []string{"rtt", "rttvar", "minrtt", "rto", "timerin"}

func (r *runner) info(s *Step, f *flow) error {
	all := r.host.Info(f.sock, f.remotePort)
	field, want := s.Args[1], s.Args[2]
	if all == nil {
		all = map[string]any{"state": "none"}
	}
	got, ok := all[field]
	if !ok {
		return fmt.Errorf("there is no field %q", field)
	}
	if have := fmt.Sprint(got); want == have || want == "none" && have == "" {
		return nil
	}
	have, err1 := strconv.ParseFloat(fmt.Sprint(got), 64)
	op, num := byte('='), want
	if len(want) > 1 && (want[0] == '<' || want[0] == '>') {
		op, num = want[0], want[1:]
	}
	limit, err2 := strconv.ParseFloat(num, 64)
	slack := 0.0
	if slices.Contains(times, field) {
		have /= 1e9
		slack = Tolerance / 1e9
	}
	if err1 != nil || err2 != nil || op == '=' && math.Abs(have-limit) > slack || op == '<' && have >= limit || op == '>' && have <= limit {
		if err1 == nil {
			got = have
		}
		return fmt.Errorf("%s is %v, want %s", field, got, want)
	}
	return nil
}

func (r *runner) counter(s *Step, _ *flow) error {
	got, ok := r.host.Counter(s.Args[1])
	if !ok {
		return fmt.Errorf("there is no counter %q", s.Args[1])
	}
	want, _ := parseNum(s.Args[2])
	if !want.is(int64(got)) {
		return fmt.Errorf("%s is %d, want %s", s.Args[1], got, s.Args[2])
	}
	return nil
}

func (r *runner) again(s *Step, f *flow) error {
	off, _ := parseSeq(s.Args[1])
	f.restart(f.peerISN + uint32(off))
	return nil
}
