package xdpprog

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const xdpDrop = 1

// newBPFFS mounts a BPF file system of the test's own, which everybody uses.
func newBPFFS(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("LIBXDP_BPFFS", dir)
	return dir
}

// A deck is a veth in a namespace of its own, with what is attached to it.
type deck struct {
	t      *testing.T
	device netlink.Link
	bpffs  string
}

func newDeck(t *testing.T) *deck {
	t.Helper()
	enterNS(t)
	d := &deck{t: t, bpffs: newBPFFS(t)}
	d.device, _ = newVeth(t, 1500, 2)
	return d
}

// extensions tells whether this kernel has what dispatchers need. One that has not must say so, and leave nothing.
func (d *deck) extensions() bool {
	d.t.Helper()
	probe := ProbeDispatch()
	if probe == nil {
		return true
	}
	c := d.config(AlwaysDispatch)
	p, err := Load(c)
	if err == nil {
		p.Close()
	}
	if !errors.Is(probe, ErrNoExtensions) || !errors.Is(err, ErrNoExtensions) || !strings.Contains(err.Error(), "under-test") {
		d.t.Errorf("no dispatchers here: the probe says %v, Load %v", probe, err)
	}
	d.empty()
	d.t.Logf("only the refusal could be tested; scripts/vmlab has a kernel for the rest: %v", probe)
	return false
}

func (d *deck) config(how Dispatch) Config {
	c := testConfig(Share, d.device.Attrs().Index)
	c.Dispatch = how
	return c
}

// load opens UDP port 9 and 10 on a steering program with a socket.
func (d *deck) load(c Config) *Program {
	d.t.Helper()
	p, err := Load(c)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { p.Close() })
	for _, port := range []uint16{9, 10} {
		if err := p.OpenPort(udpNr, ourAddr, port); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := p.SetSocket(0, newXSK(d.t)); err != nil {
		d.t.Fatal(err)
	}
	return p
}

// tool runs a program of xdp-tools in the test's namespace.
func (d *deck) tool(args ...string) string {
	d.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// expect runs packets to UDP ports through what is attached to the device.
func (d *deck) expect(what string, actions map[uint16]uint32) {
	d.t.Helper()
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(attachedXDP(d.t, d.device).ProgId))
	if err != nil {
		d.t.Fatalf("%s: %v", what, err)
	}
	defer prog.Close()
	for port, want := range actions {
		frame := ether(ipv4T, toUs(udpNr).bytes(udp(1000, port)))
		got, err := prog.Run(&ebpf.RunOptions{Data: frame, Repeat: 1})
		if err != nil || got != want {
			d.t.Errorf("%s: a packet to port %d: action %d, %v; want %d", what, port, got, err, want)
		}
	}
}

// pins lists the dispatchers that are pinned.
func (d *deck) pins() []string {
	d.t.Helper()
	dirs, err := filepath.Glob(filepath.Join(d.bpffs, "xdp", "*"))
	if err != nil {
		d.t.Fatal(err)
	}
	return dirs
}

// empty checks that no program is attached, and no dispatcher pinned.
func (d *deck) empty() {
	d.t.Helper()
	if a, pins := attachedXDP(d.t, d.device), d.pins(); a.Attached || len(pins) > 0 {
		d.t.Errorf("left: attached %+v, pinned %v", a, pins)
	}
}

// status checks that xdp-loader knows all members in this order, and that nothing is pinned but their dispatcher.
func (d *deck) status(members ...string) {
	d.t.Helper()
	out := d.tool("xdp-loader", "status", "engine0")
	var got []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == "=>" {
			got = append(got, f[1]+" "+f[2])
		}
	}
	if strings.Join(got, ", ") != strings.Join(members, ", ") {
		d.t.Errorf("xdp-loader knows %q, want %q:\n%s", got, members, out)
	}
	if pins := d.pins(); len(pins) != min(1, len(members)) {
		d.t.Errorf("pinned: %v", pins)
	}
}

// filterDrops9 loads xdp-filter, which drops what goes to UDP port 9; its priority is 10.
func (d *deck) filterDrops9(mode string) {
	d.t.Helper()
	d.tool("xdp-filter", "load", "-m", mode, "-f", "udp", "engine0")
	d.tool("xdp-filter", "port", "-p", "udp", "9")
}

const (
	filter = "10 xdpfilt_alw_udp"
	steer  = "50 steer"
)

