package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/seeds"
)

// eachFace runs a test of a service on every face.
func eachFace(t *testing.T, test func(t *testing.T, face string)) {
	needRoot(t)
	for _, face := range faceNames {
		t.Run(face, func(t *testing.T) { test(t, face) })
	}
}

// TestFaceOfFlags: what a service says itself outranks --face, and that outranks the file.
func TestFaceOfFlags(t *testing.T) {
	path := writeConfig(t, "interface = \"eth1\"\naddresses = [\"10.0.0.2/24\"]\nface = \"poller\"\n"+
		"[[service]]\nname = \"echo\"\nface = \"ring\"\n[[service]]\nname = \"http\"\ndir = \"/\"\n[[service]]\nname = \"hold\"\n")
	for _, c := range []struct {
		flags runCmd
		want  string
	}{
		{runCmd{Config: path}, "echo@ring http@poller hold@"},
		{runCmd{Config: path, Face: "net"}, "echo@ring http@net hold@"},
		{runCmd{Services: []string{"echo,http=80:/,discard"}}, "echo@poller http@net discard@"},
		{runCmd{Services: []string{"echo@net,http@ring=80:/,proxy=81:tcp:10.0.0.1:80"}, Face: "poller"}, "echo@net http@ring proxy@poller"},
	} {
		f, err := c.flags.merge()
		var got []string
		for _, s := range f.Services {
			got = append(got, s.Name+"@"+s.Face)
		}
		if strings.Join(got, " ") != c.want || err != nil {
			t.Errorf("%+v: %v, %v, want %s", c.flags, got, err, c.want)
		}
	}
	for want, flags := range map[string]runCmd{
		`face is "disk"`:                {Face: "disk"},
		"uploads on the face net":       {Face: "ring", Services: []string{"http=80:/:upload"}},
		"a proxy on poller or ring has": {Config: writeConfig(t, "face = \"ring\"\n[[service]]\nname = \"proxy\"\nport = 1\nflows = 32737\nbackends = [\"10.0.0.1:1\"]\n")},
	} {
		if _, err := flags.merge(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v gives %v, want %q", flags, err, want)
		}
	}
}

// restful waits until nothing is left of the connections: no frame is held, and only listeners are there.
func (s *served) restful(t *testing.T) {
	t.Helper()
	var left string
	defer func() {
		if t.Failed() {
			t.Log(left)
		}
	}()
	eventually(t, "rest", func() bool {
		v, _, err := askControl(t.Context(), s.control)
		if err != nil {
			t.Fatal(err)
		}
		left = ""
		for _, q := range v.Queues {
			if q.Frames.Rx != 0 {
				left += fmt.Sprintf("queue %d: %+v\n", q.Queue, q.Frames)
			}
			for _, c := range q.TCP {
				if c.State != "LISTEN" && c.State != "TIME-WAIT" {
					left += fmt.Sprintf("queue %d: %+v\n", q.Queue, c)
				}
			}
		}
		return left == ""
	})
}

// TestServeEcho: datagrams of all sizes, and streams in both directions at once, each of which is ended by its client.
func TestServeEcho(t *testing.T) {
	seed := seeds.One(t)
	eachFace(t, func(t *testing.T, face string) {
		s := serve(t, "echo@"+face)
		random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
		u := s.dial(t, "udp", 7)
		for _, n := range []int{0, 1, 1472, 1473, 9000, 40000} {
			b, got := make([]byte, n), make([]byte, 65536)
			random.Read(b)
			for try := 0; ; try++ { // a datagram may be lost
				if _, err := u.Write(b); err != nil {
					t.Fatal(err)
				}
				_ = u.SetReadDeadline(time.Now().Add(time.Second))
				k, err := u.Read(got)
				if err == nil && bytes.Equal(got[:k], b) {
					break
				}
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) || try == 20 {
					t.Fatalf("a datagram of %d bytes comes back as %d, %v", n, k, err)
				}
			}
		}
		var work sync.WaitGroup
		for i := range 20 {
			c, b := s.dial(t, "tcp", 7).(*net.TCPConn), make([]byte, 1<<20+i)
			random.Read(b)
			work.Go(func() {
				writing := make(chan error, 1)
				go func() {
					_, err := c.Write(b)
					writing <- errors.Join(err, c.CloseWrite())
				}()
				got, err := io.ReadAll(c)
				if err := errors.Join(err, <-writing); err != nil || !bytes.Equal(got, b) {
					t.Errorf("of %d bytes come back %d, %v", len(b), len(got), err)
				}
				c.Close()
			})
		}
		work.Wait()
		if n := s.service(t, "echo", "tcp").Counters["connections"]; n != 20 {
			t.Errorf("%d connections are counted", n)
		}
		s.restful(t)
	})
}

// TestServeEchoDrains: who has not read yet what came back reads it when the engine has ended, and then the end.
func TestServeEchoDrains(t *testing.T) {
	eachFace(t, func(t *testing.T, face string) {
		c, b := net.Conn(nil), sourceBytes(make([]byte, 1<<16), 0)
		ended := make(chan error, 1)
		t.Cleanup(func() { // behind the engine's end
			if !t.Failed() {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
		})
		s := serve(t, "echo@"+face)
		var err error
		if c, err = s.DialContext(t.Context(), "tcp4", s.at(7)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all of it", func() bool { return unread(t, c.(*net.TCPConn)) == len(b) })
		go func() { // the end comes when the engine is told to end
			got, err := io.ReadAll(c)
			if err == nil && !bytes.Equal(got, b) {
				err = fmt.Errorf("of %d bytes come back %d", len(b), len(got))
			}
			ended <- errors.Join(err, c.Close())
		}()
	})
}

// unread is SIOCINQ: bytes that came and nobody has read.
func unread(t *testing.T, c *net.TCPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		err = errors.Join(err, cerr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}
