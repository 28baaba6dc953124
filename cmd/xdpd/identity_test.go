package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

// daemon is an xdpd that runs as a process of its own.
type daemon struct {
	*served
	cmd *exec.Cmd
}

// openFolder makes a folder that everybody may enter.
func openFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "xdpd-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startDaemon starts cmd in the engine's namespace and waits until it is ready.
func startDaemon(t *testing.T, lab *netlab.Lab, cmd *exec.Cmd, control string) *daemon {
	t.Helper()
	d := &daemon{&served{lab, control, &lines{n: make(chan struct{}, 1)}}, cmd}
	cmd.Stdout, cmd.Stderr = d.out, d.out
	if err := lab.Engine.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(d.text())
		}
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	eventually(t, "the engine", func() bool {
		return strings.Contains(d.text(), "ready") || strings.Contains(d.text(), "xdpd: cannot") || d.ended()
	})
	return d
}

func (d *daemon) ended() bool {
	return unix.Waitid(unix.P_PID, d.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil) != nil ||
		strings.Contains(processState(d.cmd.Process.Pid), "Z")
}

func processState(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return regexp.MustCompile(`(?m)^State:.*$`).FindString(string(text))
}

// stop ends it as an init system does, and holds it against what it must have cleaned up.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
	if _, err := os.Lstat(d.control); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the control socket is left: %v", err)
	}
	d.detached(t)
}

func (d *daemon) detached(t *testing.T) {
	t.Helper()
	err := d.Engine.Do(func() error {
		link, err := netlink.LinkByName(d.EngineDev)
		if err == nil && link.Attrs().Xdp != nil && link.Attrs().Xdp.Attached {
			err = fmt.Errorf("a program is left: %+v", link.Attrs().Xdp)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// powerless holds every thread against what /proc says of one without privilege.
func (d *daemon) powerless(t *testing.T) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.cmd.Process.Pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads: %v, %v", threads, err)
	}
	for i, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		var said []string
		for _, want := range []string{
			"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000",
			"CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534",
		} {
			if !strings.Contains(string(text), want+"\n") {
				t.Errorf("%s does not say %q:\n%s", path, want, text)
			}
			said = append(said, strings.ReplaceAll(want, "\t", " "))
		}
		if !regexp.MustCompile(`(?m)^Groups:\s*$`).Match(text) {
			t.Errorf("%s has further groups:\n%s", path, text)
		}
		if i == 0 {
			t.Logf("%d threads: %s", len(threads), strings.Join(said, ", "))
		}
	}
}

// exchange has a full test's traffic: datagrams, streams, files, and a proxy whose backend the kernel must look for.
func (d *daemon) exchange(t *testing.T) {
	t.Helper()
	u := d.dial(t, "udp", 7)
	got := make([]byte, 65536)
	for _, n := range []int{1, 1472, 9000} {
		for try := 0; ; try++ { // a datagram may be lost
			sent := bytes.Repeat([]byte{byte(n)}, n)
			if _, err := u.Write(sent); err != nil {
				t.Fatal(err)
			}
			_ = u.SetReadDeadline(time.Now().Add(time.Second))
			k, err := u.Read(got)
			if err == nil && bytes.Equal(got[:k], sent) {
				break
			}
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) || try == 20 {
				t.Fatalf("%d bytes over UDP come back as %d, %v", n, k, err)
			}
		}
	}
	echoed := func(port int, prefix string) {
		t.Helper()
		c := d.dial(t, "tcp", port).(*net.TCPConn)
		sent := sourceBytes(make([]byte, 4<<20), 0)
		writing := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			writing <- errors.Join(err, c.CloseWrite())
		}()
		got, err := io.ReadAll(c)
		if err := errors.Join(err, <-writing); err != nil || string(got) != prefix+string(sent) {
			t.Fatalf("port %d: 4 MiB are answered with %d bytes, %v", port, len(got), err)
		}
		c.Close()
	}
	echoed(7, "")
	echoed(81, "p")
	web := http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}
	resp, err := web.Get("http://" + d.at(80) + "/file")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(text) != "of the files" || err != nil {
		t.Errorf("the file is %q, %v", text, err)
	}
}

