package xdpprog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net"
	"net/netip"
	"time"
)

// Modes of bpf/source.c.
const (
	modeUDP = iota
	modeSYN
	modeFrames
)

const (
	fcsLen  = 4
	ethLen  = 14
	ipLen   = 20
	udpLen  = 8
	tcpLen  = 20
	slotLen = 16 // of struct slot, before its data

	defaultBurst = 100 * time.Microsecond
	batchSpan    = 4 * time.Microsecond
)

func (c *SourceConfig) mode() int {
	switch {
	case len(c.Frames) > 0:
		return modeFrames
	case c.SYN:
		return modeSYN
	}
	return modeUDP
}

// complete checks the configuration and fills in what was left zero.
func (c *SourceConfig) complete() error {
	if c.Mark == 0 {
		c.Mark = DefaultMark
	}
	if c.Burst == 0 {
		c.Burst = defaultBurst
	}
	switch {
	case c.Ifindex < 1:
		return fmt.Errorf("interface index %d: no such device", c.Ifindex)
	case c.Burst < 0:
		return fmt.Errorf("burst of %v: negative", c.Burst)
	case c.Batch < 0 || c.Batch > MaxBatch:
		return fmt.Errorf("batch of %d frames: not in 1..%d", c.Batch, MaxBatch)
	case c.Pin && c.CPU < 0:
		return fmt.Errorf("CPU %d: no such CPU", c.CPU)
	}
	if err := checkRate(c.Rate); err != nil {
		return err
	}
	if c.mode() == modeFrames {
		return c.completeFrames()
	}
	return c.completeFlows()
}

func checkRate(rate float64) error {
	if rate < 0 || rate > 1e9 || math.IsNaN(rate) || rate > 0 && rate < 0.01 {
		return fmt.Errorf("rate of %v frames/s: neither 0 nor in 0.01..1e9", rate)
	}
	return nil
}

func (c *SourceConfig) completeFrames() error {
	for i, f := range c.Frames {
		if len(f) < ethLen || len(f) > MaxSize-fcsLen {
			return fmt.Errorf("frame %d: %d bytes, not in %d..%d", i, len(f), ethLen, MaxSize-fcsLen)
		}
	}
	switch {
	case len(c.Frames) > MaxFrames:
		return fmt.Errorf("%d frames: at most %d", len(c.Frames), MaxFrames)
	case len(c.Gaps) != 0 && len(c.Gaps) != len(c.Frames):
		return fmt.Errorf("%d gaps for %d frames", len(c.Gaps), len(c.Frames))
	case c.SrcMAC != nil || c.DstMAC != nil || c.Src != Addrs{} || c.Dst != Addrs{} || c.SrcPort != Ports{} ||
		c.DstPort != Ports{} || c.Flows != 0 || c.RandomFlows || c.Sizes != nil || c.Pattern != nil || c.NoUDPSum || c.SYN:
		return errors.New("frames of the caller's are sent as they are: addresses, flows, sizes and payload have no meaning")
	}
	for i, g := range c.Gaps {
		if g < 0 {
			return fmt.Errorf("gap %d is %v: negative", i, g)
		}
	}
	c.Flows = len(c.Frames)
	return nil
}

func (c *SourceConfig) completeFlows() error {
	if len(c.Gaps) > 0 {
		return errors.New("gaps without frames")
	}
	for name, mac := range map[string]net.HardwareAddr{"source": c.SrcMAC, "destination": c.DstMAC} {
		if len(mac) != 6 {
			return fmt.Errorf("%s MAC %q: 6 bytes are needed", name, mac)
		}
	}
	combinations := uint64(1)
	for _, a := range []struct {
		name  string
		first uint32
		top   uint32
		err   error
		count *int
	}{
		{"source port", uint32(c.SrcPort.First), 65535, needPort(c.SrcPort.First), &c.SrcPort.Count},
		{"destination port", uint32(c.DstPort.First), 65535, needPort(c.DstPort.First), &c.DstPort.Count},
		{"source address", ip32(c.Src.First), math.MaxUint32, needIPv4(c.Src.First), &c.Src.Count},
		{"destination address", ip32(c.Dst.First), math.MaxUint32, needIPv4(c.Dst.First), &c.Dst.Count},
	} {
		if *a.count == 0 {
			*a.count = 1
		}
		switch {
		case a.err != nil:
			return fmt.Errorf("%s: %w", a.name, a.err)
		case *a.count < 0 || uint64(a.first)+uint64(*a.count)-1 > uint64(a.top):
			return fmt.Errorf("%s: a range of %d does not fit", a.name, *a.count)
		}
		combinations = min(combinations*uint64(*a.count), 1<<40)
	}
	if c.Flows == 0 {
		c.Flows = int(combinations)
	}
	switch {
	case c.Flows < 0 || c.Flows > MaxFlows:
		return fmt.Errorf("%d flows: not in 1..%d", c.Flows, MaxFlows)
	case uint64(c.Flows) > combinations:
		return fmt.Errorf("%d flows: the ranges of addresses and ports make only %d", c.Flows, combinations)
	}
	if c.Sizes == nil {
		c.Sizes = []int{MinSize}
	}
	if len(c.Sizes) < 1 || len(c.Sizes) > MaxSizes {
		return fmt.Errorf("%d frame sizes: not 1..%d", len(c.Sizes), MaxSizes)
	}
	for _, size := range c.Sizes {
		if size < MinSize || size > MaxSize {
			return fmt.Errorf("frame size %d: not in %d..%d (with the 4 bytes of FCS)", size, MinSize, MaxSize)
		}
		if c.SYN && size != MinSize {
			return fmt.Errorf("frame size %d: a SYN has %d", size, MinSize)
		}
	}
	return nil
}

