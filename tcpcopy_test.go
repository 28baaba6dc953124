package xdpd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
)

// acceptedPair is a connection that the engine accepted, with its kernel end. Both end with the test.
func acceptedPair(t *testing.T) (*xdpd.Stack, *xdpd.TCPConn, *net.TCPConn) {
	t.Helper()
	lab, stack := engine(t, netlab.Options{})
	ours, theirs := pair(t, lab, listenTCP(t, stack, stack))
	theirs.SetDeadline(time.Now().Add(2 * patience))
	return stack, ours.(*xdpd.TCPConn), theirs.(*net.TCPConn)
}

// copySizes are around the payload of a segment, and around the buffers of a copy.
var copySizes = []int{0, 1, 2, 1447, 1448, 1449, 1460, 2896, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20}

// expect reads exactly b.
func expect(r io.Reader, b []byte) error {
	got := make([]byte, len(b))
	if n, err := io.ReadFull(r, got); err != nil {
		return fmt.Errorf("%d of %d bytes, %w", n, len(b), err)
	}
	if !bytes.Equal(got, b) {
		return fmt.Errorf("%d bytes came, but others", len(b))
	}
	return nil
}

// onlyReader hides what else a reader can do, so that io.Copy has to ask the other side.
type onlyReader struct{ io.Reader }

// onlyWriter is the same for a writer.
type onlyWriter struct{ io.Writer }

func TestReadFrom(t *testing.T) {
	_, ours, theirs := acceptedPair(t)
	for _, kind := range []struct {
		name string
		wrap func(io.Reader) io.Reader
		most int
	}{
		{"whole", func(r io.Reader) io.Reader { return r }, 1 << 30},
		{"last bytes with EOF", iotest.DataErrReader, 1 << 30},
		{"halves", iotest.HalfReader, 1 << 30},
		{"one by one", iotest.OneByteReader, 4000},
	} {
		for i, size := range copySizes {
			want := random(uint64(i), min(size, kind.most))
			received := blocked(func() error { return expect(theirs, want) })
			n, err := io.Copy(ours, onlyReader{kind.wrap(bytes.NewReader(want))})
			if n != int64(len(want)) || err != nil {
				t.Fatalf("%s: copied %d of %d bytes, %v", kind.name, n, len(want), err)
			}
			if err := await(t, received, "the bytes at the peer"); err != nil {
				t.Fatalf("%s, %d bytes: %v", kind.name, len(want), err)
			}
		}
	}
}

// TestReadFromFile has a file copied, as servers do.
func TestReadFromFile(t *testing.T) {
	_, ours, theirs := acceptedPair(t)
	want := random(1, 5<<20)
	name := t.TempDir() + "/file"
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	received := blocked(func() error { return expect(theirs, want) })
	if n, err := ours.ReadFrom(f); n != int64(len(want)) || err != nil {
		t.Errorf("copied %d of %d bytes, %v", n, len(want), err)
	}
	if err := await(t, received, "the bytes at the peer"); err != nil {
		t.Error(err)
	}
}

// TestReadFromBlocks: while a reader blocks, nobody else is kept from anything.
func TestReadFromBlocks(t *testing.T) {
	_, ours, theirs := acceptedPair(t)
	source, feed := io.Pipe()
	result := make(chan error, 1)
	go func() {
		n, err := ours.ReadFrom(source)
		if err == nil && n != 6 {
			err = fmt.Errorf("copied %d bytes, not 6", n)
		}
		result <- err
	}()
	for range 3 {
		if _, err := ours.Write([]byte("written,")); err != nil {
			t.Fatal(err)
		}
		if err := expect(theirs, []byte("written,")); err != nil {
			t.Fatal(err)
		}
		if _, err := theirs.Write([]byte("read")); err != nil {
			t.Fatal(err)
		}
		if err := expect(ours, []byte("read")); err != nil {
			t.Fatal(err)
		}
		if _, err := feed.Write([]byte("ok")); err != nil {
			t.Fatal(err)
		}
		if err := expect(theirs, []byte("ok")); err != nil {
			t.Fatal(err)
		}
	}
	feed.Close()
	if err := await(t, result, "the end of the copy"); err != nil {
		t.Error(err)
	}
}

