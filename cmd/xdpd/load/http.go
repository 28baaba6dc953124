package load

import (
	"bytes"
	"fmt"
)

// gets asks for one path over HTTP/1.1, over and over, on connections that stay.
type gets struct {
	requests
	parsers []parser
	status  int
	length  int64 // negative: not known yet
}

func newGets(cfg *Config, conns int) *gets {
	host := cfg.Host
	if host == "" {
		host = cfg.Target.String()
	}
	one := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: xdpd-load\r\nAccept: */*\r\n\r\n", cfg.Path, host)
	k := &gets{requests: *newRequests(cfg), parsers: make([]parser, conns), status: cfg.Status, length: cfg.Length}
	k.send, k.text = uint64(len(one)), bytes.Repeat(one, max(1, pieceSize/len(one)))
	k.take, k.eof = k.response, k.ended
	return k
}

func (k *gets) opened(w *worker, c *conn) {
	k.parsers[c.id] = parser{}
	w.free(c)
}

// response takes bytes of responses.
func (k *gets) response(w *worker, c *conn, b []byte) Fault {
	p := &k.parsers[c.id]
	for len(b) > 0 {
		if c.issued == c.answered {
			return WrongData
		}
		n, done, f := p.feed(b)
		if f != ok {
			return f
		}
		b = b[n:]
		if done && k.finish(w, c, p) {
			if c.issued > c.answered || len(b) > 0 {
				return Closed
			}
			k.again(w, c)
			return ok
		}
	}
	w.free(c)
	return ok
}

// finish judges a response that is complete; close: none will follow on its connection.
func (k *gets) finish(w *worker, c *conn, p *parser) (close bool) {
	if k.length < 0 && p.status == k.status {
		k.length = p.got
	}
	switch {
	case p.status != k.status:
		k.wrong(w, c, BadStatus)
	case p.got != k.length:
		k.wrong(w, c, BadLength)
	default:
		w.answer(c)
	}
	close = p.close
	*p = parser{}
	return close
}

// wrong fails one request, after which the connection goes on.
func (k *gets) wrong(w *worker, c *conn, f Fault) {
	c.answered++
	c.at = w.now
	w.fail(f, 1)
}

// ended: the peer closed the connection, which is how a body without a length ends.
func (k *gets) ended(w *worker, c *conn) {
	p := &k.parsers[c.id]
	if p.state == inRest && c.issued > c.answered {
		k.finish(w, c, p)
	}
	if c.issued > c.answered {
		w.lost(c, Closed)
		return
	}
	k.again(w, c)
}

// again connects anew, as a server may ask for.
func (k *gets) again(w *worker, c *conn) {
	w.stats.Lost++
	w.drop(c, true)
	w.todo.push(c.id)
}

// parser finds the end of a response, however it is cut into pieces (RFC 9112).
type parser struct {
	state   parserState
	chunked bool
	close   bool
	sized   bool  // the length was told
	status  int   // 0: not known yet
	left    int64 // bytes of the body, or of the chunk
	got     int64 // bytes of the body so far
	n       int   // bytes in line
	line    [lineMax]byte
	lines   int
}

type parserState uint8

const (
	inStatus parserState = iota
	inHeader
	inBody
	inSize  // of a chunk
	inChunk // the chunk, with the line end behind it
	inTrailer
	inRest // a body up to the end of the connection
)

const (
	lineMax  = 64 // of a line, only the beginning matters
	linesMax = 1000
	bodyMax  = 1 << 50
)

// feed takes bytes, at most up to the end of the response. It is complete when done.
func (p *parser) feed(b []byte) (n int, done bool, f Fault) {
	for n < len(b) {
		switch p.state {
		case inBody, inChunk:
			k := min(int64(len(b)-n), p.left)
			n += int(k)
			p.left -= k
			if p.state == inBody {
				p.got += k
			}
			if p.left == 0 {
				if p.state == inBody {
					return n, true, ok
				}
				p.state = inSize
			}
			continue
		case inRest:
			p.got += int64(len(b) - n)
			return len(b), false, ok
		}
		end := bytes.IndexByte(b[n:], '\n')
		if end < 0 {
			p.n += copy(p.line[p.n:], b[n:])
			return len(b), false, ok
		}
		line := b[n : n+end]
		n += end + 1
		if p.n > 0 {
			p.n += copy(p.line[p.n:], line)
			line = p.line[:p.n]
		}
		p.n = 0
		line = line[:min(len(line), lineMax)]
		if done, f = p.take(bytes.TrimSuffix(line, []byte{'\r'})); done || f != ok {
			return n, done, f
		}
	}
	return n, false, ok
}

// take takes a line. done: the response ends with it.
func (p *parser) take(line []byte) (done bool, f Fault) {
	if p.lines++; p.lines > linesMax && p.state != inSize {
		return false, BadHTTP
	}
	switch p.state {
	case inStatus:
		return false, p.takeStatus(line)
	case inHeader:
		if len(line) > 0 {
			return false, p.takeHeader(line)
		}
		return p.headed(), ok
	case inSize:
		size, good := hexSize(line)
		if !good {
			return false, BadHTTP
		}
		p.got += size
		p.left, p.state = size+2, inChunk
		if size == 0 {
			p.lines, p.state = 0, inTrailer
		}
	case inTrailer:
		return len(line) == 0, ok
	}
	return false, ok
}

func (p *parser) takeStatus(line []byte) Fault {
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return BadHTTP
	}
	status, good := decimal(line[9:12])
	if !good || status < 100 {
		return BadHTTP
	}
	p.status, p.state = int(status), inHeader
	p.close = line[7] == '0'
	return ok
}

func (p *parser) takeHeader(line []byte) Fault {
	colon := bytes.IndexByte(line, ':')
	if colon < 0 && len(line) < lineMax || colon == 0 {
		return BadHTTP
	}
	if colon < 0 {
		return ok // a long name: none of those
	}
	name, value := line[:colon], bytes.TrimSpace(line[colon+1:])
	switch {
	case len(line) == lineMax && (is(name, "content-length") || is(name, "transfer-encoding") || is(name, "connection")):
		return BadHTTP // cut off
	case is(name, "content-length"):
		size, good := decimal(value)
		if !good || p.sized && size != p.left {
			return BadHTTP
		}
		p.left, p.sized = size, true
	case is(name, "transfer-encoding"):
		if !is(value, "chunked") {
			return BadHTTP // nothing else was asked for
		}
		p.chunked = true
	case is(name, "connection"):
		p.close = is(value, "close") || p.close && !is(value, "keep-alive")
	}
	return ok
}

// headed decides how the body ends (RFC 9112 section 6.3); done: there is none.
func (p *parser) headed() (done bool) {
	switch {
	case p.status < 200: // the real one follows
		*p = parser{}
	case p.status == 204 || p.status == 304:
		return true
	case p.chunked:
		p.state = inSize
	case p.sized && p.left == 0:
		return true
	case p.sized:
		p.state = inBody
	default:
		p.state, p.close = inRest, true
	}
	return false
}

// is compares without regard to case.
func is(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

func decimal(b []byte) (n int64, good bool) {
	for _, c := range b {
		if c < '0' || c > '9' || n > bodyMax/10 {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, len(b) > 0
}

// hexSize reads the size of a chunk, behind which there may be extensions.
func hexSize(line []byte) (n int64, good bool) {
	i := 0
	for ; i < len(line); i++ {
		c := line[i]
		digit := int64(c - '0')
		switch {
		case c >= '0' && c <= '9':
		case c >= 'a' && c <= 'f':
			digit = int64(c - 'a' + 10)
		case c >= 'A' && c <= 'F':
			digit = int64(c - 'A' + 10)
		default:
			return n, i > 0 && (c == ';' || c == ' ' || c == '\t')
		}
		if n > bodyMax/16 {
			return 0, false
		}
		n = n*16 + digit
	}
	return n, i > 0
}