// TestJoinTheirs: the dispatcher of xdp-tools is there first.
func TestJoinTheirs(t *testing.T) {
	for mode, native := range map[string]bool{"native": true, "skb": false} {
		t.Run(mode, func(t *testing.T) {
			d := newDeck(t)
			if !d.extensions() {
				return
			}
			d.filterDrops9(mode)
			d.status(filter)
			p := d.load(d.config(AutoDispatch))
			if !p.Dispatched() || p.Native() != native || p.Frags() {
				t.Errorf("dispatched %v, native %v, frags %v", p.Dispatched(), p.Native(), p.Frags())
			}
			d.status(filter, steer)
			d.expect("both", map[uint16]uint32{9: xdpDrop, 10: xdpRedirect, 11: xdpPass})
			d.tool("xdp-filter", "unload", "engine0")
			d.status(steer)
			d.expect("theirs unloaded", map[uint16]uint32{9: xdpRedirect, 10: xdpRedirect, 11: xdpPass})
			d.filterDrops9(mode)
			d.status(filter, steer)
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			d.status(filter)
			d.expect("ours closed", map[uint16]uint32{9: xdpDrop, 10: xdpPass})

			c := d.config(AutoDispatch)
			c.Priority = 9
			c.Attach = Generic
			if native {
				c.Attach = Native
			}
			p = d.load(c)
			d.status("9 steer", filter)
			d.expect("ours first", map[uint16]uint32{9: xdpRedirect, 10: xdpRedirect, 11: xdpPass})
			if err := p.OpenPort(udpNr, ourAddr, 11); err != nil {
				t.Fatal(err)
			}
			if err := p.ClosePort(udpNr, ourAddr, 9); err != nil {
				t.Fatal(err)
			}
			d.expect("what ours passes they still see", map[uint16]uint32{9: xdpDrop, 11: xdpRedirect})

			names, isNative, err := Neighbours(d.device.Attrs().Index)
			if err != nil || isNative != native || fmt.Sprint(names) != "[steer (priority 9) xdpfilt_alw_udp (priority 10)]" {
				t.Errorf("neighbours: %q, native %v, %v", names, isNative, err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}

			c.Attach = Native
			if native {
				c.Attach = Generic
			}
			if _, err := Load(c); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "xdpfilt_alw_udp") {
				t.Errorf("the other hook: %v", err)
			}
			c = d.config(NeverDispatch)
			if _, err := Load(c); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "xdp_dispatcher") {
				t.Errorf("never: %v", err)
			}
			d.status(filter)
			d.tool("xdp-filter", "unload", "engine0")
			d.empty()
		})
	}
}

