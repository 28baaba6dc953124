package load

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Calls that never block need not tell the scheduler that they might.

func rawRead(fd int, b []byte) (int, syscall.Errno) {
	n, _, err := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if err != 0 {
		return 0, err
	}
	return int(n), 0
}

// rawSend is write(2) without SIGPIPE.
func rawSend(fd int, b []byte) (int, syscall.Errno) {
	n, _, err := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		unix.MSG_NOSIGNAL, 0, 0)
	if err != 0 {
		return 0, err
	}
	return int(n), 0
}

// rawEvents is epoll_wait(2) without waiting.
func rawEvents(ep int, events []unix.EpollEvent) int {
	n, _, err := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(ep), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), 0, 0, 0)
	if err != 0 {
		return 0
	}
	return int(n)
}

// waitEvents is epoll_pwait2(2): to the nanosecond, as far as the thread's timer slack lets it be.
func waitEvents(ep int, events []unix.EpollEvent, wait *unix.Timespec) int {
	n, _, err := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(ep), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), uintptr(unsafe.Pointer(wait)), 0, 0)
	if err != 0 {
		return 0
	}
	return int(n)
}
