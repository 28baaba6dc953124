/*
 * epoll.c: epoll instances. Each is one of the kernel's, which watches the kernel's descriptors; what is xdpd's is watched here, as
 * fs/eventpoll.c does it: an event puts the watch in the ready list, and epoll_wait asks what its socket is ready for.
 */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernel.h"

#define FLAGS (EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE | EPOLLWAKEUP)
#define ALWAYS (EPOLLERR | EPOLLHUP)
enum { LOOK = 50000 }; /* ns: how long the kernel's descriptors may go unseen while ours are busy */

static void list(struct watch *w)
{
	struct file *ep = &S->file[w->ep];
	uint32_t id = (uint32_t)(w - S->watch);

	if (w->listed)
		return;
	w->listed = true, w->ready = 0;
	if (ep->ready)
		S->watch[ep->ready_tail].ready = id;
	else
		ep->ready = id;
	ep->ready_tail = id;
}

static uint32_t mask_of(const struct watch *w)
{
	return w->events & ~FLAGS ? (w->events & ~FLAGS) | ALWAYS : 0; /* 0: its one shot was */
}

void happened(struct file *f, uint32_t what)
{
	for (uint32_t i = f->watches; i; i = S->watch[i].next) {
		struct watch *w = &S->watch[i];
		if (mask_of(w) & what) {
			list(w);
			wake(&S->file[w->ep]);
		}
	}
	wake(f);
}

static struct watch *find(uint32_t ep, const struct file *f, int fd)
{
	for (uint32_t i = f->watches; i; i = S->watch[i].next)
		if (S->watch[i].ep == ep && S->watch[i].fd == fd)
			return &S->watch[i];
	return NULL;
}

static void drop(struct watch *w)
{
	struct file *f = &S->file[w->file];

	if (w->next)
		S->watch[w->next].prev = w->prev;
	if (w->prev)
		S->watch[w->prev].next = w->next;
	else
		f->watches = w->next;
	w->used = false; /* in the ready list it stays until it is met there */
}

static int add(uint32_t ep, struct file *f, int fd, const struct epoll_event *e)
{
	uint32_t i = 1;
	struct watch *w;

	if (find(ep, f, fd))
		return -EEXIST;
	while (i < WATCHES && (S->watch[i].used || S->watch[i].listed))
		i++;
	if (i == WATCHES)
		return -ENOSPC;
	if (i >= S->watches)
		S->watches = i + 1;
	w = &S->watch[i];
	*w = (struct watch){ .used = true, .ep = ep, .file = id_of(f), .fd = fd, .events = e->events, .data = e->data.u64, .next = f->watches };
	if (w->next)
		S->watch[w->next].prev = i;
	f->watches = i;
	return 0;
}

/* unwatch_all: f is closed. */
void unwatch_all(struct file *f)
{
	while (f->watches)
		drop(&S->watch[f->watches]);
	for (uint32_t i = 1; f->type == EPOLL && i < S->watches; i++)
		if (S->watch[i].ep == id_of(f)) {
			if (S->watch[i].used)
				drop(&S->watch[i]);
			S->watch[i].listed = false, S->watch[i].ep = 0;
		}
	if (f->type == EPOLL)
		f->ready = 0;
}

/* rewatch makes all lists anew. */
void rewatch(void)
{
	for (uint32_t i = 1; i < S->files; i++)
		S->file[i].watches = S->file[i].ready = 0;
	for (uint32_t i = 1; i < S->watches; i++) {
		struct watch *w = &S->watch[i];
		w->listed = false;
		if (!w->used)
			continue;
		struct file *f = &S->file[w->file];
		w->prev = 0, w->next = f->watches;
		if (w->next)
			S->watch[w->next].prev = i;
		f->watches = i;
		list(w);
	}
}

int xdpd_epoll_create1(int flags)
{
	int fd = (int)K(epoll_create1, flags), err = 0;
	struct file *f;

	if (fd < 0 || !S)
		return fd;
	if (!enter()) {
		err = errno;
	} else {
		if (!(f = file_new(EPOLL)))
			err = ENFILE;
		else if ((err = -install(f, fd)))
			f->type = FREE;
		else
			f->ring = -1, f->number = fd;
		leave();
	}
	if (err) {
		k_close(fd);
		return fail(err);
	}
	return fd;
}

int xdpd_epoll_create(int size) { return size > 0 ? xdpd_epoll_create1(0) : fail(EINVAL); }

static int control(struct file *ep, int op, struct file *f, int fd, const struct epoll_event *e)
{
	struct watch *w = find(id_of(ep), f, fd);
	int r = 0;

	if (op != EPOLL_CTL_DEL && !e)
		return -EFAULT;
	switch (op) {
	case EPOLL_CTL_ADD:
		if ((r = add(id_of(ep), f, fd, e)) < 0)
			return r;
		w = find(id_of(ep), f, fd);
		break;
	case EPOLL_CTL_MOD:
		if (!w)
			return -ENOENT;
		w->events = e->events, w->data = e->data.u64;
		break;
	case EPOLL_CTL_DEL:
		if (!w)
			return -ENOENT;
		drop(w);
		return 0;
	default:
		return -EINVAL;
	}
	if (ready(f) & mask_of(w)) {
		list(w);
		wake(ep);
	}
	return 0;
}

