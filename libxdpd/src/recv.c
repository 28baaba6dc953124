/* recv.c: what came is in the socket's own memory before it is asked for: one RECV is under way while there is nothing. */
#include "internal.h"
#include "kernel.h"

enum { HEADER = XDPD_RECV_HEADER, RCV_SMALL = 2048 };

/* The requests that failed took their places too. */
static void skip_void(struct file *f)
{
	while (f->rcv_done && f->rcv_size[f->rcv_first] < 0)
		f->rcv_first = (f->rcv_first + 1) % DATAGRAMS, f->rcv_done--;
}

static void received_datagram(struct file *f, int32_t res)
{
	if (!f->rcv_armed)
		return;
	uint32_t i = (f->rcv_first + f->rcv_done) % DATAGRAMS;
	f->rcv_armed--, f->rcv_done++;
	f->rcv_size[i] = res >= HEADER ? res - HEADER : -1;
	skip_void(f);
	if (res >= HEADER) {
		happened(f, EPOLLIN | EPOLLRDNORM);
		return;
	}
	if (res == -ENOMEM) {
		f->starved = S->starved = true;
		return;
	}
	if (res < 0 && res != -ECANCELED) {
		f->error = -res;
		happened(f, EPOLLERR);
	}
	if (!f->shut_rd)
		arm_later(f);
}

void received(struct file *f, int32_t res)
{
	if (f->udp) {
		received_datagram(f, res);
		return;
	}
	f->receiving = false;
	if (res > 0) {
		f->rcv_len += (uint32_t)res; /* behind what was only looked at */
		if (f->rcv_len == 4096u << f->rcv_order)
			f->rcv_want = (uint8_t)(f->rcv_order + 2 > RCV_ORDER ? RCV_ORDER : f->rcv_order + 2);
		else if (f->rcv_len <= RCV_SMALL)
			f->rcv_want = 0; /* who waits, waits with little memory */
		happened(f, EPOLLIN | EPOLLRDNORM);
	} else if (res == 0) {
		f->eof = f->rdhup = true;
		happened(f, EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | (f->shut_wr ? EPOLLHUP : 0));
	} else if (res == -ENOMEM) {
		f->starved = S->starved = true;
	} else if (res != -ECANCELED) {
		f->error = -res, f->hint = 0;
		f->dead = f->broken = f->rdhup = f->hup = true;
		happened(f, EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP);
	}
}

static size_t room_of(const struct msghdr *m)
{
	size_t n = 0;

	for (size_t i = 0; i < m->msg_iovlen; i++)
		n += m->msg_iov[i].iov_len;
	return n;
}

/* scatter copies n bytes to the places behind the first skip ones. */
static void scatter(const struct msghdr *m, size_t skip, const uint8_t *from, size_t n)
{
	for (size_t i = 0; i < m->msg_iovlen && n; i++) {
		const struct iovec *v = &m->msg_iov[i];
		if (skip >= v->iov_len) {
			skip -= v->iov_len;
			continue;
		}
		size_t k = v->iov_len - skip < n ? v->iov_len - skip : n;
		memcpy((uint8_t *)v->iov_base + skip, from, k);
		from += k, n -= k, skip = 0;
	}
}

/* read_stream gives what is there: bytes, 0 at the end, or -errno. */
static ssize_t read_stream(struct file *f, const struct msghdr *m, size_t skip, size_t room, int flags)
{
	if (f->rcv_len) {
		size_t n = f->rcv_len < room ? f->rcv_len : room;
		if (flags & MSG_PEEK && n < room) {
			look_on(f);
			if (flags & MSG_WAITALL && f->receiving)
				return -EAGAIN;
		}
		if (!(flags & MSG_TRUNC))
			scatter(m, skip, mem(f->rcv) + f->rcv_at, n);
		if (!(flags & MSG_PEEK)) {
			f->rcv_at += (uint32_t)n, f->rcv_len -= (uint32_t)n;
			arm(f);
		}
		return (ssize_t)n;
	}
	if (f->eof)
		return 0;
	if (f->error) {
		int err = f->error;
		if (!skip) /* what was read is told first, and the error by the next call */
			f->error = 0;
		return -err;
	}
	if (f->state == NEW || f->state == LISTENING)
		return -ENOTCONN;
	if (f->shut_rd || f->dead)
		return 0;
	return room ? -EAGAIN : 0;
}

static ssize_t read_datagram(struct file *f, struct msghdr *m, size_t room, int flags)
{
	if (!f->rcv_done) {
		int err = f->error;
		f->error = 0;
		return err ? -err : f->shut_rd ? 0 : -EAGAIN;
	}
	const uint8_t *d = mem(f->rcv) + (size_t)f->rcv_first * DATAGRAM;
	size_t size = (size_t)f->rcv_size[f->rcv_first], n = size < room ? size : room;
	scatter(m, 0, d + HEADER, n);
	if (m->msg_name) {
		struct sockaddr_in from;
		memcpy(&from, d + HEADER - sizeof from, sizeof from);
		memset(from.sin_zero, 0, sizeof from.sin_zero); /* the engine's stamp */
		memcpy(m->msg_name, &from, m->msg_namelen < sizeof from ? m->msg_namelen : sizeof from);
		m->msg_namelen = sizeof f->peer;
	}
	if (n < size)
		m->msg_flags |= MSG_TRUNC;
	if (!(flags & MSG_PEEK)) {
		f->rcv_first = (f->rcv_first + 1) % DATAGRAMS, f->rcv_done--;
		skip_void(f);
		arm(f);
	}
	return (ssize_t)(flags & MSG_TRUNC ? size : n);
}

