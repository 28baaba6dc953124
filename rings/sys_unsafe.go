//go:build linux

package rings

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// What x/sys/unix has no wrapper for: socket options that are structs, and one
// ioctl. Each call keeps its pointers in the call expression, see
// unsafe.Pointer rule 4.

func getsockopt(fd, opt int, p unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(opt),
		uintptr(p), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	if length < uint32(size) { // an older kernel's shorter struct
		return unix.ENOPROTOOPT
	}
	return nil
}

// registerUmem is XDP_UMEM_REG: the kernel pins mem until the socket, and all
// that share with it, are closed.
func registerUmem(fd int, mem []byte, chunkSize int) error {
	reg := unix.XDPUmemReg{
		Addr: uint64(uintptr(unsafe.Pointer(&mem[0]))), Len: uint64(len(mem)), Size: uint32(chunkSize),
	}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_UMEM_REG,
		uintptr(unsafe.Pointer(&reg)), unsafe.Sizeof(reg), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func mmapOffsets(fd int) (off unix.XDPMmapOffsets, err error) {
	err = getsockopt(fd, unix.XDP_MMAP_OFFSETS, unsafe.Pointer(&off), unsafe.Sizeof(off))
	return off, err
}

func xdpStatistics(fd int) (st unix.XDPStatistics, err error) {
	err = getsockopt(fd, unix.XDP_STATISTICS, unsafe.Pointer(&st), unsafe.Sizeof(st))
	return st, err
}

func isZeroCopy(fd int) (bool, error) {
	var flags uint32 // struct xdp_options
	err := getsockopt(fd, unix.XDP_OPTIONS, unsafe.Pointer(&flags), unsafe.Sizeof(flags))
	return flags&unix.XDP_OPTIONS_ZEROCOPY != 0, err
}

// ethtoolChannels is how many RX queues ETHTOOL_GCHANNELS tells of, 0 if the
// driver does not say.
func ethtoolChannels(name string) int {
	// struct ethtool_channels, include/uapi/linux/ethtool.h
	ch := struct{ cmd, maxRX, maxTX, maxOther, maxCombined, rx, tx, other, combined uint32 }{cmd: unix.ETHTOOL_GCHANNELS}
	// struct ifreq: the name, and a union of which this is the pointer
	ifr := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&ch)}
	if copy(ifr.name[:unix.IFNAMSIZ-1], name) != len(name) {
		return 0
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return 0
	}
	return int(ch.rx + ch.combined)
}
