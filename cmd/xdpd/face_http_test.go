package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xdpd/cmd/xdpd/faces"
	"xdpd/cmd/xdpd/web"
	"xdpd/internal/netlab"
	"xdpd/internal/seeds"
)

// fileServing serves a folder over connections in memory.
type fileServing func(t *testing.T, dir string, upload bool) (*fileServer, *http.Client, *pieces)

// eachServer runs a test with package http as server, and with the one of poller and ring.
func eachServer(t *testing.T, test func(t *testing.T, serve fileServing)) {
	for name, serve := range map[string]fileServing{"net": serveFiles, "loops": serveStreams} {
		t.Run(name, func(t *testing.T) { test(t, serve) })
	}
}

// serveStreams is serveFiles with web.Streams, which know no uploads.
func serveStreams(t *testing.T, dir string, _ bool) (*fileServer, *http.Client, *pieces) {
	t.Helper()
	s, err := newHTTPLoops(&serviceSpec{Name: "http", Port: 80, serviceOptions: serviceOptions{Dir: dir}})
	if err != nil {
		t.Fatal(err)
	}
	l := newPieces()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.n.connections.Add(1)
			go pump(c, web.New(&s.cfg))
		}
	}()
	tr := &http.Transport{DialContext: l.DialContext}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		l.Close()
		<-ended
		s.root.Close()
	})
	return &s.fileServer, &http.Client{Transport: tr}, l
}

// pumped is the connection of a Stream that pump serves.
type pumped struct{ net.Conn }

func (pumped) Wake()    {}
func (p pumped) Abort() { p.Close() }

// pump moves the bytes of a Stream.
func pump(c net.Conn, s faces.Stream) {
	defer func() { s.Closed(nil); c.Close() }()
	s.Open(pumped{c})
	buf := make([]byte, 4096)
	for ended := false; ; {
		for {
			b, fin := s.Next()
			if len(b) == 0 && fin {
				return
			}
			if len(b) == 0 {
				break
			}
			n, err := c.Write(b)
			if s.Sent(n); err != nil {
				return
			}
		}
		if room := s.Room(); room > 0 && !ended {
			n, err := c.Read(buf[:min(room, len(buf))])
			if n > 0 {
				s.Take(buf[:n])
			}
			if err != nil {
				ended = true
				s.End()
			}
		}
	}
}

// TestServeHTTPClients: rude clients of many kinds, and between them polite ones, which get every byte.
func TestServeHTTPClients(t *testing.T) {
	seed := seeds.One(t)
	dir := webRootIfRoot(t)
	const size = 4 << 20
	bigFile(t, filepath.Join(dir, "big"), size)
	want := sourceBytes(make([]byte, size), 0)
	eachFace(t, func(t *testing.T, face string) {
		s := serve(t, "http@"+face+"=80:"+dir)
		var rude []*net.TCPConn
		for i := range 60 {
			c := s.dial(t, "tcp", 80).(*net.TCPConn)
			rude = append(rude, c)
			text := []string{
				"GET /big HTTP/1.1\r\nHost: x\r\n\r\n", // and reads nothing
				"GET /big HT",                          // and says no more
				strings.Repeat("GET /big HTTP/1.1\r\nHost: x\r\n\r\n", 5000),
			}[i%3]
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(c, text) // the last is not read to its end
		}
		parallel(t, 12, func(i int) error {
			c := s.dial(t, "tcp", 80)
			defer c.Close()
			return politely(c, want, rand.New(rand.NewPCG(seed, uint64(i))))
		})
		for i, c := range rude {
			if i%2 == 0 {
				_ = c.SetLinger(0)
			}
			c.Close()
		}
		s.restful(t)
	})
}

// politely asks for pieces of the file, many requests at a time, and compares the answers.
func politely(c net.Conn, want []byte, random *rand.Rand) error {
	_ = c.SetDeadline(time.Now().Add(netlab.Patience))
	type part struct{ from, to int }
	parts := make(chan part, 1000)
	go func() {
		defer close(parts)
		for range 10 {
			var b bytes.Buffer
			for range 1 + random.IntN(20) {
				p := part{from: random.IntN(len(want))}
				p.to = min(len(want), p.from+1+random.IntN(60_000))
				fmt.Fprintf(&b, "GET /big HTTP/1.1\r\nHost: x\r\nRange: bytes=%d-%d\r\n\r\n", p.from, p.to-1)
				parts <- p
			}
			if _, err := c.Write(b.Bytes()); err != nil {
				return // the reader sees it too
			}
		}
	}()
	r := bufio.NewReader(c)
	for p := range parts {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 206 || !bytes.Equal(got, want[p.from:p.to]) {
			return fmt.Errorf("bytes %d to %d: status %d, %d bytes, %w", p.from, p.to, resp.StatusCode, len(got), err)
		}
	}
	return nil
}

// TestServeHTTPRefusals: a refusal arrives, although what it refuses is still being sent, and behind it is the end.
func TestServeHTTPRefusals(t *testing.T) {
	dir := webRootIfRoot(t)
	for _, face := range []string{"poller", "ring"} {
		t.Run(face, func(t *testing.T) {
			s := serve(t, "http@"+face+"=80:"+dir)
			for in, want := range map[string]int{
				"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n": 400,
				"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 200_000):                                    405,
				"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 300_000):                                                                            431,
				"GET / HTTP/1.1\nHost: x\n\n": 400,
			} {
				c := s.dial(t, "tcp", 80)
				_ = c.SetDeadline(time.Now().Add(netlab.Patience))
				if _, err := io.WriteString(c, in); err != nil {
					t.Errorf("%.40q: %v", in, err)
				}
				r := bufio.NewReader(c)
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Errorf("%.40q: %v", in, err)
					continue
				}
				body, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != want || !strings.Contains(string(body), http.StatusText(want)) {
					t.Errorf("%.40q is answered %d %q, %v, want %d", in, resp.StatusCode, body, err, want)
				}
				if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
					t.Errorf("%.40q: behind the answer come %q, %v", in, rest, err)
				}
				c.Close()
			}
			s.restful(t)
		})
	}
}
