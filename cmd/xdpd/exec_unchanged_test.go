package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"xdpd"
	"xdpd/internal/netlab"
)

// execLab is an engine that serves applications, a kernel that echoes at port 7 of the peer, and a way to start programs over the engine.
type execLab struct {
	t    *testing.T
	lab  *netlab.Lab
	sock string
	env  []string
	end  func() // of the daemon
}

// newExecLab makes one. The engine's namespace has no address: what a program does not give to the engine gets nowhere.
func newExecLab(t *testing.T) *execLab {
	needRoot(t)
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lab.Close() })
	st, err := xdpd.Open(xdpd.Config{
		Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	dir := t.TempDir()
	file := fileConfig{ClientSocket: filepath.Join(dir, "clients"), Clients: []xdpd.ClientPolicy{{
		Name: "programs", Users: []uint32{uint32(os.Getuid())}, Bind: []xdpd.PortRange{{First: 1, Last: 65535}}, CPU: 100,
	}}}
	s, err := serveClients(t.Context(), st, &file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	l := &execLab{t: t, lab: lab, sock: file.ClientSocket, end: func() { s.Close() }, env: []string{"XDG_CACHE_HOME=" + dir, "PATH=" + os.Getenv("PATH"), "HOME=" + dir}}
	// The first start compiles the library, and no program's time is to be over by that.
	if out, err := l.command(t.Context(), "--", "/bin/true").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return l
}

// command is xdpd exec of a program without blanks in its arguments, or of flags, --, and a program.
func (l *execLab) command(ctx context.Context, program ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, selfExecuting)
	cmd.Env = append(l.env, childEnv+"=exec --socket "+l.sock+" "+strings.Join(program, " "))
	return cmd
}

// run runs a program to its end, which must be good, and gives what it wrote to standard output.
func (l *execLab) run(in io.Reader, program ...string) []byte {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), netlab.Patience)
	defer cancel()
	cmd := l.command(ctx, program...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errs
	err := l.lab.Engine.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		l.t.Fatalf("%s: %v\n%s%s", program, err, errs.String(), out.Bytes()[:min(out.Len(), 2000)])
	}
	return out.Bytes()
}

// listen listens on the peer's kernel.
func (l *execLab) listen(port int) net.Listener {
	l.t.Helper()
	var ln net.Listener
	err := l.lab.Peer.Do(func() (err error) {
		ln, err = (&net.ListenConfig{}).Listen(l.t.Context(), "tcp4", netip.AddrPortFrom(l.lab.PeerAddr, uint16(port)).String())
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { ln.Close() })
	return ln
}

// echo serves TCP and UDP echo on the peer's kernel at the port that it gives.
func (l *execLab) echo() int {
	ln := l.listen(0)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	var u net.PacketConn
	err := l.lab.Peer.Do(func() (err error) {
		u, err = (&net.ListenConfig{}).ListenPacket(l.t.Context(), "udp4", ln.Addr().String())
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { u.Close() })
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := u.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			_, _ = u.WriteTo(buf[:n], from)
		}
	}()
	return ln.Addr().(*net.TCPAddr).Port
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}

// TestExecGone: when the daemon ends, what waits ends with the right error, and so does what comes later.
func TestExecGone(t *testing.T) {
	l := newExecLab(t)
	script, err := filepath.Abs("testdata/exec_gone.py")
	if err != nil {
		t.Fatal(err)
	}
	cmd := l.command(t.Context(), "/usr/bin/python3", "-S", script, l.lab.PeerAddr.String(), strconv.Itoa(l.echo()), l.lab.EngineAddr.String())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = l.lab.Engine.Start(cmd)
	}
	if err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(out)
	first, _ := said.ReadString('\n')
	l.end()
	last, _ := said.ReadString('\n')
	if err := cmd.Wait(); err != nil || first != "ready\n" || last != "ok\n" {
		t.Errorf("%v: %q, %q\n%s", err, first, last, errs.String())
	}
}

