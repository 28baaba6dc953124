package xdpd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/rpc"
	"strings"
	"sync"
	"testing"
	"time"

	"xdpd/internal/netlab"
)

// The programs in this file are the standard library's, unmodified, with the engine at one end and a kernel at the other.

// random is n bytes that depend on the seed.
func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// handler answers with the SHA-256 of what it was sent, and then with as many bytes as ?n= says, in pieces if ?chunks is there.
func handler(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		if _, err := io.Copy(sum, r.Body); err != nil {
			t.Errorf("request body: %v", err)
		}
		var n int
		fmt.Sscan(r.FormValue("n"), &n)
		body := append(sum.Sum(nil), random(1, n)...)
		if !r.Form.Has("chunks") {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.Write(body)
			return
		}
		for len(body) > 0 {
			k := min(len(body), 10000)
			w.Write(body[:k])
			w.(http.Flusher).Flush()
			body = body[k:]
		}
	})
}

// exchange makes one request and checks the answer. It reports whether the connection had been used before.
func exchange(client *http.Client, url string, sent, n int, chunks bool, major int) (reused bool, err error) {
	body := random(2, sent)
	var reader io.Reader = bytes.NewReader(body)
	address := fmt.Sprintf("%s/?n=%d", url, n)
	if chunks { // of unknown length
		reader = io.MultiReader(reader)
		address += "&chunks"
	}
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused },
	})
	req, err := http.NewRequestWithContext(ctx, "POST", address, reader)
	if err != nil {
		return reused, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return reused, err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return reused, err
	}
	sum := sha256.Sum256(body)
	if want := append(sum[:], random(1, n)...); !bytes.Equal(got, want) {
		return reused, fmt.Errorf("of %d bytes sent and %d asked for came back %d, or others", sent, n, len(got))
	}
	if resp.ProtoMajor != major {
		return reused, fmt.Errorf("HTTP/%d was spoken, not HTTP/%d", resp.ProtoMajor, major)
	}
	if major == 1 && (len(resp.TransferEncoding) > 0) != chunks {
		return reused, fmt.Errorf("transfer encoding %v with chunks=%v", resp.TransferEncoding, chunks)
	}
	return reused, nil
}

