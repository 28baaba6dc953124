/*
 * packetdrill_xdpd.c: lets packetdrill drive the stack of xdpd (packetdrill --so_filename). scripts/conformance compiles and runs it.
 *
 * packetdrill gives its module the address of a table with a word for the module and then a function for each call, in the order
 * of enum slot. The first argument of each is the module's word, the others are those of the system call. A call is an operation
 * on the stack's ring (xdpd_stack.h, docs/ring.md) and nothing is done ahead of it, so that what is seen is the stack. Packets cross as IP, so
 * Ethernet and ARP are done here.
 *
 * Time is the stack's: it moves when packetdrill sleeps, waits for a packet, or asks what time it is, a microsecond then, for it spins on that. A
 * blocking call is made by a thread of its own, which sleeps here (finish) until the main thread has moved frames and time so far that it
 * can return; the main thread moves no further before that call is over. So a script runs alike each time.
 *
 * --so_flags: addr=A.B.C.D, prefix=BITS, gateway=A.B.C.D, mtu=, rcv_buf=, rcv_max=, snd_buf=, congestion=, no_ecn=1, seed=.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include "xdpd_client.h"
#include "xdpd_stack.h"

enum slot {
	WORD, FREE, SOCKET, BIND, LISTEN, ACCEPT, CONNECT, READ, READV, RECV, RECVFROM, RECVMSG, WRITE, WRITEV, SEND, SENDTO, SENDMSG, FCNTL, IOCTL,
	CLOSE, SHUTDOWN, GETSOCKOPT, SETSOCKOPT, POLL, NETDEV_SEND, NETDEV_RECEIVE, USLEEP, GETTIMEOFDAY, EPOLL_CREATE, EPOLL_CTL, EPOLL_WAIT, PIPE,
	SPLICE
};
typedef void (*call)(void);

enum { HEAD = 14, ROOM = 1 << 16 };
static const int64_t second = 1000000000, patience = 200 * second;
static const uint8_t our_mac[6] = { 2, 0, 0, 0, 0, 1 }, peer_mac[6] = { 2, 0, 0, 0, 0, 2 };

static xdpd_stack stack;
static struct xdpd_ring ring;
static pthread_t mains;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows, and of the ring */
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER;  /* time or frames: for the thread that waits */
static pthread_cond_t over = PTHREAD_COND_INITIALIZER;   /* its call: for the main thread */
static struct { int there, woken, n; const int *ids; int64_t until, ended; } sleeper;

enum { OPS = 256, FDS = 1024, BASE = 1 << 20, BUFFER = 4 << 20 };
static struct { int used, done, res; } ops[OPS]; /* under way, by user data */

struct sock { int used, ring, flags, type, dialling, failed; }; /* dialling: its operation, or -1 */
static struct sock socks[FDS];
static struct { int used; struct { int fd, edge; uint32_t seen; struct epoll_event e; } at[16]; } polls[16];

static void fail(const char *what)
{
	fprintf(stderr, "xdpd: %s\n", what);
	_exit(1);
}

static int error(int err)
{
	errno = err;
	return -1;
}

/* answer has the stack's questions by ARP answered by whomever they ask for. */
static void answer(uint8_t *f)
{
	if (f[20] != 0 || f[21] != 1)
		return;
	uint8_t reply[HEAD + 28], *p = reply + HEAD;
	memcpy(reply, our_mac, 6), memcpy(reply + 6, peer_mac, 6), memcpy(reply + 12, f + 12, 2);
	memcpy(p, f + HEAD, 8), p[7] = 2;
	memcpy(p + 8, peer_mac, 6), memcpy(p + 14, f + HEAD + 24, 4), memcpy(p + 18, f + HEAD + 8, 10);
	xdpd_stack_input(stack, reply, sizeof reply);
}

/* packets: what was sent and not sniffed yet. */
static struct packet {
	struct packet *next;
	int64_t at, n;
	uint8_t bytes[];
} *first, **last = &first;

