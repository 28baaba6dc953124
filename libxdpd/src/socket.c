/* socket.c: sockets come, connect, accept and go. */
#include "internal.h"
#include "kernel.h"

/* room: who is shown that there is none hears when there is. */
static uint32_t room(struct file *f)
{
	if (roomy(f))
		return EPOLLOUT | EPOLLWRNORM;
	f->crowded = true;
	return 0;
}

/* ready is what poll(2) would say. */
uint32_t ready(struct file *f)
{
	uint32_t r = f->error || f->hint ? EPOLLERR : 0;
	const uint32_t in = EPOLLIN | EPOLLRDNORM, out = EPOLLOUT | EPOLLWRNORM;

	if (f->type == EPOLL)
		return f->ready ? in : 0;
	if (f->udp)
		return r | (f->rcv_done || f->shut_rd ? in : 0) | (f->shut_rd ? EPOLLRDHUP : 0) | room(f);
	switch (f->state) {
	case LISTENING:
		return r | (f->acc_head != f->acc_tail ? in : 0);
	case CONNECTING:
		return r;
	case NEW:
		return r | out | EPOLLHUP | (f->error ? in | EPOLLRDHUP : 0);
	}
	if (f->rcv_len || f->eof || f->dead || f->shut_rd || f->hup)
		r |= in;
	if (f->eof || f->rdhup || f->dead || f->shut_rd)
		r |= EPOLLRDHUP;
	if (f->hup || f->dead || ((f->eof || f->rdhup || f->shut_rd) && f->shut_wr))
		r |= EPOLLHUP;
	return r | room(f);
}

static int make(int fd, int type, struct file **made)
{
	struct slot *slot;
	struct file *f = NULL;
	int err = 0;

	if (!enter())
		return -1;
	slot = slot_get(NULL);
	if (!slot || !(f = file_new(SOCKET))) {
		err = slot ? ENFILE : ENOBUFS;
	} else {
		slot->file = id_of(f), f->pins++; /* while it has no descriptor */
		f->udp = (type & 0xf) == SOCK_DGRAM;
		f->nonblock = type & SOCK_NONBLOCK;
		f->nodelay = f->keepidle = f->keepintvl = f->keepcnt = -1;
		int32_t res = f->udp ? -1 : S->spare - 1;
		if (res >= 0)
			S->spare = 0;
		else
			res = call(slot, f, AF_INET, XDPD_SOCKET, (struct xdpd_sqe){ .off = f->udp ? SOCK_DGRAM : SOCK_STREAM });
		if (res < 0)
			err = -res;
		else
			f->ring = res, err = xdpd_is(fd) ? EEXIST : -install(f, fd);
		if (err) {
			socket_close(f);
			file_free(f);
		}
	}
	if (slot)
		slot_put(slot);
	if (made)
		*made = f;
	leave();
	return err ? fail(err) : 0;
}

int xdpd_socket(int domain, int type, int protocol)
{
	int kind = type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC), fd;
	bool ours = domain == AF_INET && ((kind == SOCK_STREAM && (protocol == 0 || protocol == IPPROTO_TCP)) ||
					  (kind == SOCK_DGRAM && (protocol == 0 || protocol == IPPROTO_UDP)));

	fd = (int)K(socket, domain, type, protocol);
	if (fd >= 0 && ours && make(fd, type, NULL) < 0) {
		int err = errno;
		k_close(fd);
		return fail(err);
	}
	return fd;
}

