package sockets

import "xdpd/proto"

// Drop says why a frame, or a datagram of several frames, went no further. The first values are proto's faults, so a
// parser's verdict is a drop reason as it stands.
type Drop uint8

// Drop reasons beyond the parsers' own.
const (
	EthNotOurs     Drop = Drop(proto.NFaults) + iota // unicast to another MAC
	EthVLANID                                        // not the VLAN this host lives on
	EthType                                          // neither ARP nor IPv4
	ARPNotOurs                                       // for another address, or from outside the subnet
	ARPUnsolicited                                   // a reply that nobody asked for
	ARPConflict                                      // somebody else claims our address
	NeighTableFull
	NeighQueueFull // too many packets wait for one neighbour
	NeighFailed    // the neighbour did not answer
	IPNotOurs
	IPMartianSource // multicast, broadcast, loopback, reserved or our own address as source
	IPMartianDest   // loopback or zero-net destination
	IPLinkBroadcast // unicast IP in a broadcast frame (RFC 1122 3.3.6)
	IPSourceRoute
	IPProtocol    // no such transport protocol here
	FragOverlap   // RFC 5722: the whole datagram goes
	FragDuplicate // an exact copy of a fragment that is there
	FragBad       // lengths that cannot fit together, or too many pieces
	FragLimit     // evicted, or no room for another datagram
	FragTimeout
	ICMPIgnored   // a type or a quote that concerns nobody here
	ICMPBroadcast // echo request to a broadcast
	ICMPRateLimit // an ICMP error that was not sent
	UDPNoSocket
	UDPQueueFull   // the socket's receive limit
	TCPNoSocket    // answered with RST where the RFC says so
	TCPBacklogFull // accept or SYN queue at its limit
	TCPOutOfWindow
	TCPOutOfOrder
	TCPDuplicate
	TCPPAWS
	TCPNoACK        // a segment without ACK where one is needed
	TCPBadFlag      // SYN+FIN and the like
	TCPClosed       // data for a socket that no longer reads
	HandoverFull    // no room on the way to the Host that has the flow
	HandoverNoFrame // that Host had no frame to give in return
	HandoverEarly   // a segment that overtook the handshake of its connection: it comes again
	RxMemLimit      // frames held by all sockets at their limit
	RxAccountLimit  // frames held by the sockets of one account at its limit
	TxNoFrame
	TxQueueFull
	TxNoRoute
	BridgeSource   // a multicast address, or none, as a frame's source
	BridgeReserved // to a group that bridges do not pass on (IEEE 802.1Q table 8-1)
	BridgeSamePort // the station that it is for is where it came from
	FwdLocal       // for an address of the router itself: the kernel's
	FwdMulticast
	FwdLinkLocal // from or to 169.254.0.0/16 (RFC 3927 2.7)
	FwdBroadcast // directed to all of an attached network (RFC 2644)
	FwdTTL       // answered with time exceeded
	FwdRefused   // a route says that it is not to be sent on
	FwdNoPort    // the route leads out of an interface that is not forwarded to
	FwdPortDown
	FwdTooBig // for the MTU, and must not be fragmented
	NDrops
)

var dropNames = [...]string{
	"eth_not_ours", "eth_vlan_id", "eth_type", "arp_not_ours", "arp_unsolicited", "arp_conflict", "neigh_table_full",
	"neigh_queue_full", "neigh_failed", "ip_not_ours", "ip_martian_source", "ip_martian_dest", "ip_link_broadcast",
	"ip_source_route", "ip_protocol", "frag_overlap", "frag_duplicate", "frag_bad", "frag_limit", "frag_timeout",
	"icmp_ignored", "icmp_broadcast", "icmp_rate_limit", "udp_no_socket", "udp_queue_full", "tcp_no_socket",
	"tcp_backlog_full", "tcp_out_of_window", "tcp_out_of_order", "tcp_duplicate", "tcp_paws", "tcp_no_ack",
	"tcp_bad_flag", "tcp_closed", "handover_full", "handover_no_frame", "handover_early", "rx_mem_limit", "rx_account_limit", "tx_no_frame", "tx_queue_full",
	"tx_no_route",
	"bridge_source", "bridge_reserved", "bridge_same_port", "fwd_local", "fwd_multicast", "fwd_link_local", "fwd_broadcast",
	"fwd_ttl", "fwd_refused", "fwd_no_port", "fwd_port_down", "fwd_too_big",
}

// NHostDrops is how many reasons a Host has; those behind them are a Bridge's and a Router's.
const NHostDrops = BridgeSource

