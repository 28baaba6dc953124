/* file.c: descriptors of the process, and the files that they mean. */
#include "internal.h"

#include <linux/sockios.h>
#include <stdarg.h>
#include <sys/ioctl.h>

#include "kernel.h"

struct file *file_new(enum file_type type)
{
	for (uint32_t i = 1; i < FILES; i++) {
		struct file *f = &S->file[i];
		if (f->type != FREE || f->todo || f->pins)
			continue;
		uint32_t gen = f->gen + 1;
		memset(f, 0, sizeof *f);
		f->type = (uint8_t)type, f->gen = gen, f->ring = -1;
		if (i >= S->files)
			S->files = i + 1;
		return f;
	}
	return NULL;
}

void file_free(struct file *f)
{
	if (f->type == FREE || f->users || f->pins || f->requests || f->ring >= 0 || (f->acc_head != f->acc_tail && !S->gone))
		return;
	if (f->rcv)
		mem_put(f->rcv, f->rcv_order);
	if (f->snd)
		mem_put(f->snd, f->snd_order);
	f->type = FREE, f->rcv = f->snd = 0;
}

/* file_unuse: a process has no descriptor of f any more. */
void file_unuse(struct file *f, int process)
{
	if (f->type == FREE || !(f->users & UINT64_C(1) << process))
		return;
	f->users &= ~(UINT64_C(1) << process);
	if (f->users)
		return;
	S->changing = id_of(f);
	unwatch_all(f);
	if (f->type == SOCKET)
		socket_close(f);
	wake(f);
	file_free(f);
}

int install(struct file *f, int fd)
{
	if (fd >= NUMBERS)
		return -EMFILE;
	held[id_of(f)]++;
	f->users |= UINT64_C(1) << me;
	atomic_store(&numbers[fd], (int32_t)id_of(f));
	return 0;
}

void uninstall(int fd)
{
	uint32_t id = (uint32_t)atomic_exchange(&numbers[fd], 0);

	if (id && --held[id] == 0 && owner == getpid())
		file_unuse(&S->file[id], me);
}

int xdpd_is(int fd)
{
	return S && fd >= 0 && fd < NUMBERS && atomic_load_explicit(&numbers[fd], memory_order_relaxed) != 0;
}

struct file *file_of(int fd)
{
	return xdpd_is(fd) ? &S->file[numbers[fd]] : NULL;
}

int xdpd_close(int fd)
{
	if (xdpd_own(fd))
		return fail(EBADF);
	if (xdpd_is(fd)) {
		if (!enter())
			return -1;
		uninstall(fd);
		leave();
	}
	return k_close(fd);
}

/* also gives a new descriptor the meaning of fd. */
static int also(int fd, int copy)
{
	struct file *f;
	int err = 0;

	if (copy < 0 || (!xdpd_is(fd) && !xdpd_is(copy)) || copy == fd)
		return copy;
	if (!enter())
		err = errno;
	else {
		if (xdpd_is(copy))
			uninstall(copy);
		if ((f = file_of(fd)))
			err = -install(f, copy);
		leave();
	}
	if (err) {
		k_close(copy);
		return fail(err);
	}
	return copy;
}

int xdpd_dup(int fd) { return also(fd, (int)K(dup, fd)); }

int xdpd_dup2(int fd, int to)
{
	if (fd == to)
		return k_fcntl(fd, F_GETFD, 0) < 0 ? -1 : to;
	return xdpd_dup3(fd, to, 0);
}

int xdpd_dup3(int fd, int to, int flags)
{
	if (xdpd_own(to) || xdpd_own(fd))
		return fail(EBADF);
	return also(fd, (int)K(dup3, fd, to, flags));
}

int xdpd_fcntl(int fd, int cmd, ...)
{
	va_list ap;
	long arg;
	int r = 0;

	va_start(ap, cmd);
	arg = va_arg(ap, long);
	va_end(ap);
	if (!xdpd_is(fd))
		return k_fcntl(fd, cmd, arg);
	switch (cmd) {
	case F_DUPFD:
	case F_DUPFD_CLOEXEC:
		return also(fd, k_fcntl(fd, cmd, arg));
	case F_GETFL:
	case F_SETFL:
		break;
	default:
		return k_fcntl(fd, cmd, arg);
	}
	if (!enter())
		return -1;
	struct file *f = file_of(fd);
	if (!f || f->type == EPOLL) {
		leave();
		return k_fcntl(fd, cmd, arg);
	}
	if (cmd == F_GETFL)
		r = O_RDWR | (f->nonblock ? O_NONBLOCK : 0);
	else
		f->nonblock = arg & O_NONBLOCK;
	leave();
	return r;
}

/* unsent is what the peer did not acknowledge, in bytes: the last segment may count for more than there is in it. */
static int unsent(struct slot *slot, const struct file *f)
{
	enum { MSS = 16, UNACKED = 24, NOT_SENT = 144 }; /* in struct tcp_info */
	uint32_t mss, unacked, rest;
	struct xdpd_sqe s = { .len = IPPROTO_TCP, .op_flags = TCP_INFO, .addr = offset(slot->data), .off = sizeof slot->data };

	if (f->udp || f->state != CONNECTED || call(slot, NULL, f->ring, XDPD_GET_SOCK_OPT, s) < NOT_SENT + (int)sizeof rest)
		return (int)f->snd_used;
	memcpy(&mss, slot->data + MSS, sizeof mss);
	memcpy(&unacked, slot->data + UNACKED, sizeof unacked);
	memcpy(&rest, slot->data + NOT_SENT, sizeof rest);
	return (int)(f->snd_used + unacked * mss + rest);
}

int xdpd_ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (!xdpd_is(fd) || (request != FIONREAD && request != FIONBIO && request != SIOCOUTQ))
		return (int)K(ioctl, fd, request, arg);
	if (!enter())
		return -1;
	struct file *f = file_of(fd);
	struct slot *slot;
	int err = 0;
	reap();
	if (!f || f->type != SOCKET)
		err = ENOTTY;
	else if (request == FIONBIO)
		f->nonblock = *(int *)arg != 0;
	else if (f->state == LISTENING)
		err = EINVAL;
	else if (request == SIOCOUTQ && !(slot = slot_get(f)))
		err = ENOBUFS;
	else if (request == SIOCOUTQ)
		*(int *)arg = unsent(slot, f), slot_put(slot);
	else if (!f->udp)
		*(int *)arg = (int)f->rcv_len, look_on(f), kick();
	else
		*(int *)arg = f->rcv_done && f->rcv_size[f->rcv_first] >= 0 ? f->rcv_size[f->rcv_first] : 0;
	leave();
	return err ? fail(err) : 0;
}
