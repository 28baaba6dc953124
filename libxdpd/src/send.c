/* send.c: what is written lies in the socket's own memory until the engine has taken it, and write does not wait for that. */
#include "internal.h"
#include "kernel.h"

enum { SND_ORDER = 4, SND_LARGE = 5, PAYLOAD = 65507 };

static uint32_t capacity(const struct file *f) { return 4096u << f->snd_order; }

/* roomy: poll says that one can write. As TCP's sk_stream_is_writeable it wants a third of the place, as UDP's sock_writeable half of it. */
bool roomy(const struct file *f)
{
	if (f->shut_wr || f->broken)
		return true;
	if (f->starved && !f->snd)
		return false;
	if (!f->snd || !f->sends)
		return true;
	uint32_t cap = capacity(f);
	return f->sends <= SENDS / 2 && cap - f->snd_used >= (f->udp ? cap / 2 : cap / 3);
}

void sent(struct file *f, int32_t res)
{
	if (!f->sends || res == -ECANCELED || f->closing) {
		if (f->sends)
			f->sends--;
		return; /* its memory goes with the file */
	}
	if (f->sends == 0)
		return;
	uint32_t i = f->send_first, size = f->send_size[i], bytes = size + f->send_skip[i];
	f->send_first = (i + 1) % SENDS, f->sends--;
	f->snd_at = (f->snd_at + bytes) % capacity(f), f->snd_used -= bytes;
	if (f->sends == 0) {
		mem_put(f->snd, f->snd_order);
		f->snd = f->snd_at = f->snd_used = 0;
	}
	if (f->udp && res < 0) {
		f->error = -res;
		happened(f, EPOLLERR);
	} else if (!f->udp && res < (int32_t)size && !f->broken) {
		f->broken = true;
		if (res != -EPIPE && !f->error && !f->dead)
			f->error = res < 0 ? -res : ECONNRESET;
		happened(f, EPOLLOUT | EPOLLERR);
	}
	if (f->crowded && roomy(f)) {
		f->crowded = false;
		happened(f, EPOLLOUT | EPOLLWRNORM);
	}
}

static void gather(uint8_t *to, const struct msghdr *m, size_t skip, size_t n)
{
	for (size_t i = 0; i < m->msg_iovlen && n; i++) {
		const struct iovec *v = &m->msg_iov[i];
		if (skip >= v->iov_len) {
			skip -= v->iov_len;
			continue;
		}
		size_t k = v->iov_len - skip < n ? v->iov_len - skip : n;
		memcpy(to, (const uint8_t *)v->iov_base + skip, k);
		to += k, n -= k, skip = 0;
	}
}

/* place makes the socket have memory to send from. */
static bool place(struct file *f, uint8_t order)
{
	if (!f->snd) {
		f->snd_order = f->udp ? order : mem_order(order);
		f->snd = mem_get(&f->snd_order);
		f->snd_at = f->snd_used = 0;
	}
	if (f->snd && f->sends < SENDS && S->requests + 16 < S->limit)
		return true;
	f->crowded = true;
	if (!f->sends)
		f->starved = S->starved = true;
	return false;
}

static struct xdpd_sqe *push(struct file *f, uint32_t skip, uint32_t size)
{
	uint32_t i = (f->send_first + f->sends++) % SENDS;
	struct xdpd_sqe *s = request(K_SEND, id_of(f), XDPD_SEND, f->ring);

	f->send_size[i] = size, f->send_skip[i] = skip;
	f->snd_used += skip + size;
	s->op_flags = MSG_WAITALL | MSG_NOSIGNAL;
	return s;
}

/* write_stream takes what there is room for: bytes, or -errno. */
static ssize_t write_stream(struct file *f, const struct msghdr *m, size_t skip, size_t n)
{
	size_t done = 0;

	if (f->error) {
		int err = f->error;
		if (!skip) /* what was taken is told first, and the error by the next call */
			f->error = 0;
		return -err;
	}
	if (f->state == CONNECTING)
		return -EAGAIN;
	if (f->state != CONNECTED || f->shut_wr || f->broken)
		return -EPIPE;
	while (done < n && place(f, n > 32768 ? SND_LARGE : SND_ORDER)) {
		uint32_t cap = capacity(f), tail = (f->snd_at + f->snd_used) % cap, k = cap - f->snd_used;
		if (k > cap - tail)
			k = cap - tail;
		if (k > n - done)
			k = (uint32_t)(n - done);
		if (k == 0)
			break;
		gather(mem(f->snd) + tail, m, skip + done, k);
		struct xdpd_sqe *s = push(f, 0, k);
		s->addr = f->snd + tail, s->len = k;
		done += k;
	}
	if (done < n)
		f->crowded = true;
	if (done)
		kick();
	return done || !n ? (ssize_t)done : -EAGAIN;
}