// String is the reason's name in the drop ledger, for example "ip_checksum".
func (d Drop) String() string {
	if d < Drop(proto.NFaults) {
		return proto.Fault(d).String()
	}
	if int(d) < int(NDrops) {
		return dropNames[d-Drop(proto.NFaults)]
	}
	return "?"
}

// Stat numbers the Host's counters of what it took and passed. Drops are counted apart, by reason.
type Stat uint8

// Counters of packets unless said otherwise.
const (
	RxFrames Stat = iota
	RxBytes
	RxARP
	RxICMP
	RxUDP
	RxTCP
	RxFragments
	Reassembled  // datagrams put together
	RxPartialSum // accepted with only the pseudo-header sum: a kernel sender's checksum offload on veth
	RxDelivered  // datagrams and segments queued on a socket
	HandedOver   // packets for another Host's sockets: HandedIn there, or dropped as HandoverFull here, HandoverNoFrame there
	HandedIn     // packets that another Host received for ours
	RxCoalesced  // TCP segments compacted into the frame before them
	TxFrames
	TxBytes
	TxARP
	TxICMP
	TxUDP
	TxTCP
	TxFragments
	TxPartialSum // packets whose checksum was left to the device
	TCPAccepted
	TCPResets         // RST sent
	TCPRetransmits    // segments sent again
	TCPTimeouts       // retransmission timer fired
	TCPChallenges     // challenge ACKs sent (RFC 5961)
	TCPOutOfOrderHeld // segments that came before their turn
	TCPRecoveries     // fast recoveries begun
	TCPProbes         // loss probes sent (RFC 8985)
	TCPDSACKs         // D-SACKs received: something arrived twice
	TCPSpurious       // reductions taken back, for nothing had been lost
	TCPCookies        // SYN cookies sent
	TCPMarked         // data segments with congestion experienced (RFC 3168)
	TCPPressure       // connections given up because their peers took nothing and others need the frames
	TCPPathMTU        // times that a path's MTU turned out smaller
	TCPUrgentLimit    // urgent pointers that nobody will hear of: too many connections have one
	AnswerElsewhere   // answers to dials that another queue handed over, while the device's hash says that they come in here
	PortElsewhere     // ports chosen whose answers come in on another queue, for none was found that brings them here
	NStats
)

var statNames = [...]string{
	"rx_frames", "rx_bytes", "rx_arp", "rx_icmp", "rx_udp", "rx_tcp", "rx_fragments", "reassembled", "rx_partial_sum",
	"rx_delivered", "handed_over", "handed_in", "rx_coalesced", "tx_frames", "tx_bytes", "tx_arp", "tx_icmp", "tx_udp", "tx_tcp", "tx_fragments", "tx_partial_sum",
	"tcp_accepted", "tcp_resets", "tcp_retransmits", "tcp_timeouts", "tcp_challenges",
	"tcp_out_of_order_held", "tcp_recoveries", "tcp_loss_probes", "tcp_dsacks", "tcp_spurious", "tcp_syn_cookies",
	"tcp_marked", "tcp_pressure", "tcp_path_mtu", "tcp_urgent_limit", "answer_elsewhere", "port_elsewhere",
}

// String is the counter's name.
func (s Stat) String() string { return statNames[s] }

// Copy says why bytes of packets were copied from one place in memory to another. A frame that is lent, given away or
// forwarded costs none.
type Copy uint8

// Reasons for copies.
const (
	CopyRecv     Copy = iota // to the memory of a reader
	CopySend                 // from the memory of a writer
	CopyGather               // small TCP segments put together in one frame
	CopySplit                // a segment cut for a smaller window or path
	CopyFragment             // a packet cut for an MTU
	CopyQuote                // the beginning of a packet in an ICMP error about it
	CopyFlood                // a frame for several ports of a bridge
	NCopies
)

// NHostCopies is how many reasons a Host has.
const NHostCopies = CopyFlood

var copyNames = [NCopies]string{"recv", "send", "gather", "split", "fragment", "quote", "flood"}

// String is the reason's name.
func (c Copy) String() string { return copyNames[c] }

// Counters is the Host's part of the ledger.
type Counters struct {
	Stats  [NStats]uint64
	Drops  [NDrops]uint64
	Copied [NCopies]uint64 // bytes
}

// Add sums two hosts' counters.
func (c *Counters) Add(o *Counters) {
	for i := range c.Stats {
		c.Stats[i] += o.Stats[i]
	}
	for i := range c.Drops {
		c.Drops[i] += o.Drops[i]
	}
	for i := range c.Copied {
		c.Copied[i] += o.Copied[i]
	}
}
