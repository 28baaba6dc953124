package sockets

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"xdpd/proto"
	"xdpd/umem"
)

// Prefix is an address of ours and the length of its subnet.
type Prefix struct {
	Addr proto.Addr
	Bits int // 0 to 32
}

// Config describes a Host. The zero value of a limit means its default.
type Config struct {
	MAC    proto.MAC
	MTU    int      // bytes of the IP packet; PacketFrames frames must hold MTU + 22, each behind umem.Headroom
	VLANs  []uint16 // tags that every frame carries, outermost first; at most two
	Addrs  []Prefix
	Routes []Route // beyond the subnets of Addrs

	// KernelNeighbours leaves address resolution to somebody else (share mode): the Host sends and takes no ARP, asks
	// through PopResolve, and is told through SetNeighbour.
	KernelNeighbours bool

	// Siblings says that other Hosts serve the same addresses on other queues of the interface: what is heard by ARP here
	// is theirs as well (PopHeard, Heard).
	Siblings bool

	// RSS is how the interface spreads what it receives over its queues, nil if nobody knows, and Queue is the number of
	// this Host's: the ports it chooses for connections of its own bring the answers there (RFC 6056 among those).
	RSS   *proto.RSS
	Queue int

	// AcceptPartial takes UDP and TCP checksums that hold only the pseudo-header's sum, as a kernel sender on veth and
	// its like leaves them.
	AcceptPartial bool

	// Stamps says that a umem.Stamp stands in front of each received frame: datagrams are told with it.
	Stamps bool

	// LeaveSums says that the device finishes the UDP and TCP checksums of frames of which PopTX says so.
	LeaveSums bool

	Seed [32]byte // secret of hashes, ISNs and IP identifications

	// Directory is that of the group, Self this Host's number in it: packets for sockets of the others are handed over
	// (TakeHanded, InputHanded). All Hosts of a group have the same Seed, and pools of one region. nil: alone.
	Directory *Directory
	Self      int

	PacketFrames int // frames that a packet may consist of, as the device allows (default 1; at most MaxPacketFrames)

	FillFrames int // frames that the fill ring needs: never held by sockets (default a quarter of the pool)
	RcvBuf     int // bytes a socket may queue, counted in whole frames (default 1 MiB)
	RcvMax     int // bytes of data that a TCP receive window may grow to (default 3 MiB, or half of a RcvBuf that was set)
	SndBuf     int // bytes a TCP connection may have unacknowledged or unsent (default 4 MiB; the window says how many)
	MaxConns   int // TCP connections (default 1048576); SYNs beyond are dropped. TIME-WAIT has the same limit: the oldest go
	Backlog    int // connections waiting for Accept, per listener (default 1024); past as many half-open ones SYN cookies go out

	Congestion string    // "cubic" (default) or "reno"
	NoECN      bool      // neither ask for ECN nor accept it
	KeepAlive  KeepAlive // of new connections (default off)
}

// Host is one reactor's stack. Not safe for concurrent use.
type Host struct {
	cfg    Config
	pool   *umem.Pool
	sec    secret
	now    int64      // of the call in progress
	lead   int        // bytes of the link header: 14 plus 4 a tag
	room   int        // bytes that a frame holds behind its headroom
	seen   uint32     // of Ahead, for nobody
	stamp  umem.Stamp // of the frame that Input takes
	rest   umem.Frame // of the packet that Input takes, behind the first; else None
	timers *wheel

	counters Counters
	routes   []Route
	neigh    neighTable
	frags    fragTable
	icmp     icmpLimit
	ipID     [256]uint16

	rxUsed, rxLimit int // frames held for received data
	rxTight         int // windows are to be smaller when more are held
	txUsed, txLimit int // frames held or in flight to be sent

	txq       []TxFrame // ring; len is a power of two
	txHead    uint32
	txTail    uint32
	noTxFrame []Handle // sockets that found no frame to send with, to be told when there are some
	noTxData  []Handle // TCP writers who did, to be told when there are some beyond those that sendQueue leaves to others

	events []Handle
	closed []Handle  // since the last PopClosed
	gone   []flowKey // since the last PopGone
	tells  tells

	accounts accounts

	handed []Handed // since the last TakeHanded
	back   [handedFrames]umem.Frame

	udp udpTable
	tcp tcpTable
}

// Flags of a Buf while the Host holds its frame.
const (
	bufQueued  = 1 << iota // in txq or in the device's TX ring
	bufKept                // in a TCP send queue: its completion does not free it
	bufSent                // was sent once: no byte may be added to it
	bufFIN                 // FIN stands behind its last byte
	bufSacked              // the peer has it (RFC 2018)
	bufLost                // to be sent again
	bufAgain               // was sent again since it was marked lost
	bufEver                // was sent more than once: no good for measuring (Karn)
	bufProbe               // larger than the path is known to take (RFC 4821)
	bufPart                // only its first part was sent: no frame to cut it with
	bufToSend              // lent, and counts as data to send; without it as received data
	bufTell                // whoever sent it is told when it is free (TakeFreed)
	bufMore                // the packet that it was last sent with goes on in Buf.Next
	bufPartial             // the checksum in it has only the pseudo-header: the device is to finish it
)

