// Package xdpd is a packet engine: frames straight from a network driver over AF_XDP, a user-space IPv4, ICMP, UDP and
// TCP stack, and the standard library's interfaces on top.
//
//	stack, err := xdpd.Open(xdpd.Config{Interface: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}})
//	...
//	conn, err := stack.ListenPacket("udp", ":53") // a net.PacketConn
//
// Each receive queue of the interface has a reactor: one AF_XDP socket, one set of tables, a goroutine that runs it. What
// they share is the directory that says who has a flow. What the engine does not own passes to the kernel untouched.
package xdpd

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// Mode is how frames get from the driver to the engine.
type Mode = rings.Mode

// The modes. Best asks for zero copy and takes copy where the driver has none; Stats says which it was.
const (
	Best     = rings.Best
	Copy     = rings.Copy
	ZeroCopy = rings.ZeroCopy
)

// Attach is how the steering program is attached to the interface.
type Attach = xdpprog.Attach

// Ways to attach. BestAttach asks for native and takes generic where the driver has no XDP.
const (
	BestAttach = xdpprog.BestAttach
	Native     = xdpprog.Native
	Generic    = xdpprog.Generic
)

// Arrangement says who runs the NAPI of the interface's queues.
type Arrangement = reactor.Arrangement

// The arrangements. AutoNAPI changes between SoftirqNAPI and DriveNAPI, to whichever moves more packets at the present load.
// SuspendNAPI is for devices with interrupts whose driver tells which NAPI is a queue's: while there are packets the kernel
// polls it from the reactor's epoll_wait, which interrupts no more (Linux 6.13). ThreadedNAPI has a thread of the kernel
// run it (Linux 6.17).
const (
	AutoNAPI    = reactor.AutoNAPI
	SoftirqNAPI = reactor.SoftirqNAPI
	DriveNAPI   = reactor.DriveNAPI
	SuspendNAPI = reactor.SuspendNAPI

	ThreadedNAPI = reactor.ThreadedNAPI
)

// Config says on which interface the engine runs and as whom. Interface and, without Share, Addrs are required; the zero
// value of everything else is a good default.
type Config struct {
	Interface string
	NetNS     string // namespace of the interface: a path, or a name in /run/netns; empty: the caller's

	// Addrs are the engine's own addresses with their subnets: ARP and all IPv4 for them is the engine's, and the
	// kernel must not have them on the interface: Open refuses that. With Share they stay the kernel's, which goes on to
	// answer ARP, ping and ssh; the engine takes only the ports that are opened on it, and uses the kernel's addresses,
	// routes and neighbours.
	Addrs   []netip.Prefix
	Gateway netip.Addr
	Share   bool
	VLANs   []uint16 // tags of all frames, outermost first; not with Share

	Queues []int // receive queues to serve, each with a reactor, 64 at most; nil: all of them
	Mode   Mode
	Attach Attach
	// Dispatch says whether other XDP programs may be on the interface as well, and Priority which place the engine's has
	// among them (default 50, as in libxdp): programs with lower ones have their turn first. In a dispatcher the program
	// outlives an engine that is killed, and passes all to the kernel then; Restore and the next Open take it out.
	Dispatch Dispatch
	Priority int

	Frames    int  // packet memory per queue, in frames (default 16384)
	ChunkSize int  // bytes a frame: 2048 or 4096 (default: what the MTU needs; above 3818 bytes of it packets take several)
	HugePages bool // for the packet memory, where there are any

	// NoTXChecksum has the engine sum all that it sends itself. Else UDP and TCP checksums are left to a device that finishes
	// those of the kernel's packets as well (ethtool -K DEVICE tx on|off), by AF_XDP's TX metadata. A veth never finishes them:
	// its peer gets frames with the sum of the pseudo-header, as from any kernel, and must be a kernel, or expect them.
	NoTXChecksum bool

	RXMetadata RXMetadata // what to ask the driver about received frames besides their bytes

	MaxSpin time.Duration // how long an idle reactor polls before it sleeps (default 50 µs); negative: it never sleeps
	// Reactors is how many goroutines run the queues' stacks (default one for each queue); Stack.Resize changes it.
	Reactors int
	CPUs     []int // pin these goroutines, the first to the first and so on; for handlers that run on the reactor
	// Spread says how the connections to a listener come to the reactors. nil: each has those that its queue receives. Else
	// the first does all handshakes, and hands the connections over: reactor.RoundRobin, LeastConns, or By a function.
	Spread reactor.Spread
	// Stalled is told of turns that take longer than 10 ms: a handler blocks. It must not block itself.
	Stalled func(reactor.Stall)

	// NAPI says who runs the queues' NAPIs. The reactor can on a veth with the native program and untagged frames (Linux 6.13):
	// elsewhere AutoNAPI is SoftirqNAPI, and DriveNAPI an error. What is changed for it on the device is restored when the engine stops, or, if it is
	// killed, by Restore, which the next Open calls as well. JournalDir is where that is written down (default /run/xdpd).
	NAPI       Arrangement
	JournalDir string

	RcvBuf     int    // bytes a socket may queue for receiving, in whole frames (default 1 MiB)
	RcvMax     int    // bytes a TCP receive window may grow to (default 3 MiB, or half of a RcvBuf that is given)
	SndBuf     int    // bytes a TCP connection may queue for sending: the congestion window says how many (default 4 MiB)
	Congestion string // "cubic" (default) or "reno"
	NoECN      bool   // neither ask for ECN nor accept it (RFC 3168)

	// Grant is the socket of a Granter (xdpd grant), which opens sockets and steers frames in place of a caller that has no
	// privilege: only packet memory beyond RLIMIT_MEMLOCK still takes CAP_IPC_LOCK. When the Granter ends, so does the engine.
	Grant string

	// Opened is called when all that takes privilege is done, before the first frame is looked at: the place to give it up. Its
	// error is Open's. Afterwards the engine needs no privilege (AutoNAPI is SoftirqNAPI then), but for the other NAPI arrangements; a Share that
	// cannot ask the kernel for a neighbour any more sends the neighbour an empty datagram to port 9 (discard).
	Opened func() error

	Ledger bool // check the owner of every frame at every step: for tests, slow
}

