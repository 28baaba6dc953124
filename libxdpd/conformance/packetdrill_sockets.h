/* packetdrill_sockets.h: the system calls of packetdrill's table, over the stack's ring; part of packetdrill_xdpd.c. */

/* buffer is the calling thread's part of the memory that the stack sees; addresses lie behind it. */
static uint64_t buffer(void) { return pthread_equal(pthread_self(), mains) ? 0 : BUFFER + 4096; }
static uint64_t place(void) { return buffer() + BUFFER; }

static struct sock *sock(int fd)
{
	return fd >= BASE && fd < BASE + FDS && socks[fd - BASE].used > 0 ? &socks[fd - BASE] : NULL;
}

/* A call's body, under the lock, with k the socket of fd. */
#define CALL(...) { int64_t r; struct sock *k = sock(fd); (void)w; if (!k) return error(EBADF); \
	pthread_mutex_lock(&lock); { __VA_ARGS__ } pthread_mutex_unlock(&lock); return r; }

static int number(int ring_fd, int type, int flags)
{
	int i = 0;

	while (socks[i].used)
		if (++i == FDS)
			fail("too many sockets");
	socks[i] = (struct sock){ .used = 1, .ring = ring_fd, .type = type, .flags = flags, .dialling = -1, .sndbuf = sndbuf };
	/* As Linux has it at the beginning: with Nagle's algorithm. */
	run((struct xdpd_sqe){ .opcode = XDPD_SET_SOCK_OPT, .fd = ring_fd, .len = IPPROTO_TCP, .op_flags = TCP_NODELAY, .off = 0 });
	return BASE + i;
}

static int do_socket(void *w, int domain, int type, int protocol)
{
	(void)w;
	pthread_mutex_lock(&lock);
	int r = run((struct xdpd_sqe){ .opcode = XDPD_SOCKET, .fd = domain, .off = (uint64_t)(type & 15), .len = (uint32_t)protocol });
	if (r >= 0)
		r = number(r, type & 15, type & SOCK_NONBLOCK ? O_NONBLOCK : 0);
	pthread_mutex_unlock(&lock);
	return (int)result(r);
}

static int64_t with_address(struct sock *k, int op, const struct sockaddr *a, socklen_t n)
{
	if (n > 128)
		return -EINVAL;
	memcpy(ring.data + place(), a, n);
	return run((struct xdpd_sqe){ .opcode = (uint8_t)op, .fd = k->ring, .addr = place(), .off = n });
}

static int do_bind(void *w, int fd, const struct sockaddr *a, socklen_t n) CALL(r = result(with_address(k, XDPD_BIND, a, n));)
static int do_listen(void *w, int fd, int n) CALL(r = result(run((struct xdpd_sqe){ .opcode = XDPD_LISTEN, .fd = k->ring, .len = (uint32_t)n }));)

static int do_accept(void *w, int fd, struct sockaddr *a, socklen_t *n) CALL(
	r = run((struct xdpd_sqe){ .opcode = XDPD_ACCEPT, .fd = k->ring, .addr = place(), .off = sizeof(struct sockaddr_in),
		.ioprio = k->flags & O_NONBLOCK ? 2 : 0 });
	if (r >= 0 && a && n) {
		memcpy(a, ring.data + place(), *n < sizeof(struct sockaddr_in) ? *n : sizeof(struct sockaddr_in));
		*n = sizeof(struct sockaddr_in);
	}
	r = r < 0 ? result(r) : number((int)r, SOCK_STREAM, 0);)

static int do_connect(void *w, int fd, const struct sockaddr *a, socklen_t n) CALL(
	take();
	if (k->dialling < 0) {
		memcpy(ring.data + place(), a, n < 128 ? n : 128);
		k->dialling = begin((struct xdpd_sqe){ .opcode = XDPD_CONNECT, .fd = k->ring, .addr = place(), .off = n });
		take();
		r = -EINPROGRESS;
	} else {
		r = -EALREADY;
	}
	if (!(k->flags & O_NONBLOCK))
		finish(&k->dialling, 1, -1);
	if (ops[k->dialling].done) {
		r = end(k->dialling);
		k->dialling = -1;
	}
	r = result(r);)

