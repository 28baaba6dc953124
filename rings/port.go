// Package rings is all that two address spaces look at: single-producer
// single-consumer rings, and the AF_XDP socket that maps four of them.
//
// A ring is written Reserve, Slot, Submit and read Peek, Read, Release; each
// end keeps its own index to itself, publishes it with one atomic store a
// batch, and believes the other's only within bounds. A Port is the four rings
// of one device queue. It is filled by OpenSocket from the kernel's mappings,
// by package simnic from plain memory whose far ends a simulated NIC holds, and
// by package asavie from a socket of that library; the code between the rings
// cannot tell them apart.
package rings

import "errors"

// Desc is struct xdp_desc (include/uapi/linux/if_xdp.h).
type Desc struct {
	Addr    uint64 // of the first byte of the packet in the region, not of the chunk
	Len     uint32 // bytes
	Options uint32
}

// DescContinued in Options says that the packet goes on in the next
// descriptor: XDP_PKT_CONTD.
const DescContinued = 1

// Port is the four rings of a device queue and what stands behind them.
type Port struct {
	Fill *Producer[uint64] // frames for the device to receive into
	RX   *Consumer[Desc]   // frames received
	TX   *Producer[Desc]   // frames to send
	Comp *Consumer[uint64] // frames the device is done sending: the Addr of their TX entries, so check it as you checked that
	Dev  Device

	Checksum bool // the device finishes a packet's checksum if asked to (DescMetadata, AskChecksum)
	Metadata bool // it may read the TXMetadata of every entry, whatever Options say: who asks for nothing says so (AskNothing)
}

// Device is what stands behind a port and is not a ring.
type Device interface {
	// Kick makes the device look at the TX ring. A device that is busy is no
	// error: come again. The error is ErrDeviceDown when the device went away.
	Kick() error
	// WakeRX makes the device look at the fill ring when that asks for it.
	// Errors as Kick.
	WakeRX() error
	// FD is what to poll(2) for POLLIN, or -1.
	FD() int
	// Stats are what the device counted.
	Stats() (Stats, error)
	// Close gives the queue back. The port's rings must not be used after it.
	Close() error
}

// Stats is struct xdp_statistics: what the kernel counts for one socket.
type Stats struct {
	RxDropped        uint64 // for other reasons than a full or invalid ring
	RxInvalidDescs   uint64 // bad addresses in the fill ring
	TxInvalidDescs   uint64 // bad descriptors in the TX ring; their frames do not complete
	RxRingFull       uint64 // packets dropped because the RX ring was full
	RxFillRingEmpty  uint64 // times a frame was wanted and the fill ring was empty
	TxRingEmptyDescs uint64 // times the TX ring was found empty
}

// ErrDeviceDown says that the device is down or gone: no frame will come out
// of its rings any more. Match it with errors.Is; the errno is in the chain.
var ErrDeviceDown = errors.New("device is down or gone")

// Mode is how packets get from the driver to the region.
type Mode uint8

// The modes.
const (
	Best     Mode = iota // ZeroCopy where the driver has it, else Copy
	Copy                 // the kernel copies each packet; every driver can
	ZeroCopy             // the driver's DMA writes into the region
)