// TestExecUnchanged runs programs as they are in their packages over the engine. scripts/unchanged runs more, for longer.
func TestExecUnchanged(t *testing.T) {
	l := newExecLab(t)
	big := randomBytes(8 << 20)
	port := strconv.Itoa(l.echo())
	peer := l.lab.PeerAddr.String()

	t.Run("sockets of both in python3", func(t *testing.T) {
		l := *l
		l.t = t
		script, err := filepath.Abs("testdata/exec_mixed.py")
		if err != nil {
			t.Fatal(err)
		}
		if out := l.run(nil, "/usr/bin/python3", "-S", script, peer, port); bytes.Count(out, []byte("ok ")) != 13 {
			t.Errorf("it said %s", out)
		}
	})
	t.Run("--only", func(t *testing.T) {
		l := *l
		l.t = t
		const connect = "a=__import__('sys').argv;print(__import__('socket').socket().connect_ex((a[1],int(a[2]))))" // without blanks
		for _, c := range []struct {
			only string
			want syscall.Errno // of the kernel: it has no way there
		}{
			{peer, 0}, {l.lab.PeerAddr.Next().String(), syscall.ENETUNREACH}, {peer + ":" + port, 0}, {":" + port, 0}, {":1", syscall.ENETUNREACH},
		} {
			out := l.run(nil, "--only", c.only, "--", "/usr/bin/python3", "-S", "-c", connect, peer, port)
			if got := strings.TrimSpace(string(out)); got != strconv.Itoa(int(c.want)) {
				t.Errorf("--only %s: errno %s, want %d", c.only, got, c.want)
			}
		}
		for _, local := range []string{"127.0.0.1", "0.0.0.0"} { // a rule of ports does not take them from the kernel
			out := l.run(nil, "--only", ":1", "--", "/usr/bin/python3", "-S", "-c", connect, local, "1")
			if got := strings.TrimSpace(string(out)); got != strconv.Itoa(int(syscall.ECONNREFUSED)) {
				t.Errorf("%s: errno %s, want the kernel's", local, got)
			}
		}
	})
	t.Run("streams at the end", func(t *testing.T) {
		l := *l
		l.t = t
		ln := l.listen(0)
		got := make(chan string, 1)
		go func() {
			c, err := ln.Accept()
			if err != nil {
				got <- err.Error()
				return
			}
			text, err := io.ReadAll(c)
			c.Close()
			got <- fmt.Sprint(string(text), err)
		}()
		const puts = "a=__import__('sys').argv;s=__import__('socket').create_connection((a[1],int(a[2])));" +
			"t=__import__('ctypes');c=t.CDLL(None);c.fdopen.restype=t.c_void_p;c.fputs(b'by-exit',t.c_void_p(c.fdopen(s.detach(),b'w')))" // without blanks
		l.run(nil, "/usr/bin/python3", "-S", "-c", puts, peer, strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
		if text := <-got; text != "by-exit<nil>" {
			t.Errorf("the peer got %q", text)
		}
	})
	t.Run("curl", func(t *testing.T) {
		l := *l
		l.t = t
		var conns atomic.Int32
		mux := http.NewServeMux()
		mux.HandleFunc("GET /big", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(big) })
		mux.HandleFunc("PUT /up", func(w http.ResponseWriter, r *http.Request) {
			h := sha256.New()
			_, err := io.Copy(h, r.Body)
			fmt.Fprintf(w, "%x %v", h.Sum(nil), err)
		})
		server := http.Server{Handler: mux, ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				conns.Add(1)
			}
		}}
		ln := l.listen(0)
		go func() { _ = server.Serve(ln) }()
		defer server.Close()
		url := "http://" + ln.Addr().String()
		if out := l.run(nil, "curl", "-sSf", url+"/big", url+"/big"); !bytes.Equal(out, append(append([]byte{}, big...), big...)) {
			t.Errorf("twice %d bytes: %d came, or others", len(big), len(out))
		}
		if n := conns.Load(); n != 1 {
			t.Errorf("%d connections for two requests", n)
		}
		want := fmt.Sprintf("%x <nil>", sha256.Sum256(big))
		if out := l.run(bytes.NewReader(big), "curl", "-sSf", "-T", "-", url+"/up"); string(out) != want {
			t.Errorf("the server was sent %q, want %q", out, want)
		}
	})
	t.Run("nc", func(t *testing.T) {
		l := *l
		l.t = t
		if out := l.run(bytes.NewReader(big), "nc", "-N", peer, port); !bytes.Equal(out, big) {
			t.Errorf("%d bytes came back of %d, or others", len(out), len(big))
		}
	})
	t.Run("socat with a child for each connection", func(t *testing.T) {
		l := *l
		l.t = t
		cmd := l.command(t.Context(), "socat", "TCP4-LISTEN:8080,fork", "EXEC:cat")
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := l.lab.Engine.Start(cmd); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
		address := netip.AddrPortFrom(l.lab.EngineAddr, 8080).String()
		for i := range 3 {
			var c net.Conn
			eventually(t, "socat to listen", func() bool {
				return l.lab.Peer.Do(func() (err error) {
					c, err = (&net.Dialer{}).DialContext(t.Context(), "tcp4", address)
					return err
				}) == nil
			})
			go func() {
				_, _ = c.Write(big)
				_ = c.(*net.TCPConn).CloseWrite()
			}()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, big) {
				t.Errorf("connection %d: %d bytes came back of %d, or others: %v", i, len(got), len(big), err)
			}
			c.Close()
		}
	})
}
