package xdpd

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"xdpd/proto"
	"xdpd/reactor"
)

// ClientPolicy says what the processes of some users may do. The zero value of a limit is a default.
type ClientPolicy struct {
	Name   string
	Users  []uint32 // uids
	Groups []uint32 // gids: of the process, its supplementary ones are not seen

	Bind  []PortRange    // ports that may be bound; any may have a free one
	Reach []netip.Prefix // addresses that may be connected or sent to; none: all

	Clients  int    // at a time (default 64)
	Memory   uint64 // bytes that one may share (default 64 MiB)
	Sockets  int    // of one client (default 1024)
	Requests int    // of one that may be in flight (default 4096)
	CPU      int    // percent of the reactor's time that one client's requests may take (default 50)
	Frames   int    // percent of the reactor's packet memory that one client's sockets may hold, each way (default 25)

	Rates reactor.Rates // of one client; 0: no limit

	// Lends is for who is trusted as the engine itself is: a client that asks for zero copy is given all of the packet memory, in which it can read
	// and change what anybody sends and receives, and may have as many frames of it at a time. Default none.
	Lends int
}

// PortRange is a range of ports of one transport, or of both.
type PortRange struct {
	Protocol    uint8 // proto.ProtoTCP, proto.ProtoUDP, or 0: both
	First, Last uint16
}

const (
	clientsDefault = 64
	clientMemory   = 64 << 20
	clientSockets  = 1024
	clientRequests = 4096
	clientCPU      = 50
	clientFrames   = 25
	clientEntries  = 1 << 15
	maxLends       = 1 << 16
)

func (p *ClientPolicy) withDefaults() ClientPolicy {
	q := *p
	q.Clients, q.Memory = cmp.Or(q.Clients, clientsDefault), cmp.Or(q.Memory, clientMemory)
	q.Sockets, q.Requests, q.CPU = cmp.Or(q.Sockets, clientSockets), cmp.Or(q.Requests, clientRequests), cmp.Or(q.CPU, clientCPU)
	q.Frames = cmp.Or(q.Frames, clientFrames)
	return q
}

// Check says what is wrong with a policy.
func (p *ClientPolicy) Check() error {
	switch {
	case len(p.Users)+len(p.Groups) == 0:
		return fmt.Errorf("clients %q: no user and no group, so nobody may come in", p.Name)
	case p.Clients < 0 || p.Sockets < 0 || p.Requests < 0:
		return fmt.Errorf("clients %q: a limit is negative", p.Name)
	case p.Requests > reactor.MaxRequests || p.Sockets > reactor.MaxSockets:
		return fmt.Errorf("clients %q: %d requests and %d sockets; up to %d and %d can be", p.Name, p.Requests, p.Sockets, reactor.MaxRequests, reactor.MaxSockets)
	case p.CPU < 0 || p.CPU > 100:
		return fmt.Errorf("clients %q: %d percent of the time; 1 to 100 can be", p.Name, p.CPU)
	case p.Frames < 0 || p.Frames > 100:
		return fmt.Errorf("clients %q: %d percent of the frames; 1 to 100 can be", p.Name, p.Frames)
	case p.Lends < 0 || p.Lends > maxLends:
		return fmt.Errorf("clients %q: %d lent frames; up to %d can be", p.Name, p.Lends, maxLends)
	case min(p.Rates.Connects, p.Rates.Packets, p.Rates.Bytes) < 0 || max(p.Rates.Connects, p.Rates.Packets, p.Rates.Bytes) > reactor.MaxRate:
		return fmt.Errorf("clients %q: rates go from 1 to %d a second", p.Name, int64(reactor.MaxRate))
	}
	for _, r := range p.Reach {
		if !r.IsValid() || !r.Addr().Is4() {
			return fmt.Errorf("clients %q: reach has %v, which is no IPv4 network", p.Name, r)
		}
	}
	for _, r := range p.Bind {
		if r.First == 0 || r.Last < r.First {
			return fmt.Errorf("clients %q: ports %d to %d are none", p.Name, r.First, r.Last)
		}
	}
	return nil
}

// admits reports whether a process of these ids may come in.
func (p *ClientPolicy) admits(uid, gid uint32) bool {
	return slices.Contains(p.Users, uid) || slices.Contains(p.Groups, gid)
}

// MayBind implements reactor.Guard.
func (p *ClientPolicy) MayBind(protocol uint8, local netip.AddrPort) bool {
	return slices.ContainsFunc(p.Bind, func(r PortRange) bool {
		return (r.Protocol == 0 || r.Protocol == protocol) && r.First <= local.Port() && local.Port() <= r.Last
	})
}

// MayReach implements reactor.Guard.
func (p *ClientPolicy) MayReach(_ uint8, remote netip.AddrPort) bool {
	return len(p.Reach) == 0 || slices.ContainsFunc(p.Reach, func(r netip.Prefix) bool { return r.Contains(remote.Addr()) })
}

// ParsePortRange reads "53", "8000-8999", "tcp:80" or "udp:5000-5010".
func ParsePortRange(s string) (p PortRange, err error) {
	rest := s
	switch {
	case len(s) > 4 && s[:4] == "tcp:":
		p.Protocol, rest = proto.ProtoTCP, s[4:]
	case len(s) > 4 && s[:4] == "udp:":
		p.Protocol, rest = proto.ProtoUDP, s[4:]
	}
	first, last, isRange := strings.Cut(rest, "-")
	if !isRange {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil {
		return p, fmt.Errorf("%q: ports are written 53, 8000-8999, tcp:80 or udp:5000-5010", s)
	}
	p.First, p.Last = uint16(a), uint16(b)
	if p.First == 0 || p.Last < p.First {
		return p, fmt.Errorf("%q: no such ports", s)
	}
	return p, nil
}
