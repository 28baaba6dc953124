package reactor_test

import "xdpd/proto"

// strayTCP reports whether segments come that no client sent.
func (p *params) strayTCP() bool { return p.garbage > 0 && p.tcp }

// noise sends segments that nobody wants: SYNs that stay half open, scans, and blind attacks on connections that are
// there (RFC 5961), with sequence numbers in the window but never the exact one.
func (m *tcpModel) noise(st station, src proto.Addr) {
	rng := m.w.rng
	h := proto.TCP{
		SrcPort: noisePort + uint16(rng.IntN(1000)), DstPort: tcpPort, Seq: rng.Uint32(), Ack: rng.Uint32(),
		Window: uint16(rng.Uint32()), Flags: []uint8{proto.SYN, proto.SYN, proto.ACK, proto.RST, proto.FIN | proto.SYN,
			0, 0xff, proto.SYN | proto.ACK, proto.FIN | proto.ACK}[rng.IntN(9)],
	}
	opt := proto.TCPOptions{MSS: uint16(rng.Uint32()), HasTS: rng.IntN(2) == 0, TSVal: rng.Uint32()}
	if rng.IntN(8) == 0 {
		h.DstPort = closedPort
	}
	var data []byte
	if k := m.victim(); k != nil && rng.IntN(2) == 0 {
		src, st, h.SrcPort, h.DstPort = k.f.ip, k.st, k.f.port, tcpPort
		// Behind all that the client will ever send, so that it can never become the next number.
		h.Seq = k.iss + uint32(k.total) + 10 + uint32(rng.IntN(3000))
		h.Flags = []uint8{proto.RST, proto.SYN, proto.RST | proto.ACK, proto.SYN | proto.ACK}[rng.IntN(4)]
		opt = proto.TCPOptions{}
	} else if rng.IntN(4) == 0 {
		data = m.w.peer.bytes(rng.IntN(100))
	}
	m.sendSegment(st, src, &h, &opt, data)
}

func (m *tcpModel) victim() *client {
	if len(m.all) == 0 {
		return nil
	}
	if k := m.all[m.w.rng.IntN(len(m.all))]; k.state == open {
		return k
	}
	return nil
}