/* receive is recvmsg on a descriptor of xdpd. */
ssize_t receive(int fd, struct msghdr *m, int flags)
{
	struct slot *slot = NULL;
	ssize_t r, total = 0;
	int over = 0;

	pthread_testcancel();
	if (flags & MSG_OOB)
		return fail(EINVAL);
	if (flags & MSG_ERRQUEUE)
		return fail(EAGAIN);
	if (!enter())
		return -1;
	struct file *f = file_of(fd);
	if (!f || f->type != SOCKET) {
		leave();
		return fail(f ? ENOTSOCK : EBADF);
	}
	size_t room = room_of(m);
	bool all = flags & MSG_WAITALL && !f->udp && !(flags & MSG_PEEK);
	int64_t deadline = NEVER;
	m->msg_flags = 0;
	if (flags & MSG_PEEK)
		reap();
	for (bool looked = false;;) {
		int how = over || f->nonblock || flags & MSG_DONTWAIT ? flags & ~MSG_WAITALL : flags;
		S->changing = id_of(f);
		r = f->udp ? read_datagram(f, m, room, flags) : read_stream(f, m, (size_t)total, room - (size_t)total, how);
		if (r > 0 && all) {
			if ((size_t)(total += r) == room)
				break;
			continue;
		}
		if (r != -EAGAIN || over)
			break;
		if (!looked) { /* a look costs little, and there is more often something than not */
			looked = true;
			kick();
			if (reap())
				continue;
			deadline = f->rcvtimeo ? now() + f->rcvtimeo : NEVER;
		}
		if (f->nonblock || flags & MSG_DONTWAIT)
			break;
		if (!slot && !(slot = slot_get(f))) {
			over = -ENOBUFS;
			break;
		}
		over = await(slot, f, deadline);
	}
	if (slot)
		slot_put(slot);
	if (flags & MSG_PEEK)
		kick(); /* for what comes behind it */
	if (total)
		r = total;
	if (r >= 0 && !f->udp && m->msg_name)
		m->msg_namelen = 0;
	leave();
	if (r == -EAGAIN && over)
		r = over;
	if (r >= 0)
		m->msg_controllen = 0;
	return r < 0 ? fail((int)-r) : r;
}

ssize_t xdpd_recvmsg(int fd, struct msghdr *m, int flags)
{
	return xdpd_is(fd) ? receive(fd, m, flags) : K(recvmsg, fd, m, flags);
}

ssize_t xdpd_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *addr, socklen_t *len)
{
	struct iovec v = { buf, n };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_name = len ? addr : NULL, .msg_namelen = len ? *len : 0 };

	if (!xdpd_is(fd))
		return K(recvfrom, fd, buf, n, flags, addr, len);
	ssize_t r = receive(fd, &m, flags);
	if (r >= 0 && len)
		*len = m.msg_namelen;
	return r;
}

ssize_t xdpd_recv(int fd, void *buf, size_t n, int flags) { return xdpd_recvfrom(fd, buf, n, flags, NULL, NULL); }

ssize_t xdpd_read(int fd, void *buf, size_t n)
{
	return xdpd_is(fd) ? xdpd_recvfrom(fd, buf, n, 0, NULL, NULL) : K(read, fd, buf, n);
}

ssize_t xdpd_readv(int fd, const struct iovec *v, int n)
{
	struct msghdr m = { .msg_iov = (struct iovec *)(uintptr_t)v, .msg_iovlen = (size_t)n };

	if (!xdpd_is(fd))
		return K(readv, fd, v, n);
	return n < 0 || n > 1024 ? fail(EINVAL) : receive(fd, &m, 0);
}

int xdpd_recvmmsg(int fd, struct mmsghdr *m, unsigned n, int flags, struct timespec *timeout)
{
	unsigned i = 0;
	int64_t until = timeout ? now() + timeout->tv_sec * SECOND + timeout->tv_nsec : NEVER;

	if (!xdpd_is(fd))
		return (int)K(recvmmsg, fd, m, n, flags, timeout);
	for (; i < n; i++) {
		int one = (flags & ~MSG_WAITFORONE) | (i && flags & MSG_WAITFORONE ? MSG_DONTWAIT : 0);
		ssize_t r = receive(fd, &m[i].msg_hdr, one);
		if (r < 0)
			break;
		m[i].msg_len = (unsigned)r;
		if (until != NEVER && now() >= until) { /* it is looked at behind each message, as the kernel does */
			i++;
			break;
		}
	}
	return i ? (int)i : n ? -1 : 0;
}
