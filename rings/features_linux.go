package rings

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Features are what the kernel tells of a device in netlink's netdev family (Documentation/netlink/specs/netdev.yaml).
type Features struct {
	RXMetadata   uint64 // what an XDP program may ask the driver of a frame: RXTimestamp ...
	TXMetadata   uint64 // what the driver takes of TX metadata, in zero-copy mode: TXTimestamp ...
	ZeroCopySegs int    // frames that a packet to send may have in zero-copy mode; 0: there is none, or it is not told
}

// Bits of Features (include/uapi/linux/netdev.h).
const (
	RXTimestamp = 1 << 0
	RXHash      = 1 << 1
	RXTag       = 1 << 2

	TXTimestamp  = 1 << 0
	TXChecksum   = 1 << 1
	TXLaunchTime = 1 << 2
)

// ReadFeatures asks for an interface of the calling thread's network namespace.
func ReadFeatures(ifindex int) (f Features, err error) {
	const (
		devGet         = 1 // NETDEV_CMD_DEV_GET
		devIfindex     = 1 // NETDEV_A_DEV_*
		devZCMaxSegs   = 4
		devRXMetadata  = 5
		devXSKFeatures = 6
	)
	d, err := openNetdev()
	defer d.close()
	var answer []byte
	if err == nil {
		answer, err = d.ask(devGet, attr32(nil, devIfindex, uint32(ifindex)))
	}
	if err == nil {
		err = eachAttr(answer, func(kind uint16, value uint64) {
			switch kind {
			case devZCMaxSegs:
				f.ZeroCopySegs = int(value)
			case devRXMetadata:
				f.RXMetadata = value
			case devXSKFeatures:
				f.TXMetadata = value
			}
		})
	}
	if err != nil {
		return Features{}, fmt.Errorf("rings: ask for the features of interface number %d (netdev netlink): %w", ifindex, err)
	}
	return f, nil
}

// Tags is whether devices take VLAN tags out of what they receive, before anybody sees the frame (ethtool -K DEVICE
// rxvlan on|off). It looks in the network namespace of the thread that opened it, from any other.
type Tags struct{ fd int }

// OpenTags makes the socket to ask by.
func OpenTags() (*Tags, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("rings: open a socket to ask for VLAN tags: %w", err)
	}
	return &Tags{fd}, nil
}

// Taken reports whether the device does.
func (t *Tags) Taken(name string) (bool, error) {
	flags, err := t.flags(name)
	return flags&ethFlagRXVLAN != 0, err
}

// Take tells a device to, or not to. A device that does not obey is an error too. It needs CAP_NET_ADMIN.
func (t *Tags) Take(name string, on bool) error {
	flags, err := t.flags(name)
	if err == nil {
		if flags &^= ethFlagRXVLAN; on {
			flags |= ethFlagRXVLAN
		}
		err = ethtoolBy(t.fd, name, command(2, ethtoolSetFlags, flags))
	}
	if err == nil {
		var now bool
		if now, err = t.Taken(name); err == nil && now != on {
			err = errors.New("the driver does not obey")
		}
	}
	if err != nil {
		return fmt.Errorf("rings: ethtool -K %s rxvlan %s: %w", name, map[bool]string{true: "on", false: "off"}[on], err)
	}
	return nil
}

// Close closes the socket.
func (t *Tags) Close() error { return unix.Close(t.fd) }

// From include/uapi/linux/ethtool.h.
const (
	ethtoolGetFlags = 0x25
	ethtoolSetFlags = 0x26
	ethFlagRXVLAN   = 1 << 8
)

func (t *Tags) flags(name string) (uint32, error) {
	value := command(2, ethtoolGetFlags)
	err := ethtoolBy(t.fd, name, value)
	return field(value, 1), err
}