static size_t room(const struct iovec *v, size_t n)
{
	size_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += v[i].iov_len;
	return sum < BUFFER ? sum : BUFFER;
}

static ssize_t receive(int fd, const struct iovec *v, size_t n, int flags, struct sockaddr *a, socklen_t *len)
{
	size_t size = room(v, n);
	void *w = NULL;

	if (flags & ~(MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL))
		return error(EOPNOTSUPP);
	CALL(
		int quiet = k->flags & O_NONBLOCK || flags & MSG_DONTWAIT;
		size_t head = k->type == SOCK_DGRAM ? XDPD_RECV_HEADER : 0;
		r = run((struct xdpd_sqe){ .opcode = head ? XDPD_RECV_FROM : XDPD_RECV, .fd = k->ring, .addr = buffer(), .len = (uint32_t)(head + size),
			.op_flags = (uint32_t)((quiet ? MSG_DONTWAIT : 0) | (flags & MSG_WAITALL)) });
		const uint8_t *p = ring.data + buffer();
		if (r >= 0 && head && a && len)
			memcpy(a, p + 16, sizeof(struct sockaddr_in)), *len = sizeof(struct sockaddr_in);
		r = r < 0 ? result(r) : r - (int64_t)head, p += head;
		int64_t left = r;
		for (size_t i = 0; i < n && left > 0; i++) {
			size_t part = (size_t)left < v[i].iov_len ? (size_t)left : v[i].iov_len;
			memcpy(v[i].iov_base, p, part);
			p += part, left -= (int64_t)part;
		})
}

/* send_bytes is a SEND of n bytes at from, of which the result is known when it ends. */
static struct xdpd_sqe send_bytes(struct sock *k, uint64_t from, size_t n)
{
	return (struct xdpd_sqe){ .opcode = XDPD_SEND, .fd = k->ring, .addr = from, .len = (uint32_t)n, .op_flags = MSG_WAITALL };
}

/*
 * The stack takes as much as its send queue holds, which is a matter of its congestion window; Linux's socket takes SO_SNDBUF. So a SEND goes on
 * behind the call, and the call waits, or says EAGAIN, only when more than SO_SNDBUF is under way. What a SEND reads lies in memory that is
 * not used again: scripts are short.
 */
static ssize_t transmit(int fd, const struct iovec *v, size_t n, int flags, const struct sockaddr *a, socklen_t len)
{
	size_t size = room(v, n);
	void *w = NULL;

	if (flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL))
		return error(EOPNOTSUPP);
	CALL(
		int quiet = k->flags & O_NONBLOCK || flags & MSG_DONTWAIT;
		take();
		if (quiet && k->type == SOCK_STREAM && !k->error) {
			int64_t left = k->sndbuf - k->queued;
			if (left <= 0 && size > 0)
				k->error = EAGAIN;
			else if (size > (size_t)left)
				size = (size_t)left;
		}
		uint64_t from = heap;
		uint8_t *p = ring.data + from;
		if ((heap += size) > ring.data_len)
			fail("a script that sends too much");
		size_t left = size;
		for (size_t i = 0; i < n && left > 0; i++) {
			size_t part = left < v[i].iov_len ? left : v[i].iov_len;
			memcpy(p, v[i].iov_base, part);
			p += part; left -= part;
		}
		struct xdpd_sqe s = send_bytes(k, from, size);
		if (k->error) {
			r = -k->error, k->error = 0;
		} else if (k->type == SOCK_DGRAM) {
			if (a) {
				memcpy(ring.data + place(), a, len < 128 ? len : 128);
				s.off = place(), s.file_index = len;
			}
			s.op_flags = quiet ? MSG_DONTWAIT : 0;
			r = run(s);
		} else {
			int id = begin(s);
			ops[id].owner = (int)(k - socks) + 1; ops[id].size = (int64_t)size;
			k->queued += (int64_t)size;
			take();
			while (!quiet && k->queued > k->sndbuf && !k->error)
				finish(&id, 1, -1);
			r = k->error ? -k->error : (int64_t)size;
			k->error = 0;
		}
		r = result(r);)
}

