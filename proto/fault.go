package proto

import "fmt"

// Fault says why a parser refused its bytes.
type Fault uint8

const (
	OK Fault = iota // every rule that the parser checks holds

	EthShort // frame below 14 bytes
	EthVLAN  // more than two VLAN tags, or the frame ends inside one
	EthLLC   // type below 0x600: an 802.3 length, LLC follows

	ARPShort // below 28 bytes
	ARPBad   // not Ethernet and IPv4 addresses, or neither request nor reply

	IPShort     // below 20 bytes
	IPVersion   // not 4
	IPHeaderLen // header length below 20 bytes, or past the end of the frame
	IPTotalLen  // total length below the header's or past the end of the frame, or a fragment ending past 65535
	IPChecksum  // header checksum wrong
	IPOptions   // an option's length is below 2 or runs out of the header

	ICMPShort    // below 8 bytes
	ICMPChecksum // checksum wrong

	UDPShort    // below 8 bytes
	UDPLen      // length field below 8 or past the end of the packet
	UDPChecksum // for who calls VerifyL4: checksum wrong

	TCPShort    // below 20 bytes
	TCPDataOff  // data offset below 20 bytes, or past the end of the segment
	TCPChecksum // for who calls VerifyL4: checksum wrong

	NFaults // how many there are
)

var faultNames = [NFaults]string{
	OK:       "ok",
	EthShort: "eth_short", EthVLAN: "eth_vlan", EthLLC: "eth_llc",
	ARPShort: "arp_short", ARPBad: "arp_bad",
	IPShort: "ip_short", IPVersion: "ip_version", IPHeaderLen: "ip_header_len", IPTotalLen: "ip_total_len",
	IPChecksum: "ip_checksum", IPOptions: "ip_options",
	ICMPShort: "icmp_short", ICMPChecksum: "icmp_checksum",
	UDPShort: "udp_short", UDPLen: "udp_len", UDPChecksum: "udp_checksum",
	TCPShort: "tcp_short", TCPDataOff: "tcp_data_off", TCPChecksum: "tcp_checksum",
}

// String is the fault's name in counters: snake_case, protocol first.
func (f Fault) String() string {
	if f >= NFaults {
		return fmt.Sprintf("fault(%d)", uint8(f))
	}
	return faultNames[f]
}
