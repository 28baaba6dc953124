/*
 * packetdrill_xdpd.c: lets packetdrill drive the stack of xdpd (packetdrill --so_filename). scripts/conformance compiles and runs it.
 *
 * packetdrill gives its module the address of a table with a word for the module and then a function for each call, in the order
 * of enum slot. The first argument of each is the module's word, the others are those of the system call. Sockets are libxdpd's, over
 * the stack in this process (xdpd_stack.h). Packets cross as IP, so Ethernet and ARP are done here.
 *
 * Time is the stack's: it moves when packetdrill sleeps, waits for a packet, or asks what time it is, a microsecond then, for it spins on that. A
 * blocking call is made by a thread of its own, which sleeps here (waits) until the main thread has moved frames and time so far that it
 * can return; the main thread moves no further before that call is over. So a script runs alike each time.
 *
 * --so_flags: addr=A.B.C.D, prefix=BITS, gateway=A.B.C.D, mtu=, rcv_buf=, rcv_max=, snd_buf=, congestion=, no_ecn=1, seed=.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "libxdpd.h"
#include "xdpd_client.h"
#include "xdpd_stack.h"

enum slot {
	WORD, FREE, SOCKET, BIND, LISTEN, ACCEPT, CONNECT, READ, READV, RECV, RECVFROM, RECVMSG, WRITE, WRITEV, SEND, SENDTO, SENDMSG, FCNTL, IOCTL,
	CLOSE, SHUTDOWN, GETSOCKOPT, SETSOCKOPT, POLL, NETDEV_SEND, NETDEV_RECEIVE, USLEEP, GETTIMEOFDAY, EPOLL_CREATE, EPOLL_CTL, EPOLL_WAIT, PIPE,
	SPLICE
};
typedef void (*call)(void);

enum { HEAD = 14, ROOM = 4096 };
static const int64_t second = 1000000000, patience = 200 * second;
static const uint8_t our_mac[6] = { 2, 0, 0, 0, 0, 1 }, peer_mac[6] = { 2, 0, 0, 0, 0, 2 };

static xdpd_stack stack;
static struct xdpd_ring ring;
static pthread_t mains;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t moved = PTHREAD_COND_INITIALIZER; /* time or frames: for who waits */
static pthread_cond_t over = PTHREAD_COND_INITIALIZER;  /* the call of who waited: for the main thread */
static struct {
	int there, woken;
	struct pollfd *fds;
	nfds_t n;
	int64_t until;
} sleeper;
static int64_t ended; /* when the other thread's call could return */

