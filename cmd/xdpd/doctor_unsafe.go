package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// registerMemory is XDP_UMEM_REG on a socket that may have no interface yet: the kernel pins mem, and charges it to
// RLIMIT_MEMLOCK (net/xdp/xdp_umem.c), until the socket is closed.
func registerMemory(fd int, mem []byte, chunkSize int) error {
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
