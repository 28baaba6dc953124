package load

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// parse feeds b in pieces of n bytes, and says what becomes of it: bytes taken, up to the end of the response if it is done.
func parse(b []byte, n int) (p parser, used int, done bool, f Fault) {
	for used < len(b) && !done && f == ok {
		var k int
		k, done, f = p.feed(b[used:min(len(b), used+n)])
		used += k
	}
	return p, used, done, f
}

var responses = []struct {
	text string
	got  int64 // bytes of the body; -1: broken
}{
	{"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 3},
	{"HTTP/1.1 200 OK\r\ncontent-LENGTH:3\r\n\r\nabc", 3},
	{"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 0},
	{"HTTP/1.1 404 Not Found\nContent-Length: 3\n\nabc", 3},
	{"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n", 0},
	{"HTTP/1.1 304 Not Modified\r\nContent-Length: 300\r\n\r\n", 0},
	{"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", 2},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", 13},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n", 0},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n1\r\na\r\n0\r\n\r\n", 1},
	{"HTTP/1.1 200 OK\r\nSet-Cookie: " + strings.Repeat("c", 5000) + "\r\nContent-Length: 1\r\n\r\na", 1},
	{"HTTP/1.1 200 OK\r\n" + strings.Repeat("n", 200) + ": x\r\nContent-Length: 1\r\n\r\na", 1},
	{"HTTP/2 200 OK\r\n\r\n", -1},
	{"HTTP/1.1 20 OK\r\n\r\n", -1},
	{"HTTP/1.1 2000 OK\r\n\r\n", -1},
	{"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", -1},
	{"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", -1},
	{"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", -1},
	{"HTTP/1.1 200 OK\r\nContent-Length: " + strings.Repeat("0", 100) + "1\r\n\r\n", -1},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", -1},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", -1},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", -1},
	{"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", -1},
	{"HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 2000) + "\r\n", -1},
}

func TestParser(t *testing.T) {
	for _, c := range responses {
		for _, n := range []int{1, 2, 3, 7, 1 << 20} {
			p, used, done, f := parse([]byte(c.text+"HTTP/1.1 "), n)
			switch {
			case c.got < 0 && f != BadHTTP:
				t.Errorf("%.60q in pieces of %d: %v %v", c.text, n, done, f)
			case c.got >= 0 && (!done || f != ok || p.got != c.got || used != len(c.text)):
				t.Errorf("%.60q in pieces of %d: done %v, %d bytes, %d used of %d, fault %v", c.text, n, done, p.got, used, len(c.text), f)
			}
		}
	}
	for text, want := range map[string]bool{
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n": false, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n": true,
		"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n":      true,
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n": false,
	} {
		if len(text) == 0 {
			t.Fatal()
		}
		var p parser
		if _, _, f := p.feed([]byte(text)); f != ok || p.close != want {
			t.Errorf("%q: close %v", text, p.close)
		}
	}
}

// FuzzParser: however a response is cut, the same becomes of it; and what is well-formed for net/http, and done for us, has
// the same status and as long a body.
func FuzzParser(f *testing.F) {
	for _, c := range responses {
		f.Add([]byte(c.text), 5)
	}
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\nto the end"), 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		n = max(1, n&0xffff)
		p, used, done, fault := parse(b, n)
		q, used2, done2, fault2 := parse(b, len(b)+1)
		if done != done2 || fault != fault2 || done && (used != used2 || p.status != q.status || p.got != q.got || p.close != q.close) {
			t.Fatalf("%q in pieces of %d: %d %v %v, in one %d %v %v", b, n, used, done, fault, used2, done2, fault2)
		}
		if !done || p.status < 200 || bytes.HasPrefix(b, []byte("HTTP/1.1 1")) {
			return
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b[:used])), nil)
		if err != nil {
			return // it is stricter in many ways
		}
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode < 200 || err == nil && (resp.StatusCode != p.status || int64(len(body)) != p.got) {
			t.Fatalf("%q: status %d and %d bytes, net/http says %d and %d", b, p.status, p.got, resp.StatusCode, len(body))
		}
	})
}

// TestGets: statuses, lengths and closes as a server may have them, in the simulated world.
func TestGets(t *testing.T) {
	x := newWorld(t, Config{Kind: HTTP, Connections: 5, Count: 1000, Path: "/a?b", Host: "h:1", Length: -1})
	request := "GET /a?b HTTP/1.1\r\nHost: h:1\r\nUser-Agent: xdpd-load\r\nAccept: */*\r\n\r\n"
	n, closed := 0, uint64(0)
	var want [nFaults]uint64
	x.answer = func(s *simSock, b []byte) ([]byte, simEnd) {
		if string(b) != request {
			t.Fatalf("the request is %q", b)
		}
		n++
		switch {
		case n%10 == 0:
			want[BadStatus]++
			return []byte("HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno"), goesOn
		case n%11 == 0:
			want[BadLength]++
			return []byte("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef"), goesOn
		case n%13 == 0:
			want[BadHTTP]++
			return []byte("SSH-2.0-x\r\nxxxxx"), goesOn
		case n%17 == 0:
			closed++
			return []byte("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde"), ends
		case n%19 == 0:
			closed++
			return []byte("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde"), ends
		case n%23 == 0:
			want[Closed]++
			return []byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcd"), ends
		case n%29 == 0:
			want[WrongData]++
			return []byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcdeHTTP/1.1 200"), goesOn
		}
		return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nDate: %v\r\nContent-Length: 5\r\n\r\nabcde", n), goesOn
	}
	s := x.run(time.Hour)
	got := s.Errors
	got[WrongData] = s.ConnErrors[WrongData] // the request was answered before
	if got != want || s.Errors[WrongData] > 0 || s.Requests != 1000 || s.Lost < closed {
		t.Errorf("%d requests, errors %v, want %v; %d of at least %d connections ended", s.Requests, faults(&s.Errors), faults(&want), s.Lost, closed)
	}
}