/* drain takes what the stack sent. */
static void drain(void)
{
	uint8_t f[ROOM];
	int64_t n, at;

	while ((n = xdpd_stack_output(stack, f, sizeof f, &at)) > 0) {
		if (f[12] == 8 && f[13] == 6) {
			answer(f);
			continue;
		}
		struct packet *p = malloc(sizeof *p + (size_t)n);
		if (!p)
			fail("no memory");
		*p = (struct packet){ .at = at, .n = n - HEAD };
		memcpy(p->bytes, f + HEAD, (size_t)(n - HEAD));
		*last = p, last = &p->next;
	}
}

/* take has completions counted. */
static void take(void)
{
	struct xdpd_cqe c;

	while (xdpd_ring_take(&ring, &c)) {
		if (c.user_data >= OPS)
			continue;
		ops[c.user_data].res = c.res, ops[c.user_data].done = 1;
	}
}

/* can: one of n operations is done, or the time is over. */
static int can(const int *ids, int n, int64_t until)
{
	take();
	for (int i = 0; i < n; i++)
		if (ops[ids[i]].done)
			return 1;
	return until >= 0 && xdpd_stack_now(stack) >= until;
}

/* let has the thread in a blocking call go on, if it can, and returns when its call is over or it waits again. */
static void let(void)
{
	drain();
	pthread_mutex_lock(&lock);
	while (sleeper.there && (sleeper.woken || can(sleeper.ids, sleeper.n, sleeper.until))) {
		if (!sleeper.woken) {
			sleeper.woken = 1, sleeper.ended = xdpd_stack_now(stack);
			pthread_cond_broadcast(&moved);
		}
		pthread_cond_wait(&over, &lock);
	}
	pthread_mutex_unlock(&lock);
}

/* step moves time to the next timer, or to limit. 0: it is there. */
static int step(int64_t limit)
{
	if (xdpd_stack_now(stack) >= limit)
		return 0;
	int64_t due = xdpd_stack_run(stack);
	if (sleeper.there && sleeper.until >= 0 && sleeper.until < due)
		due = sleeper.until;
	xdpd_stack_advance(stack, due < limit ? due : limit);
	let();
	return 1;
}

/* finish waits until one of n operations is done, or the time is over. The lock is held. The main thread itself moves the time. */
static void finish(const int *ids, int n, int64_t until)
{
	int64_t limit = xdpd_stack_now(stack) + patience;

	if (pthread_equal(pthread_self(), mains)) {
		while (!can(ids, n, until)) {
			pthread_mutex_unlock(&lock);
			if (!step(until >= 0 ? until : limit))
				fail("a call waits for ever");
			pthread_mutex_lock(&lock);
		}
		return;
	}
	if (can(ids, n, until))
		return;
	sleeper.there = 1, sleeper.woken = 0, sleeper.ids = ids, sleeper.n = n, sleeper.until = until;
	pthread_cond_broadcast(&over);
	while (!sleeper.woken)
		pthread_cond_wait(&moved, &lock);
}

static void knock(struct xdpd_ring *x)
{
	(void)x;
	xdpd_stack_run(stack);
}

/* begin submits an operation and gives its number; end gives the result. */
static int begin(struct xdpd_sqe like)
{
	int id = 0;

	while (ops[id].used)
		if (++id == OPS)
			fail("too many operations");
	ops[id].used = 1, ops[id].done = 0;
	struct xdpd_sqe *s = xdpd_ring_sqe(&ring);
	if (!s)
		fail("the SQ is full");
	*s = like, s->user_data = (uint64_t)id;
	xdpd_ring_submit(&ring);
	return id;
}

static int end(int id)
{
	ops[id].used = 0;
	return ops[id].res;
}

/* run does an operation; what it says is -errno or a result. */
static int run(struct xdpd_sqe like)
{
	int id = begin(like);

	finish(&id, 1, -1);
	return end(id);
}

/* cancel ends an operation, if it is not done; its completion comes before that of CANCEL. */
static void cancel(int id)
{
	run((struct xdpd_sqe){ .opcode = XDPD_CANCEL, .addr = (uint64_t)id });
	end(id);
}

