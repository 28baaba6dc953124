package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

const secret = "outside of the folder"

// webRoot is a folder to serve, with all that must not lead out of it; beside it is a secret.
func webRoot(t *testing.T) string {
	t.Helper()
	top := t.TempDir()
	dir := filepath.Join(top, "www")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "sub", "upload"), 0o755))
	must(os.WriteFile(filepath.Join(top, "secret"), []byte(secret), 0o644))
	must(os.WriteFile(filepath.Join(dir, "hello.txt"), []byte("hello, world\n"), 0o644))
	must(os.WriteFile(filepath.Join(dir, "sub", "a&b.txt"), []byte("in sub"), 0o644))
	for name, to := range map[string]string{
		"relative": "../secret", "absolute": filepath.Join(top, "secret"), "up": "..", "inside": "sub/a&b.txt", "loop": "loop",
		"proc": "/proc/self/environ",
	} {
		must(os.Symlink(to, filepath.Join(dir, name)))
	}
	must(unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	return dir
}

// pieces is a listener over in-memory connections.
type pieces struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPieces() *pieces { return &pieces{conns: make(chan net.Conn), done: make(chan struct{})} }

func (l *pieces) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pieces) Addr() net.Addr { return &net.TCPAddr{} }
func (l *pieces) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pieces) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serveFiles serves a folder until the test ends; the client reaches it.
func serveFiles(t *testing.T, dir string, upload bool) (*fileServer, *http.Client, *pieces) {
	t.Helper()
	s, err := newFileServer(&serviceSpec{Name: "http", Port: 80, serviceOptions: serviceOptions{Dir: dir, Upload: upload}})
	if err != nil {
		t.Fatal(err)
	}
	l := newPieces()
	s.start(l)
	tr := &http.Transport{DialContext: l.DialContext}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		if err := s.Close(t.Context()); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return s, &http.Client{Transport: tr}, l
}

// ask gives status, header and body.
func ask(t *testing.T, c *http.Client, method, path string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://files"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp, string(got)
}

// eventually waits for what must come; its limit only turns a hang into a failure.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(netlab.Patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

func TestFilesServed(t *testing.T) { eachServer(t, testFilesServed) }

func testFilesServed(t *testing.T, serve fileServing) {
	s, c, _ := serve(t, webRoot(t), false)
	for _, q := range []struct {
		method, path, rng string
		status            int
		body              string
	}{
		{"GET", "/hello.txt", "", 200, "hello, world\n"},
		{"GET", "/sub/a&b.txt", "", 200, "in sub"},
		{"GET", "/inside", "", 200, "in sub"}, // a link that stays in the folder
		{"HEAD", "/hello.txt", "", 200, ""},
		{"GET", "/hello.txt", "bytes=7-11", 206, "world"},
		{"GET", "/hello.txt", "bytes=-6", 206, "world\n"},
		{"GET", "/hello.txt", "bytes=99-", 416, ""},
		{"GET", "/missing", "", 404, ""},
		{"GET", "/hello.txt/below", "", 404, ""},
		{"GET", "/" + strings.Repeat("x", 300), "", 404, ""},
		{"PUT", "/hello.txt", "", 405, ""},
		{"POST", "/upload", "", 405, ""},
		{"DELETE", "/hello.txt", "", 405, ""},
	} {
		var header []string
		if q.rng != "" {
			header = []string{"Range", q.rng}
		}
		resp, body := ask(t, c, q.method, q.path, nil, header...)
		if resp.StatusCode != q.status || q.status < 300 && body != q.body {
			t.Errorf("%s %.20s %s is answered %d %q, want %d %q", q.method, q.path, q.rng, resp.StatusCode, body, q.status, q.body)
		}
		if q.method == "HEAD" && resp.ContentLength != 13 {
			t.Errorf("HEAD tells the length %d", resp.ContentLength)
		}
	}
	resp, list := ask(t, c, "GET", "/", nil)
	if resp.StatusCode != 200 || !strings.Contains(list, `<a href="hello.txt">`) || !strings.Contains(list, `<a href="sub/">`) {
		t.Errorf("the folder is listed as %d\n%s", resp.StatusCode, list)
	}
	if n := s.views()[0].Counters; n["requests"] != 14 || n["connections"] == 0 || n["bytes_sent"] == 0 || n["bytes_received"] == 0 {
		t.Errorf("counted %v", n)
	}
}