int xdpd_adopt(int fd)
{
	static const int same[][2] = { { SOL_SOCKET, SO_KEEPALIVE }, { SOL_SOCKET, SO_REUSEADDR }, { SOL_SOCKET, SO_BROADCAST },
				       { IPPROTO_TCP, TCP_KEEPIDLE }, { IPPROTO_TCP, TCP_KEEPINTVL }, { IPPROTO_TCP, TCP_KEEPCNT } };
	int domain = 0, type = 0, flags = k_fcntl(fd, F_GETFL, 0);
	socklen_t n = sizeof domain;
	struct linger l = { 0, 0 };
	struct sockaddr_in a = { 0 };
	socklen_t alen = sizeof a;
	struct file *f;

	if (xdpd_is(fd))
		return 0;
	if (flags < 0 || K(getsockopt, fd, SOL_SOCKET, SO_DOMAIN, &domain, &n) < 0 || K(getsockopt, fd, SOL_SOCKET, SO_TYPE, &type, &n) < 0)
		return -1;
	if (domain != AF_INET || (type != SOCK_STREAM && type != SOCK_DGRAM))
		return fail(EAFNOSUPPORT);
	if (K(getsockname, fd, &a, &alen) < 0 || a.sin_port != 0)
		return fail(EINVAL);
	if (make(fd, type | (flags & O_NONBLOCK ? SOCK_NONBLOCK : 0), &f) < 0)
		return errno == EEXIST ? 0 : -1; /* then another thread did it meanwhile */
	for (unsigned i = 0; i < sizeof same / sizeof *same; i++) {
		int v = 0;
		n = sizeof v;
		if ((same[i][0] == SOL_SOCKET || type == SOCK_STREAM) && K(getsockopt, fd, same[i][0], same[i][1], &v, &n) == 0 && v &&
		    (same[i][0] == SOL_SOCKET || (v != 7200 && v != 75 && v != 9))) /* those are how it is anyway */
			xdpd_setsockopt(fd, same[i][0], same[i][1], &v, sizeof v);
	}
	for (int i = 0; i < 2; i++) {
		struct timeval t;
		n = sizeof t;
		if (K(getsockopt, fd, SOL_SOCKET, i ? SO_SNDTIMEO : SO_RCVTIMEO, &t, &n) == 0)
			xdpd_setsockopt(fd, SOL_SOCKET, i ? SO_SNDTIMEO : SO_RCVTIMEO, &t, sizeof t);
	}
	n = sizeof l;
	if (K(getsockopt, fd, SOL_SOCKET, SO_LINGER, &l, &n) == 0 && l.l_onoff)
		xdpd_setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
	if (epoll_move(fd, f) < 0)
		return -1;
	if (type == SOCK_DGRAM) /* who waits in the kernel for the first datagram looks again */
		(void)K(shutdown, fd, SHUT_RD);
	return 0;
}

void socket_close(struct file *f)
{
	uint32_t id = id_of(f);
	struct xdpd_sqe *s;

	reap(); /* what came so far makes a difference */
	f->closing = true;
	if (f->ring < 0)
		return;
	drop_accepted(f);
	if (!f->udp && f->state == CONNECTED && f->rcv_len && !f->reset) { /* what came and was not read makes it a reset */
		s = request(K_NONE, id, XDPD_SET_SOCK_OPT, f->ring);
		s->len = SOL_SOCKET, s->op_flags = SO_LINGER, s->off = 1;
		f->reset = 1;
	}
	if (f->sends && !f->reset) { /* CLOSE ends what is under way: it has to wait for that */
		s = request(K_NONE, id, XDPD_SEND, f->ring);
		s->flags = XDPD_SQE_HARD_LINK, s->op_flags = MSG_NOSIGNAL, s->len = 0;
	}
	request(K_CLOSE, id, XDPD_CLOSE, f->ring);
	kick();
}

/* begin takes the lock and finds the socket. NULL: it is the kernel's, or errno says what is wrong (then *r is -1). */
static struct file *begin(int fd, struct slot **slot, int *r)
{
	struct file *f;

	*r = 0;
	if (!xdpd_is(fd))
		return NULL;
	if (!enter()) {
		*r = -1;
		return NULL;
	}
	f = file_of(fd);
	if (!f || f->type != SOCKET || (slot && !(*slot = slot_get(f)))) {
		errno = !f ? EBADF : f->type != SOCKET ? ENOTSOCK : ENOBUFS;
		leave();
		*r = -1;
		return NULL;
	}
	reap();
	return f;
}

static int done(struct slot *slot, int r)
{
	if (slot)
		slot_put(slot);
	leave();
	return r < 0 ? fail(-r) : r;
}

int xdpd_bind(int fd, const struct sockaddr *addr, socklen_t len)
{
	struct slot *slot;
	int r;
	struct file *f = begin(fd, &slot, &r);

	if (!f)
		return r < 0 ? r : (int)K(bind, fd, addr, len);
	if (len < sizeof(struct sockaddr_in))
		return done(slot, -EINVAL);
	memcpy(slot->data, addr, sizeof(struct sockaddr_in));
	struct xdpd_sqe s = { .addr = offset(slot->data), .off = sizeof(struct sockaddr_in) };
	r = call(slot, f, f->ring, XDPD_BIND, s);
	if (r == -EADDRINUSE) { /* it may be a dead process's */
		check_processes();
		r = call(slot, f, f->ring, XDPD_BIND, s);
	}
	if (r == 0) {
		f->bound = true;
		arm(f);
	}
	return done(slot, r);
}

