package sockets_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"xdpd/internal/drill"
	"xdpd/proto"
	"xdpd/sockets"
	"xdpd/umem"
)

// TestDrill runs the scripts of testdata/drill, one behaviour of one RFC each.
func TestDrill(t *testing.T) {
	files, err := filepath.Glob("testdata/drill/*/*.pkt")
	if err != nil || len(files) < 150 {
		t.Errorf("%d scripts, %v; want at least 150", len(files), err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(strings.TrimPrefix(filepath.ToSlash(name), "testdata/drill/"), ".pkt"), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			s, err := drill.Parse(name, string(text))
			if err != nil {
				t.Fatal(err)
			}
			if err := checkName(name, s.About); err != nil {
				t.Error(err)
			}
			if err := drill.Run(s, newDrillHost(t, s.Config)); err != nil {
				t.Error(err)
			}
		})
	}
}

// checkName compares a script's folder and name with the RFC and section that its first line names.
func checkName(name, about string) error {
	m := regexp.MustCompile(`^RFC (\d+) ([0-9A-Z.]+): \S`).FindStringSubmatch(about)
	if m == nil {
		return fmt.Errorf("%s: the first line is no comment of the form RFC NNNN SECTION: WHAT", name)
	}
	if filepath.Base(filepath.Dir(name)) != "rfc"+m[1] || !strings.HasPrefix(filepath.Base(name), m[2]+"-") {
		return fmt.Errorf("%s is about RFC %s section %s: want it as rfc%s/%s-BEHAVIOUR.pkt", name, m[1], m[2], m[1], m[2])
	}
	return nil
}

// drillHost is a Host with its ledger on, and the part of a reactor and a device that moves frames.
type drillHost struct {
	t      testing.TB
	h      *sockets.Host
	pool   *umem.Pool
	now    int64
	fill   []umem.Frame
	want   int // frames in the fill ring
	open   []drill.Sock
	before sockets.Counters
}

func newDrillHost(t testing.TB, settings []drill.Setting) *drillHost {
	const frames, chunk = 2048, 2048
	region, err := umem.Wrap(make([]byte, frames*chunk), chunk)
	if err != nil {
		t.Fatal(err)
	}
	cfg := sockets.Config{
		MAC: proto.MAC{2, 0, 0, 0, 0, 1}, MTU: 1500, Addrs: []sockets.Prefix{{Addr: 0x0a000001, Bits: 24}},
		KernelNeighbours: true, FillFrames: frames / 8,
	}
	for _, s := range settings {
		if err := configure(&cfg, s); err != nil {
			t.Fatalf("config %s %s: %v", s.Name, s.Value, err)
		}
	}
	d := &drillHost{t: t, want: cfg.FillFrames, pool: umem.NewPool(region, 0, frames, umem.NewLedger(frames))}
	if d.h, err = sockets.New(cfg, d.pool, 0); err != nil {
		t.Fatal(err)
	}
	d.h.SetNeighbour(0x0a000002, proto.MAC{2, 0, 0, 0, 0, 2}, true, 0)
	d.refill()
	return d
}

// configure sets a field of the Config by its name in lower case.
func configure(cfg *sockets.Config, s drill.Setting) error {
	f := reflect.ValueOf(cfg).Elem().FieldByNameFunc(func(n string) bool { return strings.ToLower(n) == s.Name })
	switch {
	case !f.IsValid():
		return fmt.Errorf("no such field")
	case f.Kind() == reflect.String:
		f.SetString(s.Value)
	case f.Kind() == reflect.Int:
		n, err := strconv.Atoi(s.Value)
		f.SetInt(int64(n))
		return err
	case f.Kind() == reflect.Bool:
		v, err := strconv.ParseBool(s.Value)
		f.SetBool(v)
		return err
	default:
		return fmt.Errorf("a field of kind %v", f.Kind())
	}
	return nil
}

func (d *drillHost) refill() {
	for len(d.fill) < d.want {
		f := d.pool.Get(umem.Fill)
		if f == umem.None {
			return
		}
		d.fill = append(d.fill, f)
	}
}

func (d *drillHost) Tick(now int64) {
	if d.now == 0 {
		d.before = *d.h.Counters()
	}
	d.now = now
	d.h.Tick(now)
}

func (d *drillHost) Deadline() int64 { return d.h.NextDeadline() }

func (d *drillHost) Input(frame []byte) {
	n := len(d.fill)
	if n == 0 {
		d.t.Fatal("the fill ring is empty")
	}
	f := d.fill[n-1]
	d.fill = d.fill[:n-1]
	d.pool.Move(f, umem.Fill, umem.RX)
	copy(d.pool.Chunk(f)[umem.Headroom:], frame)
	d.h.Input(f, umem.Headroom, len(frame), d.now)
	d.refill()
}

// Output does what a turn does after receiving: output is built, sent and completed.
func (d *drillHost) Output() [][]byte {
	var out [][]byte
	d.h.Flush(d.now)
	for {
		tx := d.h.PopTX()
		if tx.F == umem.None {
			break
		}
		out = append(out, slices.Clone(d.pool.Chunk(tx.F)[tx.Off():tx.Off()+tx.N()]))
		d.pool.Move(tx.F, umem.TX, umem.Comp)
		d.h.Completed(tx.F)
	}
	d.h.EndTurn()
	return out
}

func (d *drillHost) Listen(port uint16) (drill.Sock, syscall.Errno) {
	l, e := d.h.TCPListen(0, port)
	return d.opened(l, e)
}