static void fail(const char *what)
{
	fprintf(stderr, "xdpd: %s\n", what);
	_exit(1);
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

/* can: what a sleeper waits for is there. */
static int can(struct pollfd *fds, nfds_t n, int64_t until)
{
	uint32_t tail = atomic_load(xdpd_ring_word(&ring, XDPD_CQ_TAIL)), want = atomic_load(xdpd_ring_word(&ring, XDPD_CQ_WANT));

	return (int32_t)(tail - want) >= 0 || (until >= 0 && xdpd_stack_now(stack) >= until) || (n && poll(fds, n, 0) > 0);
}

/* let has the thread in a blocking call go on, if it can, and returns when its call is over or it waits again. */
static void let(void)
{
	drain();
	pthread_mutex_lock(&lock);
	while (sleeper.there && (sleeper.woken || can(sleeper.fds, sleeper.n, sleeper.until))) {
		if (!sleeper.woken) {
			sleeper.woken = 1, ended = xdpd_stack_now(stack);
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

static void knock(struct xdpd_ring *x)
{
	(void)x;
	xdpd_stack_run(stack);
}

static int64_t now(struct xdpd_ring *x)
{
	(void)x;
	return xdpd_stack_now(stack);
}

/* waits is where libxdpd sleeps. The main thread itself moves the time then. */
static int waits(struct xdpd_ring *x, struct pollfd *fds, nfds_t n, int64_t ns)
{
	int64_t start = xdpd_stack_now(stack), until = ns < 0 ? -1 : start + ns;

	(void)x;
	if (pthread_equal(pthread_self(), mains)) {
		while (!can(fds, n, until))
			if (!step(until >= 0 ? until : start + patience))
				fail("a call waits for ever");
		return n ? poll(fds, n, 0) : 0;
	}
	pthread_mutex_lock(&lock);
	sleeper.there = 1, sleeper.woken = 0, sleeper.fds = fds, sleeper.n = n, sleeper.until = until;
	pthread_cond_broadcast(&over);
	while (!sleeper.woken && !can(fds, n, until))
		pthread_cond_wait(&moved, &lock);
	if (!sleeper.woken)
		sleeper.woken = 1, ended = xdpd_stack_now(stack);
	pthread_mutex_unlock(&lock);
	return n ? poll(fds, n, 0) : 0;
}

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
	int64_t t;

	(void)w, (void)zone;
	if (pthread_equal(pthread_self(), mains)) {
		step(xdpd_stack_now(stack) + 1000);
		t = xdpd_stack_now(stack);
	} else { /* it asks first of all when its call is over */
		pthread_mutex_lock(&lock);
		t = sleeper.there ? ended : xdpd_stack_now(stack);
		sleeper.there = sleeper.woken = 0;
		pthread_cond_broadcast(&over);
		pthread_mutex_unlock(&lock);
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
}

static int info(int fd, void *value, socklen_t *len)
{
	struct sockaddr_in local, remote;
	socklen_t n = sizeof local, m = sizeof remote;
	struct xdpd_stack_tcp s = { .state = "CLOSED", .phase = "open" };
	struct tcp_info t;

	if (xdpd_getsockname(fd, (struct sockaddr *)&local, &n) == 0 && xdpd_getpeername(fd, (struct sockaddr *)&remote, &m) == 0)
		xdpd_stack_tcp_info(stack, local.sin_addr.s_addr, local.sin_port, remote.sin_addr.s_addr, remote.sin_port, &s);
	tcp_info(&s, &t);
	if (*len > sizeof t)
		*len = sizeof t;
	memcpy(value, &t, *len);
	return 0;
}

/* packetdrill's scripts ask for TCP_INFO by the C library's function, so this one stands before it (LD_PRELOAD). */
int getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	static int (*real)(int, int, int, void *, socklen_t *);

	if (level == IPPROTO_TCP && name == TCP_INFO && stack && xdpd_is(fd))
		return info(fd, value, len);
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "getsockopt");
	return real(fd, level, name, value, len);
}

/* The calls. */
#define W void *w
static int do_socket(W, int d, int t, int p) { (void)w; return xdpd_socket(d, t, p); }
static int do_bind(W, int fd, const struct sockaddr *a, socklen_t n) { (void)w; return xdpd_bind(fd, a, n); }
static int do_listen(W, int fd, int n) { (void)w; return xdpd_listen(fd, n); }
static int do_accept(W, int fd, struct sockaddr *a, socklen_t *n) { (void)w; return xdpd_accept(fd, a, n); }
static int do_connect(W, int fd, const struct sockaddr *a, socklen_t n) { (void)w; return xdpd_connect(fd, a, n); }
static ssize_t do_read(W, int fd, void *b, size_t n) { (void)w; return xdpd_read(fd, b, n); }
static ssize_t do_readv(W, int fd, const struct iovec *v, int n) { (void)w; return xdpd_readv(fd, v, n); }
static ssize_t do_recv(W, int fd, void *b, size_t n, int f) { (void)w; return xdpd_recv(fd, b, n, f); }
static ssize_t do_recvfrom(W, int fd, void *b, size_t n, int f, struct sockaddr *a, socklen_t *l) { (void)w; return xdpd_recvfrom(fd, b, n, f, a, l); }
static ssize_t do_recvmsg(W, int fd, struct msghdr *m, int f) { (void)w; return xdpd_recvmsg(fd, m, f); }
static ssize_t do_write(W, int fd, const void *b, size_t n) { (void)w; return xdpd_write(fd, b, n); }
static ssize_t do_writev(W, int fd, const struct iovec *v, int n) { (void)w; return xdpd_writev(fd, v, n); }
static ssize_t do_send(W, int fd, const void *b, size_t n, int f) { (void)w; return xdpd_send(fd, b, n, f); }
static ssize_t do_sendto(W, int fd, const void *b, size_t n, int f, const struct sockaddr *a, socklen_t l) { (void)w; return xdpd_sendto(fd, b, n, f, a, l); }
static ssize_t do_sendmsg(W, int fd, const struct msghdr *m, int f) { (void)w; return xdpd_sendmsg(fd, m, f); }
static int do_close(W, int fd) { (void)w; return xdpd_close(fd); }
static int do_shutdown(W, int fd, int how) { (void)w; return xdpd_shutdown(fd, how); }
static int do_setsockopt(W, int fd, int l, int o, const void *v, socklen_t n) { (void)w; return xdpd_setsockopt(fd, l, o, v, n); }
static int do_poll(W, struct pollfd *p, nfds_t n, int ms) { (void)w; return xdpd_poll(p, n, ms); }
static int do_epoll_create(W, int n) { (void)w; return xdpd_epoll_create(n); }
static int do_epoll_ctl(W, int e, int op, int fd, struct epoll_event *v) { (void)w; return xdpd_epoll_ctl(e, op, fd, v); }
static int do_epoll_wait(W, int e, struct epoll_event *v, int n, int ms) { (void)w; return xdpd_epoll_wait(e, v, n, ms); }
static int do_pipe(W, int fds[2]) { (void)w; return pipe(fds); }

static int do_getsockopt(W, int fd, int level, int name, void *value, socklen_t *len)
{
	(void)w;
	if (level == IPPROTO_TCP && name == TCP_INFO && xdpd_is(fd))
		return info(fd, value, len);
	return xdpd_getsockopt(fd, level, name, value, len);
}

static int do_fcntl(W, int fd, int cmd, ...)
{
	va_list v;
	(void)w;
	va_start(v, cmd);
	int arg = va_arg(v, int);
	va_end(v);
	return xdpd_fcntl(fd, cmd, arg);
}

static int do_ioctl(W, int fd, unsigned long request, ...)
{
	va_list v;
	(void)w;
	va_start(v, request);
	void *arg = va_arg(v, void *);
	va_end(v);
	return xdpd_ioctl(fd, request, arg);
}

static ssize_t do_splice(W, int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags)
{
	(void)w;
	return splice(in, in_at, out, out_at, n, flags); /* the kernel's sockets only: EINVAL or ENOTCONN from ours */
}

static void do_free(W) { (void)w; } /* the process ends */

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
	if (xdpd_stack_ring(stack, 256, 8 << 20, &m) < 0)
		fail("no ring");
	ring.conn = ring.memfd = -1, ring.size = m.size, ring.mtu = m.mtu, ring.knock = knock, ring.wait = waits, ring.now = now;
	xdpd_ring_join(&ring, m.mem, m.data, m.data_len);
	if (xdpd_start_ring(&ring) < 0)
		fail(xdpd_reason());
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
