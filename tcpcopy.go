package xdpd

import (
	"errors"
	"io"
	"sync"

	"xdpd/sockets"
)

// Buffers of copies. A large one makes fewer calls, of the engine and of the other side; but a copy that waits holds none,
// or a small one: there may be very many of them.
const (
	smallCopy = 4 << 10
	largeCopy = 64 << 10
)

var largeCopies = sync.Pool{New: func() any { return new([largeCopy]byte) }}

// ReadFrom sends all that r has, up to its io.EOF: it implements io.ReaderFrom.
func (c *TCPConn) ReadFrom(r io.Reader) (total int64, err error) {
	small := make([]byte, smallCopy)
	buf := small
	var large *[largeCopy]byte
	defer func() {
		if large != nil {
			largeCopies.Put(large)
		}
	}()
	for {
		if err := c.check(&c.wd); err != nil { // not to read what can only be lost
			return total, c.fail("readfrom", err)
		}
		n, readErr := r.Read(buf)
		if n < 0 || n > len(buf) {
			return total, c.fail("readfrom", errors.New("reader returned an impossible count"))
		}
		if n > 0 {
			k, err := c.Write(buf[:n])
			if total += int64(k); err != nil {
				return total, c.fail("readfrom", err)
			}
		}
		switch {
		case readErr == io.EOF:
			return total, nil
		case readErr != nil:
			return total, c.fail("readfrom", readErr)
		case n == smallCopy && large == nil:
			large = largeCopies.Get().(*[largeCopy]byte)
			buf = large[:]
		case n < smallCopy && large != nil: // r has no more at the moment, and may block for long
			largeCopies.Put(large)
			large, buf = nil, small
		}
	}
}

// WriteTo writes all that the peer sends to w, up to the end of the stream: it implements io.WriterTo.
func (c *TCPConn) WriteTo(w io.Writer) (total int64, err error) {
	for waited := false; ; {
		if err := c.check(&c.rd); err != nil {
			return total, c.fail("writeto", err)
		}
		n, errno, err := c.writeSome(w, waited)
		total += int64(n)
		if waited = errno == sockets.EAGAIN; waited {
			<-c.readable
			continue
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, c.fail("writeto", err)
		}
	}
}

// writeSome has w take what was received, up to a large buffer's full; io.EOF behind the end of the stream.
func (c *TCPConn) writeSome(w io.Writer, waited bool) (int, sockets.Errno, error) {
	buf := largeCopies.Get().(*[largeCopy]byte)
	defer largeCopies.Put(buf)
	h, now, ok := c.r.Enter()
	if !ok {
		c.r.Leave()
		return 0, 0, c.endError()
	}
	got, errno := h.TCPRead(c.s, buf[:], now)
	c.r.Leave()
	if waited && errno != sockets.EAGAIN {
		token(c.readable) // as in Read
	}
	switch {
	case errno != 0:
		return 0, errno, callError("read", errno)
	case got == 0:
		return 0, 0, io.EOF
	}
	n, err := w.Write(buf[:got])
	switch {
	case n < 0 || n > got:
		return 0, 0, errors.New("writer returned an impossible count")
	case n < got && err == nil:
		err = io.ErrShortWrite
	}
	return n, 0, err
}
