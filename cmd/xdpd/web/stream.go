package web

import (
	"bytes"
	"io"
	"io/fs"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"xdpd/cmd/xdpd/faces"
)

// Config says what is served, and within which limits.
type Config struct {
	Files      fs.FS         // whose files are *os.File
	HeaderTime time.Duration // for a request's header to come
	IdleTime   time.Duration // between two requests
	StallTime  time.Duration // in which a piece of an answer has to be taken

	Requests, Sent, Received *atomic.Uint64 // counted: requests, bytes
}

const (
	maxHeader = 64 << 10 // of a request, with what is pipelined behind it
	piece     = 16 << 10
	// A connection that ends before its peer has said all waits for the peer to end it: a reset would take from the peer
	// what it was answered (RFC 9112 9.6).
	lingerTime  = 2 * time.Second
	lingerBytes = 256 << 10
)

var pieces = sync.Pool{New: func() any { return new([piece]byte) }}

// Stream serves a connection.
type Stream struct {
	cfg  *Config
	conn faces.Conn

	in       []byte // came, and is not answered yet
	seen     int    // of it, looked through for the end of a header
	deadline time.Time
	head     []byte // of the answer, still to be sent
	resp     *response
	buf      *[piece]byte // of the file
	ready    []byte       // in buf, to be sent
	body     int64        // of the request, to be skipped
	last     bool         // nothing is answered behind this
	ended    bool         // the peer's FIN came
	linger   int          // bytes that may still come behind the last request
}

// New makes the Stream of a connection.
func New(cfg *Config) *Stream {
	return &Stream{cfg: cfg, deadline: time.Now().Add(cfg.HeaderTime), linger: lingerBytes}
}

// Open implements faces.Stream.
func (s *Stream) Open(c faces.Conn) { s.conn = c }

// Room implements faces.Stream.
func (s *Stream) Room() int {
	if s.last {
		return s.linger
	}
	return maxHeader - len(s.in)
}

// Take implements faces.Stream.
func (s *Stream) Take(b []byte) {
	s.cfg.Received.Add(uint64(len(b)))
	if s.last {
		s.linger -= len(b)
		return
	}
	if n := min(s.body, int64(len(b))); n > 0 {
		s.body -= n
		b = b[n:]
	}
	if len(b) == 0 {
		return
	}
	if len(s.in) == 0 && s.resp == nil { // the first bytes of a header
		s.deadline = time.Now().Add(s.cfg.HeaderTime)
	}
	s.in = append(s.in, b...)
	s.begin()
}

// End implements faces.Stream. What was asked before is answered.
func (s *Stream) End() { s.ended = true }

// Deadline implements faces.Stream.
func (s *Stream) Deadline() time.Time { return s.deadline }

// begin answers the next request, if it is there.
func (s *Stream) begin() {
	if s.resp != nil || s.last {
		return
	}
	for bytes.HasPrefix(s.in, []byte("\r\n")) { // empty lines before a request: RFC 9112 2.2
		s.in, s.seen = s.in[2:], 0
	}
	n, bad := headerEnd(s.in, s.seen)
	s.seen = len(s.in)
	switch {
	case bad != 0:
		s.refuse(bad)
		return
	case n == 0 && len(s.in) < maxHeader:
		return
	case n == 0:
		s.refuse(http.StatusRequestHeaderFieldsTooLarge)
		return
	}
	req, bad := parse(s.in[:n])
	if bad != 0 {
		s.refuse(bad)
		return
	}
	s.in, s.seen = s.in[n:], 0
	s.cfg.Requests.Add(1)
	s.last = req.Close
	if req.ContentLength > 0 {
		s.skip(req)
	}
	s.respond(req, answer(s.cfg.Files, req))
}

// skip passes over a request's body. One that is long, or that waits to be asked for, ends the connection instead.
func (s *Stream) skip(req *http.Request) {
	if req.ContentLength > lingerBytes || req.Header.Get("Expect") != "" {
		s.last = true
		return
	}
	n := min(req.ContentLength, int64(len(s.in)))
	s.in = s.in[n:]
	s.body = req.ContentLength - n
}

func (s *Stream) refuse(status refusal) {
	s.last = true
	s.cfg.Requests.Add(1)
	s.respond(nil, refuse(status))
}

// respond begins to send an answer.
func (s *Stream) respond(req *http.Request, w *response) {
	now := time.Now()
	s.resp, s.head = w, w.head(req, now, s.last)
	s.deadline = now.Add(s.cfg.StallTime)
	if s.last {
		s.in = nil
	}
}

// Next implements faces.Stream.
func (s *Stream) Next() (b []byte, fin bool) {
	switch {
	case len(s.head) > 0:
		return s.head, false
	case len(s.ready) > 0:
		return s.ready, false
	case s.resp != nil: // there is more of the file
		if !s.read() {
			s.conn.Abort() // it became shorter: what was promised cannot be kept
		}
		return s.ready, false
	}
	return nil, s.last || s.ended
}

// read reads the next piece of the file.
func (s *Stream) read() (ok bool) {
	if s.buf == nil {
		s.buf = pieces.Get().(*[piece]byte)
	}
	n, err := io.ReadFull(s.resp.body, s.buf[:min(piece, s.resp.body.N)])
	s.ready = s.buf[:n]
	return err == nil
}

// Sent implements faces.Stream.
func (s *Stream) Sent(n int) {
	s.cfg.Sent.Add(uint64(n))
	s.deadline = time.Now().Add(s.cfg.StallTime)
	if len(s.head) > 0 {
		s.head = s.head[n:]
	} else {
		s.ready = s.ready[n:]
	}
	if len(s.head)+len(s.ready) == 0 && (s.resp.body == nil || s.resp.body.N == 0) {
		s.done()
	}
}

// done goes on after an answer: with the next request, which may have come already.
func (s *Stream) done() {
	s.release()
	now := time.Now()
	switch {
	case s.last:
		s.deadline = now.Add(lingerTime)
	case len(s.in) > 0:
		s.deadline = now.Add(s.cfg.HeaderTime)
	default:
		s.in, s.deadline = nil, now.Add(s.cfg.IdleTime)
	}
	s.begin()
}

// release gives back what an answer holds.
func (s *Stream) release() {
	if s.resp != nil {
		s.resp.files.closeAll()
		s.resp = nil
	}
	if s.buf != nil {
		pieces.Put(s.buf)
		s.buf, s.ready = nil, nil
	}
}

// Finish ends the connection after the answer that is being sent, or now. Only for its Loop's goroutine.
func (s *Stream) Finish() {
	s.last, s.in = true, nil
	if s.resp == nil {
		s.deadline = time.Now().Add(lingerTime)
	}
	s.conn.Wake()
}

// Closed implements faces.Stream.
func (s *Stream) Closed(error) { s.release() }
