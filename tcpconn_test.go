package xdpd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
)

// dialPeer connects the kernel's TCP in the peer namespace to the engine.
func dialPeer(lab *netlab.Lab, address string) (conn net.Conn, err error) {
	err = lab.Peer.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", address, patience)
		return err
	})
	return conn, err
}

// listenTCP opens a listener that ends with the test.
func listenTCP(t *testing.T, stack *xdpd.Stack, f netFace) net.Listener {
	t.Helper()
	ln, err := f.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ln.Close()
		eventually(t, "the end of all connections", func() bool {
			st := getStats(t, stack)
			return noSockets(&st)
		})
	})
	return ln
}

// pair is a connection with its kernel end.
func pair(t *testing.T, lab *netlab.Lab, ln net.Listener) (ours, theirs net.Conn) {
	t.Helper()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	theirs, err := dialPeer(lab, net.JoinHostPort(lab.EngineAddr.String(), port))
	if err != nil {
		t.Fatal(err)
	}
	if ours, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close(); ours.Close() })
	return ours, theirs
}

func TestHTTPServer(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	ln := listenTCP(t, stack, stack)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		if _, err := io.Copy(sum, r.Body); err != nil {
			t.Error(err)
		}
		w.Write(body)
		w.Write(sum.Sum(nil))
	})}
	done := make(chan error)
	go func() { done <- srv.Serve(ln) }()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return dialPeer(lab, net.JoinHostPort(lab.EngineAddr.String(), port))
		},
	}}
	want := sha256.Sum256(body)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 { // on one connection: keep-alive
				resp, err := client.Post("http://engine/x", "application/octet-stream", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || len(got) != len(body)+32 || !bytes.Equal(got[:len(body)], body) || !bytes.Equal(got[len(body):], want[:]) {
					t.Errorf("%d bytes came back, %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
	client.CloseIdleConnections()
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
}

func TestTCPConnHalfClose(t *testing.T) { eachFace(t, netlab.Options{}, testTCPConnHalfClose) }

func testTCPConnHalfClose(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, f netFace) {
	ours, theirs := pair(t, lab, listenTCP(t, stack, f))
	if ours.RemoteAddr().String() != theirs.LocalAddr().String() || ours.LocalAddr().String() != theirs.RemoteAddr().String() {
		t.Errorf("%v-%v is not %v-%v", ours.LocalAddr(), ours.RemoteAddr(), theirs.RemoteAddr(), theirs.LocalAddr())
	}
	if _, err := ours.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	if err := ours.(halfConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(theirs); err != nil || string(got) != "half" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := theirs.Write([]byte("other half")); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	if got, err := io.ReadAll(ours); err != nil || string(got) != "other half" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := ours.Write([]byte("x")); err == nil {
		t.Error("Write after CloseWrite worked")
	}
}

func TestTCPConnDeadlineAndClose(t *testing.T) {
	eachFace(t, netlab.Options{}, testTCPConnDeadlineAndClose)
}

func testTCPConnDeadlineAndClose(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, f netFace) {
	ln := listenTCP(t, stack, f)
	ours, _ := pair(t, lab, ln)
	ours.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := ours.Read(make([]byte, 1))
	var ne net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("Read: %v", err)
	}
	ours.SetReadDeadline(time.Time{})
	ours.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := ours.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("Write to a peer that does not read: %v", err)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Read: %v", err)
			}
		})
	}
	wg.Go(func() {
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
	})
	ours.Close()
	ln.Close()
	wg.Wait()
	if err := ours.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

func TestTCPConnReset(t *testing.T) { eachFace(t, netlab.Options{}, testTCPConnReset) }

func testTCPConnReset(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, f netFace) {
	ours, theirs := pair(t, lab, listenTCP(t, stack, f))
	theirs.(*net.TCPConn).SetLinger(0)
	theirs.Close()
	if _, err := ours.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("Read after a reset: %v", err)
	}
}
