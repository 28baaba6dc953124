package reactor

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// napiEpoll is how a loop of one reactor sleeps with SuspendNAPI: before it sleeps, the kernel itself polls the NAPI of the
// queue, and while that finds packets the device's interrupts stay off (fs/eventpoll.c, ep_poll, ep_suspend_napi_irqs;
// Documentation/networking/napi.rst). The kernel learns which NAPI it is with the socket's first packet. It does not
// come back to one that has no NAPI id, as those of a veth.
type napiEpoll struct {
	fd     int
	sock   int // that is in it; -1: none
	events [2]unix.EpollEvent
}

// The kernel polls the NAPI for so long, and takes so many packets a round.
const (
	busyPollUS     = 64
	busyPollBudget = batch
)

func newNAPIEpoll(wake int) (*napiEpoll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	e := &napiEpoll{fd: fd, sock: -1}
	if err := setBusyPoll(fd, busyPollUS, busyPollBudget); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("epoll: have it busy-poll (EPIOCSPARAMS, Linux 6.9): %w", err)
	}
	if err := e.add(wake); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return e, nil
}

func (e *napiEpoll) add(fd int) error {
	if err := unix.EpollCtl(e.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("epoll: add a descriptor: %w", err)
	}
	return nil
}

// forget is called when the socket was closed, which took it out: its number may be another's next.
func (e *napiEpoll) forget() { e.sock = -1 }

// wait sleeps until there is something on the socket or the reactor is woken, or for that long. broken: the socket itself
// reports an error.
func (e *napiEpoll) wait(sock int, ns int64) (woken, broken bool) {
	if sock != e.sock {
		if e.add(sock) != nil {
			return false, true
		}
		e.sock = sock
	}
	for _, ev := range e.events[:epollWait(e.fd, e.events[:], ns)] {
		if int(ev.Fd) == sock {
			broken = ev.Events&(unix.EPOLLERR|unix.EPOLLHUP) != 0
		} else {
			woken = true
		}
	}
	return woken, broken
}

func (e *napiEpoll) close() error { return unix.Close(e.fd) }