static ssize_t do_recvfrom(void *w, int fd, void *b, size_t n, int flags, struct sockaddr *a, socklen_t *len)
{
	struct iovec v = { b, n };

	(void)w;
	return receive(fd, &v, 1, flags, a, len);
}

static ssize_t do_sendto(void *w, int fd, const void *b, size_t n, int flags, const struct sockaddr *a, socklen_t len)
{
	struct iovec v = { (void *)(uintptr_t)b, n };

	(void)w;
	return transmit(fd, &v, 1, flags, a, len);
}

static ssize_t do_recv(void *w, int fd, void *b, size_t n, int flags) { return do_recvfrom(w, fd, b, n, flags, NULL, NULL); }
static ssize_t do_read(void *w, int fd, void *b, size_t n) { return do_recvfrom(w, fd, b, n, 0, NULL, NULL); }
static ssize_t do_readv(void *w, int fd, const struct iovec *v, int n) { (void)w; return receive(fd, v, (size_t)n, 0, NULL, NULL); }
static ssize_t do_send(void *w, int fd, const void *b, size_t n, int flags) { return do_sendto(w, fd, b, n, flags, NULL, 0); }
static ssize_t do_write(void *w, int fd, const void *b, size_t n) { return do_sendto(w, fd, b, n, 0, NULL, 0); }
static ssize_t do_writev(void *w, int fd, const struct iovec *v, int n) { (void)w; return transmit(fd, v, (size_t)n, 0, NULL, 0); }

static ssize_t do_recvmsg(void *w, int fd, struct msghdr *m, int flags)
{
	(void)w;
	m->msg_flags = 0, m->msg_controllen = 0;
	return receive(fd, m->msg_iov, m->msg_iovlen, flags, m->msg_name, &m->msg_namelen);
}

static ssize_t do_sendmsg(void *w, int fd, const struct msghdr *m, int flags)
{
	(void)w;
	return transmit(fd, m->msg_iov, m->msg_iovlen, flags, m->msg_namelen ? m->msg_name : NULL, m->msg_namelen);
}

/* finally does what is to happen behind all SENDs: now, or when the last is done. */
static int64_t finally(struct sock *k, struct xdpd_sqe s)
{
	take();
	if (!k->queued)
		return run(s);
	k->last = s;
	return 0;
}

static int do_shutdown(void *w, int fd, int how) CALL(
	struct xdpd_sqe s = { .opcode = XDPD_SHUTDOWN, .fd = k->ring, .len = (uint32_t)how };
	r = result(how == SHUT_RD ? run(s) : finally(k, s));)

static int do_close(void *w, int fd) CALL(
	if (k->dialling >= 0)
		cancel(k->dialling);
	for (unsigned i = 0; i < 16 * 16; i++) /* leaves the epoll instances */
		if (polls[i / 16].at[i % 16].fd == fd) {
			if (polls[i / 16].at[i % 16].edge >= 0)
				cancel(polls[i / 16].at[i % 16].edge);
			polls[i / 16].at[i % 16].fd = 0;
		}
	r = result(finally(k, (struct xdpd_sqe){ .opcode = XDPD_CLOSE, .fd = k->ring }));
	k->used = k->queued ? -1 : 0;)

static int do_setsockopt(void *w, int fd, int level, int name, const void *value, socklen_t n) CALL(
	int v = 0;
	memcpy(&v, value, n < sizeof v ? n : sizeof v);
	r = 0;
	if (level == SOL_SOCKET && name == SO_SNDBUF)
		k->sndbuf = 2 * (int64_t)v; /* as Linux does */
	else if (level != SOL_SOCKET || (name != SO_REUSEADDR && name != SO_RCVBUF)) /* no leave is needed for the one, the other is the stack's */
		r = result(run((struct xdpd_sqe){ .opcode = XDPD_SET_SOCK_OPT, .fd = k->ring, .len = (uint32_t)level, .op_flags = (uint32_t)name,
			.off = (uint32_t)v }));)