int xdpd_epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	int r;

	if (!xdpd_is(epfd)) /* the kernel would watch what stands behind the number */
		return xdpd_is(fd) ? fail(EINVAL) : (int)K(epoll_ctl, epfd, op, fd, event);
	if (!enter())
		return -1;
	struct file *ep = file_of(epfd), *f = file_of(fd);
	if (!ep || ep->type != EPOLL || (f && f->type == EPOLL)) {
		leave();
		return fail(EINVAL);
	}
	if (f) {
		reap();
		S->changing = id_of(ep);
		r = control(ep, op, f, fd, event);
		if (r < 0)
			errno = -r, r = -1;
	} else if (xdpd_own(fd)) {
		r = fail(EBADF);
	} else if ((r = (int)K(epoll_ctl, epfd, op, fd, event)) == 0) {
		if (op == EPOLL_CTL_ADD && ep->kernel++ == 0)
			wake(ep); /* who sleeps does not look there */
		ep->kernel -= op == EPOLL_CTL_DEL && ep->kernel;
	}
	leave();
	return r;
}

/* collect takes from the ready list what is really ready, and puts back what stays so (level triggered). */
static int collect(struct file *ep, struct epoll_event *events, int max)
{
	uint32_t last = ep->ready ? ep->ready_tail : 0, id = 0;
	int n = 0;

	while (n < max && ep->ready && id != last) {
		struct watch *w = &S->watch[id = ep->ready];
		ep->ready = w->ready;
		w->listed = false;
		if (!w->used)
			continue;
		uint32_t r = ready(&S->file[w->file]) & mask_of(w);
		if (!r)
			continue;
		events[n++] = (struct epoll_event){ .events = r, .data.u64 = w->data };
		if (w->events & EPOLLONESHOT)
			w->events &= FLAGS;
		else if (!(w->events & EPOLLET))
			list(w);
	}
	return n;
}

/* of_kernel takes what is ready of the kernel's descriptors. */
static int of_kernel(struct file *ep, int epfd, struct epoll_event *events, int max, int64_t t)
{
	int n = (int)K(epoll_pwait, epfd, events, max, 0, NULL, 8);

	ep->looked = t;
	return n > 0 ? n : 0;
}

static int waits(int epfd, struct epoll_event *events, int max, int64_t ns, const sigset_t *mask)
{
	struct pollfd fds[3];
	struct slot *slot = NULL;
	int n = 0, r = 0;
	int64_t deadline = ns < 0 ? NEVER : now() + ns;
	bool block = ns != 0;

	if (max <= 0)
		return fail(EINVAL);
	if (!enter())
		return -1;
	struct file *ep = file_of(epfd);
	if (!ep || ep->type != EPOLL) {
		leave();
		return fail(EINVAL);
	}
	for (reap();;) {
		S->changing = id_of(ep);
		n = ep->kernel && ep->filled ? of_kernel(ep, epfd, events, max, now()) : 0;
		bool turn = n > 0;
		n += collect(ep, events + n, max - n);
		ep->filled = !turn && n == max;
		if (ep->kernel && n < max && !turn) {
			int64_t t = now();
			if (n == 0 || r > 0 || t - ep->looked > LOOK)
				n += of_kernel(ep, epfd, events + n, max - n, t);
		}
		if (n || !block || r == -EINTR)
			break;
		if (!slot && !(slot = slot_get(ep))) {
			n = -1, errno = ENOBUFS;
			break;
		}
		wait_on(slot, ep);
		fds[2] = (struct pollfd){ epfd, POLLIN, 0 };
		r = rest(slot, fds, ep->kernel ? 1 : 0, deadline, mask);
		if (ep->closing || file_of(epfd) != ep) {
			n = -1, errno = EBADF;
			break;
		}
		block = deadline == NEVER || now() < deadline;
	}
	if (slot)
		slot_put(slot);
	leave();
	return n == 0 && r == -EINTR ? fail(EINTR) : n;
}

int xdpd_epoll_pwait(int ep, struct epoll_event *events, int max, int ms, const sigset_t *mask)
{
	if (!xdpd_is(ep))
		return (int)K(epoll_pwait, ep, events, max, ms, mask, 8);
	return waits(ep, events, max, ms < 0 ? -1 : ms * INT64_C(1000000), mask);
}

int xdpd_epoll_wait(int ep, struct epoll_event *events, int max, int ms) { return xdpd_epoll_pwait(ep, events, max, ms, NULL); }

/* epoll_move takes over what was said of fd, which was the kernel's until now, to epoll instances; the kernel lists it for each. */
int epoll_move(int fd, struct file *f)
{
	if (!enter())
		return -1;
	for (uint32_t i = 1; i < S->files; i++) {
		struct file *ep = &S->file[i];
		char name[64], line[256];
		FILE *info;
		if (ep->type != EPOLL || !ep->kernel || !held[i])
			continue;
		snprintf(name, sizeof name, "/proc/self/fdinfo/%d", ep->number);
		if (!(info = fopen(name, "re")))
			continue;
		while (fgets(line, sizeof line, info)) {
			int tfd;
			unsigned events;
			unsigned long long data;
			if (sscanf(line, "tfd: %d events: %x data: %llx", &tfd, &events, &data) != 3 || tfd != fd)
				continue;
			struct epoll_event e = { .events = events, .data.u64 = data };
			if (K(epoll_ctl, ep->number, EPOLL_CTL_DEL, fd, NULL) == 0)
				ep->kernel--;
			control(ep, EPOLL_CTL_ADD, f, fd, &e);
			break;
		}
		fclose(info);
	}
	leave();
	return 0;
}