const (
	txqSize       = 4096
	maxLead       = 22
	defaultBuf    = 1 << 20
	windowMax     = 0xffff << 14 // RFC 7323 2.3
	defaultRcvMax = 3 << 20      // half of net.ipv4.tcp_rmem's largest, as tcp_adv_win_scale has it
	defaultSnd    = 4 << 20
	defaultQueue  = 1024
	defaultConns  = 1 << 20
)

// New makes a Host over the frames of pool. Its errors name the field that is wrong.
func New(cfg Config, pool *umem.Pool, now int64) (*Host, error) {
	if len(cfg.VLANs) > 2 {
		return nil, fmt.Errorf("sockets: %d VLAN tags; a frame carries at most two", len(cfg.VLANs))
	}
	for _, id := range cfg.VLANs {
		if id == 0 || id > 4094 {
			return nil, fmt.Errorf("sockets: VLAN %d; ids go from 1 to 4094", id)
		}
	}
	cfg.PacketFrames = max(cfg.PacketFrames, 1)
	if cfg.PacketFrames > MaxPacketFrames {
		return nil, fmt.Errorf("sockets: packets of %d frames; there can be %d", cfg.PacketFrames, MaxPacketFrames)
	}
	if most := MaxMTU(pool.Region().ChunkSize(), cfg.PacketFrames); cfg.MTU < 68 || cfg.MTU > most {
		return nil, fmt.Errorf("sockets: MTU %d; with frames of %d bytes, %d to a packet, it must lie between 68 and %d",
			cfg.MTU, pool.Region().ChunkSize(), cfg.PacketFrames, most)
	}
	if len(cfg.Addrs) == 0 && !cfg.KernelNeighbours {
		return nil, errors.New("sockets: no address")
	}
	for _, a := range cfg.Addrs {
		if a.Bits < 0 || a.Bits > 32 || badUnicast(a.Addr) {
			return nil, fmt.Errorf("sockets: %v/%d is not an address a host can have", a.Addr, a.Bits)
		}
	}
	for _, r := range cfg.Routes {
		if r.Bits < 0 || r.Bits > 32 {
			return nil, fmt.Errorf("sockets: route to %v/%d; prefixes go from 0 to 32", r.Dst, r.Bits)
		}
	}
	if cfg.RcvMax == 0 && cfg.RcvBuf == 0 {
		cfg.RcvMax = defaultRcvMax
	} else if cfg.RcvMax == 0 {
		cfg.RcvMax = min(cfg.RcvBuf/2, windowMax) // RcvBuf counts whole frames
	}
	for _, d := range []struct {
		v   *int
		def int
	}{{&cfg.RcvBuf, defaultBuf}, {&cfg.RcvMax, 0}, {&cfg.SndBuf, defaultSnd}, {&cfg.Backlog, defaultQueue}, {&cfg.MaxConns, defaultConns},
		{&cfg.FillFrames, pool.Total() / 4}} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < 0 {
			return nil, fmt.Errorf("sockets: a limit of %d", *d.v)
		}
	}
	if cfg.RcvMax > windowMax {
		return nil, fmt.Errorf("sockets: a receive window of %d bytes; TCP can say %d at most", cfg.RcvMax, windowMax)
	}
	switch cfg.Congestion {
	case "", "cubic", "reno":
	default:
		return nil, fmt.Errorf("sockets: congestion control %q; there are cubic and reno", cfg.Congestion)
	}
	if cfg.Directory != nil && (cfg.Self < 0 || cfg.Self >= MaxHosts) {
		return nil, fmt.Errorf("sockets: Host %d of a group; there can be %d", cfg.Self, MaxHosts)
	}
	rest := pool.Total() - cfg.FillFrames
	if rest < 16 {
		return nil, fmt.Errorf("sockets: %d frames, of which the fill ring takes %d; at least 16 must remain", pool.Total(), cfg.FillFrames)
	}
	h := &Host{
		cfg: cfg, pool: pool, sec: newSecret(cfg.Seed, cfg.Self), now: now,
		lead: 14 + 4*len(cfg.VLANs), room: pool.Region().ChunkSize() - umem.Headroom, rest: umem.None, timers: newWheel(now),
		rxLimit: rest / 2, rxTight: rest / 2 / 2, txLimit: rest - rest/2,
		txq: make([]TxFrame, txqSize),
	}
	if cfg.Directory != nil {
		cfg.Directory.members.Or(1 << cfg.Self)
	}
	h.timers.ahead = h.aheadTimers
	h.neigh.init(h)
	h.frags.init(h)
	h.icmp.init(now)
	h.udp.init(h)
	h.tcp.init(h)
	h.SetAddrs(cfg.Addrs, cfg.Routes)
	return h, nil
}

