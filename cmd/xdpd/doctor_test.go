package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/rings"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// diagnosis is xdpd doctor's output as JSON gives it.
type diagnosis struct {
	CanRun bool `json:"can_run"`
	Checks []struct {
		Where   string `json:"where"`
		Check   string `json:"check"`
		Status  string `json:"status"`
		Finding string `json:"finding"`
		Cure    string `json:"cure"`
	} `json:"checks"`
}

// examine runs the doctor in this process and thread.
func examine(t *testing.T, iface string) (diagnosis, error) {
	t.Helper()
	var out bytes.Buffer
	verdict := (&doctorCmd{Interface: iface, JSON: true}).examine(t.Context(), &out)
	var d diagnosis
	if err := json.Unmarshal(out.Bytes(), &d); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if d.CanRun != (verdict == nil) {
		t.Errorf("can_run is %v, the error is %v", d.CanRun, verdict)
	}
	return d, verdict
}

// want holds a finding against a status and words it must have.
func (d *diagnosis) want(t *testing.T, where, check, status string, words ...string) {
	t.Helper()
	for _, c := range d.Checks {
		if c.Where != where || c.Check != check {
			continue
		}
		if c.Status != status {
			t.Errorf("%s, %s is %s, want %s: %s", where, check, c.Status, status, c.Finding)
		}
		if c.Status == "blocking" && c.Finding == "" {
			t.Errorf("%s, %s: no word about why", where, check)
		}
		for _, w := range words {
			if !strings.Contains(c.Finding+" "+c.Cure, w) {
				t.Errorf("%s, %s: %q is not in %q, %q", where, check, w, c.Finding, c.Cure)
			}
		}
		return
	}
	t.Errorf("%s, %s was not looked at", where, check)
}

const (
	machine   = "this machine"
	throwAway = "a throw-away veth pair"
)