// TestTheyJoin: the dispatcher is ours, and xdp-tools come and go.
func TestTheyJoin(t *testing.T) {
	for mode, attach := range map[string]Attach{"native": BestAttach, "skb": Generic} {
		t.Run(mode, func(t *testing.T) {
			d := newDeck(t)
			if !d.extensions() {
				return
			}
			c := d.config(AlwaysDispatch)
			c.Attach = attach
			p := d.load(c)
			if !p.Dispatched() || p.Native() != (attach == BestAttach) || !p.Frags() {
				t.Errorf("dispatched %v, native %v, frags %v", p.Dispatched(), p.Native(), p.Frags())
			}
			d.status(steer)
			d.expect("alone", map[uint16]uint32{9: xdpRedirect, 10: xdpRedirect, 11: xdpPass})
			d.filterDrops9(mode)
			d.status(filter, steer)
			d.expect("both", map[uint16]uint32{9: xdpDrop, 10: xdpRedirect, 11: xdpPass})
			d.tool("xdp-filter", "unload", "engine0")
			d.status(steer)
			d.filterDrops9(mode)
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			d.status(filter)
			d.expect("ours closed", map[uint16]uint32{9: xdpDrop, 10: xdpPass})
			d.tool("xdp-filter", "unload", "engine0")
			d.empty()

			p = d.load(c)
			second := d.load(d.config(AutoDispatch)) // another engine is a neighbour like any other
			d.status(steer, steer)
			for _, p := range []*Program{p, second} {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
			d.empty()
		})
	}
}

// TestUnloadedByOthers: who unloads everything unloads us too; that is no error when we leave.
func TestUnloadedByOthers(t *testing.T) {
	d := newDeck(t)
	if !d.extensions() {
		return
	}
	p := d.load(d.config(AlwaysDispatch))
	d.filterDrops9("native")
	if p.Unloaded() {
		t.Error("the program counts as unloaded when others come")
	}
	d.tool("xdp-loader", "unload", "engine0", "--all")
	d.empty()
	if !p.Unloaded() {
		t.Error("the program does not count as unloaded when it is")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	d.empty()

	p = d.load(d.config(AlwaysDispatch))
	if err := netlink.LinkDel(d.device); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Errorf("the device is gone: %v", err)
	}
	if pins := d.pins(); len(pins) > 0 {
		t.Errorf("the device is gone: %v", pins)
	}
}

// TestDispatchKilled: a killed engine stays in the dispatcher, where it passes all, until Leave; its neighbour stays on.
func TestDispatchKilled(t *testing.T) {
	d := newDeck(t)
	if !d.extensions() {
		return
	}
	for _, neighbour := range []bool{false, true} {
		cmd, said := startChild(t, "dispatch", d.device.Attrs().Index)
		var m Membership
		if err := json.Unmarshal([]byte(said), &m); err != nil {
			t.Fatalf("the child said %q: %v", said, err)
		}
		if neighbour {
			d.filterDrops9("native")
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		d.expect("killed", map[uint16]uint32{10: xdpPass, 11: xdpPass})
		if left, err := Leave(m); !left || err != nil {
			t.Errorf("leave: %v, %v", left, err)
		}
		if left, err := Leave(m); left || err != nil {
			t.Errorf("leave again: %v, %v", left, err)
		}
		if neighbour {
			d.status(filter)
			d.expect("the neighbour", map[uint16]uint32{9: xdpDrop, 10: xdpPass})
			d.tool("xdp-filter", "unload", "engine0")
		}
		d.empty()
	}
}

// TestDispatchRace: what is attached changes between our reading and our writing.
func TestDispatchRace(t *testing.T) {
	d := newDeck(t)
	if !d.extensions() {
		return
	}
	dev, err := openNetdev(d.device.Attrs().Index)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.close()
	build := func() *dispatcher {
		j := joiner{c: d.config(AlwaysDispatch)}
		next, err := buildDispatcher([]member{{name: steerProgSteer, priority: 50, actions: 1 << xdpPass, frags: true}}, j.load)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { next.close(); j.p.Close() })
		return next
	}
	first, second, third := build(), build(), build()
	for _, step := range []struct {
		what      string
		cur, next *dispatcher
		changed   bool
	}{
		{"first", nil, first, false},
		{"as if there were none", nil, second, true},
		{"in the place of another", third, second, true},
		{"in its place", first, second, false},
	} {
		pins, err := lockPins(d.bpffs)
		if err != nil {
			t.Fatal(err)
		}
		err = replace(dev, pins, step.cur, step.next, true)
		pins.unlock()
		if step.changed && !changed(err) || !step.changed && err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
		d.status(steer)
	}

	// A dispatcher that was pinned, and then its maker was killed.
	pins, err := lockPins(d.bpffs)
	if err != nil {
		t.Fatal(err)
	}
	err = third.pin(pins.of(dev.index, third.id))
	pins.unlock()
	if err != nil {
		t.Fatal(err)
	}
	m := Membership{dev.index, d.bpffs, uint32(third.members[0].id), uint32(third.id)}
	if left, err := Leave(m); left || err != nil {
		t.Errorf("what was never attached: %v, %v", left, err)
	}
	d.status(steer)
	m = Membership{dev.index, d.bpffs, uint32(second.members[0].id), uint32(second.id)}
	if left, err := Leave(m); !left || err != nil {
		t.Errorf("the last: %v, %v", left, err)
	}
	d.empty()
}

func TestDispatchFull(t *testing.T) {
	d := newDeck(t)
	if !d.extensions() {
		return
	}
	c := d.config(AlwaysDispatch)
	var all []*Program
	for range dispatcherSlots {
		all = append(all, d.load(c))
	}
	before := attachedXDP(t, d.device)
	if _, err := Load(c); err == nil || !strings.Contains(err.Error(), "10 places") {
		t.Errorf("an eleventh: %v", err)
	}
	if now := attachedXDP(t, d.device); now != before {
		t.Errorf("%+v became %+v", before, now)
	}
	for _, p := range all {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	d.empty()
}

// TestDispatchRefused: dispatchers that cannot be joined, and why. None is touched.
func TestDispatchRefused(t *testing.T) {
	d := newDeck(t)
	dev, err := openNetdev(d.device.Attrs().Index)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.close()
	known := dispatcherConfig{Magic: dispatcherMagic, Version: dispatcherVersion, Programs: 1}
	for what, c := range map[string]struct {
		change func(*dispatcherConfig)
		says   string
	}{
		"older":      {func(c *dispatcherConfig) { c.Magic, c.Version = 1, 0 }, "older than 1.3"},
		"newer":      {func(c *dispatcherConfig) { c.Version = 3 }, "version 3"},
		"not pinned": {func(*dispatcherConfig) {}, "not pinned in " + d.bpffs},
		"nonsense":   {func(c *dispatcherConfig) { c.Programs = 11 }, "11 programs"},
	} {
		conf := known
		c.change(&conf)
		prog, err := loadXDPDispatcher(conf)
		if err != nil {
			t.Fatal(err)
		}
		if err := dev.swap(nil, prog, true); err != nil {
			t.Fatal(err)
		}
		before := attachedXDP(t, d.device)
		for _, how := range []Dispatch{AutoDispatch, AlwaysDispatch} {
			_, err := Load(d.config(how))
			if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "under-test") {
				t.Errorf("%s, dispatch %d: %v", what, how, err)
			}
		}
		if _, _, err := Neighbours(dev.index); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: neighbours: %v", what, err)
		}
		if _, err := Load(d.config(NeverDispatch)); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), `"xdp_dispatcher"`) {
			t.Errorf("%s, never: %v", what, err)
		}
		if now := attachedXDP(t, d.device); now != before || len(d.pins()) > 0 {
			t.Errorf("%s: %+v became %+v, pinned %v", what, before, now, d.pins())
		}
		if err := dev.swap(prog, nil, true); err != nil {
			t.Fatal(err)
		}
		prog.Close()
	}

	if err := netlink.LinkSetXdpFdWithFlags(d.device, stranger(t).FD(), nl.XDP_FLAGS_SKB_MODE); err != nil {
		t.Fatal(err)
	}
	_, err = Load(d.config(AlwaysDispatch))
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), `"stranger", held by process `) {
		t.Errorf("a stranger: %v", err)
	}
	t.Setenv("LIBXDP_BPFFS", t.TempDir())
	if _, err = Load(d.config(AlwaysDispatch)); err == nil || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("no BPF file system: %v", err)
	}
}

