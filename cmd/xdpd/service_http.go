package main

import (
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
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// fileServer is the service http: a folder over HTTP/1.1, with ranges, HEAD and listings of folders. Nothing outside of
// the folder is reachable, not by a symbolic link either: every name is opened below an os.Root.
type fileServer struct {
	port    uint16
	root    *os.Root
	srv     http.Server
	serving sync.WaitGroup
	n       struct {
		connections, refused, requests, uploads, sent, received atomic.Uint64
	}
}

const (
	httpConns      = 4096             // connections at a time; more are closed at once, and counted
	httpHeaderTime = 10 * time.Second // for a request's header to come
	httpIdleTime   = time.Minute      // between two requests
	// A transfer may take as long as it likes, as long as it moves: each piece that net/http writes (32 KB of a file) or
	// reads has this time.
	httpStallTime = time.Minute
)

// newFileServer opens the folder.
func newFileServer(spec *serviceSpec) (*fileServer, error) {
	root, err := os.OpenRoot(spec.Dir)
	if err != nil {
		return nil, fmt.Errorf("service http: %w", err)
	}
	s := &fileServer{port: spec.Port, root: root}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(rootFiles{root})) // and HEAD
	if spec.Upload {
		for _, pattern := range []string{"PUT /upload", "PUT /upload/", "POST /upload", "POST /upload/"} {
			mux.HandleFunc(pattern, s.upload)
		}
	}
	s.srv = http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.n.requests.Add(1)
			if r.Body != http.NoBody { // package http itself reads what no handler does, and would wait for it for ever
				_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(httpStallTime)) // fails on what is closed
			}
			mux.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: httpHeaderTime, IdleTimeout: httpIdleTime, MaxHeaderBytes: 64 << 10,
	}
	return s, nil
}

// start serves what comes in on l.
func (s *fileServer) start(l net.Listener) {
	s.serving.Go(func() { _ = s.srv.Serve(&httpListener{Listener: l, s: s, slots: make(chan struct{}, httpConns)}) })
}

// Close lets requests end that are being answered, until ctx ends.
func (s *fileServer) Close(ctx context.Context) error {
	err := s.srv.Shutdown(ctx)
	if err != nil {
		err = errors.Join(fmt.Errorf("service http: requests cut off: %w", err), s.srv.Close())
	}
	s.serving.Wait()
	return errors.Join(err, s.root.Close())
}

func (s *fileServer) views() []serviceView {
	return []serviceView{{Name: "http", Port: s.port, Protocol: "tcp", Counters: map[string]uint64{
		"connections": s.n.connections.Load(), "refused": s.n.refused.Load(), "requests": s.n.requests.Load(),
		"uploads": s.n.uploads.Load(), "bytes_sent": s.n.sent.Load(), "bytes_received": s.n.received.Load(),
	}}}
}

// uploaded is the answer to an upload.
type uploaded struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// upload throws the body away and says what it was.
func (s *fileServer) upload(w http.ResponseWriter, r *http.Request) {
	digest := sha256.New()
	body := stallReader{r.Body, http.NewResponseController(w)}
	size, err := io.CopyBuffer(digest, body, make([]byte, 64<<10))
	if err != nil {
		http.Error(w, fmt.Sprintf("the upload broke off after %d bytes", size), http.StatusBadRequest)
		return
	}
	s.n.uploads.Add(1)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(uploaded{size, hex.EncodeToString(digest.Sum(nil))}) // the asker may be gone
}

// stallReader gives every piece of a body its time.
type stallReader struct {
	body io.Reader
	rc   *http.ResponseController
}

func (r stallReader) Read(b []byte) (int, error) {
	if err := r.rc.SetReadDeadline(time.Now().Add(httpStallTime)); err != nil {
		return 0, err
	}
	return r.body.Read(b)
}

// rootFiles are the regular files and folders below the root.
type rootFiles struct {
	root *os.Root
}

// Open implements fs.FS. The error is one that package http has a status for.
func (f rootFiles) Open(name string) (fs.File, error) {
	refuse := func(err error) (fs.File, error) { return nil, &fs.PathError{Op: "open", Path: name, Err: err} }
	// A named pipe that nobody writes to would hold the opener for ever.
	file, err := f.root.OpenFile(path.Clean(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG),
		errors.Is(err, syscall.EINVAL):
		return refuse(fs.ErrNotExist)
	case err != nil && !errors.As(err, &errno): // leads out of the root
		return refuse(fs.ErrPermission)
	case err != nil:
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// httpListener limits and counts connections.
type httpListener struct {
	net.Listener
	s     *fileServer
	slots chan struct{}
}

func (l *httpListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			l.s.n.connections.Add(1)
			return &httpConn{Conn: c, l: l}, nil
		default:
			l.s.n.refused.Add(1)
			c.Close()
		}
	}
}

// httpConn counts bytes and ends a connection whose peer does not take what is sent. It has no ReadFrom: that of the
// engine's connections sends frame by frame, and a file is out in half the time in writes of 32 KB.
type httpConn struct {
	net.Conn
	l    *httpListener
	once sync.Once
}

func (c *httpConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.l.s.n.received.Add(uint64(n))
	return n, err
}

func (c *httpConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(httpStallTime)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	c.l.s.n.sent.Add(uint64(n))
	return n, err
}

func (c *httpConn) Close() error {
	c.once.Do(func() { <-c.l.slots })
	return c.Conn.Close()
}
