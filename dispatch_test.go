package xdpd_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/xdpprog"
)

// dispatchLab is a lab whose BPF file system is its own, for an engine that writes its journal into dir. false: this kernel
// has no dispatchers, and says so.
func dispatchLab(t *testing.T) (lab *netlab.Lab, cfg xdpd.Config, ok bool) {
	t.Helper()
	lab = newLab(t, netlab.Options{})
	bpffs := t.TempDir()
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(bpffs, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("LIBXDP_BPFFS", bpffs)
	cfg = engineConfig(lab)
	cfg.JournalDir = t.TempDir()
	if xdpprog.ProbeDispatch() == nil {
		return lab, cfg, true
	}
	cfg.Dispatch = xdpd.AlwaysDispatch
	if _, err := xdpd.Open(cfg); !errors.Is(err, xdpprog.ErrNoExtensions) || !strings.Contains(err.Error(), lab.EngineDev) {
		t.Errorf("no dispatchers here: %v", err)
	}
	checkDetached(t, lab)
	noJoinLeft(t, cfg.JournalDir)
	return lab, cfg, false
}

func noJoinLeft(t *testing.T, dir string) {
	t.Helper()
	for _, glob := range []string{filepath.Join(dir, "dispatch", "*"), filepath.Join(os.Getenv("LIBXDP_BPFFS"), "xdp", "*")} {
		if left, err := filepath.Glob(glob); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

// TestDispatchTraffic: xdp-filter is there first and drops what goes to one port. Its counters count what the engine serves.
func TestDispatchTraffic(t *testing.T) {
	lab, cfg, ok := dispatchLab(t)
	if !ok {
		return
	}
	run(t, lab.Engine, "xdp-filter", "load", lab.EngineDev)
	run(t, lab.Engine, "xdp-filter", "port", "-p", "udp", "9999")
	stack, err := xdpd.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Close()
	if !getStats(t, stack).Dispatched {
		t.Error("the engine is in no dispatcher")
	}
	_, to := echo(t, lab, stack)
	client := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	for i := range 100 {
		ask(t, client, fmt.Sprint("question ", i))
	}
	stopped := listen(t, stack, ":9999")
	var asked net.Conn = kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 9999))
	if _, err := asked.Write([]byte("to be dropped")); err != nil {
		t.Fatal(err)
	}
	ask(t, client, "the one before is through")
	stopped.SetReadDeadline(time.Now())
	if n, _, err := stopped.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("the engine received %d bytes that xdp-filter drops", n)
	}
	status := run(t, lab.Engine, "xdp-filter", "status")
	var dropped, passed int
	for line := range strings.Lines(status) {
		fmt.Sscanf(strings.TrimSpace(line), "XDP_DROP %d pkts", &dropped)
		fmt.Sscanf(strings.TrimSpace(line), "XDP_PASS %d pkts", &passed)
	}
	if dropped != 1 || passed < 101 {
		t.Errorf("xdp-filter dropped %d and passed %d:\n%s", dropped, passed, status)
	}
	run(t, lab.Engine, "xdp-filter", "unload", lab.EngineDev)
	ask(t, client, "is the engine still there?")
	if err := stack.Close(); err != nil {
		t.Error(err)
	}
	checkDetached(t, lab)
	noJoinLeft(t, cfg.JournalDir)

	// Whoever is in a dispatcher can be thrown out of it by its neighbours. That is the engine's end, with a clear error.
	cfg.Dispatch = xdpd.AlwaysDispatch
	stack = openStack(t, lab, cfg)
	run(t, lab.Engine, "xdp-loader", "unload", lab.EngineDev, "--all")
	<-stack.Done()
	if err := stack.Err(); err == nil || !strings.Contains(err.Error(), "xdp-loader unload") {
		t.Errorf("the engine ended with %v", err)
	}
}

// TestDispatchKilledEngine: Restore, and the next engine, take a killed one's program out of the dispatcher.
func TestDispatchKilledEngine(t *testing.T) {
	const mark = "XDPD_TEST_DISPATCH" // netns, interface, address and folder of the child
	if args := strings.Fields(os.Getenv(mark)); len(args) == 4 {
		_, err := xdpd.Open(xdpd.Config{
			Interface: args[1], NetNS: args[0], Addrs: []netip.Prefix{netip.MustParsePrefix(args[2])}, JournalDir: args[3],
			Dispatch: xdpd.AlwaysDispatch,
		})
		fmt.Println("open", err)
		select {}
	}
	lab, cfg, ok := dispatchLab(t)
	if !ok {
		return
	}
	kill := func() {
		t.Helper()
		cmd := exec.Command(os.Args[0], "-test.run=^TestDispatchKilledEngine$")
		cmd.Env = append(os.Environ(), mark+"="+strings.Join([]string{lab.Engine.Path(), lab.EngineDev, lab.EngineAddr.String() + "/24", cfg.JournalDir}, " "))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if line != "open <nil>\n" {
			t.Errorf("the child says %q, %v", line, err)
		}
		if done, err := xdpd.Restore(cfg.JournalDir, lab.Engine.Path()); len(done) > 0 || err != nil {
			t.Errorf("a living engine: %q, %v", done, err)
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	kill()
	if done, err := xdpd.Restore(cfg.JournalDir, lab.Peer.Path()); len(done) > 0 || err != nil {
		t.Errorf("in another namespace: %q, %v", done, err)
	}
	done, err := xdpd.Restore(cfg.JournalDir, lab.Engine.Path())
	if err != nil || len(done) != 1 || !strings.HasPrefix(done[0], lab.EngineDev+": program id ") {
		t.Errorf("restored: %q, %v", done, err)
	}
	checkDetached(t, lab)
	noJoinLeft(t, cfg.JournalDir)

	kill()
	cfg.Dispatch = xdpd.NeverDispatch // is alone again, for the dead engine's program is gone
	stack := openStack(t, lab, cfg)
	if getStats(t, stack).Dispatched {
		t.Error("the next engine is in the dispatcher of a dead one")
	}
	noJoinLeft(t, cfg.JournalDir)
}
