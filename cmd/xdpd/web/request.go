// Package web is an HTTP/1.1 server of files without connections or goroutines of its own: a Stream is given the bytes that
// came, and says which to send (package faces moves them). What stands in a request is read by package http, and so is
// what files are answered with (http.FileServerFS), behind checks that are stricter than it needs: whatever two readers
// of the same bytes could understand differently is refused (RFC 9112 section 11.2).
package web

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
)

// refusal is a status for a request that is not one.
type refusal int

// headerEnd finds the end of a request's header in b, of which the first seen bytes were looked at before; 0: it is not
// there yet. Lines end in CRLF: who takes LF alone for an end sees other lines than we do. CR alone is a control character.
func headerEnd(b []byte, seen int) (n int, bad refusal) {
	for i := max(0, seen-1); i < len(b); i++ {
		switch {
		case b[i] == '\n' && (i == 0 || b[i-1] != '\r'):
			return 0, http.StatusBadRequest
		case b[i] == '\n' && i >= 3 && b[i-3] == '\r' && b[i-2] == '\n':
			return i + 1, 0
		}
	}
	return 0, 0
}

// checkLines looks at the lines below the request line: a name of token characters, a colon, no control characters, no
// line that goes on with the one above, and at most one of those that say where the message ends or whose it is.
func checkLines(header []byte, minor byte) refusal {
	var host, length, encoding int
	lines := strings.Split(strings.TrimSuffix(string(header), "\r\n\r\n"), "\r\n")
	for _, line := range lines[1:] {
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsFunc(name, notToken) || strings.ContainsFunc(value, control) {
			return http.StatusBadRequest
		}
		switch strings.ToLower(name) {
		case "host":
			host++
		case "content-length":
			length++
		case "transfer-encoding":
			encoding++
		}
	}
	switch {
	case host == 0 && minor > 0: // several are refused by package http
		return http.StatusBadRequest
	case length+encoding > 1, encoding > 0 && minor == 0:
		return http.StatusBadRequest
	}
	return 0
}

func notToken(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
}

func control(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// parse reads a request of which header is all up to its body.
func parse(header []byte) (*http.Request, refusal) {
	line, _, _ := bytes.Cut(header, []byte("\r\n"))
	if bytes.ContainsFunc(line, control) {
		return nil, http.StatusBadRequest
	}
	version := line[bytes.LastIndexByte(line, ' ')+1:]
	if len(version) != len("HTTP/1.1") || !bytes.HasPrefix(version, []byte("HTTP/")) || version[6] != '.' {
		return nil, http.StatusBadRequest
	}
	if version[5] != '1' || version[7] < '0' || version[7] > '9' {
		return nil, http.StatusHTTPVersionNotSupported
	}
	if bad := checkLines(header, version[7]-'0'); bad != 0 {
		return nil, bad
	}
	rest := bytes.NewReader(header)
	br := bufio.NewReaderSize(rest, 4096)
	req, err := http.ReadRequest(br)
	switch {
	case err != nil, br.Buffered()+rest.Len() > 0:
		return nil, http.StatusBadRequest
	case len(req.TransferEncoding) > 0: // to read a body nobody wants
		return req, http.StatusLengthRequired
	}
	return req, 0
}