// TestFilesNothingOutside sends paths as no client library would.
func TestFilesNothingOutside(t *testing.T) { eachServer(t, testFilesNothingOutside) }

func testFilesNothingOutside(t *testing.T, serve fileServing) {
	dir := webRoot(t)
	_, _, l := serve(t, dir, true)
	for _, path := range []string{
		"/relative", "/absolute", "/up/secret", "/up/", "/up/www/../secret", "/proc", "/loop", "/pipe",
		"/../secret", "/sub/../../secret", "/%2e%2e/secret", "/..%2fsecret", "/sub/..%2f..%2fsecret", "/.%00./secret",
		"//etc/passwd", "/..\\secret", "/sub/%2e%2e/%2e%2e/secret", "/hello.txt/../../secret", "/" + dir + "/../secret",
	} {
		c, err := l.DialContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		go fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: files\r\nConnection: close\r\n\r\n", path)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		body, err := io.ReadAll(resp.Body)
		c.Close()
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if strings.Contains(string(body), secret) || strings.Contains(string(body), "www/") || resp.StatusCode == 200 {
			t.Errorf("%s is answered %d %q", path, resp.StatusCode, body)
		}
		if resp.StatusCode >= 500 {
			t.Errorf("%s is answered %d, as if the server were to blame", path, resp.StatusCode)
		}
	}
}

// TestFilesErrors: what is wrong with the machine is not told as "no such file".
func TestFilesErrors(t *testing.T) {
	root, err := os.OpenRoot(webRoot(t))
	if err != nil {
		t.Fatal(err)
	}
	files := rootFiles{root}
	for name, want := range map[string]error{
		"up": fs.ErrPermission, "relative": fs.ErrPermission, "pipe": fs.ErrPermission, "loop": fs.ErrNotExist, "none": fs.ErrNotExist,
	} {
		if f, err := files.Open(name); !errors.Is(err, want) {
			t.Errorf("%s opens as %v, %v, want %v", name, f, err, want)
		}
	}
	root.Close()
	if f, err := files.Open("hello.txt"); err == nil {
		t.Errorf("a closed root opens %v", f)
	}
}

func TestFilesFolderMissing(t *testing.T) {
	_, err := newFileServer(&serviceSpec{serviceOptions: serviceOptions{Dir: "/nonexistent/www"}})
	if err == nil || !strings.Contains(err.Error(), "service http") || !strings.Contains(err.Error(), "/nonexistent/www") {
		t.Errorf("a missing folder gives %v", err)
	}
}

// bigFile makes a file that no two places of are alike, and its digest.
func bigFile(t *testing.T, path string, size int) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	digest := sha256.New()
	for at := 0; at < size; {
		b := sourceBytes(make([]byte, min(1<<20, size-at+7)), uint64(at))
		b = b[:min(len(b), size-at)]
		if _, err := io.MultiWriter(f, digest).Write(b); err != nil {
			t.Fatal(err)
		}
		at += len(b)
	}
	return hex.EncodeToString(digest.Sum(nil))
}

