package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
)

// restartLab is an application of a daemon that is killed and started again.
type restartLab struct {
	*netlab.Lab
	t    *testing.T
	dir  string
	app  *xdpd.Client
	stop chan struct{}
	work sync.WaitGroup
	done [4]atomic.Int64 // rounds, by what it does
	gone atomic.Int64    // operations that waited for nothing but the daemon, and heard that it is gone
}

var restartWork = [4]string{"accept from the kernel", "dial the kernel", "send datagrams", "listen"}

// again does something until the end, and tries again after a while when it went wrong, as with a daemon that is not there.
func (l *restartLab) again(do func() error) {
	l.work.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			if err := do(); err != nil {
				time.Sleep(5 * time.Millisecond)
			}
		}
	})
}

// echo sends and gets back a piece at a time, until something goes wrong.
func (l *restartLab) echo(c net.Conn, n *atomic.Int64) error {
	defer c.Close()
	out, in := make([]byte, 4000), make([]byte, 4000)
	for round := 0; ; round++ {
		select {
		case <-l.stop:
			return nil
		default:
		}
		for i := range out {
			out[i] = byte(i*7 + round)
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, in); err != nil {
			return err
		}
		if !bytes.Equal(in, out) {
			l.t.Error("other bytes came back")
		}
		n.Add(1)
	}
}

// serve has the application echo at port 80.
func (l *restartLab) serve() error {
	ln, err := l.app.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	defer ln.Close()
	defer context.AfterFunc(l.t.Context(), func() { ln.Close() })()
	l.done[3].Add(1)
	for {
		c, err := ln.Accept()
		if err != nil {
			return l.heard(err)
		}
		go func() { _, _ = io.Copy(c, c); c.Close() }()
	}
}

// heard counts an operation that waited for nothing else.
func (l *restartLab) heard(err error) error {
	if errors.Is(err, xdpd.ErrDaemonGone) {
		l.gone.Add(1)
	} else if !errors.Is(err, net.ErrClosed) {
		l.t.Errorf("what waited for the daemon ended with %v", err)
	}
	return err
}

// dialEngine has the kernel use what the application serves.
func (l *restartLab) dialEngine() error {
	var c net.Conn
	err := l.Peer.Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", netip.AddrPortFrom(l.EngineAddr, 80).String(), 100*time.Millisecond)
		return err
	})
	if err != nil {
		return err
	}
	defer time.AfterFunc(netlab.Patience, func() { c.Close() }).Stop()
	// A daemon that was killed says nothing to its peers: they hear it from the next one, when they send.
	slow := &impatient{c}
	return l.echo(slow, &l.done[0])
}

// impatient is a connection on which nothing is waited for long.
type impatient struct{ net.Conn }

func (c *impatient) Read(b []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	return c.Conn.Read(b)
}

// start starts the daemon, and says how long that took.
func (l *restartLab) start(n int) (*daemon, time.Duration) {
	l.t.Helper()
	began := time.Now()
	config := filepath.Join(l.dir, "xdpd.toml")
	text := fmt.Sprintf("frames = 1024\ninterface = \"xa0\"\naddresses = [\"10.77.0.2/24\"]\nclient_socket = %q\n[[client]]\nname = \"us\"\nusers = [\"%d\"]\nbind = [\"80\"]\n",
		l.dir+"/clients", os.Getuid())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
	control := fmt.Sprintf("%s/control%d", l.dir, n)
	return startDaemon(l.t, l.Lab, childCommand(l.t, "run --config "+config+" --ledger --control "+control), control), time.Since(began)
}