// testHTTP runs a server on ln and clients at the other end.
func testHTTP(t *testing.T, ln net.Listener, transport *http.Transport, url string, major int) {
	t.Helper()
	srv := &http.Server{Handler: handler(t)}
	done := make(chan error)
	go func() { done <- srv.Serve(ln) }()
	client := &http.Client{Transport: transport, Timeout: 2 * patience}
	var wg sync.WaitGroup
	var mu sync.Mutex
	reused := 0
	const clients = 4
	sizes := []int{0, 1, 1000, 1448, 100_000, 1 << 20}
	for range clients {
		wg.Go(func() {
			for i, n := range sizes {
				again, err := exchange(client, url, n, sizes[len(sizes)-1-i], i%2 == 1, major)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if again {
					reused++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if !t.Failed() && reused < clients*(len(sizes)-1)-clients {
		t.Errorf("of %d requests %d went over a connection that was there", clients*len(sizes), reused)
	}
	client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := await(t, done, "the end of Serve"); !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
}

func TestHTTP(t *testing.T) {
	_, _, roles := bothWays(t, netlab.Options{})
	for _, r := range roles {
		t.Run(r.name, func(t *testing.T) {
			ln := r.server.open(t)
			testHTTP(t, ln, &http.Transport{DialContext: r.client.dial, MaxIdleConnsPerHost: 4}, "http://"+ln.Addr().String(), 1)
		})
	}
}

// TestHTTPTransport is the whole of what a program must change to have its requests go through the engine.
func TestHTTPTransport(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	ln := kernelSide(lab.Peer, lab.PeerAddr).open(t)
	srv := &http.Server{Handler: handler(t)}
	go func() { _ = srv.Serve(ln) }() // until Close
	defer srv.Close()
	transport := &http.Transport{DialContext: stack.DialContext}
	client := &http.Client{Transport: transport}
	reuses := 0 // package http makes a new connection where a goroutine of its own was kept waiting for 50 ms
	for range 10 {
		reused, err := exchange(client, "http://"+ln.Addr().String(), 5000, 5000, false, 1)
		if err != nil {
			t.Error(err)
		}
		if reused {
			reuses++
		}
	}
	if reuses < 5 {
		t.Errorf("of 10 requests %d went over a connection that was there", reuses)
	}
	transport.CloseIdleConnections()
}

func TestHTTP2(t *testing.T) {
	lab, _, roles := bothWays(t, netlab.Options{})
	serverTLS, clientTLS := certificate(t, lab.EngineAddr, lab.PeerAddr)
	serverTLS.NextProtos = []string{"h2"}
	for _, r := range roles {
		t.Run(r.name, func(t *testing.T) {
			ln := r.server.open(t)
			transport := &http.Transport{DialContext: r.client.dial, TLSClientConfig: clientTLS.Clone(), ForceAttemptHTTP2: true}
			testHTTP(t, tls.NewListener(ln, serverTLS), transport, "https://"+ln.Addr().String(), 2)
		})
	}
}

// TestTLS sends in both directions at once, and closes one after the other.
func TestTLS(t *testing.T) {
	lab, _, roles := bothWays(t, netlab.Options{})
	serverTLS, clientTLS := certificate(t, lab.EngineAddr, lab.PeerAddr)
	for _, r := range roles {
		t.Run(r.name, func(t *testing.T) {
			c, s, err := connect(r.client, r.server.open(t))
			if err != nil {
				t.Fatal(err)
			}
			cfg := clientTLS.Clone()
			cfg.ServerName = r.server.addr.String()
			ends := []*tls.Conn{tls.Client(c, cfg), tls.Server(s, serverTLS)}
			const n = 4 << 20
			var all sync.WaitGroup
			for i, end := range ends {
				end.SetDeadline(time.Now().Add(2 * patience))
				all.Go(func() {
					if _, err := end.Write(random(uint64(i), n)); err != nil {
						t.Errorf("end %d writes: %v", i, err)
					}
					if err := end.CloseWrite(); err != nil {
						t.Errorf("end %d: CloseWrite: %v", i, err)
					}
				})
				all.Go(func() {
					if got, err := io.ReadAll(end); err != nil || !bytes.Equal(got, random(uint64(1-i), n)) {
						t.Errorf("end %d reads %d of %d bytes, %v", i, len(got), n, err)
					}
				})
			}
			all.Wait()
			for _, end := range ends {
				end.Close()
			}
		})
	}
}

// Text is the service of TestRPC.
type Text struct{}

// Repeat is arg.Text, arg.Times times.
func (Text) Repeat(arg RepeatArgs, reply *string) error {
	if arg.Times < 0 {
		return errors.New("less than nothing")
	}
	*reply = strings.Repeat(arg.Text, arg.Times)
	return nil
}

// RepeatArgs are the arguments of Text.Repeat.
type RepeatArgs struct {
	Text  string
	Times int
}

func TestRPC(t *testing.T) {
	_, _, roles := bothWays(t, netlab.Options{})
	for _, r := range roles {
		t.Run(r.name, func(t *testing.T) {
			srv := rpc.NewServer()
			if err := srv.Register(Text{}); err != nil {
				t.Fatal(err)
			}
			ln := r.server.open(t)
			serve(t, ln, func(c net.Conn) { srv.ServeConn(c) })
			conn, err := r.client.dial(t.Context(), "tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(2 * patience))
			client := rpc.NewClient(conn)
			defer client.Close()
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					for k := range 100 {
						var reply string
						args := RepeatArgs{fmt.Sprint(i, k, " "), k * i}
						if err := client.Call("Text.Repeat", args, &reply); err != nil || reply != strings.Repeat(args.Text, args.Times) {
							t.Errorf("%v: a reply of %d bytes, %v", args, len(reply), err)
							return
						}
					}
				})
			}
			all.Wait()
			var reply string
			if err := client.Call("Text.Repeat", RepeatArgs{"x", -1}, &reply); err == nil || err.Error() != "less than nothing" {
				t.Errorf("the service's error came as %v", err)
			}
		})
	}
}
