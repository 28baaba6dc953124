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

enum { OPS = 256, FDS = 1024, BASE = 1 << 20, BUFFER = 4 << 20, DATA = 64 << 20 };
static uint64_t heap = 2 * (BUFFER + 4096); /* of the ring's data: behind it nothing is in use */
static int64_t sndbuf = 4 << 20;             /* of sockets that do not say otherwise */

/* Operations under way, by user data. owner: one more than the number of the socket whose SEND of size bytes it is, which nobody waits for. */
static struct { int used, done, res, owner; int64_t size; } ops[OPS];

/* dialling: its CONNECT, or -1; queued: bytes of SENDs under way; last: what comes behind them; used -1: closed but for those. */
struct sock { int used, ring, flags, type, dialling, error; int64_t queued, sndbuf; struct xdpd_sqe last; };
static struct sock socks[FDS];
static struct { int used; struct { int fd, edge; struct epoll_event e; } at[16]; } polls[16];

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

static int begin(struct xdpd_sqe like);

/* take has completions counted. */
static void take(void)
{
	struct xdpd_cqe c;

	while (xdpd_ring_take(&ring, &c)) {
		int id = (int)c.user_data;
		ops[id].res = c.res, ops[id].done = 1;
		if (!ops[id].owner)
			continue;
		ops[id].used = 0;
		if (ops[id].owner < 0) /* nobody asks what came of it */
			continue;
		struct sock *k = &socks[ops[id].owner - 1];
		k->queued -= ops[id].size;
		if (c.res < 0 && !k->error)
			k->error = -c.res;
		if (!k->queued && k->last.opcode) {
			ops[begin(k->last)].owner = -1;
			k->last.opcode = 0;
			if (k->used < 0)
				k->used = 0;
		}
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
	ops[id].used = 1, ops[id].done = ops[id].owner = 0;
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

#include "packetdrill_sockets.h"

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
		sndbuf = c->snd_buf = n;
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
	if (xdpd_stack_ring(stack, 256, DATA, &m) < 0)
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