// TestRestartUnderLoad: a daemon is killed and started again while an application works. Operations in flight end with an error, those that
// waited for nothing else with ErrDaemonGone; what is opened then works with the next daemon, and nothing leaks.
func TestRestartUnderLoad(t *testing.T) {
	needRoot(t)
	lab := newLab(t, netlab.Options{Veth: "the daemon is told the interface's name"})
	defer lab.Close()
	l := &restartLab{Lab: lab, t: t, dir: openFolder(t), stop: make(chan struct{})}
	echoServer(t, lab)
	d, _ := l.start(0)
	fds, goroutines := openFiles(t), runtime.NumGoroutine()
	var err error
	if l.app, err = xdpd.Connect(t.Context(), l.dir+"/clients"); err != nil {
		t.Fatal(err)
	}
	kernel := netip.AddrPortFrom(lab.PeerAddr, 7).String()
	l.again(l.serve)
	for range 2 {
		l.again(l.dialEngine)
		l.again(func() error {
			c, err := l.app.DialContext(t.Context(), "tcp", kernel)
			if err != nil {
				return err
			}
			return l.echo(c, &l.done[1])
		})
	}
	l.again(func() error {
		pc, err := l.app.ListenPacket("udp", ":0")
		if err != nil {
			return err
		}
		defer pc.Close()
		b := make([]byte, 100)
		for {
			_ = pc.SetReadDeadline(time.Now().Add(time.Second)) // a datagram may be lost
			if _, err := pc.WriteTo(b, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(kernel))); err != nil {
				return err
			}
			if _, _, err := pc.ReadFrom(b); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return err
			} else if err == nil {
				l.done[2].Add(1)
			}
			select {
			case <-l.stop:
				return nil
			default:
			}
		}
	})
	for n, signal := range []syscall.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGKILL} {
		idle := l.idle(kernel)
		l.progress("with its daemon")
		heard := l.gone.Load()
		began := time.Now()
		if err := d.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_ = d.cmd.Wait() // of SIGKILL it says so
		ended := time.Since(began)
		idle.Wait() // none of them hangs
		if got := l.gone.Load() - heard; got < 3 {
			t.Errorf("after %v %d operations heard that the daemon is gone, want those that waited: a read, a datagram, an accept", signal, got)
		}
		var took time.Duration
		d, took = l.start(n + 1)
		ready := time.Now()
		l.progress("with the next daemon")
		t.Logf("%v: ended after %v, the next was ready after %v more; all kinds of work went on %v later", signal, ended, took, time.Since(ready))
	}
	close(l.stop)
	if err := l.app.Close(); err != nil {
		t.Error(err)
	}
	l.work.Wait()
	d.stop(t)
	eventually(t, "descriptors and goroutines to be back", func() bool {
		return openFiles(t) <= fds && runtime.NumGoroutine() <= goroutines
	})
}

// idle opens sockets on which nothing ever comes, and has somebody wait on each.
func (l *restartLab) idle(kernel string) *sync.WaitGroup {
	l.t.Helper()
	c, err := l.app.Dial("tcp", kernel)
	if err != nil {
		l.t.Fatal(err)
	}
	pc, err := l.app.ListenPacket("udp", ":0")
	if err != nil {
		l.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, err := c.Read(make([]byte, 1)); _ = l.heard(err); c.Close() })
	wg.Go(func() { _, _, err := pc.ReadFrom(make([]byte, 1)); _ = l.heard(err); pc.Close() })
	return &wg
}

// progress waits until each kind of work has gone on.
func (l *restartLab) progress(when string) {
	l.t.Helper()
	var was [4]int64
	for i := range was {
		was[i] = l.done[i].Load()
	}
	for i := range was[:3] {
		eventually(l.t, restartWork[i]+" "+when, func() bool { return l.done[i].Load() > was[i]+5 })
	}
}

// echoServer has the kernel at the other end echo at port 7.
func echoServer(t *testing.T, lab *netlab.Lab) {
	t.Helper()
	address := netip.AddrPortFrom(lab.PeerAddr, 7).String()
	var ln net.Listener
	var pc net.PacketConn
	if err := lab.Peer.Do(func() (err error) {
		if ln, err = net.Listen("tcp4", address); err == nil {
			pc, err = net.ListenPacket("udp4", address)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close(); pc.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			// One whose daemon was killed is never heard of again.
			go func() { _, _ = io.Copy(c, &impatient{c}); c.Close() }()
		}
	}()
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(b[:n], from)
		}
	}()
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
