/* wait.c: poll, select and epoll under libc's names. Sets may have descriptors of both. */
#include "preload.h"

EXPORT int poll(struct pollfd *p, nfds_t n, int ms) { return xdpd_poll(p, n, ms); }

EXPORT int ppoll(struct pollfd *p, nfds_t n, const struct timespec *t, const sigset_t *s) { return xdpd_ppoll(p, n, t, s); }

EXPORT int select(int n, fd_set *restrict r, fd_set *restrict w, fd_set *restrict x, struct timeval *restrict t) { return xdpd_select(n, r, w, x, t); }

EXPORT int pselect(int n, fd_set *restrict r, fd_set *restrict w, fd_set *restrict x, const struct timespec *restrict t, const sigset_t *restrict s)
{
	return xdpd_pselect(n, r, w, x, t, s);
}

/* The library must be there before the set, which may get sockets of both kinds. */
EXPORT int epoll_create1(int flags)
{
	int err = errno;

	(void)preload_start(false);
	errno = err;
	return xdpd_epoll_create1(flags);
}

EXPORT int epoll_create(int n)
{
	if (n > 0)
		return epoll_create1(0);
	errno = EINVAL;
	return -1;
}

EXPORT int epoll_ctl(int ep, int op, int fd, struct epoll_event *e) { return xdpd_epoll_ctl(ep, op, fd, e); }

EXPORT int epoll_wait(int ep, struct epoll_event *e, int max, int ms)
{
	return xdpd_is(ep) ? xdpd_epoll_wait(ep, e, max, ms) : LIBC(epoll_wait)(ep, e, max, ms);
}

EXPORT int epoll_pwait(int ep, struct epoll_event *e, int max, int ms, const sigset_t *s)
{
	return xdpd_is(ep) ? xdpd_epoll_pwait(ep, e, max, ms, s) : LIBC(epoll_pwait)(ep, e, max, ms, s);
}

/* Times of less than a millisecond are rounded up: who polls for them would wake too early and turn. */
EXPORT int epoll_pwait2(int ep, struct epoll_event *e, int max, const struct timespec *t, const sigset_t *s)
{
	int64_t ms = !t ? -1 : t->tv_sec > INT32_MAX / 1000 - 1 ? INT32_MAX : t->tv_sec * 1000 + (t->tv_nsec + 999999) / 1000000;

	return xdpd_epoll_pwait(ep, e, max, (int)ms, s);
}

extern void __chk_fail(void) __attribute__((noreturn));

EXPORT int __poll_chk(struct pollfd *p, nfds_t n, int ms, size_t room)
{
	if (room / sizeof *p < n)
		__chk_fail();
	return poll(p, n, ms);
}

EXPORT int __ppoll_chk(struct pollfd *p, nfds_t n, const struct timespec *t, const sigset_t *s, size_t room)
{
	if (room / sizeof *p < n)
		__chk_fail();
	return ppoll(p, n, t, s);
}
