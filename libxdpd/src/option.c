/* option.c: getsockopt and setsockopt. What the engine has not, it does not pretend to have. */
#include "internal.h"
#include "kernel.h"

int set_option(struct slot *s, struct file *f, int level, int name, int value)
{
	if (value < 0)
		return -EINVAL;
	return call(s, f, f->ring, XDPD_SET_SOCK_OPT, (struct xdpd_sqe){ .len = (uint32_t)level, .op_flags = (uint32_t)name, .off = (uint64_t)value });
}

/* shared gives the place of an option that the engine has for TCP, or NULL. */
static int32_t *shared(struct file *f, int level, int name)
{
	switch (level << 16 | name) {
	case SOL_SOCKET << 16 | SO_KEEPALIVE:
		return &f->keepalive;
	case IPPROTO_TCP << 16 | TCP_NODELAY:
		return &f->nodelay;
	case IPPROTO_TCP << 16 | TCP_KEEPIDLE:
		return &f->keepidle;
	case IPPROTO_TCP << 16 | TCP_KEEPINTVL:
		return &f->keepintvl;
	case IPPROTO_TCP << 16 | TCP_KEEPCNT:
		return &f->keepcnt;
	}
	return NULL;
}

/* own gives the place of an option that is the library's, or has no effect where data is never lost for want of it. */
static int32_t *own(struct file *f, int level, int name)
{
	if (level != SOL_SOCKET)
		return NULL;
	switch (name) {
	case SO_REUSEADDR:
		return &f->reuse;
	case SO_BROADCAST:
		return &f->broadcast;
	case SO_OOBINLINE:
		return &f->oobinline;
	case SO_RCVBUF:
		return &f->rcvbuf;
	case SO_SNDBUF:
		return &f->sndbuf;
	}
	return NULL;
}

/* inherit gives an accepted socket what was set on its listener. */
void inherit(struct file *f, const struct file *of)
{
	static const int names[][2] = { { IPPROTO_TCP, TCP_NODELAY }, { SOL_SOCKET, SO_KEEPALIVE }, { IPPROTO_TCP, TCP_KEEPIDLE },
					{ IPPROTO_TCP, TCP_KEEPINTVL }, { IPPROTO_TCP, TCP_KEEPCNT } };

	f->reuse = of->reuse, f->oobinline = of->oobinline, f->rcvbuf = of->rcvbuf, f->sndbuf = of->sndbuf;
	f->rcvtimeo = of->rcvtimeo, f->sndtimeo = of->sndtimeo;
	f->nodelay = of->nodelay, f->keepalive = of->keepalive, f->reset = of->reset;
	f->keepidle = of->keepidle, f->keepintvl = of->keepintvl, f->keepcnt = of->keepcnt;
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
		int32_t v = *shared(f, names[i][0], names[i][1]);
		if (names[i][1] == SO_KEEPALIVE && names[i][0] == SOL_SOCKET ? v == 0 : v < 0)
			continue;
		struct xdpd_sqe *s = request(K_NONE, id_of(f), XDPD_SET_SOCK_OPT, f->ring);
		s->len = (uint32_t)names[i][0], s->op_flags = (uint32_t)names[i][1], s->off = (uint64_t)v;
	}
	if (f->reset) {
		struct xdpd_sqe *s = request(K_NONE, id_of(f), XDPD_SET_SOCK_OPT, f->ring);
		s->len = SOL_SOCKET, s->op_flags = SO_LINGER, s->off = 1;
	}
}

static int set(struct slot *slot, struct file *f, int level, int name, const void *value, socklen_t len)
{
	int32_t v, *place, r;

	if (level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO)) {
		struct timeval t;
		if (len < sizeof t)
			return -EINVAL;
		memcpy(&t, value, sizeof t);
		if (t.tv_usec < 0 || t.tv_usec >= 1000000)
			return -EDOM;
		*(name == SO_RCVTIMEO ? &f->rcvtimeo : &f->sndtimeo) = t.tv_sec < 0 ? 1 : t.tv_sec > NEVER / SECOND / 2 ? 0 : t.tv_sec * SECOND + t.tv_usec * INT64_C(1000);
		return 0;
	}
	if (level == SOL_SOCKET && name == SO_LINGER) {
		struct linger l;
		if (len < sizeof l)
			return -EINVAL;
		memcpy(&l, value, sizeof l);
		if (l.l_onoff && l.l_linger)
			return -EOPNOTSUPP;
		if (f->udp)
			return 0;
		if ((r = set_option(slot, f, SOL_SOCKET, SO_LINGER, l.l_onoff != 0)) == 0)
			f->reset = l.l_onoff != 0;
		return r;
	}
	if (len < sizeof v)
		return -EINVAL;
	memcpy(&v, value, sizeof v);
	if ((place = own(f, level, name))) {
		*place = name == SO_RCVBUF || name == SO_SNDBUF ? v : v != 0;
		return 0;
	}
	if (level == SOL_SOCKET && name == SO_RCVLOWAT)
		return v <= 1 ? 0 : -EOPNOTSUPP;
	if (!(place = shared(f, level, name)))
		return -ENOPROTOOPT;
	if (f->udp) {
		if (level != SOL_SOCKET)
			return -ENOPROTOOPT;
	} else if ((r = set_option(slot, f, level, name, v)) < 0) {
		return r;
	}
	*place = name == SO_KEEPALIVE && level == SOL_SOCKET ? v != 0 : v;
	return 0;
}