// defaults fills in what the configuration leaves open, and finds what is wrong with it before anything is touched.
func (c *Config) defaults() error {
	switch {
	case c.Interface == "":
		return errors.New("xdpd: no interface given")
	case c.Share && len(c.VLANs) > 0:
		return errors.New("xdpd: VLANs do not go with Share: the kernel has its addresses on the untagged interface")
	case c.Share && (len(c.Addrs) > 0 || c.Gateway.IsValid()):
		return errors.New("xdpd: Addrs and Gateway do not go with Share, which uses the kernel's own")
	case !c.Share && len(c.Addrs) == 0:
		return errors.New("xdpd: no address given")
	case c.Frames < 0 || c.Frames > 0 && c.Frames < 64:
		return fmt.Errorf("xdpd: %d frames; a queue needs at least 64", c.Frames)
	case c.ChunkSize != 0 && c.ChunkSize != 2048 && c.ChunkSize != 4096:
		return fmt.Errorf("xdpd: chunk size %d; the kernel takes 2048 or 4096", c.ChunkSize)
	case c.Queues != nil && len(c.Queues) == 0:
		return errors.New("xdpd: an empty list of queues; nil means all of them")
	case c.Grant != "" && c.Dispatch == AlwaysDispatch:
		return errors.New("xdpd: Grant does not go with AlwaysDispatch: a Granter's program is alone on its interface")
	case c.Grant != "" && c.NAPI > SoftirqNAPI:
		return fmt.Errorf("xdpd: Grant does not go with NAPI arrangement %v, which takes CAP_NET_ADMIN", c.NAPI)
	case c.Dispatch > NeverDispatch:
		return fmt.Errorf("xdpd: dispatch %d; there are AutoDispatch, AlwaysDispatch and NeverDispatch", c.Dispatch)
	case c.Priority < 0:
		return fmt.Errorf("xdpd: priority %d; they begin with 1", c.Priority)
	case c.RXMetadata > MetadataOff:
		return fmt.Errorf("xdpd: RX metadata %d; there are AutoMetadata, MetadataOn and MetadataOff", c.RXMetadata)
	case c.NAPI > ThreadedNAPI:
		return fmt.Errorf("xdpd: NAPI arrangement %d; there are AutoNAPI, SoftirqNAPI, DriveNAPI, SuspendNAPI and ThreadedNAPI", uint8(c.NAPI))
	case c.Reactors < 0 || len(c.Queues) > 0 && c.Reactors > len(c.Queues):
		return fmt.Errorf("xdpd: %d reactors for %d queues: there can be 1 to %d", c.Reactors, len(c.Queues), len(c.Queues))
	}
	for i, q := range c.Queues {
		if slices.Contains(c.Queues[:i], q) {
			return fmt.Errorf("xdpd: queue %d is listed twice; it has one reactor", q)
		}
	}
	for _, a := range c.Addrs {
		if !a.Addr().Unmap().Is4() {
			return fmt.Errorf("xdpd: %v is not an IPv4 address", a)
		}
	}
	if g := c.Gateway; g.IsValid() {
		if !g.Unmap().Is4() {
			return fmt.Errorf("xdpd: gateway %v is not an IPv4 address", g)
		}
		reachable := false
		for _, a := range c.Addrs {
			reachable = reachable || a.Contains(g)
			if a.Addr().Unmap() == g.Unmap() {
				return fmt.Errorf("xdpd: gateway %v is the engine's own address", g)
			}
		}
		if !reachable {
			return fmt.Errorf("xdpd: gateway %v lies in no subnet of the addresses given", g)
		}
	}
	// What is changed on the device while the engine runs takes privilege: without it auto leaves all as it is.
	if c.NAPI == AutoNAPI && (c.Grant != "" || c.Opened != nil) {
		c.NAPI = SoftirqNAPI
	}
	if c.JournalDir == "" {
		c.JournalDir = DefaultJournalDir
	}
	if c.Frames == 0 {
		c.Frames = 16384
	}
	return nil
}