/* ask is what a socket is ready for, of events. */
static int ask(struct sock *k, uint32_t events)
{
	int id = begin((struct xdpd_sqe){ .opcode = XDPD_POLL_ADD, .fd = k->ring, .op_flags = events });

	take();
	if (!ops[id].done) {
		cancel(id);
		return 0;
	}
	int r = end(id);
	return r < 0 ? POLLNVAL : r & (int)(events | POLLERR | POLLHUP);
}

static int do_getsockopt(void *w, int fd, int level, int name, void *value, socklen_t *len) CALL(
	take();
	memset(value, 0, *len);
	int v = 0;
	if (level == SOL_SOCKET && name == SO_ERROR && k->dialling >= 0 && ops[k->dialling].done)
		r = -end(k->dialling), k->dialling = -1;
	else if (level == SOL_SOCKET && name == SO_ERROR && k->error)
		r = k->error, k->error = 0;
	else if (level == SOL_SOCKET && name == SO_SNDBUF)
		r = k->sndbuf;
	else
		r = run((struct xdpd_sqe){ .opcode = XDPD_GET_SOCK_OPT, .fd = k->ring, .len = (uint32_t)level, .op_flags = (uint32_t)name, .addr = place(),
			.off = *len });
	v = (int)r;
	if (r >= 0 && level == IPPROTO_TCP && name == TCP_INFO)
		memcpy(value, ring.data + place(), (size_t)r);
	else if (r >= 0)
		memcpy(value, &v, *len < sizeof v ? *len : sizeof v);
	r = r < 0 ? result(r) : 0;)

static int do_fcntl(void *w, int fd, int cmd, ...) CALL(
	va_list v;
	va_start(v, cmd);
	int arg = va_arg(v, int);
	va_end(v);
	r = 0;
	if (cmd == F_GETFL)
		r = O_RDWR | k->flags;
	else if (cmd == F_SETFL)
		k->flags = arg & O_NONBLOCK;
	else
		r = error(EINVAL);)

/* queue is what is in a connection's queue: 0, what can be read, or 1, what was sent. */
static int64_t queue(struct sock *k, int which)
{
	struct xdpd_stack_tcp t;
	struct sockaddr_in end[2];

	for (int i = 0; i < 2; i++) {
		if (run((struct xdpd_sqe){ .opcode = XDPD_SOCK_NAME, .fd = k->ring, .addr = place(), .len = sizeof *end, .op_flags = (uint32_t)i }) < 0)
			return -EINVAL;
		memcpy(&end[i], ring.data + place(), sizeof *end);
	}
	if (which > 1 || xdpd_stack_tcp_info(stack, end[0].sin_addr.s_addr, end[0].sin_port, end[1].sin_addr.s_addr, end[1].sin_port, &t) < 0)
		return -EINVAL;
	return which ? t.send_queue : t.recv_queue;
}

static int do_ioctl(void *w, int fd, unsigned long request, ...) CALL(
	va_list v;
	va_start(v, request);
	int *arg = va_arg(v, int *);
	va_end(v);
	r = queue(k, request == SIOCINQ ? 0 : request == SIOCOUTQ ? 1 : 2);
	if (r >= 0)
		*arg = (int)r + (request == SIOCOUTQ ? (int)k->queued : 0);
	r = r < 0 ? result(r) : 0;)

/* Waiting for several: each has an operation that ends when it is ready. */
static int64_t until_ms(int ms) { return ms < 0 ? -1 : xdpd_stack_now(stack) + ms * INT64_C(1000000); }

static int do_poll(void *w, struct pollfd *p, nfds_t n, int ms)
{
	int ids[16], ready = 0, waits = 0;

	(void)w;
	if (n > 16)
		return error(EINVAL);
	pthread_mutex_lock(&lock);
	for (int round = 0; round < 2 && !ready; round++) {
		for (nfds_t i = 0; i < n; i++) {
			struct sock *k = sock(p[i].fd);
			p[i].revents = (short)(k ? ask(k, (uint16_t)p[i].events) : POLLNVAL);
			ready += p[i].revents != 0;
		}
		if (ready || round || ms == 0)
			break;
		for (nfds_t i = 0; i < n; i++)
			ids[waits++] = begin((struct xdpd_sqe){ .opcode = XDPD_POLL_ADD, .fd = sock(p[i].fd)->ring, .op_flags = (uint16_t)p[i].events });
		finish(ids, waits, until_ms(ms));
		for (int i = 0; i < waits; i++)
			cancel(ids[i]);
	}
	pthread_mutex_unlock(&lock);
	return ready;
}