func TestFilesBig(t *testing.T) {
	dir := webRoot(t)
	const size = 20<<20 + 12345
	want := bigFile(t, filepath.Join(dir, "big"), size)
	s, c, _ := serveFiles(t, dir, true)
	resp, body := ask(t, c, "GET", "/big", nil)
	if got := sha256.Sum256([]byte(body)); resp.ContentLength != size || len(body) != size || hex.EncodeToString(got[:]) != want {
		t.Errorf("%d bytes announced, %d came, SHA-256 %x, want %d, %s", resp.ContentLength, len(body), got, size, want)
	}
	eventually(t, "the count", func() bool { return s.n.sent.Load() >= size }) // behind the write that the client read
	if n := s.n.sent.Load(); n > size+1000 {
		t.Errorf("%d bytes are counted for %d", n, size)
	}
	for _, method := range []string{"PUT", "POST"} {
		for _, path := range []string{"/upload", "/upload/big"} {
			// A reader of unknown length is sent in chunks, one of known length as it is.
			for _, r := range []io.Reader{strings.NewReader(body), struct{ io.Reader }{strings.NewReader(body)}} {
				resp, answer := ask(t, c, method, path, r)
				var got uploaded
				if err := json.Unmarshal([]byte(answer), &got); err != nil || resp.StatusCode != 200 {
					t.Fatalf("%s %s is answered %d %q: %v", method, path, resp.StatusCode, answer, err)
				}
				if got.Size != size || got.SHA256 != want {
					t.Errorf("%s %s: %+v, want %d, %s", method, path, got, size, want)
				}
			}
		}
	}
	if s.n.uploads.Load() != 8 || s.n.received.Load() < 8*size {
		t.Errorf("%d uploads with %d bytes are counted", s.n.uploads.Load(), s.n.received.Load())
	}
	if got, err := os.ReadDir(filepath.Join(dir, "sub", "upload")); err != nil || len(got) != 0 {
		t.Errorf("an upload left %v, %v", got, err)
	}
}

// TestUploadCut: half an upload is none.
func TestUploadCut(t *testing.T) {
	s, _, l := serveFiles(t, webRoot(t), true)
	c, err := l.DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "PUT /upload HTTP/1.1\r\nHost: files\r\nContent-Length: 1000\r\n\r\nonly this"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the request", func() bool { return s.n.requests.Load() == 1 })
	c.Close()
	if err := s.srv.Shutdown(t.Context()); err != nil { // waits for the request to end
		t.Fatal(err)
	}
	if s.n.requests.Load() != 1 || s.n.uploads.Load() != 0 {
		t.Errorf("%d requests, %d whole uploads", s.n.requests.Load(), s.n.uploads.Load())
	}
}

// TestFilesStalled: a peer that takes nothing, or sends nothing of what it announced, is not waited for.
func TestFilesStalled(t *testing.T) {
	dir := webRoot(t)
	bigFile(t, filepath.Join(dir, "big"), 1<<20)
	synctest.Test(t, func(t *testing.T) {
		s, err := newFileServer(&serviceSpec{serviceOptions: serviceOptions{Dir: dir, Upload: true}})
		if err != nil {
			t.Fatal(err)
		}
		l := newPieces()
		s.start(l)
		for _, q := range []struct {
			request string
			want    string // what the client reads, from its start
		}{
			{"GET /big HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200"},
			{"PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", "HTTP/1.1 400"},
			{"GET /big HTTP/1.1\r\n", ""},
			{"GET /hello.txt HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf", ""}, // package http reads it to its end
			{"POST /hello.txt HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", ""},
		} {
			c, err := l.DialContext(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(c, q.request); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, len(q.want))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != q.want {
				t.Errorf("%q is answered %q, %v", q.request, b, err)
			}
			time.Sleep(2 * httpStallTime) // of a clock that jumps
			synctest.Wait()
			if _, err := c.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("%q: after two minutes the connection is open: %v", q.request, err)
			}
			c.Close()
		}
		if s.n.uploads.Load() != 0 {
			t.Error("half an upload is counted as one")
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestFilesConnectionLimit: beyond it connections are closed, and counted; one that ends makes room.
func TestFilesConnectionLimit(t *testing.T) {
	s := &fileServer{}
	under := newPieces()
	l := &httpListener{Listener: under, s: s, slots: make(chan struct{}, 1)}
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := under.DialContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	dial()
	first := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one too many sees %v", err)
	}
	first.Close()
	first.Close() // gives its place back once
	dial()
	second := <-accepted
	if _, err := dial().Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one too many sees %v after a place came free", err)
	}
	second.Close()
	under.Close()
	<-accepted
	if s.n.connections.Load() != 2 || s.n.refused.Load() != 2 {
		t.Errorf("%d connections taken, %d refused", s.n.connections.Load(), s.n.refused.Load())
	}
}