int xdpd_listen(int fd, int backlog)
{
	struct slot *slot;
	int r;
	struct file *f = begin(fd, &slot, &r);

	if (!f)
		return r < 0 ? r : (int)K(listen, fd, backlog);
	r = call(slot, f, f->ring, XDPD_LISTEN, (struct xdpd_sqe){ 0 });
	if (r == 0) {
		f->state = LISTENING, f->bound = true;
		arm(f);
		kick();
	}
	return done(slot, r);
}

static void give_addr(const struct sockaddr_in *a, struct sockaddr *addr, socklen_t *len)
{
	if (!addr || !len)
		return;
	memcpy(addr, a, *len < sizeof *a ? *len : sizeof *a);
	*len = sizeof *a;
}

int xdpd_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	struct slot *slot;
	int r;
	struct file *f = begin(fd, &slot, &r), *c;

	if (!f)
		return r < 0 ? r : (int)K(accept4, fd, addr, len, flags);
	if (flags & ~(SOCK_NONBLOCK | SOCK_CLOEXEC))
		return done(slot, -EINVAL);
	int64_t deadline = f->rcvtimeo ? now() + f->rcvtimeo : NEVER;
	for (int over = 0; (r = f->udp ? -EOPNOTSUPP : f->state != LISTENING ? -EINVAL : f->acc_head != f->acc_tail ? 0 : -EAGAIN) == -EAGAIN;) {
		if (f->error) {
			r = -f->error, f->error = 0;
			break;
		}
		if (f->nonblock || over) {
			r = over ? over : r;
			break;
		}
		over = await(slot, f, deadline);
	}
	if (r < 0)
		return done(slot, r);
	r = (int)K(socket, AF_INET, SOCK_STREAM | flags, 0);
	c = r < 0 ? NULL : file_new(SOCKET);
	if (!c) {
		int err = r < 0 ? errno : ENFILE;
		if (r >= 0)
			k_close(r);
		return done(slot, -err);
	}
	uint32_t i = f->acc_head++ % AHEAD;
	c->ring = f->acc[i].ring, c->peer = f->acc[i].peer, c->has_peer = true;
	c->state = CONNECTED, c->bound = true, c->nonblock = flags & SOCK_NONBLOCK;
	if (install(c, r) < 0) {
		socket_close(c);
		k_close(r);
		return done(slot, -EMFILE);
	}
	give_addr(&c->peer, addr, len);
	inherit(c, f);
	arm(c);
	arm(f);
	return done(slot, r);
}

int xdpd_accept(int fd, struct sockaddr *addr, socklen_t *len) { return xdpd_accept4(fd, addr, len, 0); }

int xdpd_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	struct slot *slot;
	int r;
	struct file *f = begin(fd, &slot, &r);
	struct xdpd_sqe *s;

	if (!f)
		return r < 0 ? r : (int)K(connect, fd, addr, len);
	if (len < sizeof(sa_family_t) || (len < sizeof f->peer && addr->sa_family == AF_INET))
		return done(slot, -EINVAL);
	if (addr->sa_family != AF_INET)
		return done(slot, -EAFNOSUPPORT);
	if (f->udp) {
		memcpy(slot->data, addr, sizeof f->peer);
		r = call(slot, f, f->ring, XDPD_CONNECT, (struct xdpd_sqe){ .addr = offset(slot->data), .off = sizeof f->peer });
		if (r == 0) {
			memcpy(&f->peer, addr, sizeof f->peer);
			f->has_peer = f->bound = true;
			arm(f);
		}
		return done(slot, r);
	}
	if (f->state == CONNECTING) { /* as on Linux, who calls again waits on */
		if (f->nonblock)
			return done(slot, -EALREADY);
	} else {
		if (f->state != NEW) {
			r = f->state == CONNECTED && f->fresh ? 0 : -EISCONN;
			f->fresh = false;
			return done(slot, r);
		}
		if (f->error) { /* of an attempt that nobody asked about */
			r = -f->error, f->error = 0;
			return done(slot, r);
		}
		memcpy(&f->peer, addr, sizeof f->peer);
		f->state = CONNECTING, f->has_peer = true;
		S->changing = id_of(f);
		s = request(K_CONNECT, id_of(f), XDPD_CONNECT, f->ring);
		s->addr = offset(&f->peer), s->off = sizeof f->peer;
		if (S->spare == 0) { /* who connects may do so again, and is spared the wait for a socket */
			S->spare = -1;
			request(K_SPARE, 0, XDPD_SOCKET, AF_INET)->off = SOCK_STREAM;
		}
		if (S->gone)
			lost();
		kick();
		f->fresh = true; /* who did not wait hears it from the next connect */
		if (f->nonblock)
			return done(slot, -EINPROGRESS);
	}
	int64_t deadline = f->sndtimeo ? now() + f->sndtimeo : NEVER;
	for (r = 0; f->state == CONNECTING && r == 0;)
		r = await(slot, f, deadline);
	if (f->state == CONNECTING) { /* it goes on */
		r = r == -EAGAIN ? -EINPROGRESS : r;
	} else { /* without an error, another thread was told of it */
		r = f->error ? -f->error : f->state == CONNECTED ? 0 : -ECONNABORTED;
		f->error = 0, f->fresh = false;
	}
	return done(slot, r);
}