static int64_t result(int64_t res) { return res < 0 ? error((int)-res) : res; }

static int netdev_send(void *w, const void *buf, size_t n)
{
	uint8_t f[ROOM];

	(void)w;
	if (n > sizeof f - HEAD)
		return -1;
	memcpy(f, our_mac, 6), memcpy(f + 6, peer_mac, 6), f[12] = 8, f[13] = 0;
	memcpy(f + HEAD, buf, n);
	int err = xdpd_stack_input(stack, f, n + HEAD);
	let();
	return err ? -1 : 0;
}

static int netdev_receive(void *w, void *buf, size_t *n, long long *usecs)
{
	int64_t limit = xdpd_stack_now(stack) + patience;

	(void)w;
	for (drain(); !first;)
		if (!step(limit))
			fail("no packet came in 200 s");
	struct packet *p = first;
	if ((size_t)p->n > *n)
		return -1;
	if (!(first = p->next))
		last = &first;
	memcpy(buf, p->bytes, (size_t)p->n);
	*n = (size_t)p->n, *usecs = p->at / 1000;
	free(p);
	return 0;
}

static int sleeps(void *w, useconds_t us)
{
	int64_t until = xdpd_stack_now(stack) + us * INT64_C(1000);

	(void)w;
	while (step(until))
		;
	return 0;
}

static int time_of_day(void *w, struct timeval *tv, void *zone)
{
	int64_t t = -1;

	(void)w, (void)zone;
	if (!pthread_equal(pthread_self(), mains)) {
		pthread_mutex_lock(&lock);
		if (sleeper.there) { /* when its call is over the thread asks first of all for the time */
			t = sleeper.ended;
			sleeper.there = sleeper.woken = 0;
			pthread_cond_broadcast(&over);
		}
		pthread_mutex_unlock(&lock);
	}
	if (t < 0) {
		step(xdpd_stack_now(stack) + 1000);
		t = xdpd_stack_now(stack);
	}
	tv->tv_sec = t / second, tv->tv_usec = t % second / 1000;
	return 0;
}

/* What TCP_INFO says of a connection: what the stack knows of it, in Linux's units. */
static void tcp_info(const struct xdpd_stack_tcp *s, struct tcp_info *t)
{
	static const char *states[] = { "", "ESTABLISHED", "SYN-SENT", "SYN-RECEIVED", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "CLOSED", "CLOSE-WAIT",
		"LAST-ACK", "LISTEN", "CLOSING" };
	static const char *phases[] = { "open", "disorder", "cwr", "recovery", "loss" };
	uint32_t mss = s->mss ? s->mss : 1;

	memset(t, 0, sizeof *t);
	for (unsigned i = 1; i < sizeof states / sizeof *states; i++)
		if (!strcmp(s->state, states[i]))
			t->tcpi_state = (uint8_t)i;
	for (unsigned i = 0; i < sizeof phases / sizeof *phases; i++)
		if (!strcmp(s->phase, phases[i]))
			t->tcpi_ca_state = (uint8_t)i;
	if (s->phase[0] == 'o' && s->sacked)
		t->tcpi_ca_state = 1;
	t->tcpi_backoff = t->tcpi_retransmits = s->backoff;
	t->tcpi_options = (uint8_t)((s->timestamps ? TCPI_OPT_TIMESTAMPS : 0) | (s->sack ? TCPI_OPT_SACK : 0) |
		(s->snd_scale || s->rcv_scale ? TCPI_OPT_WSCALE : 0) | (s->ecn ? TCPI_OPT_ECN : 0));
	t->tcpi_snd_wscale = s->snd_scale & 15, t->tcpi_rcv_wscale = s->rcv_scale & 15;
	t->tcpi_rto = (uint32_t)(s->rto / 1000), t->tcpi_rtt = (uint32_t)(s->rtt / 1000), t->tcpi_rttvar = (uint32_t)(s->rtt_var / 1000);
	t->tcpi_min_rtt = (uint32_t)(s->min_rtt / 1000);
	t->tcpi_snd_mss = s->mss, t->tcpi_rcv_mss = s->rcv_mss, t->tcpi_pmtu = s->pmtu, t->tcpi_advmss = s->rcv_mss;
	t->tcpi_unacked = (s->unacked + mss - 1) / mss, t->tcpi_sacked = (s->sacked + mss - 1) / mss, t->tcpi_lost = (s->lost + mss - 1) / mss;
	t->tcpi_retrans = (s->again + mss - 1) / mss, t->tcpi_total_retrans = s->retransmits;
	t->tcpi_snd_cwnd = s->cwnd / mss, t->tcpi_snd_ssthresh = s->ssthresh ? s->ssthresh / mss : 0x7fffffff;
	t->tcpi_bytes_acked = s->acked, t->tcpi_bytes_received = s->received;
	t->tcpi_notsent_bytes = s->send_queue > s->unacked ? s->send_queue - s->unacked : 0;
	t->tcpi_snd_wnd = s->snd_wnd;
	t->tcpi_reordering = 3; /* DupThresh of RFC 8985, which nothing here changes */
}

