package xdpd_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/rings"
)

// callCounter counts the system calls of processes, by number, where the kernel enters them: no tracer stops anybody.
type callCounter struct {
	t      *testing.T
	counts *ebpf.Map // of pid<<32 | number
}

func newCallCounter(t *testing.T, pids ...int) *callCounter {
	t.Helper()
	watched, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer watched.Close()
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 4096})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { counts.Close() })
	for _, pid := range pids {
		if err := watched.Put(uint32(pid), uint32(1)); err != nil {
			t.Fatal(err)
		}
	}
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &ns); err != nil {
		t.Fatal(err)
	}
	const pid, key, value = -8, -16, -24 // on the stack: struct bpf_pidns_info, then what the maps are asked
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R6, asm.R1, 8, asm.DWord), // sys_enter(regs, number)
			asm.LoadImm(asm.R1, int64(ns.Dev), asm.DWord),
			asm.LoadImm(asm.R2, int64(ns.Ino), asm.DWord),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, pid), asm.Mov.Imm(asm.R4, 8),
			asm.FnGetNsCurrentPidTgid.Call(),
			asm.JNE.Imm(asm.R0, 0, "out"),
			asm.LoadMem(asm.R7, asm.RFP, pid+4, asm.Word), // tgid
			asm.StoreMem(asm.RFP, key, asm.R7, asm.Word),
			asm.LoadMapPtr(asm.R1, watched.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.LSh.Imm(asm.R7, 32), asm.LSh.Imm(asm.R6, 32), asm.RSh.Imm(asm.R6, 32), asm.Or.Reg(asm.R7, asm.R6),
			asm.StoreMem(asm.RFP, key, asm.R7, asm.DWord),
			asm.LoadMapPtr(asm.R1, counts.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "first"),
			asm.Mov.Imm(asm.R1, 1), asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
			asm.Ja.Label("out"),
			asm.Mov.Imm(asm.R1, 1).WithSymbol("first"), asm.StoreMem(asm.RFP, value, asm.R1, asm.DWord),
			asm.LoadMapPtr(asm.R1, counts.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, value), asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer prog.Close()
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: prog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &callCounter{t, counts}
}

// calls are counts by number.
type calls map[uint32]uint64

// of gives the counts of a process so far.
func (c *callCounter) of(pid int) calls {
	c.t.Helper()
	all := calls{}
	var key, n uint64
	it := c.counts.Iterate()
	for it.Next(&key, &n) {
		if key>>32 == uint64(pid) {
			all[uint32(key)] = n
		}
	}
	if err := it.Err(); err != nil {
		c.t.Fatal(err)
	}
	return all
}

// since is what came on top of before; only those listed, or all without a list.
func (a calls) since(before calls, only ...uint32) (sum uint64) {
	for nr, n := range a {
		if len(only) == 0 || slices.Contains(only, nr) {
			sum += n - before[nr]
		}
	}
	return sum
}

// ioCalls are what an operation could be done by: all that reads, writes, waits for a descriptor or rings a bell.
var ioCalls = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG,
	unix.SYS_SENDMMSG, unix.SYS_RECVMMSG, unix.SYS_PPOLL, unix.SYS_IOCTL, unix.SYS_EPOLL_CTL, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT,
	unix.SYS_IO_URING_ENTER,
}