// Counters gives the Host's ledger; the caller must not change it.
func (h *Host) Counters() *Counters { return &h.counters }

// MTU is the largest IP packet that is sent.
func (h *Host) MTU() int { return h.cfg.MTU }

// SetLink follows the device: its address, and its MTU as far as frames hold it. Connections whose segments are too large
// now make smaller ones, and stay with them; new ones have what the MTU allows. now says when, for Tick.
func (h *Host) SetLink(mac proto.MAC, mtu int, now int64) {
	h.now = now
	h.cfg.MAC = mac
	h.cfg.MTU = max(68, min(mtu, MaxMTU(h.pool.Region().ChunkSize(), h.cfg.PacketFrames)))
	h.tcp.each(func(i uint32, c *tcb) { h.tcpFit(i, c) })
}

// Directory is that of the Host's group; nil: it is alone.
func (h *Host) Directory() *Directory { return h.cfg.Directory }

// Held tells how many frames sockets and queues hold for received and for outgoing data, and the limits.
func (h *Host) Held() (rx, rxLimit, tx, txLimit int) { return h.rxUsed, h.rxLimit, h.txUsed, h.txLimit }

func (h *Host) count(s Stat) { h.counters.Stats[s]++ }

// isLocal reports whether a is one of our addresses.
func (h *Host) isLocal(a proto.Addr) bool {
	for i := range h.cfg.Addrs {
		if h.cfg.Addrs[i].Addr == a {
			return true
		}
	}
	return false
}

// packet is one IP packet on its way in: a frame, or a chain of frames by Buf.Next if it did not fit into one, or was put
// together from fragments.
type packet struct {
	f      umem.Frame // the first frame; the headers are in it
	held   bool       // charged and owned as umem.Held; else owned as umem.RX
	hops   uint8      // Hosts of the group that it was at before; the first has verified it
	n      int        // bytes of IP payload in all frames
	ipOff  uint16     // of the IP header in the first frame's chunk
	ip     proto.IPv4
	srcMAC proto.MAC
	bcast  bool // the frame was a link-layer broadcast or multicast

	again bool   // a SYN that takes the place of a connection in TIME-WAIT,
	after uint32 // whose sequence numbers its ISN must lie behind (RFC 9293 3.6.1)
}

// Input takes a received frame: n bytes from off in the chunk of f, which the caller owns as umem.RX. The frame is the
// Host's from here on.
func (h *Host) Input(f umem.Frame, off, n int, now int64) {
	h.now = now
	h.count(RxFrames)
	h.counters.Stats[RxBytes] += uint64(n)
	if h.cfg.Stamps {
		h.stamp = umem.GetStamp(h.pool.Chunk(f)[off-umem.StampSize:])
	}
	b := h.pool.Buf(f)
	*b = umem.Buf{Next: h.rest, Off: uint16(off), Len: uint16(n)}
	data := h.pool.Data(f)
	eth, fault := proto.ParseEthernet(data)
	if fault != proto.OK {
		h.dropRX(f, Drop(fault))
		return
	}
	if eth.Dst != h.cfg.MAC && !eth.Dst.IsMulticast() {
		h.dropRX(f, EthNotOurs)
		return
	}
	if !h.ourVLAN(&eth) {
		h.dropRX(f, EthVLANID)
		return
	}
	switch eth.Type {
	case proto.EtherARP:
		h.count(RxARP)
		h.arpInput(data[eth.Len:], eth.Src, f)
	case proto.EtherIPv4:
		if len(h.neigh.probing) > 0 {
			h.neighHeard(eth.Src)
		}
		b.Off += uint16(eth.Len)
		b.Len -= uint16(eth.Len)
		h.ipInput(f, data[eth.Len:], &eth)
	default:
		h.dropRX(f, EthType)
	}
}

// ourVLAN compares the frame's tags with ours. A tag with id 0 carries only a priority (IEEE 802.1Q 9.6) and does not
// count.
func (h *Host) ourVLAN(eth *proto.Ethernet) bool {
	k := 0
	for _, tci := range eth.Tags[:eth.NTags] {
		id := tci & 0xfff
		if id == 0 {
			continue
		}
		if k == len(h.cfg.VLANs) || h.cfg.VLANs[k] != id {
			return false
		}
		k++
	}
	return k == len(h.cfg.VLANs)
}

// dropRX frees what was just received.
func (h *Host) dropRX(f umem.Frame, why Drop) {
	h.counters.Drops[why]++
	h.freeRX(f)
}