/* buffer is the calling thread's part of the memory that the stack sees; addresses lie behind it. */
static uint64_t buffer(void) { return pthread_equal(pthread_self(), mains) ? 0 : BUFFER + 4096; }
static uint64_t place(void) { return buffer() + BUFFER; }

static struct sock *sock(int fd)
{
	return fd >= BASE && fd < BASE + FDS && socks[fd - BASE].used ? &socks[fd - BASE] : NULL;
}

static int name_of(struct sock *k, int peer, struct sockaddr_in *a)
{
	int r = run((struct xdpd_sqe){ .opcode = XDPD_SOCK_NAME, .fd = k->ring, .addr = place(), .len = sizeof *a, .op_flags = (uint32_t)peer });

	memcpy(a, ring.data + place(), sizeof *a);
	return r;
}

static int state(struct sock *k, struct xdpd_stack_tcp *s)
{
	struct sockaddr_in local, remote;

	memset(s, 0, sizeof *s);
	strcpy(s->state, "CLOSED"), strcpy(s->phase, "open");
	if (name_of(k, 0, &local) < 0 || name_of(k, 1, &remote) < 0)
		return -1;
	return xdpd_stack_tcp_info(stack, local.sin_addr.s_addr, local.sin_port, remote.sin_addr.s_addr, remote.sin_port, s);
}