/* write_datagram puts the address in front of the payload. */
static ssize_t write_datagram(struct file *f, const struct msghdr *m, size_t n)
{
	const struct sockaddr_in *to = m->msg_name;
	uint32_t size = (uint32_t)((sizeof *to + n + 7) & ~(size_t)7), skip = 0, tail, cap;

	if (f->error) {
		int err = f->error;
		f->error = 0;
		return -err;
	}
	if (f->broken) /* there is no engine any more */
		return -ENETDOWN;
	if (n > PAYLOAD)
		return -EMSGSIZE;
	if (f->shut_wr)
		return -EPIPE;
	if (!to && !f->has_peer)
		return -EDESTADDRREQ;
	if (to && m->msg_namelen < sizeof *to)
		return -EINVAL;
	if (to && to->sin_family != AF_INET)
		return -EAFNOSUPPORT;
	if (!place(f, SND_LARGE))
		return -EAGAIN;
	cap = capacity(f), tail = (f->snd_at + f->snd_used) % cap;
	if (tail + size > cap)
		skip = cap - tail;
	if (f->snd_used + skip + size > cap) {
		f->crowded = true;
		return f->sends ? -EAGAIN : -ENOBUFS;
	}
	tail = (tail + skip) % cap;
	if (to)
		memcpy(mem(f->snd) + tail, to, sizeof *to);
	gather(mem(f->snd) + tail + sizeof *to, m, 0, n);
	struct xdpd_sqe *s = push(f, skip, size);
	s->addr = f->snd + tail + sizeof *to, s->len = (uint32_t)n;
	if (to)
		s->off = f->snd + tail, s->file_index = sizeof *to;
	if (!f->bound) {
		f->bound = true;
		arm(f);
	}
	kick();
	return (ssize_t)n;
}

/* transmit is sendmsg on a descriptor of xdpd. */
ssize_t transmit(int fd, const struct msghdr *m, int flags)
{
	struct slot *slot = NULL;
	ssize_t r;
	size_t n = 0, total = 0;
	int over = 0;

	pthread_testcancel();
	if (flags & MSG_OOB || m->msg_controllen)
		return fail(flags & MSG_OOB ? EOPNOTSUPP : EINVAL);
	if (!enter())
		return -1;
	struct file *f = file_of(fd);
	if (!f || f->type != SOCKET) {
		leave();
		return fail(f ? ENOTSOCK : EBADF);
	}
	for (size_t i = 0; i < m->msg_iovlen; i++)
		n += m->msg_iov[i].iov_len;
	int64_t deadline = NEVER;
	reap(); /* what it has taken makes room, and what went wrong is told now */
	for (;;) {
		S->changing = id_of(f);
		r = f->udp ? write_datagram(f, m, n) : write_stream(f, m, total, n - total);
		if (r >= 0)
			total += (size_t)r;
		if (over || f->nonblock || flags & MSG_DONTWAIT || (r < 0 && r != -EAGAIN) || total == n)
			break;
		if (!slot && !(slot = slot_get(f))) {
			over = -ENOBUFS;
			break;
		}
		if (deadline == NEVER && f->sndtimeo)
			deadline = now() + f->sndtimeo;
		over = await(slot, f, deadline);
	}
	bool signal = r == -EPIPE && !total && !f->udp && !(flags & MSG_NOSIGNAL);
	if (slot)
		slot_put(slot);
	leave();
	if (signal)
		pthread_kill(pthread_self(), SIGPIPE);
	if (total)
		return (ssize_t)total;
	if (r == -EAGAIN && over)
		r = over;
	return r < 0 ? fail((int)-r) : r;
}

ssize_t xdpd_sendmsg(int fd, const struct msghdr *m, int flags)
{
	return xdpd_is(fd) ? transmit(fd, m, flags) : K(sendmsg, fd, m, flags);
}

ssize_t xdpd_sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *addr, socklen_t len)
{
	struct iovec v = { (void *)(uintptr_t)buf, n };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_name = (void *)(uintptr_t)addr, .msg_namelen = addr ? len : 0 };

	return xdpd_is(fd) ? transmit(fd, &m, flags) : K(sendto, fd, buf, n, flags, addr, len);
}

ssize_t xdpd_send(int fd, const void *buf, size_t n, int flags) { return xdpd_sendto(fd, buf, n, flags, NULL, 0); }

ssize_t xdpd_write(int fd, const void *buf, size_t n)
{
	return xdpd_is(fd) ? xdpd_sendto(fd, buf, n, 0, NULL, 0) : K(write, fd, buf, n);
}

ssize_t xdpd_writev(int fd, const struct iovec *v, int n)
{
	struct msghdr m = { .msg_iov = (struct iovec *)(uintptr_t)v, .msg_iovlen = (size_t)n };

	if (!xdpd_is(fd))
		return K(writev, fd, v, n);
	return n < 0 || n > 1024 ? fail(EINVAL) : transmit(fd, &m, 0);
}

int xdpd_sendmmsg(int fd, struct mmsghdr *m, unsigned n, int flags)
{
	unsigned i = 0;

	if (!xdpd_is(fd))
		return (int)K(sendmmsg, fd, m, n, flags);
	for (; i < n; i++) {
		ssize_t r = transmit(fd, &m[i].msg_hdr, flags);
		if (r < 0)
			break;
		m[i].msg_len = (unsigned)r;
	}
	return i ? (int)i : n ? -1 : 0;
}
