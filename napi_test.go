package xdpd_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/rings"
)

// napiLab is a lab whose engine's interface keeps its NAPI when the steering program leaves it, as it does with GRO on.
func napiLab(t *testing.T, o netlab.Options) *netlab.Lab {
	o.Veth = "the engine drives the NAPI of veth only"
	lab := newLab(t, o)
	run(t, lab.Engine, "ethtool", "-K", lab.EngineDev, "gro", "on")
	return lab
}

// driver is an engine that drives and never sleeps.
func driver(t *testing.T, cfg xdpd.Config) xdpd.Config {
	cfg.NAPI, cfg.MaxSpin, cfg.JournalDir = xdpd.DriveNAPI, -1, t.TempDir()
	return cfg
}

// drive asks until the engine drives.
func drive(t *testing.T, stack *xdpd.Stack, c net.Conn) {
	t.Helper()
	for end := time.Now().Add(patience); !getStats(t, stack).Queues[0].Drives; {
		ask(t, c, "hello")
		if time.Now().After(end) {
			t.Fatalf("it does not drive: %+v", getStats(t, stack).NAPI)
		}
	}
}

// hasSettings reports whether a NAPI of the engine's interface has settings.
func hasSettings(t *testing.T, lab *netlab.Lab, id uint32, s rings.NAPISettings) (has bool) {
	t.Helper()
	in(t, lab.Engine, func() error {
		link, err := netlink.LinkByName(lab.EngineDev)
		if err != nil {
			return err
		}
		has, err = rings.RestoreNAPI(link.Attrs().Index, id, s, s)
		return err
	})
	return has
}

// change makes other settings of a NAPI's.
func change(t *testing.T, lab *netlab.Lab, id uint32, from, to rings.NAPISettings) {
	t.Helper()
	in(t, lab.Engine, func() error {
		link, err := netlink.LinkByName(lab.EngineDev)
		if err != nil {
			return err
		}
		changed, err := rings.RestoreNAPI(link.Attrs().Index, id, from, to)
		if err == nil && !changed {
			t.Errorf("NAPI %d does not have %+v", id, from)
		}
		return err
	})
}

// TestDriveNAPI: everything goes through while the engine drives, more of it than one round takes, and what the kernel is
// passed as well. When the engine stops, the settings are what they were, and the kernel receives on the interface.
func TestDriveNAPI(t *testing.T) {
	lab := napiLab(t, netlab.Options{KernelAddr: true})
	stack := openStack(t, lab, driver(t, shareConfig(lab)))
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	drive(t, stack, c)
	for range 1000 {
		ask(t, c, "driven")
	}
	st := getStats(t, stack)
	if r := st.Queues[0].Reactor; r.Polls < 1000 || r.Drives != 1 {
		t.Errorf("%d rounds, taken %d times: %+v", r.Polls, r.Drives, st.NAPI)
	}
	if !hasSettings(t, lab, st.NAPI.ID, rings.NAPISettings{}.Driven()) {
		t.Error("the NAPI is not driven")
	}
	ping(t, lab.Peer, lab.EngineAddr, 500, "-f")
	if err := stack.Close(); err != nil {
		t.Error(err)
	}
	if !hasSettings(t, lab, st.NAPI.ID, rings.NAPISettings{}) {
		t.Error("the settings are not what they were")
	}
	ping(t, lab.Peer, lab.EngineAddr, 10, "-f")
}

// TestDriveSleep: an engine that sleeps gives the NAPI back before, and takes it again with the next packets.
func TestDriveSleep(t *testing.T) {
	lab := napiLab(t, netlab.Options{})
	cfg := driver(t, engineConfig(lab))
	cfg.MaxSpin = 0
	stack := openStack(t, lab, cfg)
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	for end := time.Now().Add(patience); getStats(t, stack).Queues[0].Reactor.Drives < 3; {
		ask(t, c, "hello")
		if time.Now().After(end) {
			t.Fatalf("it does not drive: %+v", getStats(t, stack).NAPI)
		}
	}
	for end := time.Now().Add(patience); getStats(t, stack).Queues[0].Drives; {
		if time.Now().After(end) {
			t.Fatal("it does not give the NAPI back")
		}
	}
	if id := getStats(t, stack).NAPI.ID; !hasSettings(t, lab, id, rings.NAPISettings{}) {
		t.Error("the settings are not what they were")
	}
}