// TestOwner: a program is held by a process, by a pinned link, or by nobody.
func TestOwner(t *testing.T) {
	d := newDeck(t)
	index := d.device.Attrs().Index
	if got := Owner(index); got != "" {
		t.Errorf("nothing is attached: %q", got)
	}
	prog := stranger(t)
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: index, Flags: link.XDPGenericMode})
	if err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	want := func(word string) {
		t.Helper()
		if got := Owner(index); !strings.Contains(got, word) || !strings.Contains(got, `"stranger"`) {
			t.Errorf("%q does not say %q", got, word)
		}
	}
	want(fmt.Sprintf("held by process %d (%s)", os.Getpid(), strings.TrimSpace(string(comm))))
	prog.Close()
	want(fmt.Sprintf("held by process %d", os.Getpid())) // by its link
	pin := filepath.Join(d.bpffs, "theirs")
	if err := l.Pin(pin); err != nil {
		t.Fatal(err)
	}
	l.Close()
	want("held by the link pinned at " + pin)
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	prog = stranger(t)
	for attachedXDP(t, d.device).Attached { // the link ends by a work queue
		time.Sleep(time.Millisecond)
	}
	if err := netlink.LinkSetXdpFdWithFlags(d.device, prog.FD(), nl.XDP_FLAGS_SKB_MODE); err != nil {
		t.Fatal(err)
	}
	prog.Close()
	want("no process seen from here holds")
}

func TestDispatcherOrder(t *testing.T) {
	var got []string
	var members []member
	for _, m := range []member{
		{name: "b", priority: 50, id: 1}, {name: "a", priority: 50, id: 2}, {name: "z", priority: 10, id: 3},
		{name: "b", priority: 50, id: 4}, {name: "a", priority: 90, id: 5}, {name: "0", priority: 1 << 31, id: 6},
	} {
		members = insert(members, m)
	}
	for _, m := range members {
		got = append(got, fmt.Sprint(m.name, m.id))
	}
	if want := "z3 a2 b1 b4 a5 06"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}
