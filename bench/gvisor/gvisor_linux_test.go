package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ourAddr = "10.77.0.2"
	patient = time.Minute // after that, something hangs
)

// TestMain lets the test's own binary be the contender.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-work" {
		main()
		return
	}
	os.Exit(m.Run())
}

// command runs a program in the calling thread's namespace.
func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// twoNetworks makes two namespaces joined by a veth pair, xa0 in the first and xb0 in the second. The calling goroutine is
// in the second one from then on, and its thread ends with it: nothing is left when it and its children are gone.
func twoNetworks(t *testing.T) (enterFirst, enterSecond func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread()
	var spaces [2]*os.File
	for i := range spaces {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		var err error
		if spaces[i], err = os.Open("/proc/thread-self/ns/net"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { spaces[i].Close() })
	}
	enter := func(i int) func() {
		return func() {
			if err := unix.Setns(int(spaces[i].Fd()), unix.CLONE_NEWNET); err != nil {
				t.Fatal(err)
			}
		}
	}
	first := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), spaces[0].Fd())
	command(t, "ip", "link", "add", "xb0", "type", "veth", "peer", "name", "xa0", "netns", first)
	command(t, "ethtool", "-K", "xb0", "tx", "off")
	command(t, "ip", "addr", "add", "10.77.0.1/24", "dev", "xb0")
	command(t, "ip", "link", "set", "xb0", "up")
	enter(0)()
	command(t, "ip", "link", "set", "xa0", "up")
	enter(1)()
	return enter(0), enter(1)
}

// contender starts this program in the first namespace; the function it returns ends it and gives its counters.
func contender(t *testing.T, work, link string) (stop func() counters) {
	t.Helper()
	enterFirst, enterSecond := twoNetworks(t)
	cmd := exec.Command("/proc/self/exe", "-work", work, "-dev", "xa0", "-addr", ourAddr+"/24", "-port", "7", "-link", link)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} // when this goroutine's thread ends
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	enterFirst()
	err = cmd.Start()
	enterSecond()
	if err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	if line, err := out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("printed %q: %v, %v: %s", line, err, cmd.Wait(), complaint.Bytes())
	}
	return func() (c counters) {
		t.Helper()
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		line, err := io.ReadAll(out)
		if err := errors.Join(err, cmd.Wait(), json.Unmarshal(line, &c)); err != nil {
			t.Fatalf("%v: printed %q: %s", err, line, complaint.Bytes())
		}
		return c
	}
}

// dial connects from the second namespace; the calling goroutine must be in it.
func dial(t *testing.T, network string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, ourAddr+":7")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	return c
}

// counted runs a client against a work over each link, and checks what all counters must say.
func counted(t *testing.T, work string, client func(t *testing.T)) {
	for link, mode := range map[string]string{"xdp": "copy, native", "packet": "packet"} {
		t.Run(link, func(t *testing.T) {
			stop := contender(t, work, link)
			client(t)
			c := stop()
			if c.Mode != mode || c.ARP == 0 || c.FramesIn <= c.ARP || c.FramesOut <= c.ARP {
				t.Errorf("counters %+v", c)
			}
			if work == "udp-echo" && (c.Sent == 0 || c.Delivered < c.Sent) {
				t.Errorf("%d datagrams delivered, %d sent", c.Delivered, c.Sent)
			}
		})
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func TestUDPEcho(t *testing.T) {
	counted(t, "udp-echo", func(t *testing.T) {
		c := dial(t, "udp4")
		for _, size := range []int{1, 22, 1472} {
			echoDatagram(t, c, noise(size))
		}
	})
}

// echoDatagram sends until the same comes back: a datagram may be lost, and a late echo come first.
func echoDatagram(t *testing.T, c net.Conn, want []byte) {
	t.Helper()
	got := make([]byte, 2048)
	for end := time.Now().Add(patient); ; {
		if time.Now().After(end) {
			t.Fatalf("%d bytes did not come back", len(want))
		}
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(got); err == nil && bytes.Equal(got[:n], want) {
			return
		}
	}
}

func TestTCPEcho(t *testing.T) {
	counted(t, "tcp-echo", func(t *testing.T) {
		c := dial(t, "tcp4")
		for _, size := range []int{1, 1448, 300_000} {
			want := noise(size)
			done := make(chan error, 1)
			go func() {
				_, err := c.Write(want)
				done <- err
			}()
			got := make([]byte, size)
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes: %v, or not what was sent", size, err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestTCPAccept(t *testing.T) {
	counted(t, "tcp-accept", func(t *testing.T) {
		for range 50 {
			if n, err := dial(t, "tcp4").Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Fatalf("%d bytes, %v; want EOF", n, err)
			}
		}
	})
}

// TestTCPSink sends more than all buffers hold, so that it ends only if somebody reads.
func TestTCPSink(t *testing.T) {
	counted(t, "tcp-sink", func(t *testing.T) {
		c := dial(t, "tcp4")
		if n, err := c.Write(make([]byte, 8*bufferSize)); err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("%d bytes, %v; want EOF", n, err)
		}
	})
}

func TestTCPSource(t *testing.T) {
	counted(t, "tcp-source", func(t *testing.T) {
		if n, err := io.CopyN(io.Discard, dial(t, "tcp4"), 8*bufferSize); err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	})
}

func TestHTTP(t *testing.T) {
	counted(t, "http", func(t *testing.T) {
		c := dial(t, "tcp4")
		r := bufio.NewReader(c)
		for range 10 { // on one connection: keep-alive
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			answer, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(answer.Body)
			if err != nil || answer.StatusCode != http.StatusOK || string(body) != "Hello, World!" || answer.Close {
				t.Fatalf("%v, %s, body %q, close %t", err, answer.Status, body, answer.Close)
			}
		}
	})
}

func TestBadFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-work", "knitting", "-dev", "lo", "-addr", "10.0.0.1/8"},
		{"-link", "knot", "-dev", "lo", "-addr", "10.0.0.1/8"},
		{"-dev", "lo"},
		{"-dev", "lo", "-addr", "10.0.0.1/8", "-port", "65536"},
		{"-dev", "nowhere0", "-addr", "10.0.0.1/8"},
	} {
		if err := run(args); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
