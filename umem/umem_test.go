package umem

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func newRegion4(t *testing.T) *Region {
	t.Helper()
	r, err := New(Options{Frames: 4, ChunkSize: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// mustPanic runs f and wants a panic whose text has all of words.
func mustPanic(t *testing.T, f func(), words ...string) {
	t.Helper()
	defer func() {
		t.Helper()
		text := fmt.Sprint(recover())
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("panic %q does not say %q", text, w)
			}
		}
		if text == "<nil>" {
			t.Error("no panic")
		}
	}()
	f()
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		word string
	}{
		"no frames":       {Options{0, 2048, false}, "Frames is 0"},
		"negative frames": {Options{-1, 2048, false}, "Frames is -1"},
		"frame None":      {Options{int(None), 2048, false}, "it must be between 1 and 4294967294"},
		"no chunk size":   {Options{4, 0, false}, "ChunkSize is 0; it must be 2048 or 4096"},
		"odd chunk size":  {Options{4, 2049, false}, "ChunkSize is 2049"},
		"big chunk size":  {Options{4, 8192, true}, "ChunkSize is 8192"},
		"no such memory":  {Options{int(None) - 1, 4096, false}, "use fewer or smaller frames"},
	} {
		r, err := New(c.o)
		if err == nil {
			r.Close()
			t.Errorf("%s: no error", name)
		} else if !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %q does not say %q", name, err, c.word)
		}
	}
}

func TestRegion(t *testing.T) {
	r := newRegion4(t)
	if r.Frames() != 4 || r.ChunkSize() != 2048 || len(r.Mem()) != 8192 || cap(r.Mem()) != 8192 || r.FD() < 0 || r.Huge() {
		t.Fatalf("frames %d, chunk %d, memory %d of %d, fd %d, huge %v", r.Frames(), r.ChunkSize(), len(r.Mem()), cap(r.Mem()), r.FD(), r.Huge())
	}
	for f := range Frame(4) {
		c := r.Chunk(f)
		if len(c) != 2048 || cap(c) != 2048 {
			t.Fatalf("chunk %d has %d bytes of %d", f, len(c), cap(c))
		}
		c[0] = byte(f) + 1
		if r.Addr(f) != uint64(f)*2048 || r.Mem()[r.Addr(f)] != byte(f)+1 {
			t.Fatalf("frame %d is at %d, which holds %d", f, r.Addr(f), r.Mem()[r.Addr(f)])
		}
		for _, addr := range []uint64{r.Addr(f), r.Addr(f) + Headroom, r.Addr(f) + 2047} {
			if got, ok := r.FrameOf(addr); got != f || !ok {
				t.Fatalf("address %d is in frame %d, %v; want %d", addr, got, ok, f)
			}
		}
	}
	for _, addr := range []uint64{8192, 8193, 1 << 40, 1<<64 - 1} {
		if f, ok := r.FrameOf(addr); ok || f != None {
			t.Errorf("address %d outside the region is in frame %d", addr, f)
		}
	}
	mustPanic(t, func() { r.Chunk(4) }, "out of range")
	mustPanic(t, func() { r.Chunk(None) }, "out of range")
}

// The memory behind the fd is the region's, and nobody can cut it off.
func TestRegionFD(t *testing.T) {
	r := newRegion4(t)
	r.Chunk(1)[5] = 42
	var b [1]byte
	if n, err := unix.Pread(r.FD(), b[:], 2048+5); n != 1 || err != nil || b[0] != 42 {
		t.Fatalf("pread gives %d bytes, %v, value %d; want 42", n, err, b[0])
	}
	for _, size := range []int64{0, 4096, 1 << 20} {
		if err := unix.Ftruncate(r.FD(), size); !errors.Is(err, unix.EPERM) {
			t.Errorf("ftruncate to %d: %v, want EPERM", size, err)
		}
	}
}

func TestRegionClose(t *testing.T) {
	r := newRegion4(t)
	fd := r.FD()
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	if r.FD() != -1 || r.Mem() != nil || r.Frames() != 0 {
		t.Errorf("closed region has fd %d, %d bytes", r.FD(), len(r.Mem()))
	}
	if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && strings.Contains(link, "xdpd-umem") {
		t.Errorf("fd %d is still open", fd)
	}
}

func TestWrap(t *testing.T) {
	mem := make([]byte, 3*4096+100)
	r, err := Wrap(mem, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if r.Frames() != 3 || r.FD() != -1 || r.Huge() || len(r.Mem()) != 3*4096 {
		t.Fatalf("frames %d, fd %d, huge %v, %d bytes", r.Frames(), r.FD(), r.Huge(), len(r.Mem()))
	}
	r.Chunk(2)[1] = 7
	if mem[2*4096+1] != 7 {
		t.Fatal("the region is a copy")
	}
	if err := r.Close(); err != nil || mem[2*4096+1] != 7 {
		t.Fatalf("close: %v", err)
	}
	for word, f := range map[string]func() (*Region, error){
		"ChunkSize is 1024":                func() (*Region, error) { return Wrap(mem, 1024) },
		"4095 bytes hold 0 chunks of 4096": func() (*Region, error) { return Wrap(mem[:4095], 4096) },
	} {
		if _, err := f(); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("error %v does not say %q", err, word)
		}
	}
}

// Huge pages are used exactly when there are some free, and their lack is no
// error.
func TestHugePages(t *testing.T) {
	const sysctl = "/proc/sys/vm/nr_hugepages"
	before, err := os.ReadFile(sysctl)
	if err != nil {
		t.Fatal(err)
	}
	total, err := strconv.Atoi(strings.TrimSpace(string(before)))
	if err != nil {
		t.Fatal(err)
	}
	if os.WriteFile(sysctl, []byte(strconv.Itoa(total+1)), 0) == nil { // as root there is one
		t.Cleanup(func() { os.WriteFile(sysctl, before, 0) })
	}
	free := freeHugePages(t)
	r, err := New(Options{Frames: 3, ChunkSize: 2048, HugePages: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Huge() != (free > 0) || len(r.Mem()) != 3*2048 {
		t.Errorf("with %d huge pages free Huge is %v; %d bytes", free, r.Huge(), len(r.Mem()))
	}
	r.Chunk(2)[2047] = 1
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if got := freeHugePages(t); got != free {
		t.Errorf("%d huge pages free after Close, want %d", got, free)
	}
	// More than can be free:
	r, err = New(Options{Frames: (free + 2) * 1024, ChunkSize: 2048, HugePages: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Huge() {
		t.Errorf("%d MiB are said to be huge pages, of which %d are free", len(r.Mem())>>20, free)
	}
	r.Chunk(Frame(r.Frames() - 1))[2047] = 1
}

func freeHugePages(t *testing.T) int {
	t.Helper()
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(info), "HugePages_Free:")
	fields := strings.Fields(rest)
	if !ok { // a kernel without hugetlb
		return 0
	}
	n, err := strconv.Atoi(fields[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBufSize(t *testing.T) {
	if size := reflect.TypeFor[Buf]().Size(); size != 20 {
		t.Fatalf("Buf has %d bytes, want 20: a pool of a million frames has as many", size)
	}
}