// TestDriveStall: a reactor that stops calling, here for its lock, stops nobody else's traffic for good: the kernel runs
// the NAPI after the timeout.
func TestDriveStall(t *testing.T) {
	lab := napiLab(t, netlab.Options{KernelAddr: true})
	stack := openStack(t, lab, driver(t, shareConfig(lab)))
	_, to := echo(t, lab, stack)
	drive(t, stack, kernelUDP(t, lab.Peer, netip.AddrPort{}, to))
	r := stack.Reactors()[0]
	r.Enter()
	ping(t, lab.Peer, lab.EngineAddr, 5, pingWait)
	r.Leave()
}

// killedChild runs the test in a process of its own, with mark set to the engine's namespace and prefix and dir, until it writes the line says
// with a NAPI's number, and kills it. open is called when it writes "open".
func killedChild(t *testing.T, lab *netlab.Lab, mark, dir, says string, open func()) (id uint32) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), mark+"="+lab.Engine.Path()+" "+lab.EngineAddr.String()+"/24 "+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "open" {
			open()
		} else if _, err := fmt.Sscanf(lines.Text(), says, &id); err == nil {
			return id
		}
	}
	t.Fatalf("the child does not say %q", says)
	return 0
}

// TestDriveKilled: what a killed engine leaves behind is undone by Restore, and by the next engine; what somebody else
// changed since is not.
func TestDriveKilled(t *testing.T) {
	const mark = "XDPD_TEST_DRIVE" // netns, address and folder of the child
	if args := strings.Fields(os.Getenv(mark)); len(args) == 3 {
		driveUntilKilled(t, args[0], netip.MustParsePrefix(args[1]), args[2])
	}
	lab := napiLab(t, netlab.Options{})
	dir := t.TempDir()
	kill := func() (id uint32) {
		return killedChild(t, lab, mark, dir, "driving %d", func() {
			c := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 7))
			go func() {
				for tryAsk(c, "hello", patience) == nil {
				}
			}()
		})
	}
	id := kill()
	waitDetached(t, lab)
	if !hasSettings(t, lab, id, rings.NAPISettings{}.Driven()) {
		t.Fatal("the settings are gone with the engine")
	}
	if done, err := xdpd.Restore(dir, lab.Peer.Path()); err != nil || len(done) != 0 {
		t.Errorf("in another namespace: %v, %v", done, err)
	}
	done, err := xdpd.Restore(dir, lab.Engine.Path())
	if err != nil || len(done) != 1 || !strings.HasPrefix(done[0], lab.EngineDev+": NAPI ") {
		t.Errorf("restored: %q, %v", done, err)
	}
	if !hasSettings(t, lab, id, rings.NAPISettings{}) {
		t.Error("Restore: the settings are not what they were")
	}
	if done, err := xdpd.Restore(dir, lab.Engine.Path()); err != nil || len(done) != 0 {
		t.Errorf("restored twice: %v, %v", done, err)
	}

	id = kill()
	waitDetached(t, lab)
	cfg := engineConfig(lab)
	cfg.JournalDir = dir
	stack := openStack(t, lab, cfg)
	if !hasSettings(t, lab, id, rings.NAPISettings{}) {
		t.Error("Open: the settings are not what they were")
	}
	if err := stack.Close(); err != nil {
		t.Error(err)
	}

	id = kill()
	waitDetached(t, lab)
	others := rings.NAPISettings{DeferHardIRQs: 7, GROFlushTimeoutNS: 70_000}
	change(t, lab, id, rings.NAPISettings{}.Driven(), others)
	if done, err := xdpd.Restore(dir, lab.Engine.Path()); err != nil || len(done) != 0 {
		t.Errorf("what somebody changed: %v, %v", done, err)
	}
	if !hasSettings(t, lab, id, others) {
		t.Error("what somebody changed is overridden")
	}
}

