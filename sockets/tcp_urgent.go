package sockets

import "xdpd/proto"

// Urgent data is read in line (RFC 6093: the pointer says where in the stream attention is due, nothing is taken out of
// it). A connection with an urgent byte that came and was not read is ready for Pri, as Linux's are with SO_OOBINLINE. Hardly
// a connection ever has one, so that its place stands beside the records.

const urgentMax = 4096 // connections; to those beyond it urgent data is data

// urgentInput is tcp_check_urg: it notes where a segment's pointer points to, before its data is taken.
func (h *Host) urgentInput(i uint32, c *tcb, s *segment) {
	if s.tcp.Flags&proto.URG == 0 {
		return
	}
	at := s.seq + uint32(s.tcp.Urgent)
	if s.tcp.Urgent > 0 {
		at-- // BSD's reading, which all have in common: the pointer names the byte behind (RFC 6093 section 3.2)
	}
	if c.rcvFIN || seqLT(at, c.rcvNxt) {
		return // came before
	}
	old, ok := h.tcp.urgent[i]
	if ok && seqLE(at, old) {
		return
	}
	if !ok && len(h.tcp.urgent) >= urgentMax {
		h.count(TCPUrgentLimit)
		return
	}
	h.tcp.urgent[i] = at
}

// urgentReady reports an urgent byte that came and was not read.
func (h *Host) urgentReady(i uint32, c *tcb) bool {
	if len(h.tcp.urgent) == 0 {
		return false
	}
	at, ok := h.tcp.urgent[i]
	return ok && seqLT(at, c.rcvEnd()) && seqLE(c.rcvEnd()-c.rcvBytes, at)
}

// urgentRead forgets an urgent byte that was read.
func (h *Host) urgentRead(i uint32, c *tcb) {
	if len(h.tcp.urgent) == 0 {
		return
	}
	if at, ok := h.tcp.urgent[i]; ok && seqLT(at, c.rcvEnd()-c.rcvBytes) {
		delete(h.tcp.urgent, i)
	}
}

// rcvEnd is the number behind the last byte that can be read.
func (c *tcb) rcvEnd() uint32 {
	if c.rcvFIN {
		return c.rcvNxt - 1
	}
	return c.rcvNxt
}