func TestDoctor(t *testing.T) {
	needRoot(t)
	d, err := examine(t, "")
	if err != nil {
		t.Error(err)
	}
	// What every Linux since 5.18 answers to root.
	d.want(t, machine, "kernel", "ok", "Linux ")
	d.want(t, machine, "privileges", "ok", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF")
	d.want(t, machine, "AF_XDP", "ok")
	d.want(t, machine, "packet memory", "ok", "16384 frames of 2048 bytes", "RLIMIT_MEMLOCK")
	d.want(t, machine, "BPF", "ok")
	d.want(t, throwAway, "interface", "ok", "driver veth, 1 receive queue")
	d.want(t, throwAway, "MTU", "ok", "1500")
	d.want(t, throwAway, "choice of queues", "missing", "not known: the driver does not tell its hash", "on all queues")
	d.want(t, throwAway, "native attach", "ok")
	d.want(t, throwAway, "generic attach", "ok")
	d.want(t, throwAway, "copy mode", "ok")
	d.want(t, throwAway, "zero copy", "missing", "refused", "copy mode works")
	d.want(t, throwAway, "need_wakeup", "ok", "sending asks for system calls: yes, receiving: no")
	d.want(t, throwAway, "busy poll", "ok", "nothing on veth")
	d.want(t, throwAway, "engine", "ok", "answered 20 of 20")

	// What depends on the version.
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	since := func(major, minor int) string {
		if newEnough(unix.ByteSliceToString(u.Release[:]), major, minor) {
			return "ok"
		}
		return "missing"
	}
	d.want(t, throwAway, "multi-buffer", since(6, 6), "the driver has no zero copy")
	d.want(t, throwAway, "driving the NAPI", since(6, 13))
	d.want(t, throwAway, "NAPI settings", since(6, 13), "1 NAPIs", "--napi suspend needs")
	d.want(t, throwAway, "TX checksum", since(6, 11))
	d.want(t, throwAway, "TX metadata", "missing", "xsk-features", "none is needed")
	d.want(t, throwAway, "RX metadata", since(6, 8), "timestamp, hash, vlan-tag")
	d.want(t, machine, "TX budget", since(6, 17))
	for _, c := range d.Checks {
		if c.Status == "ok" && c.Cure != "" && c.Check != "interface" {
			t.Errorf("%s is well and has a cure: %s", c.Check, c.Cure)
		}
	}
}

// inLab runs f in the engine's namespace of a new lab.
func inLab(t *testing.T, o netlab.Options, f func(lab *netlab.Lab, dev netlink.Link)) {
	t.Helper()
	needRoot(t)
	lab, err := netlab.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	}()
	err = lab.Engine.Do(func() error {
		dev, err := netlink.LinkByName(lab.EngineDev)
		if err == nil {
			f(lab, dev)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

const named = "interface xa0"

func TestDoctorNamedInterface(t *testing.T) {
	inLab(t, netlab.Options{Queues: 3}, func(lab *netlab.Lab, dev netlink.Link) {
		d, err := examine(t, "xa0")
		if err != nil {
			t.Error(err)
		}
		d.want(t, named, "interface", "ok", "xa0, driver veth, 3 receive queues")
		d.want(t, named, "memory", "ok", "96 MiB for 3 queues")
		d.want(t, named, "native attach", "ok")
		d.want(t, named, "generic attach", "ok")
		d.want(t, named, "copy mode", "ok")
		d.want(t, named, "zero copy", "missing")
		after, err := netlink.LinkByName("xa0")
		if err != nil || after.Attrs().Xdp != nil && after.Attrs().Xdp.Attached {
			t.Errorf("afterwards the interface has %+v, %v", after.Attrs().Xdp, err)
		}
	})
}

func TestDoctorNamesWhatIsWrong(t *testing.T) {
	t.Run("no interface", func(t *testing.T) {
		needRoot(t)
		d, err := examine(t, "nosuch0")
		if err == nil {
			t.Error("no error")
		}
		d.want(t, "interface nosuch0", "interface", "blocking", "no interface nosuch0", "ip link show")
	})
	t.Run("loopback", func(t *testing.T) {
		inLab(t, netlab.Options{}, func(*netlab.Lab, netlink.Link) {
			d, _ := examine(t, "lo")
			d.want(t, "interface lo", "interface", "blocking", "no Ethernet device", "ip link add xd0 type veth")
		})
	})
	t.Run("no native XDP", func(t *testing.T) {
		inLab(t, netlab.Options{}, func(*netlab.Lab, netlink.Link) {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.Flags = "xbr0", net.FlagUp
			if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
				t.Fatal(err)
			}
			d, err := examine(t, "xbr0")
			if err != nil {
				t.Error(err)
			}
			const bridge = "interface xbr0"
			d.want(t, bridge, "native attach", "missing", "the driver has no native XDP", "generic attach works")
			d.want(t, bridge, "generic attach", "ok")
			d.want(t, bridge, "zero copy", "missing", "copy mode works")
			d.want(t, bridge, "copy mode", "ok")
			d.want(t, bridge, "RX metadata", "missing", "nothing but the bytes", "none is needed")
		})
	})
	t.Run("vanished", func(t *testing.T) {
		inLab(t, netlab.Options{}, func(_ *netlab.Lab, dev netlink.Link) {
			d, err := findTrialDevice("xa0")
			if err != nil {
				t.Fatal(err)
			}
			if d.region, err = umem.New(umem.Options{Frames: 64, ChunkSize: 2048}); err != nil {
				t.Fatal(err)
			}
			defer d.region.Close()
			if err := netlink.LinkDel(dev); err != nil {
				t.Fatal(err)
			}
			if f := d.checkCopy(); f.Status != blocking || !strings.Contains(f.Text, "there is no interface with index") {
				t.Errorf("copy mode on an interface that is gone: %+v", f)
			}
			var found []finding
			d.checkAttach(func(f finding) finding { found = append(found, f); return f })
			for _, f := range found {
				if strings.Contains(f.Name, "attach") && (f.Status != blocking || !strings.Contains(f.Text, "no such device")) {
					t.Errorf("attaching to an interface that is gone: %+v", f)
				}
			}
		})
	})
	t.Run("down", func(t *testing.T) {
		inLab(t, netlab.Options{}, func(_ *netlab.Lab, dev netlink.Link) {
			if err := netlink.LinkSetDown(dev); err != nil {
				t.Fatal(err)
			}
			d, err := examine(t, "xa0")
			if err == nil {
				t.Error("no error")
			}
			d.want(t, named, "interface", "blocking", "down", "ip link set xa0 up")
		})
	})
	t.Run("MTU", func(t *testing.T) {
		inLab(t, netlab.Options{MTU: 9000}, func(*netlab.Lab, netlink.Link) {
			d, err := examine(t, "xa0")
			if err != nil {
				t.Error(err)
			}
			d.want(t, named, "MTU", "ok", "9000", "several frames of 4096 bytes")
			d.want(t, named, "multi-buffer", "ok", "XDP_USE_SG")
		})
	})
	t.Run("MTU for large frames", func(t *testing.T) {
		inLab(t, netlab.Options{MTU: 3000}, func(*netlab.Lab, netlink.Link) {
			d, err := examine(t, "xa0")
			if err != nil {
				t.Error(err)
			}
			d.want(t, named, "MTU", "ok", "frames of 4096 bytes")
		})
	})
	t.Run("XDP in use", func(t *testing.T) {
		inLab(t, netlab.Options{}, func(_ *netlab.Lab, dev netlink.Link) {
			p, err := xdpprog.Load(xdpprog.Config{
				Interface: "xa0", Ifindex: dev.Attrs().Index, Addrs: trialAddrs, Queues: 1, Attach: xdpprog.Native,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			d, err := examine(t, "xa0")
			if err == nil {
				t.Error("no error")
			}
			d.want(t, named, "attach", "blocking", "another XDP program is attached: program id ", "held by process ", "bpftool net")
			d.want(t, named, "copy mode", "ok")
			if after, err := netlink.LinkByName("xa0"); err != nil || !after.Attrs().Xdp.Attached {
				t.Errorf("the program is gone: %+v, %v", after.Attrs().Xdp, err)
			}
		})
	})
	t.Run("queue in use", func(t *testing.T) {
		inLab(t, netlab.Options{}, func(_ *netlab.Lab, dev netlink.Link) {
			holder, err := findTrialDevice("xa0")
			if err != nil {
				t.Fatal(err)
			}
			if holder.region, err = umem.New(umem.Options{Frames: 64, ChunkSize: 2048}); err != nil {
				t.Fatal(err)
			}
			defer holder.region.Close()
			err = holder.bind(rings.SocketOptions{Mode: rings.Copy}, func(*rings.Socket) {
				d, err := examine(t, "xa0")
				if err == nil {
					t.Error("no error")
				}
				d.want(t, named, "copy mode", "blocking", "another AF_XDP socket has this queue",
					fmt.Sprintf("process %d (", os.Getpid()), "--queues")
			})
			if err != nil {
				t.Error(err)
			}
		})
	})
}

// TestDoctorWithoutPrivileges runs as nobody: the cures must be there, and the exit status 1.
func TestDoctorWithoutPrivileges(t *testing.T) {
	needRoot(t)
	out, status := runChild(t, asNobody(childCommand(t, "doctor")))
	if status != 1 {
		t.Errorf("the exit status is %d, want 1", status)
	}
	says(t, out,
		`!!  privileges +user 65534, without CAP_NET_ADMIN .*CAP_BPF .*CAP_NET_RAW`,
		`cure: run as root, or: setcap cap_net_admin,cap_bpf,cap_net_raw\+ep .*--cap-add CAP_NET_ADMIN --cap-add CAP_BPF --cap-add CAP_NET_RAW; .*xdpd run --from`,
		`--  more privileges +without CAP_IPC_LOCK .*CAP_SYS_ADMIN`,
		`!!  AF_XDP +no socket: operation not permitted\n +cure: CAP_NET_RAW`,
		`!!  packet memory +not tried`,
		`!!  BPF .*\n +cure: CAP_NET_ADMIN .*CAP_BPF`,
		`--  namespaces .*needs root\n +cure: run xdpd doctor as root`,
		`no engine can run here: 4 of`,
	)
}

func says(t *testing.T, out string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
}

// TestDoctorWithoutOnePrivilege takes one capability away at a time: that one is named, and what it is not needed for works.
func TestDoctorWithoutOnePrivilege(t *testing.T) {
	all := []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_IPC_LOCK}
	for _, c := range []struct {
		name string
		bit  uintptr
		says []string
	}{
		{"CAP_NET_RAW", unix.CAP_NET_RAW, []string{
			`!!  AF_XDP .*\n +cure: CAP_NET_RAW`, `ok  BPF`, `ok  native attach`, `!!  copy mode .*CAP_NET_RAW is needed`,
		}},
		{"CAP_BPF", unix.CAP_BPF, []string{
			`ok  AF_XDP`, `!!  BPF .*\n +cure: CAP_BPF [^,]*: see privileges`, `!!  native attach .*CAP_BPF`, `ok  copy mode`,
		}},
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, []string{
			`ok  AF_XDP`, `!!  BPF .*\n +cure: CAP_NET_ADMIN [^,]*: see privileges`, `!!  native attach .*CAP_NET_ADMIN`, `ok  copy mode`,
			`--  busy poll .*CAP_NET_ADMIN is needed`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inLab(t, netlab.Options{}, func(*netlab.Lab, netlink.Link) {
				less := slices.DeleteFunc(slices.Clone(all), func(bit uintptr) bool { return bit == c.bit })
				out, status := runChild(t, asNobody(childCommand(t, "doctor xa0"), less...))
				if status != 1 {
					t.Errorf("the exit status is %d, want 1", status)
				}
				says(t, out, append(c.says, `!!  privileges +user 65534, without `+c.name+` \([^,]*\)\n +cure: .*setcap `+strings.ToLower(c.name)+`\+ep`)...)
			})
		})
	}
	t.Run("CAP_SYS_ADMIN instead", func(t *testing.T) { // which loads programs as well
		inLab(t, netlab.Options{}, func(*netlab.Lab, netlink.Link) {
			cmd := asNobody(childCommand(t, "doctor xa0"), unix.CAP_NET_RAW, unix.CAP_IPC_LOCK, unix.CAP_SYS_ADMIN)
			out, status := runChild(t, cmd)
			if status != 0 {
				t.Errorf("the exit status is %d, want 0", status)
			}
			says(t, out, `ok  privileges .*CAP_SYS_ADMIN, CAP_NET_RAW`, `ok  native attach`, `An engine can run here`)
		})
	})
}

// TestDoctorOnAnOldKernel asks the check alone: there is no other kernel to boot here.
func TestDoctorOnAnOldKernel(t *testing.T) {
	for release, want := range map[string]status{"5.17.9-old": blocking, "5.18.0": good} {
		f := checkKernel(func(u *unix.Utsname) error { copy(u.Release[:], release); return nil })
		if f.Status != want || (want == blocking) != (f.Cure == "run Linux 5.18 or newer") || !strings.Contains(f.Text, release) {
			t.Errorf("Linux %s: %+v", release, f)
		}
	}
}

// TestDoctorWithCapabilities is a binary with setcap, as a user, on an interface: all that an engine needs.
func TestDoctorWithCapabilities(t *testing.T) {
	inLab(t, netlab.Options{}, func(lab *netlab.Lab, _ netlink.Link) {
		cmd := asNobody(childCommand(t, "doctor xa0"), unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_IPC_LOCK)
		out, status := runChild(t, cmd)
		if status != 0 || !strings.Contains(out, "An engine can run here.") {
			t.Errorf("the exit status is %d, want 0:\n%s", status, out)
		}
		for _, want := range []string{"--  more privileges  without CAP_SYS_ADMIN", "--  namespaces", "ok  native attach"} {
			if !strings.Contains(out, want) {
				t.Errorf("there is no %q in\n%s", want, out)
			}
		}
	})
}

// TestDoctorWithLittleMemory runs as root without CAP_IPC_LOCK and with 1 MiB of RLIMIT_MEMLOCK.
func TestDoctorWithLittleMemory(t *testing.T) {
	needRoot(t)
	cmd := childCommand(t, "doctor", fmt.Sprintf("%s=%d", childWithout, unix.CAP_IPC_LOCK), childMemlock+"=1048576")
	out, status := runChild(t, cmd)
	if status != 1 {
		t.Errorf("the exit status is %d, want 1", status)
	}
	for _, want := range []string{
		`!!  packet memory +RLIMIT_MEMLOCK is 1024 KiB and forbids to lock a queue's 16384 frames of 2048 bytes \(32768 KiB\)`,
		`cure: ulimit -l 32768 .*LimitMEMLOCK=32M.*CAP_IPC_LOCK, or frames = 512 in the config file`,
		`ok  copy mode`,
		`!!  engine +does not start: .*memory`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
}

// TestDoctorMemory: what a device's queues and its MTU ask for.
func TestDoctorMemory(t *testing.T) {
	for _, c := range []struct {
		d     trialDevice
		limit uint64
		want  status
		text  string
		cure  string
	}{
		{trialDevice{driver: "veth", mtu: 1500}, 32 << 20, good, "32 MiB for 1 queue", ""},
		{trialDevice{driver: "veth", mtu: 1500, queues: 2}, 63 << 20, blocking, "64 MiB for 2 queues", "LimitMEMLOCK=64M"},
		{trialDevice{driver: "veth", mtu: 3000, queues: 1}, 32 << 20, blocking, "64 MiB for 1 queue", "ulimit -l 65536"},
		{trialDevice{driver: "veth", mtu: 3000, queues: 1}, 64 << 20, good, "frames of 4096 bytes", ""},
		{trialDevice{driver: "igb", mtu: 1500, queues: 4}, 255 << 20, blocking, "256 MiB for 4 queues", "--queues"},
	} {
		f := c.d.checkMemory(c.limit)
		if f.Status != c.want || !strings.Contains(f.Text, c.text) || !strings.Contains(f.Cure, c.cure) {
			t.Errorf("%+v: %+v", c, f)
		}
	}
}

func TestDoctorInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := (&doctorCmd{}).examine(ctx, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("an interrupted doctor says %v", err)
	}
}

func TestNewEnough(t *testing.T) {
	for release, want := range map[string]bool{
		"5.18.0": true, "5.17.9": false, "6.1.0-18-amd64": true, "4.19": false, "10.0-rc1": true, "": false, "x": false,
	} {
		if newEnough(release, 5, 18) != want {
			t.Errorf("Linux %q is new enough: %v", release, !want)
		}
	}
}

func TestOwnCapsAreTheKernels(t *testing.T) {
	got, err := ownCaps()
	if err != nil {
		t.Fatal(err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3, Pid: int32(os.Getpid())}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	if want := capSet(data[0].Effective) | capSet(data[1].Effective)<<32; got != want {
		t.Errorf("/proc says %x, capget(2) %x", got, want)
	}
}
