package pktgen

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// capture is what a capture file has, in its order.
type capture struct {
	data []byte  // of all frames, one after the other
	end  []int   // of each frame in data
	at   []int64 // when it was captured, ns after the first; never goes back
}

// maxCapture is how many bytes of frames a file may have: they are held in memory.
const maxCapture = 1 << 30

// loadCapture reads a file of tcpdump or Wireshark: pcap (also through gzip) or pcapng.
func loadCapture(path string) (*capture, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--replay: %w", err)
	}
	defer f.Close()
	c, err := readCapture(f)
	if err != nil {
		return nil, fmt.Errorf("--replay %s: %w", path, err)
	}
	return c, nil
}

// packetReader is what pcapgo's readers have in common.
type packetReader interface {
	ZeroCopyReadPacketData() (data []byte, ci gopacket.CaptureInfo, err error)
	LinkType() layers.LinkType
}

func openCapture(r io.Reader) (packetReader, error) {
	in := bufio.NewReader(r)
	magic, err := in.Peek(4)
	if err != nil {
		return nil, errors.New("the file is too short for a capture")
	}
	const section = 0x0a0d0d0a // a pcapng file's first block, in either byte order
	if binary.BigEndian.Uint32(magic) == section {
		return pcapgo.NewNgReader(in, pcapgo.NgReaderOptions{ErrorOnMismatchingLinkType: true})
	}
	return pcapgo.NewReader(in)
}

func readCapture(r io.Reader) (*capture, error) {
	in, err := openCapture(r)
	if err != nil {
		return nil, fmt.Errorf("no pcap and no pcapng: %w", err)
	}
	if link := in.LinkType(); link != layers.LinkTypeEthernet {
		return nil, fmt.Errorf("the frames are of link type %s: only Ethernet can be sent", link)
	}
	c := &capture{}
	var first, last int64
	for {
		data, info, err := in.ZeroCopyReadPacketData()
		n := len(c.end)
		switch {
		case errors.Is(err, io.EOF) && n > 0:
			return c, nil
		case errors.Is(err, io.EOF):
			return nil, errors.New("there is no frame in it")
		case err != nil:
			return nil, fmt.Errorf("behind frame %d: %w", n, err)
		case info.CaptureLength < info.Length || len(data) != info.CaptureLength:
			return nil, fmt.Errorf("of frame %d only %d of %d bytes were captured: capture whole frames (tcpdump -s 0)", n+1, len(data), info.Length)
		case len(data) < 14 || len(data) > maxSize-fcs:
			return nil, fmt.Errorf("frame %d has %d bytes: frames of 14 to %d can be sent", n+1, len(data), maxSize-fcs)
		case len(c.data)+len(data) > maxCapture:
			return nil, fmt.Errorf("there is more than %d MiB in it: cut it up (editcap -c)", maxCapture>>20)
		}
		at := info.Timestamp.UnixNano()
		if n == 0 {
			first, last = at, at
		}
		last = max(last, at)
		c.data = append(c.data, data...)
		c.end, c.at = append(c.end, len(c.data)), append(c.at, last-first)
	}
}

// frame is the bytes of frame i.
func (c *capture) frame(i int) []byte {
	from := 0
	if i > 0 {
		from = c.end[i-1]
	}
	return c.data[from:c.end[i]]
}

// n is how many frames there are, at least one.
func (c *capture) n() int { return len(c.end) }

// round is how long one round takes, in ns: to the last frame, and a mean distance, after which the first comes again.
func (c *capture) round() int64 {
	last := c.at[c.n()-1]
	return last + last/int64(max(1, c.n()-1))
}

// longest is the length of the longest frame.
func (c *capture) longest() (n int) {
	for i := range c.n() {
		n = max(n, len(c.frame(i)))
	}
	return n
}

// replayer is the traffic that a capture file makes.
type replayer struct {
	*capture
	dst, src []byte  // MAC addresses to write over those of the file; nil: leave them
	speed    float64 // times the recorded; 0: as fast as pace lets it
	pace     *pacer
	total    uint64 // frames to send; 0: no end
	start    int64  // when the first was due; 0: not yet
	sent     uint64
}

// dueAt is when frame n of all rounds is due, in ns.
func (p *replayer) dueAt(n uint64) int64 {
	round, i := n/uint64(p.n()), int(n%uint64(p.n()))
	since := float64(round)*float64(p.round()) + float64(p.at[i])
	return p.start + int64(since/p.speed)
}

// due implements traffic.
func (p *replayer) due(now int64, most int) (n int, done bool) {
	if p.total > 0 {
		if p.sent == p.total {
			return 0, true
		}
		most = int(min(uint64(most), p.total-p.sent))
	}
	if p.speed == 0 {
		return p.pace.due(now, most), false
	}
	if p.start == 0 {
		p.start = now
	}
	for n < most && now >= p.dueAt(p.sent+uint64(n)) {
		n++
	}
	return n, false
}

// put implements traffic.
func (p *replayer) put(b []byte, _ int64) int {
	n := copy(b, p.frame(int(p.sent%uint64(p.n()))))
	copy(b, p.dst)
	copy(b[6:], p.src)
	p.sent++
	if p.speed == 0 {
		p.pace.sent(1)
	}
	return n
}
