package xdpprog

import (
	"net/netip"
	"slices"
)

// A model is the steering rules once more, in Go over slices, for the kernel's verdicts to be held against. It knows
// the addresses and ports of a rig and, like the program, the datagrams whose first fragment was ours.
type model struct {
	share   bool
	probe   bool // somebody waits for the answer to a probe
	claimed map[datagramID]bool
}

type datagramID struct {
	src, dst netip.Addr
	id       uint16
	proto    uint8
}

func newModel(s Steer) *model { return &model{share: s == Share, claimed: map[datagramID]bool{}} }

func (m *model) ours(a netip.Addr) bool { return a == ourAddr || a == ourAddr2 }

func (m *model) isOpen(proto uint8, a netip.Addr, port uint16) bool {
	for _, o := range openedPorts {
		if o.proto == proto && o.port == port && (!o.addr.IsValid() || o.addr == a) {
			return true
		}
	}
	return false
}

func addrAt(b []byte, off int) netip.Addr { return netip.AddrFrom4([4]byte(b[off : off+4])) }

func (m *model) verdict(frame []byte) string {
	b, typ := frame[14:], be.Uint16(frame[12:])
	if m.probe && typ == 0x0806 && len(b) >= 28 && be.Uint16(b[6:]) == 2 && be.Uint32(b[24:]) == 0 {
		return "pass_probe"
	}
	for tags := 0; tags < 2 && slices.Contains([]uint16{0x8100, 0x88a8}, typ); tags++ {
		if len(b) < 4 {
			return "pass_malformed"
		}
		b, typ = b[4:], be.Uint16(b[2:])
	}
	switch {
	case typ == 0x0800:
		return m.ipv4(b)
	case typ != 0x0806 || m.share:
		return "pass_not_ours"
	case len(b) < 28 || be.Uint16(b[2:]) != 0x0800 || b[4] != 6 || b[5] != 4:
		return "pass_malformed"
	case m.ours(addrAt(b, 24)):
		return "own_arp"
	}
	return "pass_not_ours"
}

func (m *model) ipv4(b []byte) string {
	if len(b) < 20 {
		return "pass_malformed"
	}
	dst := addrAt(b, 16)
	if !m.ours(dst) {
		return "pass_not_ours"
	}
	if !m.share {
		return "own_ipv4"
	}
	header, total := int(b[0]&15)*4, int(be.Uint16(b[2:]))
	if b[0]>>4 != 4 || header < 20 || header > total || total > len(b) {
		return "pass_malformed"
	}
	key := datagramID{addrAt(b, 12), dst, be.Uint16(b[4:]), b[9]}
	bits := be.Uint16(b[6:])
	if bits&0x1fff != 0 {
		if m.claimed[key] {
			return "share_fragment"
		}
		return "pass_fragment"
	}
	v := m.transport(b[9], dst, b[header:total])
	if bits&0x2000 != 0 {
		m.claimed[key] = v == "share_port" || v == "share_icmp_error"
	}
	return v
}

func (m *model) transport(proto uint8, dst netip.Addr, b []byte) string {
	switch proto {
	case 6, 17:
		if len(b) < 4 {
			return "pass_malformed"
		}
		if m.isOpen(proto, dst, be.Uint16(b[2:])) {
			return "share_port"
		}
	case 1:
		return m.icmp(b)
	}
	return "pass_not_ours"
}

func (m *model) icmp(b []byte) string {
	if len(b) < 8 {
		return "pass_malformed"
	}
	if !slices.Contains([]byte{3, 11, 12}, b[0]) {
		return "pass_not_ours"
	}
	q := b[8:]
	if len(q) < 20 || q[0]>>4 != 4 || q[0]&15 < 5 || len(q) < int(q[0]&15)*4+4 {
		return "pass_malformed"
	}
	src, port := addrAt(q, 12), be.Uint16(q[int(q[0]&15)*4:])
	if be.Uint16(q[6:])&0x1fff == 0 && m.ours(src) && m.isOpen(q[9], src, port) {
		return "share_icmp_error"
	}
	return "pass_not_ours"
}