// TestReadFromErrors: what ends a copy.
func TestReadFromErrors(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name string
		end  func(ours *xdpd.TCPConn, theirs *net.TCPConn, feed *io.PipeWriter)
		want error
	}{
		{"the reader fails", func(_ *xdpd.TCPConn, _ *net.TCPConn, feed *io.PipeWriter) { feed.CloseWithError(boom) }, boom},
		{"Close", func(ours *xdpd.TCPConn, _ *net.TCPConn, feed *io.PipeWriter) {
			ours.Close()
			feed.Write([]byte("too late"))
		}, net.ErrClosed},
		{"CloseWrite", func(ours *xdpd.TCPConn, _ *net.TCPConn, feed *io.PipeWriter) {
			ours.CloseWrite()
			feed.Write([]byte("too late"))
		}, unix.EPIPE},
		{"a deadline", func(ours *xdpd.TCPConn, _ *net.TCPConn, feed *io.PipeWriter) {
			ours.SetWriteDeadline(time.Unix(1, 0))
			feed.Write([]byte("just in time"))
		}, os.ErrDeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, ours, theirs := acceptedPair(t)
			source, feed := io.Pipe()
			result := blocked(func() error {
				_, err := ours.ReadFrom(source)
				source.Close()
				return err
			})
			if _, err := feed.Write([]byte("x")); err != nil { // from here on the copy goes on
				t.Fatal(err)
			}
			c.end(ours, theirs, feed)
			err := await(t, result, "the end of the copy")
			var op *net.OpError
			if !errors.Is(err, c.want) || !errors.As(err, &op) || op.Op != "readfrom" {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// evilReader does what no reader should.
type evilReader struct{ n int }

func (r evilReader) Read(b []byte) (int, error) {
	if r.n == 0 {
		panic("evil")
	}
	return r.n, nil
}

func TestReadFromEvilReaders(t *testing.T) {
	_, ours, theirs := acceptedPair(t)
	for _, n := range []int{-1, 1 << 20} {
		if k, err := ours.ReadFrom(evilReader{n}); k != 0 || err == nil {
			t.Errorf("a reader that returns %d: %d, %v", n, k, err)
		}
	}
	func() {
		defer func() {
			if r := recover(); r != "evil" {
				t.Errorf("recovered %v", r)
			}
		}()
		ours.ReadFrom(evilReader{})
	}()
	if _, err := ours.Write([]byte("still here")); err != nil {
		t.Error(err)
	}
	if err := expect(theirs, []byte("still here")); err != nil {
		t.Error(err)
	}
}

// TestReadersThatBlock: many readers that block take no frames from those who have something to say.
func TestReadersThatBlock(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	cfg.Frames = 512
	stack := openStack(t, lab, cfg)
	ln := listenTCP(t, stack, stack)
	var copies sync.WaitGroup
	var feeds []*io.PipeWriter
	var peers []net.Conn
	for range 300 {
		ours, theirs := pair(t, lab, ln)
		source, feed := io.Pipe()
		copies.Go(func() {
			if _, err := ours.(*xdpd.TCPConn).ReadFrom(source); err != nil {
				t.Error(err)
			}
			ours.Close()
		})
		feeds, peers = append(feeds, feed), append(peers, theirs)
	}
	ours, theirs := pair(t, lab, ln)
	want := random(1, 1<<20)
	received := blocked(func() error { return expect(theirs, want) })
	if _, err := ours.Write(want); err != nil {
		t.Error(err)
	}
	if err := await(t, received, "the bytes at the peer"); err != nil {
		t.Error(err)
	}
	for i, feed := range feeds { // and those who blocked go on
		if _, err := feed.Write([]byte("go on")); err != nil {
			t.Fatal(err)
		}
		if err := expect(peers[i], []byte("go on")); err != nil {
			t.Fatal(err)
		}
		feed.Close()
	}
	copies.Wait()
}

func TestWriteTo(t *testing.T) {
	_, ours, theirs := acceptedPair(t)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var want []byte
	sent := make(chan error, 1)
	for i, size := range copySizes {
		want = append(want, random(uint64(i), size)...)
	}
	go func() {
		for b := want; len(b) > 0; {
			k := min(len(b), 1+r.IntN(20000))
			if _, err := theirs.Write(b[:k]); err != nil {
				sent <- err
				return
			}
			b = b[k:]
		}
		sent <- theirs.CloseWrite()
	}()
	var got bytes.Buffer
	n, err := io.Copy(onlyWriter{&got}, ours)
	if n != int64(len(want)) || err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("seed %d: copied %d of %d bytes, %v; the same: %v", seed, n, len(want), err, bytes.Equal(got.Bytes(), want))
	}
	if err := await(t, sent, "the end of the sender"); err != nil {
		t.Error(err)
	}
	if n, err := ours.WriteTo(&got); n != 0 || err != nil { // the end of the stream stays
		t.Errorf("behind the end: %d, %v", n, err)
	}
}

// TestWriteToWaits: the end of the stream is there for everybody who waits for it.
func TestWriteToWaits(t *testing.T) {
	_, ours, theirs := acceptedPair(t)
	const n = 4
	results := make(chan error, n)
	for range n {
		go func() {
			_, err := ours.WriteTo(io.Discard)
			results <- err
		}()
	}
	time.Sleep(20 * time.Millisecond) // all of them wait, as far as one can tell
	if err := theirs.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := await(t, results, "the end of a copy"); err != nil {
			t.Error(err)
		}
	}
}

// stubborn is a writer that takes a few bytes and then says what it was told to.
type stubborn struct {
	n   int
	err error
}

func (w *stubborn) Write(b []byte) (int, error) { return w.n, w.err }

func TestWriteToErrors(t *testing.T) {
	_, ours, theirs := acceptedPair(t)
	boom := errors.New("boom")
	for _, c := range []struct {
		w    stubborn
		n    int64
		want error
	}{
		{stubborn{2, boom}, 2, boom}, {stubborn{2, nil}, 2, io.ErrShortWrite}, {stubborn{-1, boom}, 0, nil}, {stubborn{99, nil}, 0, nil},
	} {
		if _, err := theirs.Write([]byte("abcd")); err != nil {
			t.Fatal(err)
		}
		n, err := ours.WriteTo(&c.w)
		if n != c.n || err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%+v: %d, %v; want %d, %v", c.w, n, err, c.n, c.want)
		}
	}
	sink := blocked(func() error {
		_, err := ours.WriteTo(io.Discard)
		return err
	})
	ours.SetReadDeadline(time.Unix(1, 0))
	if err := await(t, sink, "a timeout"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want %v", err, os.ErrDeadlineExceeded)
	}
	ours.SetReadDeadline(time.Time{})
	sink = blocked(func() error {
		_, err := ours.WriteTo(io.Discard)
		return err
	})
	ours.Close()
	if err := await(t, sink, "the end"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want %v", err, net.ErrClosed)
	}
}

