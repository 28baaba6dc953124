package web

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"xdpd/internal/seeds"
)

// countedFS counts the files that are open.
type countedFS struct {
	fs.FS
	open int
}

type countedFile struct {
	*os.File
	f *countedFS
}

func (f *countedFS) Open(name string) (fs.File, error) {
	file, err := f.FS.Open(name)
	if err != nil {
		return nil, err
	}
	f.open++
	return countedFile{file.(*os.File), f}, nil
}

func (f countedFile) Close() error {
	f.f.open--
	return f.File.Close()
}

// rig is a Stream whose connection is in memory.
type rig struct {
	*Stream
	t       *testing.T
	r       *rand.Rand // how it is cut into pieces
	files   *countedFS
	dir     string
	out     []byte
	fin     bool
	aborted bool
	n       [3]atomic.Uint64
}

const hello = "hello, world\n"

var big = bytes.Repeat([]byte("0123456789abcdef"), 10_000)

func newRig(t *testing.T, seed uint64) *rig {
	t.Helper()
	g := &rig{t: t, r: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir()}
	for name, text := range map[string][]byte{"hello.txt": []byte(hello), "big": big, "empty": nil} {
		if err := os.WriteFile(filepath.Join(g.dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g.files = &countedFS{FS: os.DirFS(g.dir)}
	g.Stream = New(&Config{
		Files: g.files, HeaderTime: 10 * time.Second, IdleTime: time.Minute, StallTime: 30 * time.Second,
		Requests: &g.n[0], Sent: &g.n[1], Received: &g.n[2],
	})
	g.Open(g)
	return g
}

func (g *rig) Wake()  {}
func (g *rig) Abort() { g.aborted = true }

// send gives the Stream what it has room for, in pieces, and says how much that was.
func (g *rig) send(b []byte) (taken int) {
	for taken < len(b) {
		room := g.Room()
		if room < 0 {
			g.t.Fatalf("room for %d bytes", room)
		}
		if room == 0 {
			return taken
		}
		n := min(room, len(b)-taken, 1+g.r.IntN(1+g.r.IntN(3000)))
		g.Take(bytes.Clone(b[taken : taken+n]))
		taken += n
	}
	return taken
}

// take takes up to n bytes of what is to be sent, in pieces.
func (g *rig) take(n int) {
	for n > 0 && !g.fin && !g.aborted {
		b, fin := g.Next()
		if len(b) == 0 {
			g.fin = fin
			return
		}
		k := min(n, 1+g.r.IntN(len(b)))
		g.out = append(g.out, b[:k]...)
		g.Sent(k)
		n -= k
	}
}

// talk sends all of it and takes all answers.
func (g *rig) talk(in string) {
	g.t.Helper()
	for b := []byte(in); len(b) > 0; {
		n := g.send(b)
		b = b[n:]
		before := len(g.out)
		g.take(1 << 30)
		if n == 0 && len(g.out) == before {
			return // it takes no more
		}
	}
}

// answers are the statuses and bodies of what was sent; head: of a request for HEAD.
func (g *rig) answers(methods ...string) (status []int, bodies []string) {
	g.t.Helper()
	r := bufio.NewReader(bytes.NewReader(g.out))
	for i := 0; ; i++ {
		if _, err := r.Peek(1); err == io.EOF {
			return status, bodies
		}
		req := &http.Request{Method: "GET"}
		if i < len(methods) {
			req.Method = methods[i]
		}
		resp, err := http.ReadResponse(r, req)
		if err != nil {
			g.t.Fatalf("answer %d: %v\n%q", i, err, g.out)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			g.t.Fatalf("answer %d: %v", i, err)
		}
		if resp.Header.Get("Date") == "" {
			g.t.Errorf("answer %d has no date", i)
		}
		status, bodies = append(status, resp.StatusCode), append(bodies, string(body))
	}
}

// over checks that nothing is held when the connection is gone.
func (g *rig) over() {
	g.t.Helper()
	g.Closed(nil)
	if g.files.open != 0 || g.buf != nil {
		g.t.Errorf("%d files are open at the end, buffer held: %v", g.files.open, g.buf != nil)
	}
}

const get = "GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n"

// TestRequests: what is answered, and whether the connection goes on.
func TestRequests(t *testing.T) {
	seed := seeds.One(t)
	for _, c := range []struct {
		in   string
		want string // statuses; "." behind them: the connection ends
	}{
		{get, "200"},
		{get + get + get, "200 200 200"},
		{get + "GET /none HTTP/1.1\r\nHost: x\r\n\r\n" + get, "200 404 200"},
		{"\r\n\r\n" + get + "\r\n" + get, "200 200"},
		{"GET /big HTTP/1.1\r\nhOST:x\r\n\r\n" + get, "200 200"},
		{"GET /empty HTTP/1.1\r\nHost: x\r\n\r\n" + get, "200 200"},
		{"GET /big HTTP/1.1\r\nHost: x\r\nRange: bytes=5-9\r\n\r\n" + get, "206 200"},
		{"GET /big HTTP/1.1\r\nHost: x\r\nRange: bytes=5-9,20-30\r\n\r\n" + get, "200 200"},
		{"GET /big HTTP/1.1\r\nHost: x\r\nRange: bytes=999999-\r\n\r\n" + get, "416 200"},
		{"GET /hello.txt HTTP/1.1\r\nHost: x\r\nIf-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n\r\n" + get, "304 200"},
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + get, "200 200"},
		{"GET http://x/hello.txt HTTP/1.1\r\nHost: x\r\n\r\n" + get, "200 200"},
		{"GET /hello.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + get, "200."},
		{"GET /hello.txt HTTP/1.0\r\n\r\n" + get, "200."},
		{"GET /hello.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + get, "200 200"},
		{"DELETE /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n" + get, "405 200"},
		{"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n" + get, "405 200"},
		{"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /" + get, "405 200"},
		{"GET /hello.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n" + strings.Repeat("x", 70000) + get, "200 200"},
		{"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + get, "405."},
		{"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n", "405."},
		{"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get, "411."},
		{"GET /hello.txt HTTP/2.0\r\nHost: x\r\n\r\n" + get, "505."},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + get, "505."},
		{"GET /" + strings.Repeat("x", 70000) + " HTTP/1.1\r\nHost: x\r\n\r\n" + get, "431."},
		{"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 20000) + "\r\n" + get, "431."},
		{"GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 1<<20) + "\r\n\r\n" + get, "431."},
	} {
		for i := range uint64(10) {
			g := newRig(t, seed+i)
			g.talk(c.in)
			status, bodies := g.answers()
			got := strings.Trim(fmt.Sprint(status), "[]")
			if g.fin {
				got += "."
			}
			if got != c.want {
				t.Errorf("seed %d: %.60q is answered %s, want %s", seed+i, c.in, got, c.want)
			}
			if n := len(bodies); n > 0 && strings.HasSuffix(c.want, "200") && bodies[n-1] != hello {
				t.Errorf("seed %d: %.60q: the last answer is %.40q", seed+i, c.in, bodies[n-1])
			}
			if strings.Contains(c.in, "/big HTTP/1.1\r\nhOST") && bodies[0] != string(big) {
				t.Errorf("seed %d: of %d bytes %d came", seed+i, len(big), len(bodies[0]))
			}
			g.over()
		}
	}
}

// TestHead: the header of GET, and nothing behind it.
func TestHead(t *testing.T) {
	g := newRig(t, 1)
	g.talk("HEAD /big HTTP/1.1\r\nHost: x\r\n\r\nHEAD /none HTTP/1.1\r\nHost: x\r\n\r\n" + get)
	if status, bodies := g.answers("HEAD", "HEAD"); fmt.Sprint(status) != "[200 404 200]" || bodies[0]+bodies[1]+bodies[2] != hello {
		t.Errorf("%v, %q", status, bodies)
	}
	if want := fmt.Sprintf("Content-Length: %d\r\n", len(big)); !strings.Contains(string(g.out), want) {
		t.Errorf("no %q in %q", want, g.out)
	}
	g.over()
}

// TestSmuggling: of what another reader could cut up otherwise, nothing is believed: one refusal, and the end. What stands
// behind it is never taken for a request.
func TestSmuggling(t *testing.T) {
	seed := seeds.One(t)
	const line, host = "POST / HTTP/1.1\r\n", "Host: x\r\n"
	for _, in := range []string{
		line + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		line + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		line + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
		line + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
		line + host + "Content-Length: 5, 5\r\n\r\nhello",
		line + host + "Content-Length: +5\r\n\r\nhello",
		line + host + "Content-Length: -5\r\n\r\nhello",
		line + host + "Content-Length: 0x5\r\n\r\nhello",
		line + host + "Content-Length: 5 5\r\n\r\nhello",
		line + host + "Content-Length: 99999999999999999999\r\n\r\nhello",
		line + host + "Content-Length : 5\r\n\r\nhello",
		line + host + "Content-Length\t: 5\r\n\r\nhello",
		line + host + " Content-Length: 5\r\n\r\nhello",
		line + host + "Content\x00-Length: 5\r\n\r\nhello",
		line + host + "Content-Length\xa0: 5\r\n\r\nhello",
		line + host + "X: a\r\n Content-Length: 5\r\n\r\nhello",
		line + host + "X: a\r\n\tb\r\n\r\n",
		line + host + "X: a\nContent-Length: 5\r\n\r\nhello",
		line + host + "X: a\rContent-Length: 5\r\n\r\nhello",
		line + host + "X: a\x00\r\n\r\n",
		line + host + "X: a\x0b\r\n\r\n",
		line + host + "X\r\n\r\n",
		line + host + ": x\r\n\r\n",
		line + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		line + host + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
		line + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		line + host + "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
		line + host + "Transfer_Encoding : chunked\r\n\r\n0\r\n\r\n",
		line + host + "\r\n\n",
		"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		line + "\r\n",
		line + host + host + "\r\n",
		line + "Host: x y\r\nHost:\r\n\r\n",
		"GET / HTTP/1.1\n" + host + "\r\n",
		"GET / HTTP/1.1\r\n" + "Host: x\n\n",
		"GET /\r\n\r\n",
		"GET / \r\n\r\n",
		"GET / HTTP/1.1 \r\n" + host + "\r\n",
		"GET  / HTTP/1.1\r\n" + host + "\r\n",
		"GET / HTTP/1.1 HTTP/1.1\r\n" + host + "\r\n",
		"GET\t/\tHTTP/1.1\r\n" + host + "\r\n",
		"GET / http/1.1\r\n" + host + "\r\n",
		"GET / HTTP/1.10\r\n" + host + "\r\n",
		"GET / HTTP/1,1\r\n" + host + "\r\n",
		"GET / HTTP/+1.1\r\n" + host + "\r\n",
		"GET / HTTP/1.x\r\n" + host + "\r\n",
		" GET / HTTP/1.1\r\n" + host + "\r\n",
		"G(T / HTTP/1.1\r\n" + host + "\r\n",
		"\x00GET / HTTP/1.1\r\n" + host + "\r\n",
		"GET /\x7f HTTP/1.1\r\n" + host + "\r\n",
		"GET /%zz HTTP/1.1\r\n" + host + "\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", // TLS
	} {
		for i := range uint64(5) {
			g := newRig(t, seed+i)
			g.talk(in + "GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
			status, _ := g.answers()
			if len(status) == 0 && g.Room() > 0 { // the end of the header is not where we would see it
				g.talk("\r\n\r\n")
				status, _ = g.answers()
			}
			ok := len(status) == 1 && g.fin && (status[0] == 400 || status[0] == 505)
			if strings.HasSuffix(in, "\r\n\r\n\n") { // a good request, and a bad line behind it
				ok = fmt.Sprint(status) == "[405 400]" && g.fin
			}
			if !ok {
				t.Errorf("seed %d: %q is answered %v, end %v", seed+i, in, status, g.fin)
			}
			g.over()
		}
	}
}

// TestSlow: a header that comes byte by byte does not get more time than one that comes at once; every state has its limit.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, 1)
		left := func() time.Duration { return time.Until(g.Deadline()) }
		check := func(what string, want time.Duration) {
			t.Helper()
			if got := left(); got != want {
				t.Errorf("%s: %v are left, want %v", what, got, want)
			}
		}
		check("a connection", 10*time.Second)
		time.Sleep(9 * time.Second)
		g.Take([]byte("GET"))
		check("the first bytes", 10*time.Second)
		for range 9 {
			time.Sleep(time.Second)
			g.Take([]byte("x"))
		}
		check("slow loris", time.Second)
		g.Take([]byte(" /big HTTP/1.1\r\nHost: x\r\n\r\n"))
		g.take(1 << 30)
		check("idle", time.Minute)
		time.Sleep(50 * time.Second)
		g.Take([]byte("GET /big HTTP/1.1\r\nHost: x\r\n\r\n" + "GET /"))
		check("an answer", 30*time.Second)
		time.Sleep(20 * time.Second)
		g.take(1)
		check("a piece of it", 30*time.Second)
		time.Sleep(20 * time.Second)
		g.Take([]byte("more")) // no matter what it sends
		check("the next", 10*time.Second)
		g.take(1 << 30)
		check("half of the next request", 10*time.Second)
		g.Take([]byte("\n"))
		g.take(1 << 30)
		check("the end", lingerTime)
		g.over()
	})
}

// TestBounded: who sends and never reads is not read from any more, and what he is answered is not prepared in advance.
func TestBounded(t *testing.T) {
	g := newRig(t, 1)
	many := []byte(strings.Repeat("GET /big HTTP/1.1\r\nHost: x\r\n\r\n", 10_000))
	if n := g.send(many); n > maxHeader+100 {
		t.Errorf("%d bytes of requests were taken, nothing of the answers was", n)
	}
	if b, _ := g.Next(); len(b) > maxPage || len(g.in) > maxHeader || g.files.open != 1 {
		t.Errorf("%d bytes are prepared, %d wait, %d files are open", len(b), len(g.in), g.files.open)
	}
	g.take(1 << 20)
	if len(g.out) != 1<<20 {
		t.Errorf("%d bytes were answered", len(g.out))
	}
	g.over()
	g = newRig(t, 2)
	if n := g.send([]byte("x\n" + strings.Repeat("x", 1<<20))); n > lingerBytes+maxHeader {
		t.Errorf("behind the last request %d bytes were taken", n)
	}
	g.over()
}

// TestFileShrinks: where what was promised is not there any more the connection is reset.
func TestFileShrinks(t *testing.T) {
	g := newRig(t, 1)
	g.send([]byte("GET /big HTTP/1.1\r\nHost: x\r\n\r\n"))
	g.take(100_000)
	if err := os.Truncate(filepath.Join(g.dir, "big"), 50_000); err != nil {
		t.Fatal(err)
	}
	g.take(1 << 30)
	if !g.aborted {
		t.Errorf("the connection goes on after %d bytes", len(g.out))
	}
	g.over()
}

// TestFinish: an answer is completed, an idle connection ended.
func TestFinish(t *testing.T) {
	g := newRig(t, 1)
	g.send([]byte("GET /big HTTP/1.1\r\nHost: x\r\n\r\n" + get))
	g.take(10_000)
	g.Finish()
	g.take(1 << 30)
	if status, bodies := g.answers(); fmt.Sprint(status) != "[200]" || bodies[0] != string(big) || !g.fin {
		t.Errorf("answered %v, end %v", status, g.fin)
	}
	g.over()
	g = newRig(t, 1)
	g.Finish()
	if g.take(1); !g.fin {
		t.Error("an idle connection goes on")
	}
	g.over()
}

// TestEnd: a client that has said all is answered all.
func TestEnd(t *testing.T) {
	g := newRig(t, 1)
	g.send([]byte(get + get + "GET /half"))
	g.End()
	g.take(1 << 30)
	if status, _ := g.answers(); fmt.Sprint(status) != "[200 200]" || !g.fin {
		t.Errorf("answered %v, end %v", status, g.fin)
	}
	g.over()
}

// FuzzStream: whatever comes, in whatever pieces, what goes is well-formed answers, and the bounds hold.
func FuzzStream(f *testing.F) {
	f.Add([]byte(get+get), uint64(1))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"), uint64(2))
	f.Add([]byte("GET /%2e%2e HTTP/1.0\r\nRange: bytes=-1\r\n\r\n"), uint64(3))
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		g := newRig(t, seed)
		g.talk(string(in))
		g.End()
		g.take(1 << 30)
		if !g.fin && !g.aborted {
			t.Error("the connection does not end")
		}
		if bytes.Contains(in, []byte("HEAD")) {
			g.out = nil // their lengths would be taken for those of bodies
		}
		g.answers()
		g.over()
	})
}
