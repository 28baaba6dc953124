package netlab

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtool does ioctl(SIOCETHTOOL) on dev in the calling thread's namespace. words is the command's struct, all of 32-bit
// fields with the command first (include/uapi/linux/ethtool.h); the kernel's answer is in it afterwards.
func ethtool(dev string, words []uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var request struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], dev)
	// The kernel writes through a pointer that the garbage collector sees only as part of request.
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&words[0])
	request.data = unsafe.Pointer(&words[0])
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return errno
	}
	return nil
}

// Of include/uapi/linux/ethtool.h.
const (
	ethSSStats    = 1
	ethGStringLen = 32
)

// statistics does ETHTOOL_GSTATS: the driver's counters of dev by name (net/ethtool/ioctl.c, ethtool_get_stats).
func statistics(dev string) (map[string]uint64, error) {
	info := []uint32{unix.ETHTOOL_GSSET_INFO, 0, 1 << ethSSStats, 0, 0} // a 64-bit mask, then a count for each bit
	if err := ethtool(dev, info); err != nil {
		return nil, err
	}
	n := int(info[4])
	const head, name, value = 3, ethGStringLen / 4, 2 // of the answers below, in words
	names := make([]uint32, head+n*name)
	names[0], names[1], names[2] = unix.ETHTOOL_GSTRINGS, ethSSStats, uint32(n)
	if err := ethtool(dev, names); err != nil {
		return nil, err
	}
	values := make([]uint32, head-1+n*value) // its head is two words
	values[0], values[1] = unix.ETHTOOL_GSTATS, uint32(n)
	if err := ethtool(dev, values); err != nil {
		return nil, err
	}
	out := make(map[string]uint64, n)
	for i := range n {
		b := unsafe.Slice((*byte)(unsafe.Pointer(&names[head+i*name])), ethGStringLen)
		v := unsafe.Slice((*byte)(unsafe.Pointer(&values[head-1+i*value])), 8)
		out[unix.ByteSliceToString(b)] = binary.NativeEndian.Uint64(v)
	}
	return out, nil
}