// TestWriteToBlocks: what a writer that blocks has in its hands stays what it was, when the connection is closed too.
func TestWriteToBlocks(t *testing.T) {
	_, ours, theirs := acceptedPair(t)
	sink, feed := io.Pipe()
	result := blocked(func() error {
		_, err := ours.WriteTo(feed)
		return err
	})
	want := random(3, 1000)
	if _, err := theirs.Write(want); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bytes in the writer's hands", func() bool {
		i := info(t, ours)
		return i.BytesReceived == 1000 && i.RecvQueue == 0
	})
	ours.Close()
	if err := expect(sink, want); err != nil {
		t.Error(err)
	}
	if err := await(t, result, "the end of the copy"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want %v", err, net.ErrClosed)
	}
}

// TestCopiesAtClose closes the engine under copies whose other sides block.
func TestCopiesAtClose(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	stack := openStack(t, lab, engineConfig(lab))
	ln, err := stack.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := pair(t, lab, ln)
	source, feed := io.Pipe()
	sink, drain := io.Pipe()
	reads := blocked(func() error {
		_, err := ours.(*xdpd.TCPConn).ReadFrom(source)
		return err
	})
	writes := blocked(func() error {
		_, err := ours.(*xdpd.TCPConn).WriteTo(drain)
		return err
	})
	want := random(4, 1000)
	if _, err := theirs.Write(want); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bytes in the writer's hands", func() bool {
		i := info(t, ours.(*xdpd.TCPConn))
		return i.BytesReceived == 1000 && i.RecvQueue == 0
	})
	if err := stack.Close(); err != nil {
		t.Fatal(err)
	}
	if err := expect(sink, want); err != nil {
		t.Error(err)
	}
	if _, err := feed.Write(want); err != nil {
		t.Error(err)
	}
	for _, result := range []<-chan error{reads, writes} {
		if err := await(t, result, "the end of a copy"); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v, want %v", err, net.ErrClosed)
		}
	}
}

// TestCopyBetween is a proxy: what comes in on one connection goes out on another of the same engine.
func TestCopyBetween(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	ln := listenTCP(t, stack, stack)
	in, source := pair(t, lab, ln)
	out, sink := pair(t, lab, ln)
	want := random(5, 8<<20)
	sent := blocked(func() error {
		_, err := source.Write(want)
		return errors.Join(err, source.(*net.TCPConn).CloseWrite())
	})
	copied := blocked(func() error {
		_, err := io.Copy(out, in)
		return errors.Join(err, out.Close(), in.Close())
	})
	got, err := io.ReadAll(sink)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes came, %v", len(got), len(want), err)
	}
	for _, result := range []<-chan error{sent, copied} {
		if err := await(t, result, "the end"); err != nil {
			t.Error(err)
		}
	}
}
