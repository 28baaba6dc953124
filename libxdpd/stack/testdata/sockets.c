/*
 * libxdpd over the in-process stack, unchanged: its wait moves frames between two stacks, and their clock to the next timer. The other stack echoes, through
 * a ring of its own. No time passes outside: a minute here is as long as what happens in it.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libxdpd.h"
#include "xdpd_client.h"
#include "xdpd_stack.h"

#define CHECK(ok) do { if (!(ok)) { printf("line %d: %s: %s\n", __LINE__, #ok, strerror(errno)); exit(1); } } while (0)

enum { PORT = 7, SIZE = 300000, PIECE = 4096 };

static xdpd_stack here, there;
static struct xdpd_ring ours, theirs;
static int64_t clock_ns = 1;

static xdpd_stack stack(const char *addr, uint8_t last)
{
	struct xdpd_stack_config c = { .size = sizeof c, .addr = inet_addr(addr), .prefix = 24, .mac = { 2, 0, 0, 0, 0, last }, .seed = { last }, .now = clock_ns };
	char why[256];
	xdpd_stack s = xdpd_stack_open(&c, why, sizeof why);

	if (!s)
		printf("%s\n", why);
	CHECK(s);
	return s;
}

static void join(xdpd_stack s, struct xdpd_ring *r, uint64_t data)
{
	struct xdpd_stack_memory m;

	CHECK(xdpd_stack_ring(s, 256, data, &m) == 0);
	r->conn = r->memfd = -1, r->size = m.size, r->mtu = m.mtu;
	xdpd_ring_join(r, m.mem, m.data, m.data_len);
}

static void knock_here(struct xdpd_ring *x) { (void)x, xdpd_stack_run(here); }
static void knock_there(struct xdpd_ring *x) { (void)x, xdpd_stack_run(there); }
static int64_t now(struct xdpd_ring *x) { return (void)x, clock_ns; }

/* carry moves what one stack sent to the other. */
static int carry(xdpd_stack from, xdpd_stack to)
{
	uint8_t frame[4096];
	int any = 0;

	for (int64_t n; (n = xdpd_stack_output(from, frame, sizeof frame, NULL)) > 0; any = 1)
		CHECK(xdpd_stack_input(to, frame, (size_t)n) == 0);
	return any;
}

static struct xdpd_sqe *begin(int op, int fd)
{
	struct xdpd_sqe *s = xdpd_ring_sqe(&theirs);

	CHECK(s);
	s->opcode = (uint8_t)op, s->fd = fd, s->user_data = (uint64_t)op << 32 | (uint32_t)fd;
	return s;
}

static void receive(int fd)
{
	struct xdpd_sqe *s = begin(XDPD_RECV, fd);
	s->addr = 4096, s->len = PIECE;
}

/* echo is the other side's program: one connection, whose bytes go back until its end. */
static int echo(void)
{
	struct xdpd_cqe c;
	int any = 0;

	for (; xdpd_ring_take(&theirs, &c); any = 1) {
		int op = (int)(c.user_data >> 32), fd = (int)(uint32_t)c.user_data;
		if (op == XDPD_ACCEPT && c.res >= 0) {
			receive(c.res);
		} else if (op == XDPD_RECV && c.res > 0) {
			struct xdpd_sqe *s = begin(XDPD_SEND, fd);
			s->addr = 4096, s->len = (uint32_t)c.res, s->op_flags = MSG_WAITALL;
		} else if (op == XDPD_SEND && c.res > 0) {
			receive(fd);
		} else if (op == XDPD_RECV) {
			begin(XDPD_CLOSE, fd);
		}
	}
	if (any)
		xdpd_ring_submit(&theirs);
	return any;
}

/* quiet carries frames until there are none. */
static int quiet(void)
{
	int any = 0;

	while (echo() | carry(here, there) | carry(there, here))
		any = 1;
	return any;
}

static int ready(struct xdpd_ring *x, struct pollfd *fds, nfds_t n)
{
	uint32_t tail = atomic_load(xdpd_ring_word(x, XDPD_CQ_TAIL)), want = atomic_load(xdpd_ring_word(x, XDPD_CQ_WANT));
	return (int32_t)(tail - want) >= 0 || (n && poll(fds, n, 0) > 0);
}