// TestClientSyscalls: in the steady state, which is that the application always has something in flight and looks for completions itself,
// and that the reactor does not sleep, an operation takes no system call on either side. What is left is the device's, where it sends by one
// (a kick for a batch, counted by the engine), and what Go's runtime does by the clock.
func TestClientSyscalls(t *testing.T) {
	lab := newLab(t, netlab.Options{Veth: "the guest has no C compiler"})
	cfg := engineConfig(lab)
	cfg.MaxSpin, cfg.NAPI, cfg.Ledger = -1, xdpd.SoftirqNAPI, false
	stack := openStack(t, lab, cfg)
	_, path := daemon(t, stack, nil)
	sink := kernelUDP(t, lab.Peer, netip.AddrPortFrom(lab.PeerAddr, 9), netip.AddrPort{})
	defer sink.Close()
	bin := filepath.Join(t.TempDir(), "client_steady")
	if out, err := exec.Command("cc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", bin, "testdata/client_steady.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const operations = 10_000
	for _, work := range []struct {
		name string
		port int
	}{{"NOP", 0}, {"SEND", 9}} {
		for _, lang := range []string{"C", "Go"} {
			t.Run(work.name+" from "+lang, func(t *testing.T) {
				args := []string{path, fmt.Sprint(operations), lab.PeerAddr.String(), fmt.Sprint(work.port)}
				cmd := exec.CommandContext(t.Context(), bin, args...)
				if lang == "Go" {
					cmd = exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestChild$")
					cmd.Env = append(os.Environ(), childPath+"="+path, fmt.Sprintf("%s=steady %s %s %s", childDo, args[1], args[2], args[3]))
				}
				steady(t, cmd, stack, lang == "C", operations)
			})
		}
	}
}

// steady counts while the application does its operations.
func steady(t *testing.T, cmd *exec.Cmd, stack *xdpd.Stack, exact bool, operations uint64) {
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	hear := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("the application says %q, want %q: %v", lines.Text(), want, lines.Err())
		}
	}
	hear("go")
	app, us := cmd.Process.Pid, os.Getpid()
	c := newCallCounter(t, app, us)
	counters := func() uint64 {
		r := stack.Reactors()[0]
		r.Enter()
		defer r.Leave()
		n := r.Counters()
		return n.Syscalls()
	}
	device, theirs, ours := counters(), c.of(app), c.of(us)
	go io.WriteString(in, "g")
	hear("done")
	theirsNow, oursNow := c.of(app), c.of(us)
	device = counters() - device
	io.WriteString(in, "d")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	const own = 32 // of the test, which reads and writes pipes, and whose maps are read by system calls that are not of this list
	all, io := theirsNow.since(theirs), theirsNow.since(theirs, ioCalls...)
	t.Logf("%d operations: the application made %d system calls, %d of them for input or output; the daemon %d, %d, and %d to its device",
		operations, all, io, oursNow.since(ours), oursNow.since(ours, ioCalls...), device)
	if exact && all > 3 || io > 3 { // reading the go, writing that it is done, and reading again
		t.Errorf("the application: %v system calls, of which are for input or output %d; want none", all, io)
	}
	if n := theirsNow.since(theirs, unix.SYS_FUTEX); n > operations/10 {
		t.Errorf("the application was put to sleep, or woken, %d times", n)
	}
	if n := oursNow.since(ours, ioCalls...); n > device+own {
		t.Errorf("the daemon: %d system calls, %d of them to its device", n, device)
	}
	if n := oursNow.since(ours, unix.SYS_FUTEX); n > operations/10 {
		t.Errorf("the daemon's threads were woken, or put to sleep, %d times", n)
	}
}

func init() {
	children["steady"] = childSteady
}

// childSteady is testdata/client_steady.c in Go.
func childSteady(path string, args []string) error {
	var n, port int
	var addr string
	if _, err := fmt.Sscan(args[0]+" "+args[1]+" "+args[2], &n, &addr, &port); err != nil {
		return err
	}
	q, err := xdpd.OpenRing(context.Background(), path, xdpd.RemoteConfig{SQEntries: 128, Data: 1 << 16})
	if err != nil {
		return err
	}
	p := &ringProgram{q: q}
	s := rings.SQE{Opcode: rings.OpNop}
	if port != 0 {
		s = rings.SQE{Opcode: rings.OpSend, FD: p.socket(dgramSocket), Addr: 64, Len: 64}
		if res := p.connect(s.FD, netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))); res < 0 {
			return unix.Errno(-res)
		}
	}
	run := func(n int) error {
		for sent, got := 0, 0; got < n; {
			for ; sent < n && sent-got < 64; sent++ {
				slot := q.SQE()
				if slot == nil {
					break
				}
				*slot = s
			}
			q.Submit()
			for c, ok := q.Peek(); ok; c, ok = q.Peek() {
				q.Seen(1)
				if got++; c.Res < 0 {
					return unix.Errno(-c.Res)
				}
			}
		}
		return nil
	}
	pauseFor := func(word string) error { // past os.File, which makes calls of its own
		if _, err := unix.Write(1, []byte(word)); err != nil {
			return err
		}
		_, err := unix.Read(0, make([]byte, 1))
		return err
	}
	if err := run(1000); err != nil {
		return err
	}
	if err := pauseFor("go\n"); err != nil {
		return err
	}
	if err := run(n); err != nil {
		return err
	}
	return pauseFor("done\n")
}
