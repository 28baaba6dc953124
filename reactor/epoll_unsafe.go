package reactor

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollParams is struct epoll_params (include/uapi/linux/eventpoll.h).
type epollParams struct {
	usecs  uint32
	budget uint16
	prefer uint8
	_      uint8
}

const epiocSParams = 1<<30 | 8<<16 | 0x8a<<8 | 1 // EPIOCSPARAMS

// setBusyPoll has an epoll instance busy-poll, in preference to interrupts.
func setBusyPoll(fd int, usecs uint32, budget uint16) error {
	p := epollParams{usecs: usecs, budget: budget, prefer: 1}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), epiocSParams, uintptr(unsafe.Pointer(&p))); errno != 0 {
		return errno
	}
	return nil
}

// epollWait is epoll_pwait2(2), whose timeout is in nanoseconds. An error is no event.
func epollWait(fd int, events []unix.EpollEvent, ns int64) int {
	ts := unix.NsecToTimespec(ns)
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(unsafe.Pointer(&ts)), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