static int waits(struct xdpd_ring *x, struct pollfd *fds, nfds_t n, int64_t ns)
{
	int64_t end = ns < 0 ? INT64_MAX : clock_ns + ns;

	quiet();
	while (!ready(x, fds, n) && clock_ns < end) {
		int64_t due = xdpd_stack_run(here), theirs_due = xdpd_stack_run(there);
		due = theirs_due < due ? theirs_due : due;
		CHECK(due != INT64_MAX || end != INT64_MAX); /* else nothing will ever come */
		clock_ns = due < end ? due : end;
		xdpd_stack_advance(here, clock_ns), xdpd_stack_advance(there, clock_ns);
		quiet();
	}
	return n ? poll(fds, n, 0) : 0;
}

static int theirs_call(struct xdpd_sqe *s)
{
	struct xdpd_cqe c;

	(void)s;
	xdpd_ring_submit(&theirs);
	CHECK(xdpd_ring_take(&theirs, &c));
	return c.res;
}

static void serve(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	struct xdpd_sqe *s = begin(XDPD_SOCKET, AF_INET);

	s->off = SOCK_STREAM;
	int fd = theirs_call(s);
	CHECK(fd >= 0);
	memcpy(theirs.data, &a, sizeof a);
	s = begin(XDPD_BIND, fd);
	s->addr = 0, s->off = sizeof a;
	CHECK(theirs_call(s) == 0);
	s = begin(XDPD_LISTEN, fd);
	s->len = 1;
	CHECK(theirs_call(s) == 0);
	begin(XDPD_ACCEPT, fd);
	xdpd_ring_submit(&theirs);
}

int main(void)
{
	static uint8_t out[SIZE], in[SIZE + 1];
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = inet_addr("10.0.0.2") };
	size_t sent = 0, got = 0;

	here = stack("10.0.0.1", 1), there = stack("10.0.0.2", 2);
	join(here, &ours, 16 << 20), join(there, &theirs, 1 << 16);
	ours.knock = knock_here, ours.wait = waits, ours.now = now, theirs.knock = knock_there;
	CHECK(xdpd_start_ring(&ours) == 0);
	serve();

	int fd = xdpd_socket(AF_INET, SOCK_STREAM, 0);
	CHECK(fd >= 0 && xdpd_is(fd));
	CHECK(xdpd_connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
	struct pollfd p = { fd, POLLIN, 0 };
	int64_t before = clock_ns;
	CHECK(xdpd_poll(&p, 1, 60000) == 0 && clock_ns - before >= INT64_C(60000000000)); /* a minute of theirs */
	for (size_t i = 0; i < SIZE; i++)
		out[i] = (uint8_t)(i * 7 + i / 256);
	while (sent < SIZE || got < SIZE) {
		size_t n = SIZE - sent < 50000 ? SIZE - sent : 50000;
		if (n > 0) {
			ssize_t k = xdpd_write(fd, out + sent, n);
			CHECK(k > 0);
			if ((sent += (size_t)k) == SIZE)
				CHECK(xdpd_shutdown(fd, SHUT_WR) == 0);
		}
		ssize_t k = xdpd_recv(fd, in + got, sizeof in - got, sent < SIZE ? MSG_DONTWAIT : 0);
		CHECK(k > 0 || (k < 0 && errno == EAGAIN));
		got += k > 0 ? (size_t)k : 0;
	}
	CHECK(xdpd_read(fd, in + got, 1) == 0 && memcmp(in, out, SIZE) == 0);
	CHECK(xdpd_close(fd) == 0);

	a.sin_port = htons(PORT + 1); /* where nobody listens */
	CHECK((fd = xdpd_socket(AF_INET, SOCK_STREAM, 0)) >= 0);
	CHECK(xdpd_connect(fd, (struct sockaddr *)&a, sizeof a) < 0 && errno == ECONNREFUSED);
	CHECK(xdpd_close(fd) == 0);
	xdpd_stop();
	puts("done");
	return 0;
}
