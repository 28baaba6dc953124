package netlab

import (
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
