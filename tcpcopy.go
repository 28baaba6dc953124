package xdpd

import (
	"errors"
	"io"

	"xdpd/sockets"
	"xdpd/umem"
)

// copyBuf is the buffer of a copy that does without lent frames: io.Copy's.
const copyBuf = 32 << 10

// ReadFrom sends all that r has, up to its io.EOF: it implements io.ReaderFrom. Where the window allows, r reads straight
// into the frames that are sent; otherwise into a buffer.
func (c *TCPConn) ReadFrom(r io.Reader) (total int64, err error) {
	var buf []byte
	for {
		f, b, err := c.lend()
		if err != nil {
			return total, c.fail("readfrom", err)
		}
		var n int
		var readErr error
		if f != umem.None {
			n, readErr, err = c.sendFrom(r, f, b)
		} else {
			if buf == nil {
				buf = make([]byte, copyBuf)
			}
			if n, readErr = readSome(r, buf); n > 0 {
				n, err = c.Write(buf[:n])
			}
		}
		total += int64(n)
		switch {
		case err != nil:
			return total, c.fail("readfrom", err)
		case readErr == io.EOF:
			return total, nil
		case readErr != nil:
			return total, c.fail("readfrom", readErr)
		}
	}
}

// readSome does not trust the reader's count, by which memory is shared out.
func readSome(r io.Reader, b []byte) (int, error) {
	n, err := r.Read(b)
	if n < 0 || n > len(b) {
		return 0, errors.New("reader returned an impossible count")
	}
	return n, err
}

// lend asks for an empty frame. None: there is none to be had now.
func (c *TCPConn) lend() (umem.Frame, []byte, error) {
	if err := c.check(&c.wd); err != nil {
		return umem.None, nil, err
	}
	h, now, ok := c.r.Enter()
	defer c.r.Leave()
	if !ok {
		return umem.None, nil, c.endError()
	}
	if !c.stack.loans.fill() {
		return umem.None, nil, nil
	}
	f, b, errno := h.TCPLend(c.s, now)
	if errno != 0 {
		c.stack.loans.filled()
		if errno == sockets.EAGAIN {
			return umem.None, nil, nil
		}
		return umem.None, nil, callError("write", errno)
	}
	c.stack.loans.out()
	return f, b, nil
}

// sendFrom has r fill the lent frame and queues it, or gives it back: also when r panics.
func (c *TCPConn) sendFrom(r io.Reader, f umem.Frame, b []byte) (n int, readErr, err error) {
	defer func() {
		if err = c.sendLent(f, n); err != nil {
			n = 0
		}
	}()
	n, readErr = readSome(r, b)
	return n, readErr, nil
}

// sendLent queues n bytes of a lent frame, behind a Write that is under way.
func (c *TCPConn) sendLent(f umem.Frame, n int) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	defer c.stack.repay()
	defer c.stack.loans.filled()
	h, now, ok := c.r.Enter()
	defer c.r.Leave()
	if !ok {
		return c.endError()
	}
	if errno := h.TCPSendLent(c.s, f, n, now); errno != 0 {
		return callError("write", errno)
	}
	return nil
}

// WriteTo writes all that the peer sends to w, up to the end of the stream: it implements io.WriterTo. w gets the frames
// as they came, without a copy.
func (c *TCPConn) WriteTo(w io.Writer) (total int64, err error) {
	for {
		f, b, err := c.take()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, c.fail("writeto", err)
		}
		n, err := c.pass(w, f, b)
		total += int64(n)
		if err != nil {
			return total, c.fail("writeto", err)
		}
	}
}

// take waits for the first piece of what was received.
func (c *TCPConn) take() (umem.Frame, []byte, error) {
	for waited := false; ; waited = true {
		if err := c.check(&c.rd); err != nil {
			return umem.None, nil, err
		}
		h, now, ok := c.r.Enter()
		if !ok {
			c.r.Leave()
			return umem.None, nil, c.endError()
		}
		f, b, errno := h.TCPTake(c.s, now)
		if errno == 0 && f != umem.None {
			c.stack.loans.out()
		}
		c.r.Leave()
		if waited && errno != sockets.EAGAIN {
			token(c.readable) // as in Read
		}
		switch {
		case errno == sockets.EAGAIN:
			c.wait(c.readable, &c.rd)
		case errno != 0:
			return umem.None, nil, callError("read", errno)
		case f == umem.None:
			return umem.None, nil, io.EOF
		default:
			return f, b, nil
		}
	}
}

// pass has w take a received piece and gives its frame back, also when w panics.
func (c *TCPConn) pass(w io.Writer, f umem.Frame, b []byte) (int, error) {
	defer func() {
		if h, _, ok := c.r.Enter(); ok {
			h.TCPGive(f)
		}
		c.r.Leave()
		c.stack.repay()
	}()
	n, err := w.Write(b)
	if n < 0 || n > len(b) {
		return 0, errors.New("writer returned an impossible count")
	}
	if n < len(b) && err == nil {
		err = io.ErrShortWrite
	}
	return n, err
}
