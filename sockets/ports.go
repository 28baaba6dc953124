package sockets

import "xdpd/proto"

// Ports for sockets that did not choose one (net.ipv4.ip_local_port_range).
const (
	ephemeralFirst = 32768
	ephemeralCount = 28232
)

// portTries is how many ports are looked at for one whose answers come in on our queue: on a device with 128 queues that
// share its flows evenly one search in 3000 is in vain.
const portTries = 1024

// answeredHere reports whether the peer's packets of a flow are known to come in on our queue.
func (h *Host) answeredHere(transport uint8, k flowKey) bool {
	return h.cfg.RSS.Queue(transport, k.Remote, k.Local, k.RPort, k.LPort) == h.cfg.Queue
}

// steers reports whether the port decides on which queue a flow's answers come in.
func (h *Host) steers(transport uint8, k flowKey) bool {
	return k.Remote != 0 && h.cfg.RSS.Hashed(transport) == proto.RSSPorts
}

// chose counts a port that brings its answers to another queue.
func (h *Host) chose(transport uint8, k flowKey) {
	if h.cfg.RSS.Hashed(transport) != 0 && !h.answeredHere(transport, k) {
		h.count(PortElsewhere)
	}
}

// ephemeral picks a port at random (RFC 6056 algorithm 2) for which free says yes, and whose answers come in here if one
// of portTries is such; 0 if none is free.
func (h *Host) ephemeral(transport uint8, k flowKey, free func(uint16) bool) uint16 {
	if h.steers(transport, k) {
		for range portTries {
			k.LPort = uint16(ephemeralFirst + h.sec.next()%ephemeralCount)
			if h.answeredHere(transport, k) && free(k.LPort) {
				return k.LPort
			}
		}
	}
	start := int(h.sec.next() % ephemeralCount)
	for i := range ephemeralCount { // algorithm 1: however few are left, one is found
		k.LPort = uint16(ephemeralFirst + (start+i)%ephemeralCount)
		if free(k.LPort) {
			return k.LPort
		}
	}
	return 0
}

// udpPort is a free port for a UDP socket.
func (h *Host) udpPort(k flowKey) uint16 {
	return h.ephemeral(proto.ProtoUDP, k, func(p uint16) bool {
		return h.udp.ports[p] == 0 && !h.portElsewhere(proto.ProtoUDP, k.Local, p)
	})
}

// UDPDial opens a UDP socket that talks to one peer only, on a free port whose answers come in on this queue if that is
// known (Config.RSS). Errors: EINVAL, ENETUNREACH, EADDRINUSE.
func (h *Host) UDPDial(remote proto.Addr, rport uint16) (Handle, Errno) {
	_, src, ok := h.route(remote)
	switch {
	case rport == 0:
		return 0, EINVAL
	case !ok:
		return 0, ENETUNREACH
	}
	k := flowKey{Local: src, Remote: remote, RPort: rport}
	if k.LPort = h.udpPort(k); k.LPort == 0 {
		return 0, EADDRINUSE
	}
	h.chose(proto.ProtoUDP, k)
	s, err := h.UDPBind(0, k.LPort)
	if err == 0 {
		err = h.UDPConnect(s, remote, rport) // nothing is in its way: nobody had the port
	}
	return s, err
}

// dialPort is RFC 6056 algorithm 3: counting from an offset that a stranger cannot know, so that ports to one peer do
// not repeat soon; of the first portTries only those count whose answers come in here, and with only no others. A port is
// taken when its four-tuple is, or when somebody listens on it. 0: there is none.
func (h *Host) dialPort(k flowKey, only bool) uint16 {
	const span = ephemeralCount
	choosy, all := 0, span
	if h.steers(proto.ProtoTCP, k) {
		choosy = portTries
		if only {
			all = 0
		}
	} else if only && !h.answeredHere(proto.ProtoTCP, k) {
		return 0
	}
	offset := h.sec.dial(flowKey{Local: k.Local, Remote: k.Remote, RPort: k.RPort})
	h.tcp.dialNext += uint32(h.sec.next() & 7)
	for i := range choosy + all {
		h.tcp.dialNext++
		k.LPort = uint16(ephemeralFirst + (offset+h.tcp.dialNext)%span)
		if i < choosy && !h.answeredHere(proto.ProtoTCP, k) {
			continue
		}
		if kind, _ := h.tcp.flows.get(k); kind == 0 && h.tcp.ports[k.LPort] == 0 && h.dialClaim(k) {
			return k.LPort
		}
	}
	return 0
}
