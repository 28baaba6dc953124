/* poll.c: poll and select over descriptors of xdpd and of the kernel. */
#include "internal.h"

#include <stdlib.h>
#include <sys/resource.h>

#include "kernel.h"

enum { FEW = 64 };

static int64_t deadline_of(const struct timespec *t)
{
	if (!t || t->tv_sec > 1000000000)
		return NEVER;
	return now() + t->tv_sec * SECOND + t->tv_nsec;
}

/* look fills in what is ready of xdpd's, and what the kernel has to be asked about: *nk of them in kernel. slot: have it woken by them. */
static int look(struct pollfd *fds, nfds_t n, struct pollfd *kernel, nfds_t *nk, struct slot *slot)
{
	int found = 0;

	*nk = 0;
	for (nfds_t i = 0; i < n; i++) {
		struct file *f = fds[i].fd < 0 ? NULL : file_of(fds[i].fd);
		fds[i].revents = 0;
		if (fds[i].fd < 0)
			continue;
		if (f) {
			fds[i].revents = (short)(ready(f) & (uint32_t)(fds[i].events | POLLERR | POLLHUP));
			if (slot)
				wait_on(slot, f);
		}
		if (!f || (f->type == EPOLL && !fds[i].revents))
			kernel[(*nk)++] = (struct pollfd){ fds[i].fd, fds[i].events, 0 };
		found += fds[i].revents != 0;
	}
	return found;
}

static int give(struct pollfd *fds, nfds_t n, const struct pollfd *kernel)
{
	int found = 0;

	for (nfds_t i = 0; i < n; i++) {
		struct file *f = fds[i].fd < 0 ? NULL : file_of(fds[i].fd);
		if (fds[i].fd >= 0 && (!f || (f->type == EPOLL && !fds[i].revents)))
			fds[i].revents = kernel++->revents;
		found += fds[i].revents != 0;
	}
	return found;
}

static int mixed(struct pollfd *fds, nfds_t n, struct pollfd *kernel, int64_t deadline, bool block, const sigset_t *mask)
{
	static const struct timespec at_once;
	struct slot *slot = NULL;
	nfds_t nk;
	int r = 0, found;

	if (!enter())
		return -1;
	reap();
	for (;;) {
		found = look(fds, n, kernel + 2, &nk, slot);
		if (found || !block || r) {
			if (nk)
				k_ppoll(kernel + 2, nk, &at_once, NULL);
			found = give(fds, n, kernel + 2);
			if (found || !block || r < 0)
				break; /* else somebody took what there was, or it is the engine's now */
		}
		if (!slot) {
			if (!(slot = slot_get(NULL))) {
				found = -1, errno = ENOBUFS;
				break;
			}
			continue; /* with the slot known to all */
		}
		r = rest(slot, kernel, nk, deadline, mask);
		block = deadline == NEVER || now() < deadline;
	}
	if (slot)
		slot_put(slot);
	leave();
	return found == 0 && r == -EINTR ? fail(EINTR) : found;
}

static bool any(const struct pollfd *fds, nfds_t n)
{
	for (nfds_t i = 0; i < n; i++)
		if (xdpd_is(fds[i].fd))
			return true;
	return false;
}

static int polls(struct pollfd *fds, nfds_t n, const struct timespec *t, const sigset_t *mask)
{
	struct pollfd few[FEW + 2], *kernel = few;
	int64_t deadline = deadline_of(t);

	if (!any(fds, n)) {
		int r = sleeps(NULL, fds, n, t, mask);
		if (r <= 0 || !any(fds, n)) /* else another thread adopted one meanwhile */
			return r;
	}
	if (n > FEW && !(kernel = malloc((n + 2) * sizeof *kernel)))
		return fail(ENOMEM);
	int r = mixed(fds, n, kernel, deadline, !t || t->tv_sec || t->tv_nsec, mask);
	int err = errno;
	if (kernel != few)
		free(kernel);
	errno = err;
	return r;
}

int xdpd_poll(struct pollfd *fds, nfds_t n, int ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	return polls(fds, n, ms < 0 ? NULL : &t, NULL);
}

int xdpd_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
	if (timeout && (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= SECOND))
		return fail(EINVAL);
	return polls(fds, n, timeout, mask);
}

static int selects(struct pollfd *fds, int n, fd_set *in, fd_set *out, fd_set *except, const struct timespec *timeout, const sigset_t *mask)
{
	static const short in_is = POLLIN | POLLRDNORM | POLLHUP | POLLERR, out_is = POLLOUT | POLLWRNORM | POLLERR;
	nfds_t k = 0;
	int r, bits = 0;

	for (int fd = 0; fd < n; fd++) {
		bool i = in && FD_ISSET(fd, in), o = out && FD_ISSET(fd, out), e = except && FD_ISSET(fd, except);
		if (i || o || e)
			fds[k++] = (struct pollfd){ fd, (short)((i ? POLLIN : 0) | (o ? POLLOUT : 0) | (e ? POLLPRI : 0)), 0 };
	}
	if ((r = polls(fds, k, timeout, mask)) < 0)
		return r;
	for (nfds_t i = 0; i < k; i++)
		if (fds[i].revents & POLLNVAL)
			return fail(EBADF);
	for (nfds_t i = 0; i < k; i++) {
		int fd = fds[i].fd;
		if (in && FD_ISSET(fd, in)) {
			if (fds[i].revents & in_is)
				bits++;
			else
				FD_CLR(fd, in);
		}
		if (out && FD_ISSET(fd, out)) {
			if (fds[i].revents & out_is)
				bits++;
			else
				FD_CLR(fd, out);
		}
		if (except && FD_ISSET(fd, except)) {
			if (fds[i].revents & POLLPRI)
				bits++;
			else
				FD_CLR(fd, except);
		}
	}
	return bits;
}

int xdpd_pselect(int n, fd_set *in, fd_set *out, fd_set *except, const struct timespec *timeout, const sigset_t *mask)
{
	struct pollfd few[FD_SETSIZE], *fds = few;
	struct rlimit l;

	if (n < 0 || (timeout && (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= SECOND)))
		return fail(EINVAL);
	if (n > FD_SETSIZE && getrlimit(RLIMIT_NOFILE, &l) == 0 && (rlim_t)n >= l.rlim_cur)
		n = FD_SETSIZE; /* getdtablesize(3), whatever the sets' size */
	if (n > FD_SETSIZE && !(fds = malloc((size_t)n * sizeof *fds)))
		return fail(ENOMEM);
	int r = selects(fds, n, in, out, except, timeout, mask), err = errno;
	if (fds != few)
		free(fds);
	errno = err;
	return r;
}

int xdpd_select(int n, fd_set *in, fd_set *out, fd_set *except, struct timeval *timeout)
{
	struct timespec t;
	int64_t began = now();

	if (!timeout)
		return xdpd_pselect(n, in, out, except, NULL, NULL);
	t.tv_sec = timeout->tv_sec + timeout->tv_usec / 1000000, t.tv_nsec = timeout->tv_usec % 1000000 * 1000;
	int r = xdpd_pselect(n, in, out, except, &t, NULL);
	int64_t left = t.tv_sec * SECOND + t.tv_nsec - (now() - began); /* as Linux does */
	left = left < 0 ? 0 : left;
	timeout->tv_sec = left / SECOND, timeout->tv_usec = left % SECOND / 1000;
	return r;
}
