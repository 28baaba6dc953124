package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"xdpd/internal/netlab"
)

// grantLab is a lab with a helper that has privilege.
type grantLab struct {
	*netlab.Lab
	dir, socket string
	helper      *daemon
}

// startGrant starts xdpd grant for the engine's interface.
func startGrant(t *testing.T, o netlab.Options, flags string) *grantLab {
	t.Helper()
	needRoot(t)
	lab, err := netlab.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	l := &grantLab{Lab: lab, dir: openFolder(t)}
	l.socket = filepath.Join(l.dir, "grant")
	l.helper = startDaemon(t, lab, childCommand(t, "grant -i xa0 "+flags+" "+l.socket), l.socket)
	if err := os.WriteFile(filepath.Join(l.dir, "file"), []byte("of the files"), 0o644); err != nil {
		t.Fatal(err)
	}
	return l
}

// run starts an engine that has no capability, and never had one.
func (l *grantLab) run(t *testing.T, flags string) *daemon {
	t.Helper()
	room := filepath.Join(l.dir, "control")
	if err := os.MkdirAll(room, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(room, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	control := filepath.Join(room, "x.sock")
	// Within the 8 MiB that RLIMIT_MEMLOCK mostly is.
	config := filepath.Join(l.dir, "xdpd.toml")
	if err := os.WriteFile(config, []byte("frames = 1024\ninterface = \"xa0\"\naddresses = [\"10.77.0.2/24\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(flags, "--share") {
		if err := os.WriteFile(config, []byte("frames = 1024\ninterface = \"xa0\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return startDaemon(t, l.Lab, asNobody(childCommand(t, "run --config "+config+" --ledger --from "+l.socket+" --control "+control+
		" -s echo,http=80:"+l.dir+" -s proxy=81:tcp:10.77.0.99:8001 "+flags)), control)
}

func (d *daemon) capabilities(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "Uid:\t65534\t"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the status does not say %q:\n%s", want, text)
		}
	}
}

// TestGrant has an engine that never had a privilege do a full test's work, twice with one helper.
func TestGrant(t *testing.T) {
	for _, share := range []bool{false, true} {
		t.Run(fmt.Sprintf("share %v", share), func(t *testing.T) {
			l := startGrant(t, netlab.Options{KernelAddr: share, Queues: 2}, "--user nobody")
			l.PeerAddr = secondPeerAddr(t, l.Lab)
			flags := ""
			if share {
				flags = "--share"
			}
			for range 2 {
				d := l.run(t, flags)
				d.capabilities(t)
				b := d.tcpBackend(t, 8001, "p")
				eventually(t, "the backend", func() bool { return fmt.Sprint(d.state(t, "tcp")) == "[up]" })
				d.exchange(t)
				d.capabilities(t)
				v, _, err := askControl(t.Context(), d.control)
				if err != nil || v.Verdicts["own_ipv4"].Packets+v.Verdicts["share_port"].Packets == 0 {
					t.Errorf("the program's counters are %+v, %v", v.Verdicts, err)
				}
				d.stop(t)
				b.stop()
			}
			if !strings.Contains(l.helper.text(), "of user 65534 has interface xa0, queues [0 1], addresses [10.77.0.2]") {
				t.Error("the helper does not say whom it granted what")
			}
			l.helper.stop(t)
		})
	}
}

// TestGrantEnds: neither end leaves anything behind when the other is killed.
func TestGrantEnds(t *testing.T) {
	l := startGrant(t, netlab.Options{}, "--group nogroup")
	d := l.run(t, "")
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.cmd.Wait()
	eventually(t, "the end of the grant", func() bool { return strings.Contains(l.helper.text(), "gave back interface xa0") })
	d.detached(t)
	d = l.run(t, "")
	if _, err := d.dial(t, "tcp", 7).Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if err := l.helper.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = l.helper.cmd.Wait()
	if err := d.cmd.Wait(); err == nil || !strings.Contains(d.text(), "the helper went away") {
		t.Errorf("without its helper the engine ends with %v: %s", err, d.text())
	}
	d.detached(t)
	// The socket that the killed helper left is replaced.
	l.helper = startDaemon(t, l.Lab, childCommand(t, "grant -i xa0 --user 65534 "+l.socket), l.socket)
	l.run(t, "").stop(t)
	l.helper.stop(t)
}

// TestGrantRefuses asks for what is not granted.
func TestGrantRefuses(t *testing.T) {
	for _, c := range []struct{ name, grant, run, want string }{
		{"user", "", "", "user 65534, group 65534, may not ask"},
		{"interface", "--user nobody", "-i lo0", "no interface lo0"},
		{"another interface", "--user nobody", "-i xa1", `interface "xa1" is not granted`},
		{"queue", "--user nobody -q 1", "-q 0", "queue 0 of xa0 is not granted"},
		{"address", "--user nobody -a 192.0.2.0/24", "", "address 10.77.0.2 is not granted"},
		{"kernel's address", "--user nobody", "-a 10.77.7.7/24", "address 10.77.7.7 is the kernel's"},
		{"napi", "--user nobody", "--napi drive", "Grant does not go with"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := startGrant(t, netlab.Options{Queues: 2}, c.grant)
			addAddr(t, l.Engine, "xa0", netip.MustParseAddr("10.77.7.7"))
			if out, err := l.Engine.Run(t.Context(), "ip", "link", "add", "xa1", "type", "veth", "peer", "name", "xa2"); err != nil {
				t.Fatal(err, out)
			}
			if out, err := l.Engine.Run(t.Context(), "ip", "link", "set", "xa1", "up"); err != nil {
				t.Fatal(err, out)
			}
			d := l.run(t, c.run)
			if err := d.cmd.Wait(); err == nil || !strings.Contains(d.text(), c.want) {
				t.Errorf("it ends with %v and says %q, want %q", err, d.text(), c.want)
			}
			d.detached(t)
			l.helper.stop(t)
		})
	}
	t.Run("namespace", func(t *testing.T) {
		l := startGrant(t, netlab.Options{}, "--user nobody")
		elsewhere, err := netlab.New(netlab.Options{}) // which has an xa0 as well
		if err != nil {
			t.Fatal(err)
		}
		defer elsewhere.Close()
		l.Lab = elsewhere
		d := l.run(t, "")
		if err := d.cmd.Wait(); err == nil || !strings.Contains(d.text(), "another network namespace") {
			t.Errorf("it ends with %v and says %q", err, d.text())
		}
		l.helper.stop(t)
	})
	t.Run("another owner", func(t *testing.T) {
		l := startGrant(t, netlab.Options{Queues: 2}, "--user nobody")
		first := l.run(t, "-q 0")
		second := asNobody(childCommand(t, "run --config "+l.dir+"/xdpd.toml -q 1 -a 10.77.0.3/24 -s echo --from "+l.socket+" --control "+l.dir+"/none"))
		out := &lines{n: make(chan struct{}, 1)}
		second.Stderr = out
		if err := l.Engine.Start(second); err != nil {
			t.Fatal(err)
		}
		_ = second.Wait()
		out.mu.Lock()
		text := out.b.String()
		out.mu.Unlock()
		if !strings.Contains(text, "another XDP program is attached") {
			t.Errorf("a second engine on the interface is told %q", text)
		}
		first.stop(t)
		l.helper.stop(t)
	})
}