func needPort(p uint16) error {
	if p == 0 {
		return errors.New("0 is no port")
	}
	return nil
}

func needIPv4(a netip.Addr) error {
	if !a.Unmap().Is4() {
		return fmt.Errorf("%q is no IPv4 address", a)
	}
	return nil
}

func ip32(a netip.Addr) uint32 {
	if a = a.Unmap(); !a.Is4() {
		return 0
	}
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// batch is how many frames are handed over at a time, when the caller did not say.
func (c *SourceConfig) batch() uint32 {
	switch {
	case c.Batch > 0:
		return uint32(c.Batch)
	case c.Rate > 0:
		return uint32(max(1, min(64, c.Rate*batchSpan.Seconds())))
	case len(c.Gaps) > 0:
		return 1
	}
	return 64
}

// longest is the length of the longest frame, without FCS.
func (c *SourceConfig) longest() int {
	n := 0
	for _, f := range c.Frames {
		n = max(n, len(f))
	}
	for _, size := range c.Sizes {
		n = max(n, size-fcsLen)
	}
	return n
}

// prototype is what new frames hold before the program writes their headers: the payload.
func (c *SourceConfig) prototype() []byte {
	b := make([]byte, c.longest())
	if c.mode() == modeUDP {
		fillPattern(b, c.Pattern)
	}
	return b
}

func fillPattern(frame, pattern []byte) {
	if len(pattern) == 0 {
		return
	}
	for at := ethLen + ipLen + udpLen + StampLen; at < len(frame); {
		at += copy(frame[at:], pattern)
	}
}

// sizes computes for each size the sums of what does not change: the header fields that are always the same, and the
// payload.
func (c *SourceConfig) sizes(prototype []byte) (out [MaxSizes]sourceSize) {
	for i, size := range c.Sizes {
		n := size - fcsLen
		be := binary.BigEndian
		ip := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17}
		l4 := []byte{0, 17, 0, 0, 0, 0} // of the pseudo-header, and UDP's length
		if c.SYN {
			n = ethLen + ipLen + tcpLen // of the packet: what fills the frame up does not count
			ip[9] = 6
			l4 = []byte{0, 6, 0, tcpLen, 0x50, 2, 255, 255}
		} else {
			be.PutUint16(l4[2:], uint16(n-ethLen-ipLen))
			be.PutUint16(l4[4:], uint16(n-ethLen-ipLen))
			l4 = be.AppendUint16(l4, c.Mark)
			l4 = append(l4, prototype[ethLen+ipLen+udpLen+StampLen:n]...)
		}
		be.PutUint16(ip[2:], uint16(n-ethLen))
		out[i] = sourceSize{Len: uint16(size - fcsLen), IpSum: wordSum(ip), L4Sum: wordSum(l4)}
	}
	return out
}

// wordSum adds up 16-bit words as the program loads them: in little endian, for which its object is built.
func wordSum(b []byte) uint32 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0]) | uint32(b[1])<<8
	}
	if len(b) == 1 {
		sum += uint32(b[0])
	}
	return sum
}

// constants are the variables of bpf/source.c that are set before it is loaded.
func (c *SourceConfig) constants(prototype []byte) map[string]any {
	var macs [3]uint32
	if c.mode() != modeFrames {
		both := append(append([]byte(nil), c.DstMAC...), c.SrcMAC...)
		for i := range macs {
			macs[i] = binary.LittleEndian.Uint32(both[4*i:])
		}
	}
	addrs := func(a Addrs) sourceRange { return sourceRange{First: ip32(a.First), Count: uint32(max(a.Count, 1))} }
	ports := func(p Ports) sourceRange { return sourceRange{First: uint32(p.First), Count: uint32(max(p.Count, 1))} }
	return map[string]any{
		sourceVarMode:        uint32(c.mode()),
		sourceVarFlows:       uint32(c.Flows),
		sourceVarRandomFlows: flag(c.RandomFlows),
		sourceVarMacs:        macs,
		sourceVarSrcs:        addrs(c.Src),
		sourceVarDsts:        addrs(c.Dst),
		sourceVarSrcPorts:    ports(c.SrcPort),
		sourceVarDstPorts:    ports(c.DstPort),
		sourceVarNoUdpSum:    flag(c.NoUDPSum),
		sourceVarMark:        asStored(c.Mark),
		sourceVarNsizes:      uint32(len(c.Sizes)),
		sourceVarSizes:       c.sizes(prototype),
		sourceVarFullLen:     uint32(len(prototype)),
		sourceVarFirstSeq:    c.FirstSeq,
		sourceVarBurstNs:     uint64(c.Burst),
		sourceVarGaps:        flag(len(c.Gaps) > 0),
		sourceVarSlotBytes:   uint32(len(prototype)),
	}
}

// asStored is what the program loads of a number that is stored big-endian.
func asStored(v uint16) uint16 { return bits.ReverseBytes16(v) }

func flag(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// slot is frame i as the program's table has it: struct slot.
func (c *SourceConfig) slot(i, length int) []byte {
	b := make([]byte, slotLen+length)
	binary.NativeEndian.PutUint32(b, uint32(len(c.Frames[i])))
	if len(c.Gaps) > 0 {
		binary.NativeEndian.PutUint64(b[8:], uint64(c.Gaps[i]))
	}
	copy(b[slotLen:], c.Frames[i])
	return b
}
