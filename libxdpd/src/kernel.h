/* kernel.h: system calls past the C library's functions, whose names a preloaded library may have taken. */
#ifndef XDPD_KERNEL_H
#define XDPD_KERNEL_H

#include <fcntl.h>
#include <sys/syscall.h>

#define K(name, ...) syscall(SYS_##name, __VA_ARGS__)

static inline int k_close(int fd) { return (int)K(close, fd); }
static inline int k_fcntl(int fd, int cmd, long arg) { return (int)K(fcntl, fd, cmd, arg); }

static inline int k_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *t, const sigset_t *mask)
{
	struct timespec left; /* the kernel writes what is left */
	if (t)
		left = *t;
	return (int)K(ppoll, fds, n, t ? &left : NULL, mask, 8);
}

#endif