static int get(struct slot *slot, struct file *f, int level, int name, void *value, socklen_t *len)
{
	const int32_t *place = shared(f, level, name);
	int32_t v = 0;

	if (level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO)) {
		int64_t ns = name == SO_RCVTIMEO ? f->rcvtimeo : f->sndtimeo;
		struct timeval t = { ns / SECOND, ns % SECOND / 1000 };
		*len = *len < sizeof t ? *len : sizeof t;
		memcpy(value, &t, *len);
		return 0;
	}
	if (level == SOL_SOCKET && name == SO_LINGER) {
		struct linger l = { f->reset, 0 };
		*len = *len < sizeof l ? *len : sizeof l;
		memcpy(value, &l, *len);
		return 0;
	}
	if (place && (level == SOL_SOCKET || !f->udp)) {
		v = *place >= 0 ? *place : name == TCP_NODELAY ? 1 : name == TCP_KEEPIDLE ? 7200 : name == TCP_KEEPINTVL ? 75 : 9;
	} else if ((place = own(f, level, name))) {
		v = *place;
		if (name == SO_RCVBUF || name == SO_SNDBUF)
			v = v ? 2 * v : 131072;
	} else if (level == SOL_SOCKET && name == SO_ERROR) {
		if (!f->error && f->hint)
			v = call(slot, f, f->ring, XDPD_GET_SOCK_OPT, (struct xdpd_sqe){ .len = SOL_SOCKET, .op_flags = SO_ERROR });
		f->hint = 0;
		if (v <= 0) /* it may have come otherwise meanwhile */
			v = f->error, f->error = 0;
	} else if (level == IPPROTO_TCP && name == TCP_INFO && !f->udp) {
		struct xdpd_sqe s = { .len = IPPROTO_TCP, .op_flags = TCP_INFO, .addr = offset(slot->data), .off = *len < sizeof slot->data ? *len : sizeof slot->data };
		if ((v = call(slot, f, f->ring, XDPD_GET_SOCK_OPT, s)) < 0)
			return v;
		*len = (socklen_t)v;
		memcpy(value, slot->data, *len);
		return 0;
	} else if (level == IPPROTO_TCP && name == TCP_MAXSEG && !f->udp) {
		if ((v = call(slot, f, f->ring, XDPD_GET_SOCK_OPT, (struct xdpd_sqe){ .len = IPPROTO_TCP, .op_flags = TCP_MAXSEG })) < 0)
			return v;
	} else if (level == SOL_SOCKET && name == SO_TYPE) {
		v = f->udp ? SOCK_DGRAM : SOCK_STREAM;
	} else if (level == SOL_SOCKET && name == SO_DOMAIN) {
		v = AF_INET;
	} else if (level == SOL_SOCKET && name == SO_PROTOCOL) {
		v = f->udp ? IPPROTO_UDP : IPPROTO_TCP;
	} else if (level == SOL_SOCKET && name == SO_ACCEPTCONN) {
		v = f->state == LISTENING;
	} else if (level == SOL_SOCKET && name == SO_RCVLOWAT) {
		v = 1;
	} else {
		return -ENOPROTOOPT;
	}
	*len = *len < sizeof v ? *len : sizeof v;
	memcpy(value, &v, *len);
	return 0;
}

/* with does one of both with the lock and a slot. */
static int with(int fd, int level, int name, void *to, const void *from, socklen_t *len)
{
	struct slot *slot;
	int r;

	if (!enter())
		return -1;
	struct file *f = file_of(fd);
	if (!f || f->type != SOCKET || !(slot = slot_get(f))) {
		leave();
		return fail(!f ? EBADF : f->type != SOCKET ? ENOTSOCK : ENOBUFS);
	}
	reap();
	r = to ? get(slot, f, level, name, to, len) : set(slot, f, level, name, from, *len);
	slot_put(slot);
	leave();
	return r < 0 ? fail(-r) : 0;
}

int xdpd_getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	if (!xdpd_is(fd))
		return (int)K(getsockopt, fd, level, name, value, len);
	return value && len ? with(fd, level, name, value, NULL, len) : fail(EFAULT);
}

int xdpd_setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	if (!xdpd_is(fd))
		return (int)K(setsockopt, fd, level, name, value, len);
	return value ? with(fd, level, name, NULL, value, &len) : fail(EFAULT);
}