// TestRunAsNobody is an engine that has no privilege left while it works, in both modes of steering.
func TestRunAsNobody(t *testing.T) {
	needRoot(t)
	for _, share := range []bool{false, true} {
		t.Run(fmt.Sprintf("share %v", share), func(t *testing.T) {
			lab, err := netlab.New(netlab.Options{KernelAddr: share, Queues: 2})
			if err != nil {
				t.Fatal(err)
			}
			defer lab.Close()
			dir := openFolder(t)
			if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the files"), 0o644); err != nil {
				t.Fatal(err)
			}
			lab.PeerAddr = secondPeerAddr(t, lab)
			as := "-a 10.77.0.2/24"
			if share {
				as = "--share"
			}
			control := filepath.Join(dir, "control", "x.sock")
			d := startDaemon(t, lab, childCommand(t, "run -i xa0 "+as+" --ledger --user nobody --control "+control+
				" -s echo,http=80:"+dir+" -s proxy=81:tcp:"+lab.PeerAddr.String()+":8001"), control)
			d.tcpBackend(t, 8001, "p")
			d.powerless(t)
			eventually(t, "the backend", func() bool { return fmt.Sprint(d.state(t, "tcp")) == "[up]" })
			d.exchange(t)
			if share {
				// The kernel gets another address while the engine runs: the program's tables are written without privilege.
				other := d.EngineAddr.Next()
				addAddr(t, lab.Engine, lab.EngineDev, other)
				eventually(t, "an echo from the new address", func() bool {
					c, err := d.DialContext(t.Context(), "tcp4", netip.AddrPortFrom(other, 7).String())
					if err != nil {
						return false
					}
					return c.Close() == nil
				})
			}
			d.powerless(t) // threads came since
			if info, err := os.Stat(control); err != nil || info.Mode().Perm() != 0o600 || info.Sys() == nil {
				t.Errorf("the control socket: %v, %v", info, err)
			}
			d.stop(t)
		})
	}
}

// secondPeerAddr gives the peer an address that nobody has sent from.
func secondPeerAddr(t *testing.T, lab *netlab.Lab) netip.Addr {
	t.Helper()
	a := netip.MustParseAddr("10.77.0.99")
	addAddr(t, lab.Peer, lab.PeerDev, a)
	return a
}

func addAddr(t *testing.T, ns *netlab.NS, dev string, a netip.Addr) {
	t.Helper()
	err := ns.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(a.String() + "/24")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRunAsWithout: what cannot be done is said before anything is taken from the network.
func TestRunAsWithout(t *testing.T) {
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		t.Skip("needs root")
	}
	defer lab.Close()
	run := "run -i xa0 -a 10.77.0.2/24 -s echo --control " + filepath.Join(openFolder(t), "x.sock")
	for _, c := range []struct {
		name string
		cmd  *exec.Cmd
		want string
	}{
		{"napi", childCommand(t, run+" --user nobody --napi drive"), "user does not go with napi drive"},
		{"root", childCommand(t, run+" --user root"), "is root"},
		{"unknown", childCommand(t, run+" --user nosuchuser"), "unknown user nosuchuser"},
		{"setpcap", asNobody(childCommand(t, run+" --user nobody"), unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_IPC_LOCK),
			"xdpd run --user takes CAP_SETPCAP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := startDaemon(t, lab, c.cmd, "")
			if err := c.cmd.Wait(); err == nil || !strings.Contains(d.text(), c.want) {
				t.Errorf("ends with %v and says %q, want %q", err, d.text(), c.want)
			}
			d.detached(t)
		})
	}
}

func TestIdentity(t *testing.T) {
	for text, want := range map[string]identity{
		"nobody": {"nobody", 65534, 65534}, "65534": {"65534", 65534, 65534}, "nobody:4711": {"nobody", 65534, 4711},
		"48111": {"48111", 48111, 48111}, "48111:nogroup": {"48111", 48111, 65534}, "nobody:root": {"nobody", 65534, 0},
	} {
		var got identity
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%s is %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "root", "-1", "nobody:", "nobody:nosuchgroup", "99999999999"} {
		var got identity
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
	path := writeConfig(t, "interface = \"eth1\"\naddresses = [\"10.0.0.2/24\"]\nuser = \"nobody\"\n")
	f, err := loadConfig(path)
	if err != nil || f.controlPath() != "/run/xdpd-nobody/eth1.sock" {
		t.Errorf("the control socket is %s, %v", f.controlPath(), err)
	}
	if _, err := f.stackConfig(); err != nil {
		t.Error(err)
	}
	f.NAPI = "drive"
	if _, err := f.stackConfig(); err == nil {
		t.Error("napi drive goes with user")
	}
}

// TestRunAsFindsItsSocket: without --control the socket is in a folder of the user's own, where xdpd stats finds it.
func TestRunAsFindsItsSocket(t *testing.T) {
	needRoot(t)
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	const dir = controlDir + "-48111"
	t.Cleanup(func() { os.Remove(dir) })
	d := startDaemon(t, lab, childCommand(t, "run -i xa0 -a 10.77.0.2/24 -s echo --user 48111"), dir+"/xa0.sock")
	if v, _, err := askControl(t.Context(), d.control); err != nil || v.PID != d.cmd.Process.Pid {
		t.Errorf("the engine is process %d, %v, want %d", v.PID, err, d.cmd.Process.Pid)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its folder: %v, %v", info, err)
	}
	d.stop(t)
}

// TestRunAsWithoutChown: the folder that cannot be given to the user is not left for the next run to stumble over.
func TestRunAsWithoutChown(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(openFolder(t), "run")
	out, status := runChild(t, childCommand(t, "run -i lo -a 10.77.0.2/24 --user 48111 --control "+dir+"/s",
		fmt.Sprintf("%s=%d", childWithout, unix.CAP_CHOWN)))
	if status != 1 || !strings.Contains(out, "CAP_CHOWN") {
		t.Errorf("%q, %d", out, status)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}
