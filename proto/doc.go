// Package proto turns bytes into fields and back, and holds the pure rules of the protocols: Ethernet with VLAN tags,
// ARP, IPv4, ICMP, UDP, TCP and its options, the Internet checksum, and the hash that spreads packets over queues. It has
// no state, no clock, and allocates nothing for a packet.
//
// Parse functions take the bytes from the first byte of their header on, accept any bytes at all without panicking, and
// return the fields by value together with a Fault. Fault OK means that every rule the function names holds, so that
// b[:HeaderLen] and its like need no further check; any other Fault comes with the zero value of the header, and is the
// reason for a drop counter, never an error.
//
// Put functions write a header at the start of b and return the number of bytes written. They are given what our own
// code made: a b too short is a programmer error and panics. Fields are host-order numbers everywhere outside a packet.
package proto
