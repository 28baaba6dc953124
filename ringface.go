package xdpd

import (
	"fmt"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

// RingConfig says on which reactor a ring is and how large; see reactor.RingConfig, whose Ports is the stack's.
type RingConfig struct {
	Reactor int // its number: an index of Stack.Reactors
	reactor.RingConfig
}

// Ring makes a pair of SQ and CQ rings on a reactor, whose sockets its operations open and use: docs/ring.md. It is closed
// by its Close, or with the stack.
func (s *Stack) Ring(cfg RingConfig) (*reactor.Ring, error) {
	r, err := s.reactor(cfg.Reactor)
	if err != nil {
		return nil, err
	}
	cfg.Ports = s.ringPorts()
	return reactor.NewRing(r, cfg.RingConfig)
}

// ringPorts is who must hear of the ports of rings; nil: nobody.
func (s *Stack) ringPorts() reactor.Ports {
	if s.cfg.Share {
		return ringPorts{s}
	}
	return nil
}

// Poller makes a poller for sockets of one reactor, given by its number. It is closed by its Close, or with the stack.
func (s *Stack) Poller(number int) (*reactor.Poller, error) {
	r, err := s.reactor(number)
	if err != nil {
		return nil, err
	}
	return reactor.NewPoller(r), nil
}

func (s *Stack) reactor(number int) (*reactor.Reactor, error) {
	if number < 0 || number >= len(s.queues) {
		return nil, fmt.Errorf("xdpd: reactor %d of %d", number, len(s.queues))
	}
	return s.queues[number].reactor, nil
}

// ringPorts opens the ports of rings' sockets in the steering program. An errno is all that a completion can say.
type ringPorts struct{ s *Stack }

func (p ringPorts) key(protocol uint8, local proto.Addr, port uint16) portKey {
	k := portKey{proto: protocol, port: port}
	if local != 0 { // as TCPListener has it, whose ports are counted in the same table
		k.addr = local.Netip()
	}
	return k
}

// Take and Give are for who asks whose a port is; the steering program does not.
func (p ringPorts) Take(uint8, proto.Addr, uint16) sockets.Errno { return 0 }
func (p ringPorts) Give(uint8, proto.Addr, uint16)               {}

func (p ringPorts) Open(protocol uint8, local proto.Addr, port uint16) sockets.Errno {
	if err := p.s.openPort(p.key(protocol, local, port)); err != nil {
		return sockets.ENOBUFS // the program's table is full
	}
	return 0
}

func (p ringPorts) Close(protocol uint8, local proto.Addr, port uint16) {
	// There is nobody to tell of an error, which an open port always is: it only keeps the kernel from using it.
	_ = p.s.closePort(p.key(protocol, local, port))
}

func (p ringPorts) Keep(h *sockets.Host, c sockets.Handle) sockets.Errno {
	if err := p.s.keepPort(h, c); err != nil {
		return sockets.ENOBUFS
	}
	return 0
}
