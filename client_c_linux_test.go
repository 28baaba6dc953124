package xdpd_test

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"xdpd/internal/netlab"
)

// TestClientC: a server in C over libxdpd/src/xdpd_client.h, written from the contract, echoes streams and datagrams to the kernel; when
// the daemon ends it says so.
func TestClientC(t *testing.T) {
	lab, stack := engine(t, netlab.Options{Veth: "the guest has no C compiler"})
	s, path := daemon(t, stack, nil)
	bin := filepath.Join(t.TempDir(), "client_echo")
	if out, err := exec.Command("cc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", bin, "testdata/client_echo.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), bin, path, "7")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = io.ReadFull(out, make([]byte, 6))
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, errs.String())
	}
	kernel := kernelSide(lab.Peer, lab.PeerAddr)
	address := netip.AddrPortFrom(lab.EngineAddr, 7).String()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c, err := kernel.dial(t.Context(), "tcp4", address)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			sent := bytes.Repeat([]byte{byte(i), 1, 2, 3, 5}, 100_000)
			wg.Go(func() {
				_, _ = c.Write(sent)
				_ = c.(*net.TCPConn).CloseWrite()
			})
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("connection %d: %d bytes back of %d, or others: %v", i, len(got), len(sent), err)
			}
		})
	}
	wg.Wait()
	u, err := kernel.dial(t.Context(), "udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	buf := make([]byte, 65536)
	for _, n := range []int{0, 1, 1472, 9000, 65507} {
		sent := bytes.Repeat([]byte{byte(n)}, n)
		_ = u.SetDeadline(time.Now().Add(patience))
		if _, err := u.Write(sent); err != nil {
			t.Fatal(err)
		}
		if m, err := u.Read(buf); err != nil || !bytes.Equal(buf[:m], sent) {
			t.Errorf("a datagram of %d: %d back, %v", n, m, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("without its daemon the client ended with %v\n%s", err, errs.String())
	}
}