// driveUntilKilled is the child: an echo on port 7.
func driveUntilKilled(t *testing.T, ns string, addr netip.Prefix, dir string) {
	stack, err := xdpd.Open(xdpd.Config{
		Interface: "xa0", NetNS: ns, Addrs: []netip.Prefix{addr}, NAPI: xdpd.DriveNAPI, MaxSpin: -1, JournalDir: dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	go echoLoop(listen(t, stack, ":7"))
	fmt.Println("open")
	for !getStats(t, stack).Queues[0].Drives {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("driving", getStats(t, stack).NAPI.ID)
	select {}
}

// waitDetached waits until the kernel has taken a killed engine's program from the interface.
func waitDetached(t *testing.T, lab *netlab.Lab) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		attached := false
		in(t, lab.Engine, func() error {
			link, err := netlink.LinkByName(lab.EngineDev)
			attached = err == nil && link.Attrs().Xdp != nil && link.Attrs().Xdp.Attached
			return err
		})
		if !attached {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the program stays attached")
		}
	}
}

// TestDriveRespectsOthers: settings that somebody chose are not touched by an engine, which then does not drive.
func TestDriveRespectsOthers(t *testing.T) {
	lab := napiLab(t, netlab.Options{})
	stack := openStack(t, lab, driver(t, engineConfig(lab)))
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	drive(t, stack, c)
	id := getStats(t, stack).NAPI.ID
	others := rings.NAPISettings{DeferHardIRQs: 7, GROFlushTimeoutNS: 70_000}
	change(t, lab, id, rings.NAPISettings{}.Driven(), others)
	if err := stack.Close(); err != nil {
		t.Error(err)
	}
	if !hasSettings(t, lab, id, others) {
		t.Error("what somebody changed is overridden")
	}
}

// TestDriveGivesUp: an engine that finds other settings than those it is to restore leaves the NAPI to the kernel.
func TestDriveGivesUp(t *testing.T) {
	lab := napiLab(t, netlab.Options{})
	cfg := driver(t, engineConfig(lab))
	cfg.MaxSpin = 0
	stack := openStack(t, lab, cfg)
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	drive(t, stack, c)
	for end := time.Now().Add(patience); getStats(t, stack).Queues[0].Drives; {
		if time.Now().After(end) {
			t.Fatal("it does not give the NAPI back")
		}
	}
	id, others := getStats(t, stack).NAPI.ID, rings.NAPISettings{DeferHardIRQs: 1, GROFlushTimeoutNS: 1000}
	change(t, lab, id, rings.NAPISettings{}, others)
	for end := time.Now().Add(patience); getStats(t, stack).Queues[0].Reactor.DriveFailed == 0; {
		ask(t, c, "hello")
		if time.Now().After(end) {
			t.Fatal("it goes on")
		}
	}
	ask(t, c, "hello")
	if !hasSettings(t, lab, id, others) {
		t.Error("what somebody chose is overridden")
	}
}

// TestDriveLinkDown: with the link the NAPI goes; when it is up again, the kernel runs the new one.
func TestDriveLinkDown(t *testing.T) {
	lab := napiLab(t, netlab.Options{})
	stack := openStack(t, lab, driver(t, engineConfig(lab)))
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	drive(t, stack, c)
	run(t, lab.Engine, "ip", "link", "set", lab.EngineDev, "down")
	for end := time.Now().Add(patience); getStats(t, stack).Queues[0].Drives; {
		if time.Now().After(end) {
			t.Fatal("it goes on")
		}
	}
	run(t, lab.Engine, "ip", "link", "set", lab.EngineDev, "up")
	for end := time.Now().Add(patience); tryAsk(c, "hello", time.Second) != nil; {
		if time.Now().After(end) {
			t.Fatal("nothing comes any more")
		}
	}
	if st := getStats(t, stack).NAPI; st.ID != 0 || !strings.Contains(st.What, "link was down") {
		t.Errorf("%+v", st)
	}
}

// TestDriveRefused: where the NAPI cannot be driven, who insists on it is told why.
func TestDriveRefused(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	for _, c := range []struct {
		edit func(*xdpd.Config)
		want string
	}{
		{func(c *xdpd.Config) { c.Attach = xdpd.Generic }, "generic mode"},
		{func(c *xdpd.Config) { c.VLANs = []uint16{5} }, "VLAN tags"},
		{func(c *xdpd.Config) { c.NAPI = 9 }, "arrangement 9"},
	} {
		cfg := driver(t, engineConfig(lab))
		c.edit(&cfg)
		if netlab.NICs() != nil && cfg.NAPI == xdpd.DriveNAPI {
			c.want = "only veth" // is said first
		}
		stack, err := xdpd.Open(cfg)
		if err == nil {
			stack.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v does not say %q", err, c.want)
		}
	}
	checkDetached(t, lab)
}