static int info(struct sock *k, void *value, socklen_t *len)
{
	struct xdpd_stack_tcp s;
	struct tcp_info t;

	pthread_mutex_lock(&lock);
	state(k, &s);
	pthread_mutex_unlock(&lock);
	tcp_info(&s, &t);
	memset(value, 0, *len); /* which may be more than this kernel's headers know */
	memcpy(value, &t, *len < sizeof t ? *len : sizeof t);
	return 0;
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
	socks[i] = (struct sock){ .used = 1, .ring = ring_fd, .type = type, .flags = flags, .dialling = -1 };
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

static ssize_t transmit(int fd, const struct iovec *v, size_t n, int flags, const struct sockaddr *a, socklen_t len)
{
	size_t size = room(v, n);
	void *w = NULL;

	if (flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL))
		return error(EOPNOTSUPP);
	CALL(
		int quiet = k->flags & O_NONBLOCK || flags & MSG_DONTWAIT;
		uint8_t *p = ring.data + buffer();
		size_t left = size;
		for (size_t i = 0; i < n && left > 0; i++) {
			size_t part = left < v[i].iov_len ? left : v[i].iov_len;
			memcpy(p, v[i].iov_base, part);
			p += part, left -= part;
		}
		if (a)
			memcpy(ring.data + place(), a, len < 128 ? len : 128);
		r = result(run((struct xdpd_sqe){ .opcode = XDPD_SEND, .fd = k->ring, .addr = buffer(), .len = (uint32_t)size, .off = a ? place() : 0,
			.file_index = a ? len : 0, .op_flags = (uint32_t)(quiet ? MSG_DONTWAIT : k->type == SOCK_STREAM ? MSG_WAITALL : 0) }));)
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

static int do_shutdown(void *w, int fd, int how) CALL(r = result(run((struct xdpd_sqe){ .opcode = XDPD_SHUTDOWN, .fd = k->ring, .len = (uint32_t)how }));)

static int do_close(void *w, int fd) CALL(
	if (k->dialling >= 0)
		cancel(k->dialling);
	for (unsigned i = 0; i < 16 * 16; i++) /* leaves the epoll instances */
		if (polls[i / 16].at[i % 16].fd == fd) {
			if (polls[i / 16].at[i % 16].edge >= 0)
				cancel(polls[i / 16].at[i % 16].edge);
			polls[i / 16].at[i % 16].fd = 0;
		}
	r = result(run((struct xdpd_sqe){ .opcode = XDPD_CLOSE, .fd = k->ring }));
	k->used = 0;)

static int do_setsockopt(void *w, int fd, int level, int name, const void *value, socklen_t n) CALL(
	int v = 0;
	memcpy(&v, value, n < sizeof v ? n : sizeof v);
	if (level == SOL_SOCKET && (name == SO_REUSEADDR || name == SO_SNDBUF || name == SO_RCVBUF))
		r = 0; /* the stack needs no leave for the one, and has settings of its own for the others */
	else
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

static int do_getsockopt(void *w, int fd, int level, int name, void *value, socklen_t *len)
{
	struct sock *k = sock(fd);

	if (k && level == IPPROTO_TCP && name == TCP_INFO)
		return info(k, value, len);
	if (level != SOL_SOCKET || name != SO_ERROR || *len < sizeof(int))
		return error(ENOPROTOOPT);
	CALL(
		int v = 0;
		take();
		if (k->dialling >= 0 && ops[k->dialling].done) {
			v = -end(k->dialling), k->dialling = -1;
		} else if (ask(k, POLLERR) & POLLERR) {
			v = -run((struct xdpd_sqe){ .opcode = XDPD_RECV, .fd = k->ring, .addr = buffer(), .len = 1, .op_flags = MSG_DONTWAIT });
			v = v > 0 ? v : 0;
		}
		memcpy(value, &v, sizeof v);
		*len = sizeof v;
		r = 0;)
}

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

static int do_ioctl(void *w, int fd, unsigned long request, ...) CALL(
	struct xdpd_stack_tcp s;
	va_list v;
	va_start(v, request);
	int *arg = va_arg(v, int *);
	va_end(v);
	state(k, &s);
	r = 0;
	if (request == SIOCINQ)
		*arg = (int)s.recv_queue;
	else if (request == SIOCOUTQ)
		*arg = (int)s.send_queue;
	else
		r = error(EINVAL);)

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

/* What its scripts assert of TCP_INFO and the sockets that they leave open packetdrill asks the C library for, so these stand before that
 * (LD_PRELOAD). Of what else it asks there nothing is known. */
int getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	if (!sock(fd))
		return (int)syscall(SYS_getsockopt, fd, level, name, value, len);
	if (level == IPPROTO_TCP && name == TCP_CC_INFO)
		*len = 0;
	else if (level == SOL_SOCKET && name == SO_MEMINFO)
		memset(value, 0, *len);
	else
		return do_getsockopt(NULL, fd, level, name, value, len);
	return 0;
}

int close(int fd) { return sock(fd) ? do_close(NULL, fd) : (int)syscall(SYS_close, fd); }

static const call calls[] = {
#define C(slot, f) [slot] = (call)f
	C(FREE, do_free), C(SOCKET, do_socket), C(BIND, do_bind), C(LISTEN, do_listen), C(ACCEPT, do_accept), C(CONNECT, do_connect), C(READ, do_read),
	C(READV, do_readv), C(RECV, do_recv), C(RECVFROM, do_recvfrom), C(RECVMSG, do_recvmsg), C(WRITE, do_write), C(WRITEV, do_writev),
	C(SEND, do_send), C(SENDTO, do_sendto), C(SENDMSG, do_sendmsg), C(FCNTL, do_fcntl), C(IOCTL, do_ioctl), C(CLOSE, do_close),
	C(SHUTDOWN, do_shutdown), C(GETSOCKOPT, do_getsockopt), C(SETSOCKOPT, do_setsockopt), C(POLL, do_poll), C(NETDEV_SEND, netdev_send),
	C(NETDEV_RECEIVE, netdev_receive), C(USLEEP, sleeps), C(GETTIMEOFDAY, time_of_day), C(EPOLL_CREATE, do_epoll_create),
	C(EPOLL_CTL, do_epoll_ctl), C(EPOLL_WAIT, do_epoll_wait), C(PIPE, do_pipe), C(SPLICE, do_splice),
};

static void set(struct xdpd_stack_config *c, const char *key, const char *value)
{
	uint32_t n = (uint32_t)strtoul(value, NULL, 0);

	if (!strcmp(key, "addr"))
		c->addr = inet_addr(value);
	else if (!strcmp(key, "gateway"))
		c->gateway = inet_addr(value);
	else if (!strcmp(key, "prefix"))
		c->prefix = (uint8_t)n;
	else if (!strcmp(key, "mtu"))
		c->mtu = n;
	else if (!strcmp(key, "rcv_buf"))
		c->rcv_buf = n;
	else if (!strcmp(key, "rcv_max"))
		c->rcv_max = n;
	else if (!strcmp(key, "snd_buf"))
		c->snd_buf = n;
	else if (!strcmp(key, "no_ecn"))
		c->no_ecn = (uint8_t)n;
	else if (!strcmp(key, "seed"))
		memcpy(c->seed, &n, sizeof n);
	else if (!strcmp(key, "congestion"))
		strncpy(c->congestion, value, sizeof c->congestion);
	else
		fail("an unknown flag in --so_flags");
}

/* packetdrill_interface_init is what packetdrill looks for. */
void packetdrill_interface_init(const char *flags, void *table);

void packetdrill_interface_init(const char *flags, void *table)
{
	struct xdpd_stack_config c = { .size = sizeof c, .addr = inet_addr("192.168.0.2"), .prefix = 16, .gateway = inet_addr("192.168.0.1"),
		.now = 1000 * second };
	struct xdpd_stack_memory m;
	char why[256], *text = strdup(flags ? flags : ""), *save = NULL;

	for (char *f = strtok_r(text, ",", &save); f; f = strtok_r(NULL, ",", &save)) {
		char *value = strchr(f, '=');
		if (!value)
			fail("--so_flags are of the form NAME=VALUE,...");
		*value = 0;
		set(&c, f, value + 1);
	}
	free(text);
	mains = pthread_self();
	if (!(stack = xdpd_stack_open(&c, why, sizeof why)))
		fail(why);
	if (xdpd_stack_ring(stack, 256, 2 * (BUFFER + 4096), &m) < 0)
		fail("no ring");
	ring.conn = ring.memfd = -1, ring.size = m.size, ring.mtu = m.mtu, ring.knock = knock;
	xdpd_ring_join(&ring, m.mem, m.data, m.data_len);
	uint8_t f[HEAD + 28] = { [12] = 8, 6, 0, 1, 8, 0, 6, 4, 0, 1 }; /* the gateway asks by ARP, and is known then */
	memset(f, 0xff, 6), memcpy(f + 6, peer_mac, 6), memcpy(f + HEAD + 8, peer_mac, 6), memcpy(f + HEAD + 14, &c.gateway, 4);
	memcpy(f + HEAD + 24, &c.addr, 4);
	xdpd_stack_input(stack, f, sizeof f);
	drain();
	call *t = table;
	memcpy(t + FREE, calls + FREE, sizeof calls - sizeof *calls);
}

/* Only packetdrill is to have it, and not the shells that it runs. */
__attribute__((constructor)) static void alone(void) { unsetenv("LD_PRELOAD"); }
