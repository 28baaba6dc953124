package xdpd_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/rings"
)

// settings are those of the interface's NAPIs, by id.
func settings(t *testing.T, stack *xdpd.Stack) map[uint32]rings.NAPIInfo {
	t.Helper()
	all := make(map[uint32]rings.NAPIInfo)
	for _, i := range getStats(t, stack).NAPI.All {
		all[i.ID] = i
	}
	if len(all) == 0 {
		t.Fatal("the kernel tells of no NAPI")
	}
	return all
}

// TestThreadedNAPI: threads of the kernel's run all NAPIs while the engine runs, and no more when it stopped. Traffic goes through.
func TestThreadedNAPI(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	run(t, lab.Engine, "ethtool", "-K", lab.EngineDev, "gro", "on") // a veth keeps its NAPI then
	cfg := engineConfig(lab)
	cfg.NAPI, cfg.JournalDir = xdpd.ThreadedNAPI, t.TempDir()
	stack := openStack(t, lab, cfg)
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	for range 100 {
		ask(t, c, "hello")
	}
	all, threaded := settings(t, stack), 0
	for id, i := range all {
		if i.Threaded == 0 { // one that sends only, or of a queue that is not served
			continue
		}
		threaded++
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", i.PID))
		if err != nil || !strings.HasPrefix(string(name), "napi/") {
			t.Errorf("NAPI %d: %+v; its thread is %q, %v", id, i, name, err)
		}
	}
	if n := len(getStats(t, stack).Queues); threaded != n {
		t.Errorf("%d of %d NAPIs have a thread, for %d queues", threaded, len(all), n)
	}
	if err := stack.Close(); err != nil {
		t.Error(err)
	}
	for id := range all {
		if !hasSettings(t, lab, id, rings.NAPISettings{}) {
			t.Errorf("NAPI %d does not have the settings that it had", id)
		}
	}
}

// TestNAPIsRestored: what an engine that is killed leaves of its settings is undone by Restore, but not what somebody else made
// of them.
func TestNAPIsRestored(t *testing.T) {
	const mark = "XDPD_NAPIS_CHILD"
	if args := strings.Fields(os.Getenv(mark)); len(args) == 3 {
		stack, err := xdpd.Open(xdpd.Config{
			Interface: "xa0", NetNS: args[0], Addrs: []netip.Prefix{netip.MustParsePrefix(args[1])}, NAPI: xdpd.ThreadedNAPI, JournalDir: args[2],
		})
		if err != nil {
			t.Fatal(err)
		}
		for id := range settings(t, stack) {
			fmt.Println("threaded", id)
		}
		select {}
	}
	lab, dir := napiLab(t, netlab.Options{}), t.TempDir()
	kill := func() uint32 { return killedChild(t, lab, mark, dir, "threaded %d", nil) }
	threaded := rings.NAPISettings{Threaded: 1}
	id := kill()
	waitDetached(t, lab)
	if !hasSettings(t, lab, id, threaded) {
		t.Fatal("the settings are gone with the engine")
	}
	if done, err := xdpd.Restore(dir, lab.Engine.Path()); err != nil || len(done) != 1 || !strings.Contains(done[0], lab.EngineDev+": NAPI") {
		t.Errorf("restored: %q, %v", done, err)
	}
	if !hasSettings(t, lab, id, rings.NAPISettings{}) {
		t.Error("the settings are not what they were")
	}
	id = kill()
	waitDetached(t, lab)
	others := rings.NAPISettings{Threaded: 1, IRQSuspendTimeoutNS: 1000, GROFlushTimeoutNS: 5000, DeferHardIRQs: 3}
	change(t, lab, id, threaded, others)
	if done, err := xdpd.Restore(dir, lab.Engine.Path()); err != nil || len(done) != 0 || !hasSettings(t, lab, id, others) {
		t.Errorf("what somebody changed: %v, %v", done, err)
	}
	change(t, lab, id, others, rings.NAPISettings{})
}

// TestSuspendNAPI: with interrupts suspended everything goes through as without, after a rest as well, and settings are restored.
// A veth has no interrupts, and says so.
func TestSuspendNAPI(t *testing.T) {
	lab := newLab(t, netlab.Options{KernelAddr: true})
	cfg := shareConfig(lab)
	cfg.NAPI, cfg.JournalDir = xdpd.SuspendNAPI, t.TempDir()
	if netlab.NICs() == nil {
		if _, err := xdpd.Open(cfg); err == nil || !strings.Contains(err.Error(), "does not tell which NAPI") {
			t.Errorf("%v", err)
		}
		return
	}
	stack := openStack(t, lab, cfg)
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	for range 3 {
		from := time.Now()
		for range 200 {
			ask(t, c, "suspended")
		}
		t.Logf("200 questions in %v", time.Since(from))
		ping(t, lab.Peer, lab.EngineAddr, 20, "-i", "0.01") // the kernel's own packets
		time.Sleep(30 * time.Millisecond)                   // longer than a suspension
	}
	changed := 0
	all := settings(t, stack)
	for id, i := range all {
		if i.NAPISettings == (rings.NAPISettings{}).Suspendable() {
			changed++
		}
		t.Logf("NAPI %d: IRQ %d, %v", id, i.IRQ, i.NAPISettings)
	}
	if st := getStats(t, stack); changed != len(st.Queues) {
		t.Errorf("of %d NAPIs %d have the settings: %+v", len(all), changed, st.NAPI)
	}
	if err := stack.Close(); err != nil {
		t.Error(err)
	}
	for id := range all {
		if !hasSettings(t, lab, id, rings.NAPISettings{}) {
			t.Errorf("NAPI %d does not have the settings that it had", id)
		}
	}
}
