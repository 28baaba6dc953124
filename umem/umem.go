// Package umem owns packet memory: one region cut into frames of equal size,
// and who holds each frame.
//
// A Region is the memory itself, shared with the kernel (and, by its fd, with
// another process). A frame is one chunk of it, named by its number, never by
// a pointer: numbers survive a trip through a ring. A Pool is the free list of
// one reactor, a stack, so that the frame last used (and still in the cache) is
// used next. A Buf is what sk_buff is in Linux: where in its frame a packet
// lies and what it is linked to.
//
// The frame law: every frame has exactly one Owner, and the sum is constant. A
// Ledger enforces it in tests and in simulation; production runs with none and
// pays one nil check.
package umem

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
)

// Headroom is where the kernel puts a received packet in its chunk
// (XDP_PACKET_HEADROOM, include/uapi/linux/bpf.h). Frames of our own keep their
// payload at or behind it and grow headers towards the front.
const Headroom = 256

// Frame is the number of a frame in a Region.
type Frame uint32

// None is no frame.
const None Frame = 1<<32 - 1

// Options describes the memory New makes.
type Options struct {
	Frames    int  // number of frames, at least 1
	ChunkSize int  // bytes in a frame: 2048 or 4096
	HugePages bool // ask for huge pages; New falls back to normal ones
}

// Region is packet memory cut in chunks; chunk f starts at f*ChunkSize
// ("aligned mode", Documentation/networking/af_xdp.rst). Its methods may be
// called from any goroutine, Close only once everybody else is done.
type Region struct {
	mem    []byte   // Frames*ChunkSize bytes, cap == len
	bufs   []Buf    // of each frame, its pool's to use
	homes  []uint16 // the number, from 1, of the pool that has the frame; 0: none
	pools  uint16
	mapped []byte // what to unmap: mem rounded up to pages; nil for Wrap
	shift  uint   // log2 of chunk; used as shift & 63, which spares a comparison with 64
	chunk  uint64
	frames int
	fd     int
	huge   bool
}

// New maps a region of shared memory, populated and sealed against shrinking,
// so that no peer who holds its fd can turn an access of ours into a SIGBUS.
// Errors name the operation, the size and the cure.
func New(o Options) (*Region, error) {
	if o.Frames < 1 || int64(o.Frames) >= int64(None) {
		return nil, fmt.Errorf("umem: Frames is %d; it must be between 1 and %d", o.Frames, None-1)
	}
	if err := checkChunk(o.ChunkSize); err != nil {
		return nil, err
	}
	if o.Frames > math.MaxInt/2/o.ChunkSize {
		return nil, fmt.Errorf("umem: %d frames of %d bytes are more than the address space; ask for fewer Frames", o.Frames, o.ChunkSize)
	}
	size := o.Frames * o.ChunkSize
	if o.HugePages {
		if m, err := mapHuge(size); err == nil {
			return newRegion(m, size, o.ChunkSize), nil
		}
	}
	m, err := mapNormal(size)
	if err != nil {
		return nil, err
	}
	return newRegion(m, size, o.ChunkSize), nil
}

func newRegion(m mapping, size, chunkSize int) *Region {
	r := layOut(m.mem, size, chunkSize)
	r.mapped, r.fd, r.huge = m.mem, m.fd, m.huge
	return r
}

func layOut(mem []byte, size, chunkSize int) *Region {
	frames := size / chunkSize
	return &Region{
		mem: mem[:size:size], bufs: make([]Buf, frames), homes: make([]uint16, frames),
		shift: uint(bits.TrailingZeros(uint(chunkSize))), chunk: uint64(chunkSize), frames: frames, fd: -1,
	}
}

// Wrap makes a region of memory that somebody else owns: heap in a test, the
// mapping of another library. What is left after the last whole chunk is not
// used. Close leaves the memory alone.
func Wrap(mem []byte, chunkSize int) (*Region, error) {
	if err := checkChunk(chunkSize); err != nil {
		return nil, err
	}
	frames := len(mem) / chunkSize
	if frames < 1 || int64(frames) >= int64(None) {
		return nil, fmt.Errorf("umem: %d bytes hold %d chunks of %d; there must be between 1 and %d", len(mem), frames, chunkSize, None-1)
	}
	return layOut(mem, frames*chunkSize, chunkSize), nil
}

// checkChunk allows what every kernel and page size takes: xdp_umem_reg in
// net/xdp/xdp_umem.c wants a power of two from 2048 up to the page size.
func checkChunk(size int) error {
	if size != 2048 && size != 4096 {
		return fmt.Errorf("umem: ChunkSize is %d; it must be 2048 or 4096", size)
	}
	return nil
}

// Mem is the whole memory, Frames*ChunkSize bytes.
func (r *Region) Mem() []byte { return r.mem }

// ChunkSize is the size of a chunk in bytes.
func (r *Region) ChunkSize() int { return int(r.chunk) }

// Frames is the number of frames.
func (r *Region) Frames() int { return r.frames }

// FD is the memfd behind the memory, or -1 for wrapped memory.
func (r *Region) FD() int { return r.fd }

// Huge says whether the memory is of huge pages.
func (r *Region) Huge() bool { return r.huge }

// Chunk is the whole chunk of f, cap == len. It panics when f is out of range.
func (r *Region) Chunk(f Frame) []byte {
	start := r.Addr(f)
	end := start + r.chunk
	return r.mem[start:end:end]
}

// Addr is where f starts in the region.
func (r *Region) Addr(f Frame) uint64 { return uint64(f) << (r.shift & 63) }

// FrameOf is the frame that addr lies in; false when addr is outside the
// region.
func (r *Region) FrameOf(addr uint64) (Frame, bool) {
	if addr >= uint64(len(r.mem)) {
		return None, false
	}
	return Frame(addr >> (r.shift & 63)), true
}

// Close unmaps the memory and closes the fd. Slices of it are dead after that.
// Closing twice, or closing wrapped memory, does nothing to the memory.
func (r *Region) Close() error {
	mapped, fd := r.mapped, r.fd
	r.mem, r.bufs, r.homes, r.mapped, r.fd, r.frames = nil, nil, nil, nil, -1, 0
	if mapped == nil {
		return nil
	}
	return errors.Join(unmap(mapped), closeFD(fd))
}
