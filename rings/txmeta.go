package rings

import "encoding/binary"

// DescMetadata in Options of a packet's first TX entry says that the
// TXMetadata bytes in front of Addr ask something of the device:
// XDP_TX_METADATA. A port takes it only if its Checksum says so.
const DescMetadata = 2

// TXMetadata is how many bytes in front of a packet are for the device then:
// struct xsk_tx_metadata (include/uapi/linux/if_xdp.h;
// Documentation/networking/xsk-tx-metadata.rst). They lie in the same frame.
const TXMetadata = 24

const txmdChecksum = 1 << 1 // XDP_TXMD_FLAGS_CHECKSUM

// AskChecksum writes into meta, the TXMetadata bytes in front of a packet, that
// the device is to sum the packet's bytes from start on and put the checksum
// field bytes behind start. The packet has the folded sum of the pseudo-header
// there, not inverted. Both lie in the packet's first frame.
func AskChecksum(meta []byte, start, field int) {
	_ = meta[TXMetadata-1]
	binary.NativeEndian.PutUint64(meta, txmdChecksum)
	binary.NativeEndian.PutUint16(meta[8:], uint16(start))
	binary.NativeEndian.PutUint16(meta[10:], uint16(field))
}

// AskNothing writes into meta that the device has nothing to do.
func AskNothing(meta []byte) { binary.NativeEndian.PutUint64(meta, 0) }

// Asked reads what AskChecksum wrote. ok is false for what is neither its nor
// AskNothing's; field is 0 after the latter.
func Asked(meta []byte) (start, field int, ok bool) {
	switch binary.NativeEndian.Uint64(meta) {
	case 0:
		return 0, 0, true
	case txmdChecksum:
		return int(binary.NativeEndian.Uint16(meta[8:])), int(binary.NativeEndian.Uint16(meta[10:])), true
	}
	return 0, 0, false
}