// drop frees a packet, whatever it consists of.
func (h *Host) drop(p *packet, why Drop) {
	h.counters.Drops[why]++
	h.discard(p)
}

// discard frees a packet that was dealt with.
func (h *Host) discard(p *packet) {
	if p.held {
		h.releaseChain(p.f)
	} else if h.pool.Buf(p.f).Next == umem.None {
		h.pool.Put(p.f, umem.RX)
	} else {
		h.freeRX(p.f)
	}
}

// Completed takes back a frame that the device is done with; the caller owns it as umem.Comp.
func (h *Host) Completed(f umem.Frame) {
	b := h.pool.Buf(f)
	b.Flags &^= bufQueued
	if b.Flags&bufKept != 0 {
		h.pool.Move(f, umem.Comp, umem.Held)
		return
	}
	h.freeTX(f, umem.Comp)
}

// wantTX notes that a socket must be told when there is room to send again.
func (h *Host) wantTX(s Handle) { h.noTxFrame = h.await(h.noTxFrame, s) }

// txFree is how many more frames can be sent now: frames, limit and queue all allow it.
func (h *Host) txFree() int {
	n := min(h.txLimit-h.txUsed, h.txRoom(), h.pool.Avail())
	if a := h.accounts.payer; a != 0 {
		n = min(n, h.txRoomOf(a))
	}
	return n
}

// Busy reports whether there is output that Flush and PopTX would give, something for TakeEvents, PopGone or TakeFreed, or
// for EndTurn to tell the group.
func (h *Host) Busy() bool {
	return len(h.tcp.dirty) > 0 || h.TxPending() > 0 || len(h.events) > 0 || len(h.gone) > 0 || len(h.tells.freed) > 0 ||
		len(h.tcp.flows.leaving) > 0
}

// Blocked reports whether a socket waits for frames to send with.
func (h *Host) Blocked() bool { return len(h.noTxFrame)+len(h.noTxData)+len(h.accounts.waiting) > 0 }

// Unsent reports whether something that was written has not left, or was not acknowledged.
func (h *Host) Unsent() bool {
	if h.Busy() || h.neigh.waiting > 0 {
		return true
	}
	unsent := false
	h.tcp.each(func(_ uint32, c *tcb) {
		done := c.state == tcpClosed || c.state == tcpTimeWait || c.state == tcpFinWait2
		unsent = unsent || c.sndBytes > 0 || c.wantFIN && !done
	})
	return unsent
}

// EndTurn tells sockets that waited for room to send when a fair share of it is there again. The reactor calls it once
// a turn, after everything that frees frames.
func (h *Host) EndTurn() {
	h.tcp.flows.settle()
	if !h.Blocked() {
		return
	}
	// TCP data may hold all but the reserve for ever: the share that wakes others must fit into that.
	free, share := h.txFree(), max(1, min(64, h.txLimit/16))
	if free >= share {
		h.noTxFrame = slices.DeleteFunc(h.noTxFrame, func(s Handle) bool { return h.wakeFrame(s, free) })
	}
	if free >= share+h.txReserve() {
		for _, s := range h.noTxData {
			h.wakeData(s)
		}
		h.noTxData = h.noTxData[:0]
	}
	if len(h.accounts.waiting) > 0 {
		h.wakeAccounts()
	}
}

// txReserve is how many frames TCP data leaves to ACKs, ARP, ICMP and datagrams. Half of it sendSplit may take.
func (h *Host) txReserve() int { return max(2, h.txLimit/8) }

// Tick runs the timers that are due at now (ns, monotonic).
func (h *Host) Tick(now int64) {
	h.now = now
	h.timers.advance(now, h.fire)
}

// NextDeadline is when Tick has work again; math.MaxInt64 when no timer runs.
func (h *Host) NextDeadline() int64 {
	if at, ok := h.timers.next(); ok {
		return at
	}
	return math.MaxInt64
}

// Owners of timers: the kind in the top byte, the index below.
const (
	timerNeigh = iota + 1
	timerFrag
	timerTCP
	timerHalf
	timerTimeWait
)

func timerOwner(kind, index uint32) uint32 { return kind<<28 | index }

func (h *Host) fire(owner uint32) {
	index := owner & (1<<28 - 1)
	switch owner >> 28 {
	case timerNeigh:
		h.neighTimer(index)
	case timerFrag:
		h.fragTimer(index)
	case timerTCP:
		h.tcpTimer(index)
	case timerHalf:
		h.halfTimer()
	case timerTimeWait:
		h.twTimer()
	}
}

// badUnicast reports an address that no host can have.
func badUnicast(a proto.Addr) bool {
	return a.IsMulticast() || a.IsBroadcast() || a.IsLoopback() || a.IsZeroNet() || a.IsReserved()
}
