package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

// peerPatience is how long a test waits for what must come: it only turns a hang into a failure.
const peerPatience = 30 * time.Second

const peersPort = 4242

// peerCounters is what every contender prints, and for TCP those in C.
type peerCounters struct {
	FramesIn  uint64 `json:"frames_in"`
	FramesOut uint64 `json:"frames_out"`
	BytesIn   uint64 `json:"bytes_in"`
	BytesOut  uint64 `json:"bytes_out"`
	Accepted  uint64
	Syscalls  uint64
	Drops     map[string]uint64
}

// peerCompiled builds a program of peers/ as strictly as scripts/test does.
func peerCompiled(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	out, err := exec.Command("cc", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror", "-o", path, "peers/"+name+".c").CombinedOutput()
	if err != nil {
		t.Fatalf("cc: %v\n%s", err, out)
	}
	return path
}

// peerLab is a network in which the kernel has both addresses.
func peerLab(t *testing.T) *netlab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	lab, err := netlab.New(netlab.Options{KernelAddr: true})
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

// peerServe starts a contender in the engine's namespace and waits until it serves. end ends it and gives its counters.
func peerServe(t *testing.T, lab *netlab.Lab, name string, work string, flags ...string) (end func() peerCounters) {
	t.Helper()
	var cmd *exec.Cmd
	if name == "raw" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		addr := netip.PrefixFrom(lab.EngineAddr, lab.Subnet.Bits()).String()
		cmd = exec.Command(self, "-serve", name, "-work", work, "-dev", lab.EngineDev, "-addr", addr, "-port", strconv.Itoa(peersPort))
	} else {
		args := append(flags, work, lab.EngineAddr.String(), strconv.Itoa(peersPort), lab.EngineDev)
		cmd = exec.Command(peerCompiled(t, name), args...)
	}
	cmd.Stderr = t.Output()
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Engine.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := false
	t.Cleanup(func() {
		if !ended {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	out := bufio.NewReader(pipe)
	if line, err := out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%s printed %q, not that it is ready: %v", name, line, err)
	}
	return func() (c peerCounters) {
		t.Helper()
		ended = true
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		line, err := io.ReadAll(out)
		if err := errors.Join(err, cmd.Wait()); err != nil {
			t.Errorf("%s did not end well: %v", name, err)
		}
		if err := json.Unmarshal(line, &c); err != nil {
			t.Fatalf("%s printed %q: %v", name, line, err)
		}
		for why, n := range c.Drops {
			if n > 0 {
				t.Errorf("%s dropped %d: %s", name, n, why)
			}
		}
		if c.Syscalls == 0 && c.FramesIn+c.FramesOut > 0 && work != "raw-drop" { // which gets frames without one
			t.Errorf("%s counted no system call", name)
		}
		return c
	}
}

// peerDial connects to the contender from the other namespace.
func peerDial(t *testing.T, lab *netlab.Lab, network string) (c net.Conn) {
	t.Helper()
	err := lab.Peer.Do(func() (err error) {
		c, err = net.DialTimeout(network, netip.AddrPortFrom(lab.EngineAddr, peersPort).String(), peerPatience)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(peerPatience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// peerRandom are n bytes of a stream that the seed names.
func peerRandom(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// peerPing sends datagrams of random bytes, one at a time, and wants each back.
func peerPing(t *testing.T, lab *netlab.Lab, n int) (size uint64) {
	t.Helper()
	c := peerDial(t, lab, "udp4")
	got := make([]byte, 2000)
	for i := range n {
		want := peerRandom(uint64(i), rand.IntN(1473)) // up to an MTU of 1500
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		k, err := c.Read(got)
		if err != nil || !bytes.Equal(got[:k], want) {
			t.Fatalf("datagram %d: sent %d bytes, received %d, equal %v, %v", i, len(want), k, bytes.Equal(got[:k], want), err)
		}
		size += uint64(len(want))
	}
	return size
}

func TestPeerUDPEcho(t *testing.T) {
	for _, c := range []struct{ name, flag string }{{"epoll", "-s"}, {"epoll", "-t2"}, {"uring", "-s"}, {"uring", "--"}} {
		t.Run(c.name+c.flag, func(t *testing.T) {
			lab := peerLab(t)
			end := peerServe(t, lab, c.name, "udp-echo", c.flag)
			size := peerPing(t, lab, 1000) // twice as many as uring has buffers
			got := end()
			if got.FramesIn != 1000 || got.FramesOut != 1000 || got.BytesIn != size || got.BytesOut != size {
				t.Errorf("of 1000 datagrams, %d bytes: %+v", size, got)
			}
		})
	}
}

// TestPeerTCPEcho has 200 connections at once, the first with one byte, the last with more than the sockets can hold.
func TestPeerTCPEcho(t *testing.T) {
	const conns = 200
	for _, c := range []struct{ name, flag string }{{"epoll", "-t1"}, {"epoll", "-t2"}, {"uring", "--"}} {
		t.Run(c.name+c.flag, func(t *testing.T) {
			lab := peerLab(t)
			end := peerServe(t, lab, c.name, "tcp-echo", c.flag)
			all := make([]net.Conn, conns)
			for i := range all {
				all[i] = peerDial(t, lab, "tcp4")
			}
			size := uint64(0)
			var running sync.WaitGroup
			for i, conn := range all {
				n := 1 + 100*i
				if i%20 == 19 {
					n *= i
				}
				want := peerRandom(uint64(i), n)
				size += uint64(len(want))
				running.Go(func() {
					_, err := conn.Write(want)
					if err = errors.Join(err, conn.(*net.TCPConn).CloseWrite()); err != nil {
						t.Errorf("connection %d: %v", i, err)
					}
				})
				running.Go(func() {
					got, err := io.ReadAll(conn)
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("connection %d: sent %d bytes, received %d, %v", i, len(want), len(got), err)
					}
				})
			}
			running.Wait()
			if got := end(); got.Accepted != conns || got.BytesIn != size || got.BytesOut != size {
				t.Errorf("of %d connections, %d bytes: %+v", conns, size, got)
			}
		})
	}
}

func TestPeerTCPAccept(t *testing.T) {
	for _, name := range []string{"epoll", "uring"} {
		t.Run(name, func(t *testing.T) {
			lab := peerLab(t)
			end := peerServe(t, lab, name, "tcp-accept")
			for i := range 200 {
				if n, err := peerDial(t, lab, "tcp4").Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("connection %d: read %d, %v", i, n, err)
				}
			}
			if got := end(); got.Accepted != 200 || got.FramesIn != 200 {
				t.Errorf("of 200 connections: %+v", got)
			}
			peerServe(t, lab, name, "tcp-accept")() // the port is free at once
		})
	}
}

// TestPeerTCPSink waits for the end that the server makes when it has seen ours: then it has read all.
func TestPeerTCPSink(t *testing.T) {
	const size = 20_000_000
	for _, name := range []string{"epoll", "uring"} {
		t.Run(name, func(t *testing.T) {
			lab := peerLab(t)
			end := peerServe(t, lab, name, "tcp-sink")
			var running sync.WaitGroup
			for range 3 {
				c := peerDial(t, lab, "tcp4").(*net.TCPConn)
				running.Go(func() {
					_, err := c.Write(make([]byte, size))
					if err = errors.Join(err, c.CloseWrite()); err != nil {
						t.Error(err)
					}
					if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
						t.Errorf("read %d, %v", n, err)
					}
				})
			}
			running.Wait()
			if got := end(); got.Accepted != 3 || got.BytesIn != 3*size || got.BytesOut != 0 {
				t.Errorf("of 3 connections with %d bytes: %+v", size, got)
			}
		})
	}
}

func TestPeerTCPSource(t *testing.T) {
	const size = 20_000_000
	for _, name := range []string{"epoll", "uring"} {
		t.Run(name, func(t *testing.T) {
			lab := peerLab(t)
			end := peerServe(t, lab, name, "tcp-source")
			var running sync.WaitGroup
			for range 3 {
				c := peerDial(t, lab, "tcp4")
				running.Go(func() {
					if _, err := io.CopyN(io.Discard, c, size); err != nil {
						t.Error(err)
					}
					c.Close()
				})
			}
			running.Wait()
			// It goes on after a connection that was reset.
			if _, err := io.CopyN(io.Discard, peerDial(t, lab, "tcp4"), size); err != nil {
				t.Error(err)
			}
			if got := end(); got.Accepted != 4 || got.BytesOut < 4*size || got.BytesIn != 0 {
				t.Errorf("of 4 connections that read %d bytes: %+v", size, got)
			}
		})
	}
}

// TestTCPLoad compares what the load and the server say about the same connections.
func TestTCPLoad(t *testing.T) {
	for _, c := range []struct {
		load, work string
		flags      []string
		agree      func(count, bytes uint64, c peerCounters) bool
	}{
		// Of what is out at the end, a byte for each of 8 connections, the server knows and the load does not.
		{"rr", "tcp-echo", nil, func(n, _ uint64, c peerCounters) bool { return c.FramesIn >= n && c.FramesIn <= n+8 && c.Accepted == 8 }},
		{"connect", "tcp-accept", nil, func(n, _ uint64, c peerCounters) bool { return c.Accepted >= n && c.Accepted <= n+8 }},
		{"connect", "tcp-echo", []string{"-r"}, func(n, _ uint64, c peerCounters) bool { return c.Accepted >= n && c.BytesIn <= n+8 }},
		// At the end the server has not read what is in its receive buffers (net.ipv4.tcp_rmem), and is not waited for.
		{"bulk-send", "tcp-sink", nil, func(_, b uint64, c peerCounters) bool { return b > 0 && c.BytesIn > 0 && c.BytesIn+8*6<<20 >= b }},
		{"bulk-recv", "tcp-source", nil, func(_, b uint64, c peerCounters) bool { return b > 0 && c.BytesOut >= b }},
	} {
		t.Run(c.load+"-"+c.work, func(t *testing.T) {
			lab := peerLab(t)
			end := peerServe(t, lab, "epoll", c.work)
			args := append(c.flags, "-d", "0.3", "-c", "8", "-t", "2", c.load, lab.EngineAddr.String(), strconv.Itoa(peersPort))
			out, err := lab.Peer.Run(t.Context(), peerCompiled(t, "tcpload"), args...)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Count, Bytes, Errors, Bad uint64
				PerSecond                 float64 `json:"per_second"`
				P50                       float64 `json:"p50_ns"`
				P99                       float64 `json:"p99_ns"`
			}
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%q: %v", out, err)
			}
			if got.Errors+got.Bad > 0 || got.Count+got.Bytes == 0 || got.Count > 0 && (got.P50 <= 0 || got.P99 < got.P50 || got.PerSecond <= 0) {
				t.Errorf("%s", out)
			}
			if counted := end(); !c.agree(got.Count, got.Bytes, counted) {
				t.Errorf("the load says %+v, the server %+v", got, counted)
			}
		})
	}
}

// TestRawEcho also has the kernel answer for what is not the raw program's: ARP, and another port.
func TestRawEcho(t *testing.T) {
	for _, name := range []string{"xsk", "raw"} {
		t.Run(name, func(t *testing.T) {
			lab := peerLab(t)
			end := peerServe(t, lab, name, "raw-echo")
			peerPing(t, lab, 1000)
			var other net.Conn
			if err := lab.Peer.Do(func() (err error) {
				other, err = net.Dial("udp4", netip.AddrPortFrom(lab.EngineAddr, peersPort+1).String())
				return err
			}); err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			other.SetDeadline(time.Now().Add(peerPatience))
			if _, err := other.Write([]byte("who is there?")); err != nil {
				t.Fatal(err)
			}
			if _, err := other.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("another port: %v, want %v from the kernel", err, unix.ECONNREFUSED)
			}
			if got := end(); got.FramesIn != 1000 || got.FramesOut != 1000 {
				t.Errorf("of 1000 datagrams: %+v", got)
			}
		})
	}
}

// peerReceived is how many frames came in at an interface.
func peerReceived(t *testing.T, ns *netlab.NS, dev string) (n uint64) {
	t.Helper()
	err := ns.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err == nil {
			n = link.Attrs().Statistics.RxPackets
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRawTX(t *testing.T) {
	for _, name := range []string{"xsk", "raw"} {
		t.Run(name, func(t *testing.T) {
			lab := peerLab(t)
			var sink *net.UDPConn
			if err := lab.Peer.Do(func() (err error) {
				sink, err = net.ListenUDP("udp4", &net.UDPAddr{IP: lab.PeerAddr.AsSlice(), Port: peersPort})
				return err
			}); err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			sink.SetDeadline(time.Now().Add(peerPatience))
			before := peerReceived(t, lab.Peer, lab.PeerDev)
			end := peerServe(t, lab, name, "raw-tx")
			want, b := make([]byte, 64-14-20-8), make([]byte, 100)
			for range 5000 { // more than the rings hold: frames come back and go out again
				n, from, err := sink.ReadFromUDPAddrPort(b)
				if err != nil || from != netip.AddrPortFrom(lab.EngineAddr, peersPort) || !bytes.Equal(b[:n], want) {
					t.Fatalf("received %x from %s, %v", b[:n], from, err)
				}
			}
			got := end()
			// Besides them there may be ARP.
			if all := peerReceived(t, lab.Peer, lab.PeerDev) - before; got.FramesOut < 5000 || all < got.FramesOut || all > got.FramesOut+10 {
				t.Errorf("the peer's interface received %d frames: %+v", all, got)
			}
		})
	}
}

func TestRawDrop(t *testing.T) {
	for _, name := range []string{"xsk", "raw"} {
		t.Run(name, func(t *testing.T) {
			lab := peerLab(t)
			end := peerServe(t, lab, name, "raw-drop")
			c := peerDial(t, lab, "udp4")
			before := peerReceived(t, lab.Engine, lab.EngineDev)
			received := func(n uint64) {
				for stop := time.Now().Add(peerPatience); peerReceived(t, lab.Engine, lab.EngineDev) < before+n; {
					if time.Now().After(stop) {
						t.Fatal("the interface did not receive what was sent")
					}
				}
			}
			for i := range uint64(1000) {
				if _, err := fmt.Fprint(c, i); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					received(2) // it, and the ARP request before it
				}
			}
			received(1001)
			if got := end(); got.FramesIn != 1000 || got.FramesOut != 0 {
				t.Errorf("of 1000 datagrams: %+v", got)
			}
		})
	}
}
