package pktgen

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/xdpprog"
)

func newLab(t *testing.T, o netlab.Options) *netlab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	lab, err := netlab.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

func silent() *Live { return &Live{Out: io.Discard, Every: time.Millisecond} }

// fromPeer is what sends from the lab's peer to the engine's address.
func fromPeer(t *testing.T, lab *netlab.Lab, source string) Config {
	t.Helper()
	c := Config{
		Interface: lab.PeerDev, Source: source, Sizes: Sizes{{64, 1}}, Burst: 1, Wait: 10 * time.Second, CPU: -1, Mode: "best",
	}
	if err := c.Dst.UnmarshalText([]byte(lab.EngineAddr.String())); err != nil {
		t.Fatal(err)
	}
	return c
}

// in runs it in a namespace.
func in(ctx context.Context, ns *netlab.NS, c Config, live *Live) (r *Report, err error) {
	err = ns.Do(func() (err error) {
		r, err = Run(ctx, c, live)
		return err
	})
	return r, err
}

// attached is the number of the XDP program on an interface.
func attached(t *testing.T, ns *netlab.NS, dev string) (id uint32) {
	t.Helper()
	err := ns.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err == nil && link.Attrs().Xdp != nil {
			id = link.Attrs().Xdp.ProgId
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// waitFor waits until it is so.
func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// TestToSink has a pktgen send what another receives: every number is accounted for, and nothing stays behind.
func TestToSink(t *testing.T) {
	for _, source := range []string{"bpf", "xsk"} {
		for name, change := range map[string]func(*Config){
			"one flow": func(c *Config) { c.Count = 20_000 },
			"a thousand flows and sizes": func(c *Config) {
				c.N, c.Sizes, c.Count = 1000, imix, 20_000
				c.Rate = Rate{Packets: 500e3}
			},
		} {
			t.Run(source+"/"+name, func(t *testing.T) {
				lab := newLab(t, netlab.Options{KernelAddr: true})
				c := fromPeer(t, lab, source)
				change(&c)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				type result struct {
					*Report
					error
				}
				ended := make(chan result, 1)
				go func() {
					sink := Config{Interface: lab.EngineDev, Sink: true, Burst: 1, Flows: Flows{N: c.N}}
					r, err := in(ctx, lab.Engine, sink, silent())
					ended <- result{r, err}
				}()
				waitFor(t, "the sink", func() bool { return attached(t, lab.Engine, lab.EngineDev) != 0 || len(ended) > 0 })
				sent, err := in(ctx, lab.Peer, c, silent())
				if err != nil {
					t.Fatal(err)
				}
				// What was sent is in the sink's program when the source ends: the softirq runs before.
				cancel()
				got := <-ended
				if got.error != nil {
					t.Fatal(got.error)
				}
				total := sent.Sent.Packets + sent.Sent.Dropped + sent.Sent.Errors
				r := got.Received
				if total != uint64(c.Count) || r.Unique != sent.Sent.Packets || r.Frames != r.Unique || r.Reordered != 0 || r.Bytes != sent.Sent.Bytes && sent.Sent.Dropped == 0 {
					t.Errorf("sent %+v\nreceived %+v", *sent.Sent, *r)
				}
				if got.Latency == nil || got.Latency.Count != int64(r.Unique) || got.Latency.Min < 1 {
					t.Errorf("the latencies are %+v", got.Latency)
				}
				if id := attached(t, lab.Engine, lab.EngineDev); id != 0 {
					t.Errorf("program %d is still attached", id)
				}
			})
		}
	}
}

// listen is a raw socket on an interface, with room for all that a test sends.
func listen(t *testing.T, ns *netlab.NS, dev string) int {
	t.Helper()
	fd := -1
	err := ns.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		return errors.Join(err, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestReplay: what comes out at the other end of the wire is the file, byte for byte, in its order, as often as asked.
func TestReplay(t *testing.T) {
	frames := someFrames(40)
	path := filepath.Join(t.TempDir(), "some.pcap")
	if err := os.WriteFile(path, pcap(t, layers.LinkTypeEthernet, frames...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{"bpf", "xsk"} {
		for _, speed := range []float64{0, 4} {
			t.Run(fmt.Sprintf("%s/speed %v", source, speed), func(t *testing.T) {
				lab := newLab(t, netlab.Options{KernelAddr: true})
				if source == "bpf" {
					gro(t, lab) // the other end of a veth takes live frames with a NAPI only
				}
				fd := listen(t, lab.Engine, lab.EngineDev)
				c := fromPeer(t, lab, source)
				c.Replay, c.Loops, c.Speed, c.Sizes, c.Dst = path, 3, speed, nil, Addrs{}
				if speed == 0 {
					c.Rate = Rate{Packets: 20e3} // the ring of a veth has 256 places
				}
				r, err := in(t.Context(), lab.Peer, c, silent())
				if err != nil {
					t.Fatal(err)
				}
				if want := uint64(3 * len(frames)); r.Sent.Packets != want {
					t.Errorf("sent %+v, want %d", *r.Sent, want)
				}
				b := make([]byte, 2000)
				for i := range 3 * len(frames) {
					n, _, err := unix.Recvfrom(fd, b, 0)
					if err != nil {
						t.Fatalf("frame %d: %v", i, err)
					}
					if want := frames[i%len(frames)].data; !bytes.Equal(b[:n], want) {
						t.Fatalf("frame %d is %x\nwant %x", i, b[:n], want)
					}
				}
			})
		}
	}
}

// gro turns GRO on at the engine's end.
func gro(t *testing.T, lab *netlab.Lab) {
	t.Helper()
	if out, err := lab.Engine.Run(t.Context(), "ethtool", "-K", lab.EngineDev, "gro", "on"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestNeedsReceiver: a veth's other end that cannot receive live frames is told, not counted as loss.
func TestNeedsReceiver(t *testing.T) {
	lab := newLab(t, netlab.Options{KernelAddr: true})
	c := fromPeer(t, lab, "bpf")
	_, err := in(t.Context(), lab.Peer, c, silent())
	if err == nil || !strings.Contains(err.Error(), "ethtool -K PEER gro on") {
		t.Errorf("%v", err)
	}
}

// TestInterrupted: the end of the context is the end of the run, with a report.
func TestInterrupted(t *testing.T) {
	for _, source := range []string{"bpf", "xsk"} {
		t.Run(source, func(t *testing.T) {
			lab := newLab(t, netlab.Options{KernelAddr: true})
			var drop *xdpprog.Drop
			err := lab.Engine.Do(func() error {
				link, err := netlink.LinkByName(lab.EngineDev)
				if err == nil {
					drop, err = xdpprog.LoadDrop(lab.EngineDev, link.Attrs().Index, xdpprog.BestAttach)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer drop.Close()
			ctx, cancel := context.WithCancel(t.Context())
			live := &stopper{cancel: cancel}
			c := fromPeer(t, lab, source)
			c.DstMAC = MAC{[6]byte{2, 0, 0, 0, 0, 9}} // the ARP for it would be dropped too
			r, err := in(ctx, lab.Peer, c, &Live{Out: live, Every: time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			packets, bytes, err := drop.Count()
			if err != nil || r.Sent.Packets == 0 || packets < r.Sent.Packets || bytes < r.Sent.Bytes {
				t.Errorf("sent %+v, and %d packets of %d bytes came, %v", *r.Sent, packets, bytes, err)
			}
		})
	}
}

// stopper ends the run when a line tells of traffic.
type stopper struct{ cancel context.CancelFunc }

func (s *stopper) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "sent ") && !strings.Contains(string(b), "sent 0 pps") {
		s.cancel()
	}
	return len(b), nil
}

// TestDuration: so does the end of the time.
func TestDuration(t *testing.T) {
	lab := newLab(t, netlab.Options{KernelAddr: true})
	c := fromPeer(t, lab, "xsk")
	c.Duration, c.Rate = 50*time.Millisecond, Rate{Packets: 1000}
	r, err := in(t.Context(), lab.Peer, c, silent())
	if err != nil || r.Sent.Packets == 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestCures: what the user can do is in the error.
func TestCures(t *testing.T) {
	lab := newLab(t, netlab.Options{KernelAddr: true})
	set := func(ns *netlab.NS, dev string, do func(netlink.Link) error) {
		t.Helper()
		err := ns.Do(func() error {
			link, err := netlink.LinkByName(dev)
			if err == nil {
				err = do(link)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	big := Sizes{{1600, 1}}
	for _, c := range []struct {
		name   string
		change func(*Config)
		before func()
		want   string
	}{
		{"no such interface", func(c *Config) { c.Interface = "eth7" }, nil, "there is no interface eth7 in this network namespace: ip link lists"},
		{"no Ethernet", func(c *Config) { c.Interface = "lo" }, nil, "lo is no Ethernet device: name one"},
		{"MTU", func(c *Config) { c.Sizes = big }, nil, "frames of 1596 bytes need an MTU of 1582, and xb0 has 1500: ip link set xb0 mtu 1582"},
		{"no route", func(c *Config) { c.Dst = Addrs{addr(192, 0, 2, 1), addr(192, 0, 2, 1)} }, nil, "there is no route to 192.0.2.1 through xb0"},
		{"nobody", func(c *Config) { c.Dst = Addrs{addr(10, 77, 0, 99), addr(10, 77, 0, 99)} }, nil, "no MAC address of 10.77.0.99 on xb0: nobody answers ARP for it"},
		{"queue", func(c *Config) { c.Source, c.Queue = "xsk", 3 }, nil, "no queue 3"},
		{"no file", func(c *Config) { c.Replay = "/nonexistent" }, nil, "no such file"},
		{"no destination", func(c *Config) { c.Dst = Addrs{} }, nil, "no destination given: --dst ADDR"},
		{"replies to many", func(c *Config) { c.Source, c.Echo, c.Src = "xsk", true, Addrs{1, 1000} }, nil, "use --source bpf"},
		{"no carrier", nil, func() { set(lab.Engine, lab.EngineDev, netlink.LinkSetDown) }, "xb0 has no carrier"},
		{"down", nil, func() { set(lab.Peer, lab.PeerDev, netlink.LinkSetDown) }, "interface xb0 is down: ip link set xb0 up"},
	} {
		if c.before != nil {
			c.before()
		}
		cfg := fromPeer(t, lab, "bpf")
		if c.change != nil {
			c.change(&cfg)
		}
		if r, err := in(t.Context(), lab.Peer, cfg, silent()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v, want %q", c.name, r, err, c.want)
		}
	}
}

// childEnv has this binary run pktgen on an interface, with the source it names.
const childEnv = "PKTGEN_TEST_CHILD"

func TestMain(m *testing.M) {
	args := strings.Fields(os.Getenv(childEnv))
	if len(args) == 0 {
		os.Exit(m.Run())
	}
	c := Config{Interface: args[1], Source: args[0], Sizes: Sizes{{64, 1}}, Burst: 1, Count: 1, CPU: -1, DstMAC: MAC{[6]byte{2}}}
	c.Src, c.Dst = Addrs{1, 1}, Addrs{2, 2}
	if _, err := Run(context.Background(), c, silent()); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// TestNoPrivilege: without rights the error says which are needed.
func TestNoPrivilege(t *testing.T) {
	lab := newLab(t, netlab.Options{KernelAddr: true})
	for source, want := range map[string]string{"bpf": "CAP_BPF", "xsk": "CAP_NET_RAW"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env, cmd.Dir = []string{childEnv + "=" + source + " " + lab.PeerDev}, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := lab.Peer.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), want) || !strings.Contains(out.String(), "root") {
			t.Errorf("%s: %v: %s", source, err, &out)
		}
	}
}

// TestRoute chooses the longest prefix, then the smallest metric, and the address of the next hop's network.
func TestRoute(t *testing.T) {
	s := routes(t)
	for dst, want := range map[string]string{
		"10.1.0.9": "10.1.0.9 from 10.1.0.1", "10.2.0.9": "10.2.0.9 from 10.2.0.1", "10.3.0.9": "10.1.0.7 from 10.1.0.1",
		"10.3.1.9": "10.2.0.7 from 10.2.0.5", "192.0.2.1": "10.2.0.8 from 10.2.0.1",
	} {
		hop, from := route(s, netip.MustParseAddr(dst))
		if got := fmt.Sprintf("%s from %s", hop, from); got != want {
			t.Errorf("to %s by %s, want %s", dst, got, want)
		}
	}
	s.Routes = s.Routes[:2]
	if hop, _ := route(s, netip.MustParseAddr("192.0.2.1")); hop.IsValid() {
		t.Errorf("without a route by %s", hop)
	}
}