// zeroCopyMTU is the largest MTU that a driver receives into one frame of chunk bytes in zero copy.
func zeroCopyMTU(driver string, chunk int) int {
	return sockets.MaxMTU(rings.ZeroCopyRoom(driver, chunk)+umem.Headroom, 1)
}

// fitZeroCopy limits the frames that a packet may have, in any mode, to the segs that the driver sends in zero copy
// (xdp-zc-max-segs; 0: not told, and with 1 it refuses the socket), where these hold the MTU. notZeroCopy is why the MTU does not
// go with zero copy.
func fitZeroCopy(dev device, chunk, frames, segs int) (packet int, notZeroCopy string) {
	switch {
	case frames == 1:
		return 1, tooLong(dev.driver, dev.mtu, chunk)
	case segs < 2:
		return frames, ""
	}
	if most := sockets.MaxMTU(chunk, segs); dev.mtu > most {
		return frames, fmt.Sprintf("zero copy of %s sends packets of %d frames at most (xdp-zc-max-segs), which hold an MTU up to %d; the MTU is %d",
			dev.driver, segs, most, dev.mtu)
	}
	return min(frames, segs), ""
}

// tooLong is why packets of the MTU cannot be received in zero copy into frames of chunk bytes; "": they can.
func tooLong(driver string, mtu, chunk int) string {
	most := zeroCopyMTU(driver, chunk)
	if mtu <= most {
		return ""
	}
	return fmt.Sprintf("zero copy of %s receives packets of an MTU up to %d into frames of %d bytes; the MTU is %d",
		driver, most, chunk, mtu)
}

// chunkFor chooses the frame size for an MTU, and how many frames a packet may consist of: one if one can hold it. The mode
// does not matter: it can be changed (SetMode), and the frames cannot.
func (c *Config) chunkFor(driver string, mtu int) (size, frames int, err error) {
	limit := 0
	for _, frames := range []int{1, sockets.MaxPacketFrames} {
		for _, size := range []int{2048, 4096} {
			if c.ChunkSize != 0 && c.ChunkSize != size || frames > 1 && size < 4096 && c.ChunkSize == 0 {
				continue
			}
			if c.ChunkSize == 0 && size == 2048 && mtu > zeroCopyMTU(driver, size) {
				continue
			}
			if limit = sockets.MaxMTU(size, frames); mtu <= limit {
				return size, frames, nil
			}
		}
	}
	return 0, 0, fmt.Errorf("xdpd: interface %s has MTU %d; with frames of %d bytes, %d to a packet, %d is possible: use larger frames, or ip link set %s mtu 1500",
		c.Interface, mtu, c.ChunkSize, sockets.MaxPacketFrames, limit, c.Interface)
}

// prefixes converts addresses for the Host.
func prefixes(addrs []netip.Prefix) []sockets.Prefix {
	var out []sockets.Prefix
	for _, p := range addrs {
		if a, ok := proto.AddrFrom(p.Addr()); ok {
			out = append(out, sockets.Prefix{Addr: a, Bits: p.Bits()})
		}
	}
	return out
}
