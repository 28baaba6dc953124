package xdpd_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
)

// takesTags is what ethtool says of the engine's interface: on, off, or that nobody can change it.
func takesTags(t *testing.T, lab *netlab.Lab) string {
	t.Helper()
	for line := range strings.Lines(run(t, lab.Engine, "ethtool", "-k", lab.EngineDev)) {
		if value, ok := strings.CutPrefix(line, "rx-vlan-offload: "); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatal("ethtool says nothing of VLAN tags")
	return ""
}

// haveTagsTaken undoes what netlab does with NICs, whose tests want all tags in frames.
func haveTagsTaken(t *testing.T, lab *netlab.Lab) {
	if takesTags(t, lab) == "off" {
		run(t, lab.Engine, "ethtool", "-K", lab.EngineDev, "rxvlan", "on")
	}
}

// TestTagsLeft: a driver that takes VLAN tags out of frames, and tells no program, is told not to, until the engine stops. So a
// tagged frame is not taken for an untagged one.
func TestTagsLeft(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	haveTagsTaken(t, lab)
	before := takesTags(t, lab)
	in(t, lab.Engine, func() error { // a NIC would not let a foreign VLAN through
		link, err := netlink.LinkByName(lab.EngineDev)
		if err == nil {
			err = netlink.SetPromiscOn(link)
			t.Cleanup(func() { in(t, lab.Engine, func() error { return netlink.SetPromiscOff(link) }) })
		}
		return err
	})
	frame := datagram(t, lab)
	tagged := append(append(append([]byte(nil), frame[:12]...), 0x81, 0, 0, 5), frame[12:]...)
	w := openWire(t, lab.Peer, lab.PeerDev, unix.ETH_P_ALL)
	for _, how := range []xdpd.RXMetadata{xdpd.MetadataOff, xdpd.AutoMetadata} {
		cfg := engineConfig(lab)
		cfg.RXMetadata, cfg.JournalDir = how, t.TempDir()
		stack := openStack(t, lab, cfg)
		said, now := getStats(t, stack).Metadata.Tags, takesTags(t, lab)
		want, text := before, ""
		switch {
		case netlab.NICs() == nil: // of a veth it says nothing
		case before != "on":
			text = "takes none out"
		case how == xdpd.MetadataOff:
			text = "look untagged"
		default:
			want, text = "off", "as long as the engine runs"
		}
		if now != want || !strings.Contains(said, text) {
			t.Errorf("%d: was %s, is %s: %s", how, before, now, said)
		}
		w.send(tagged)
		as := "eth_vlan_id"
		if want == "on" && netlab.NICs() != nil {
			as = "udp_no_socket"
		}
		eventually(t, "the frame is dropped as "+as, func() bool { return drops(t, stack, as) == 1 })
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
		if now := takesTags(t, lab); now != before {
			t.Errorf("%d: was %s, is %s", how, before, now)
		}
	}
}

// TestLeaveTags: the switch itself, which a veth has as well, and what becomes of it when the process is killed.
func TestLeaveTags(t *testing.T) {
	const mark = "XDPD_TAGS_CHILD"
	if args := strings.Fields(os.Getenv(mark)); len(args) == 3 {
		leaveUntilKilled(t, args[0], args[1], args[2])
	}
	lab, dir := newLab(t, netlab.Options{}), t.TempDir()
	haveTagsTaken(t, lab)
	if takesTags(t, lab) != "on" {
		t.Skipf("%s: the driver takes no tags out", t.Name())
	}
	leave := func() (restore func() error) {
		t.Helper()
		in(t, lab.Engine, func() (err error) {
			link, err := netlink.LinkByName(lab.EngineDev)
			if err == nil {
				restore, err = xdpd.LeaveTags(dir, lab.EngineDev, link.Attrs().Index)
			}
			return err
		})
		if now := takesTags(t, lab); now != "off" {
			t.Errorf("told to leave tags, it says %s", now)
		}
		return restore
	}
	undo := func(restore func() error) {
		t.Helper()
		if err := restore(); err != nil {
			t.Error(err)
		}
		if now := takesTags(t, lab); now != "on" {
			t.Errorf("told to take tags again, it says %s", now)
		}
	}
	undo(leave())
	kill := func() {
		t.Helper()
		cmd := exec.Command(os.Args[0], "-test.run=^TestLeaveTags$")
		cmd.Env = append(os.Environ(), mark+"="+lab.Engine.Path()+" "+lab.EngineDev+" "+dir)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != "left" {
		}
		cmd.Process.Kill()
		cmd.Wait()
		if now := takesTags(t, lab); now != "off" {
			t.Fatalf("the child left it at %s", now)
		}
	}
	kill()
	if done, err := xdpd.Restore(dir, lab.Engine.Path()); err != nil || len(done) != 1 || !strings.Contains(done[0], lab.EngineDev+": takes VLAN tags") {
		t.Errorf("restored %q, %v", done, err)
	}
	if now := takesTags(t, lab); now != "on" {
		t.Errorf("restored, it says %s", now)
	}
	kill()
	undo(leave()) // who comes next undoes it first, and so knows what was
}

// leaveUntilKilled is the child.
func leaveUntilKilled(t *testing.T, ns, dev, dir string) {
	runtime.LockOSThread()
	target, err := netns.GetFromPath(ns)
	if err == nil {
		err = netns.Set(target)
	}
	if err != nil {
		t.Fatal(err)
	}
	link, err := netlink.LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := xdpd.LeaveTags(dir, dev, link.Attrs().Index); err != nil {
		t.Fatal(err)
	}
	fmt.Println("left")
	select {}
}