/* unlisten leaves a listener its address and nothing else, as Linux does: who waits in accept gets EINVAL. */
static int unlisten(struct slot *slot, struct file *f)
{
	struct xdpd_sqe name = { .addr = offset(slot->data), .len = sizeof(struct sockaddr_in) };
	struct xdpd_sqe bind = { .addr = offset(slot->data), .off = sizeof(struct sockaddr_in) };
	int r = call(slot, f, f->ring, XDPD_SOCK_NAME, name), old = f->ring;

	if (r < 0 || f->state != LISTENING)
		return r < 0 ? r : -ENOTCONN;
	f->state = NEW, f->bound = false, f->ring = -1;
	call(slot, f, old, XDPD_CLOSE, (struct xdpd_sqe){ 0 });
	drop_accepted(f);
	if ((r = call(slot, f, AF_INET, XDPD_SOCKET, (struct xdpd_sqe){ .off = SOCK_STREAM })) >= 0) {
		f->ring = r;
		f->bound = call(slot, f, f->ring, XDPD_BIND, bind) == 0;
	}
	happened(f, EPOLLIN | EPOLLOUT | EPOLLHUP);
	return r < 0 ? r : 0;
}

int xdpd_shutdown(int fd, int how)
{
	struct slot *slot;
	int r;
	struct file *f = begin(fd, &slot, &r);
	struct xdpd_sqe *s;

	if (!f)
		return r < 0 ? r : (int)K(shutdown, fd, how);
	if (how < SHUT_RD || how > SHUT_RDWR)
		return done(slot, -EINVAL);
	if (!f->udp && f->state != CONNECTED && f->state != LISTENING)
		return done(slot, -ENOTCONN);
	if (f->state == LISTENING)
		return done(slot, how == SHUT_WR ? 0 : unlisten(slot, f));
	if (f->broken || f->dead)
		return done(slot, f->error || f->hup ? -ENOTCONN : 0);
	S->changing = id_of(f);
	f->shut_rd |= how != SHUT_WR;
	f->shut_wr |= how != SHUT_RD;
	if (f->udp && !f->has_peer) { /* an error, and who waits hears of it all the same */
		happened(f, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP);
		return done(slot, -ENOTCONN);
	}
	if (how != SHUT_RD && f->sends) { /* behind what was written */
		s = request(K_NONE, id_of(f), XDPD_SEND, f->ring);
		s->flags = XDPD_SQE_HARD_LINK, s->op_flags = MSG_NOSIGNAL;
	}
	s = request(K_NONE, id_of(f), XDPD_SHUTDOWN, f->ring);
	s->len = (uint32_t)how;
	kick();
	happened(f, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLHUP);
	return done(slot, 0);
}

static int name(int fd, struct sockaddr *addr, socklen_t *len, uint32_t which)
{
	struct slot *slot;
	int r;
	struct file *f = begin(fd, &slot, &r);

	if (!f)
		return r < 0 ? r : (int)(which ? K(getpeername, fd, addr, len) : K(getsockname, fd, addr, len));
	if (which) {
		if (!f->has_peer || (!f->udp && (f->state != CONNECTED || f->dead)))
			return done(slot, -ENOTCONN);
		give_addr(&f->peer, addr, len);
		return done(slot, 0);
	}
	struct sockaddr_in a = { .sin_family = AF_INET };
	if (f->bound || f->state != NEW) {
		r = call(slot, f, f->ring, XDPD_SOCK_NAME, (struct xdpd_sqe){ .addr = offset(slot->data), .len = sizeof a });
		if (r >= 0)
			memcpy(&a, slot->data, sizeof a), a.sin_family = AF_INET, r = 0;
	}
	if (r == 0)
		give_addr(&a, addr, len);
	return done(slot, r);
}

int xdpd_getsockname(int fd, struct sockaddr *addr, socklen_t *len) { return name(fd, addr, len, 0); }
int xdpd_getpeername(int fd, struct sockaddr *addr, socklen_t *len) { return name(fd, addr, len, 1); }
