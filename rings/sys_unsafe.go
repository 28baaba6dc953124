//go:build linux

package rings

import (
	"runtime"
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
// that share with it, are closed. metadata is how many bytes in front of each
// packet to be sent are the kernel's to read; if not 0, EINVAL may mean that it
// does not know of that.
func registerUmem(fd int, mem []byte, chunkSize, metadata int) error {
	reg := unix.XDPUmemReg{
		Addr: uint64(uintptr(unsafe.Pointer(&mem[0]))), Len: uint64(len(mem)), Size: uint32(chunkSize),
	}
	if metadata > 0 {
		reg.Flags, reg.Tx_metadata_len = unix.XDP_UMEM_TX_METADATA_LEN, uint32(metadata)
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

// ethtool is ioctl(SIOCETHTOOL) on an interface of the calling thread's
// namespace. command is the command's struct (include/uapi/linux/ethtool.h),
// the number first; the kernel's answer is in it afterwards.
func ethtool(name string, command []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return ethtoolBy(fd, name, command)
}

// ethtoolBy is the same in the namespace of a socket.
func ethtoolBy(fd int, name string, command []byte) error {
	// struct ifreq: the name, and a union of which this is the pointer
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	if copy(ifr.name[:unix.IFNAMSIZ-1], name) != len(name) {
		return unix.ENODEV
	}
	// The kernel writes through a pointer that the garbage collector sees only
	// as part of ifr.
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&command[0])
	ifr.data = unsafe.Pointer(&command[0])
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return errno
	}
	return nil
}