func (d *drillHost) Accept(l drill.Sock) (drill.Sock, syscall.Errno) {
	s, e := d.h.TCPAccept(sockets.Handle(l))
	return d.opened(s, e)
}

func (d *drillHost) opened(s sockets.Handle, e syscall.Errno) (drill.Sock, syscall.Errno) {
	if e == 0 {
		d.open = append(d.open, drill.Sock(s))
	}
	return drill.Sock(s), e
}

func (d *drillHost) closed(s drill.Sock) {
	d.open = slices.DeleteFunc(d.open, func(o drill.Sock) bool { return o == s })
}

func (d *drillHost) Read(s drill.Sock, b []byte) (int, syscall.Errno) {
	return d.h.TCPRead(sockets.Handle(s), b, d.now)
}

func (d *drillHost) Write(s drill.Sock, b []byte) (int, syscall.Errno) {
	return d.h.TCPWrite(sockets.Handle(s), b, d.now)
}

func (d *drillHost) Close(s drill.Sock) syscall.Errno {
	d.closed(s)
	return d.h.Close(sockets.Handle(s), d.now)
}

func (d *drillHost) Abort(s drill.Sock) syscall.Errno {
	d.closed(s)
	return d.h.TCPAbort(sockets.Handle(s), d.now)
}

func (d *drillHost) Ready(s drill.Sock) []string {
	var out []string
	r := d.h.Ready(sockets.Handle(s))
	for _, k := range []struct {
		bit  sockets.Ready
		name string
	}{{sockets.In, "IN"}, {sockets.Out, "OUT"}, {sockets.Err, "ERR"}, {sockets.Hup, "HUP"}, {sockets.RdHup, "RDHUP"}} {
		if r&k.bit != 0 {
			out = append(out, k.name)
		}
	}
	return out
}

func (d *drillHost) Connect(addr uint32, port uint16) (drill.Sock, syscall.Errno) {
	s, e := d.h.TCPDial(0, 0, proto.Addr(addr), port, d.now)
	return d.opened(s, e)
}

func (d *drillHost) Error(s drill.Sock) syscall.Errno { return d.h.TCPError(sockets.Handle(s)) }

func (d *drillHost) Shutdown(s drill.Sock, how string) syscall.Errno {
	if how != "wr" {
		if e := d.h.TCPShutdownRead(sockets.Handle(s), d.now); e != 0 || how == "rd" {
			return e
		}
	}
	return d.h.TCPShutdown(sockets.Handle(s), d.now)
}

func (d *drillHost) Set(s drill.Sock, option string, args []string) syscall.Errno {
	ns := func(arg string) int64 {
		v, _ := strconv.ParseFloat(arg, 64)
		return int64(v * 1e9)
	}
	c := sockets.Handle(s)
	switch option {
	case "nodelay":
		return d.h.TCPSetNoDelay(c, args[0] == "on", d.now)
	case "congestion":
		return d.h.TCPSetCongestion(c, args[0])
	case "user_timeout":
		return d.h.TCPSetUserTimeout(c, ns(args[0]))
	}
	count, _ := strconv.Atoi(args[2])
	return d.h.TCPSetKeepAlive(c, sockets.KeepAlive{Idle: ns(args[0]), Interval: ns(args[1]), Count: count}, d.now)
}

// Info falls back on the list of all connections: one whose owner closed it has no handle.
func (d *drillHost) Info(s drill.Sock, remotePort uint16) map[string]any {
	if info, e := d.h.TCPStat(sockets.Handle(s)); e == 0 {
		return fields(info)
	}
	for _, i := range d.h.TCPSockets() {
		if i.Remote.Port() == remotePort {
			return fields(i)
		}
	}
	return nil
}

// fields gives the fields of a struct by their names in lower case.
func fields(v any) map[string]any {
	out, r := map[string]any{}, reflect.ValueOf(v)
	for i := range r.NumField() {
		out[strings.ToLower(r.Type().Field(i).Name)] = r.Field(i).Interface()
	}
	return out
}

// Counter finds a counter or a drop reason by its name.
func (d *drillHost) Counter(name string) (uint64, bool) {
	c := d.h.Counters()
	for i := range sockets.NStats {
		if i.String() == name {
			return c.Stats[i] - d.before.Stats[i], true
		}
	}
	for i := range sockets.NDrops {
		if i.String() == name {
			return c.Drops[i] - d.before.Drops[i], true
		}
	}
	return 0, false
}

func (d *drillHost) Finish() error {
	for _, s := range d.open {
		if e := d.h.Close(sockets.Handle(s), d.now); e != 0 {
			return fmt.Errorf("closing an open socket: %v", e)
		}
	}
	for step := 0; ; step++ {
		d.Output()
		at := d.h.NextDeadline()
		if at == math.MaxInt64 {
			break
		}
		if step > 200_000 {
			return fmt.Errorf("timers never come to an end")
		}
		d.now = max(d.now, at)
		d.h.Tick(d.now)
	}
	for _, f := range d.fill {
		d.pool.Put(f, umem.Fill)
	}
	d.fill = nil
	if rx, _, tx, _ := d.h.Held(); rx != 0 || tx != 0 || d.pool.Avail() != d.pool.Total() {
		return fmt.Errorf("%d received and %d outgoing frames held, %d of %d free; by owner: %v",
			rx, tx, d.pool.Avail(), d.pool.Total(), d.pool.Ledger().Counts())
	}
	if left := d.h.TCPSockets(); len(left) > 0 {
		return fmt.Errorf("sockets are left: %+v", left)
	}
	return nil
}