static int do_epoll_create(void *w, int n)
{
	(void)w, (void)n;
	for (int i = 0; i < 16; i++)
		if (!polls[i].used) {
			polls[i].used = 1;
			return BASE + FDS + i;
		}
	return error(EMFILE);
}

static int do_epoll_ctl(void *w, int e, int op, int fd, struct epoll_event *v) CALL(
	int free = -1; int at = -1; int p = e - BASE - FDS;
	if (p < 0 || p > 15 || !polls[p].used)
		fail("not an epoll instance");
	for (int i = 0; i < 16; i++) {
		if (polls[p].at[i].fd == fd)
			at = i;
		else if (!polls[p].at[i].fd && free < 0)
			free = i;
	}
	r = op == EPOLL_CTL_ADD ? (at >= 0 ? -EEXIST : 0) : (at < 0 ? -ENOENT : 0);
	if (r == 0 && op != EPOLL_CTL_ADD && polls[p].at[at].edge >= 0)
		cancel(polls[p].at[at].edge);
	if (r == 0 && op == EPOLL_CTL_DEL) {
		polls[p].at[at].fd = 0;
	} else if (r == 0) {
		int i = at >= 0 ? at : free;
		polls[p].at[i].fd = fd; polls[p].at[i].e = *v; polls[p].at[i].edge = -1;
		if (v->events & EPOLLET) {
			polls[p].at[i].edge = begin((struct xdpd_sqe){ .opcode = XDPD_POLL_ADD, .fd = k->ring, .op_flags = v->events & 0xffff, .len = 1 });
			take();
		}
	}
	r = result(r);)

static int do_epoll_wait(void *w, int e, struct epoll_event *v, int max, int ms)
{
	int ids[16], fds[16], n, got = 0, p = e - BASE - FDS;

	(void)w;
	pthread_mutex_lock(&lock);
	for (int round = 0; round < 2 && !got; round++) {
		take();
		n = 0;
		for (int i = 0; i < 16 && got < max; i++) {
			struct sock *k = sock(polls[p].at[i].fd);
			uint32_t is = 0;
			if (!k)
				continue;
			fds[n] = polls[p].at[i].edge, n++;
			if (polls[p].at[i].edge >= 0 && !ops[polls[p].at[i].edge].done)
				continue;
			is = (uint32_t)ask(k, polls[p].at[i].e.events & 0xffff);
			if (polls[p].at[i].edge >= 0)
				ops[polls[p].at[i].edge].done = 0;
			if (is)
				v[got++] = (struct epoll_event){ .events = is, .data = polls[p].at[i].e.data };
		}
		if (got || round || ms == 0)
			break;
		for (int i = 0, j = 0; i < 16; i++) {
			struct sock *k = sock(polls[p].at[i].fd);
			if (k && (ids[j] = fds[j]) < 0)
				ids[j] = begin((struct xdpd_sqe){ .opcode = XDPD_POLL_ADD, .fd = k->ring, .op_flags = polls[p].at[i].e.events & 0xffff });
			j += k != NULL;
		}
		finish(ids, n, until_ms(ms));
		for (int i = 0; i < n; i++)
			if (fds[i] < 0)
				cancel(ids[i]);
	}
	pthread_mutex_unlock(&lock);
	return got;
}

static int do_pipe(void *w, int fds[2])
{
	(void)w;
	return pipe(fds);
}

static ssize_t do_splice(void *w, int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags)
{
	(void)w, (void)in, (void)in_at, (void)out, (void)out_at, (void)n, (void)flags;
	return error(EINVAL); /* the kernel's only */
}

static void do_free(void *w) { (void)w; } /* the process ends */
