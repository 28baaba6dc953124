/*
 * The in-process stack as a program in C has it: datagrams and connections over frames that are written by hand here, byte for byte. It prints every
 * frame that the stack sent with its time, and exits with 1 at the first thing that is not as it must be.
 *
 *	wire SEED
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

#include "xdpd_client.h"
#include "xdpd_stack.h"

#define CHECK(ok) do { if (!(ok)) { printf("line %d: %s\n", __LINE__, #ok); exit(1); } } while (0)

enum { HEAD = 14, IP = 20, UDP = 8, TCP = 20, FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };

static const uint8_t our_mac[6] = { 2, 0, 0, 0, 0, 1 }, peer_mac[6] = { 2, 0, 0, 0, 0, 2 };
static const char *ours = "10.0.0.1", *peers = "10.0.0.2";

static xdpd_stack stack;
static struct xdpd_ring ring;
static uint8_t frame[1 << 17]; /* the last that the stack sent, or the next that it gets */
static int64_t length, at;

static void put16(uint8_t *p, unsigned v) { p[0] = (uint8_t)(v >> 8), p[1] = (uint8_t)v; }
static void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16), put16(p + 2, v & 0xffff); }
static unsigned get16(const uint8_t *p) { return (unsigned)p[0] << 8 | p[1]; }
static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }

static unsigned sum(const uint8_t *p, int n, uint32_t s)
{
	for (int i = 0; i < n; i++)
		s += (uint32_t)p[i] << (i & 1 ? 0 : 8);
	while (s >> 16)
		s = (s >> 16) + (s & 0xffff);
	return s;
}

/* sent takes the next frame that the stack sent, which must be there. */
static void sent(void)
{
	length = xdpd_stack_output(stack, frame, sizeof frame, &at);
	CHECK(length > 0);
	printf("%lld", (long long)at);
	for (int i = 0; i < length; i++)
		printf("%s%02x", i ? "" : " ", frame[i]);
	puts("");
}

static void silent(void) { CHECK(xdpd_stack_output(stack, frame, sizeof frame, &at) == 0); }

/* ip fills in everything around n bytes of UDP or TCP, and has the frame arrive. */
static void ip(int protocol, int n)
{
	uint8_t *h = frame + HEAD, *p = h + IP;

	memcpy(frame, our_mac, 6), memcpy(frame + 6, peer_mac, 6), put16(frame + 12, 0x0800);
	memset(h, 0, IP);
	h[0] = 0x45, put16(h + 2, (unsigned)(IP + n)), h[8] = 64, h[9] = (uint8_t)protocol;
	put32(h + 12, ntohl(inet_addr(peers))), put32(h + 16, ntohl(inet_addr(ours)));
	put16(h + 10, sum(h, IP, 0) ^ 0xffff);
	uint8_t *field = p + (protocol == IPPROTO_UDP ? 6 : 16);
	put16(field, 0);
	put16(field, sum(p, n, sum(h + 12, 8, (uint32_t)(protocol + n))) ^ 0xffff);
	CHECK(xdpd_stack_input(stack, frame, (size_t)(HEAD + IP + n)) == 0);
}

static void tcp(unsigned from, unsigned to, uint32_t seq, uint32_t ack, int flags, const char *data)
{
	uint8_t *p = frame + HEAD + IP;

	memset(p, 0, TCP);
	put16(p, from), put16(p + 2, to), put32(p + 4, seq), put32(p + 8, ack), p[12] = 5 << 4, p[13] = (uint8_t)flags, put16(p + 14, 60000);
	memcpy(p + TCP, data, strlen(data));
	ip(IPPROTO_TCP, TCP + (int)strlen(data));
}

/* segment takes a TCP segment of these flags and data that the stack sent. */
static void segment(int flags, const char *data)
{
	sent();
	const uint8_t *p = frame + HEAD + IP, *end = p + (get16(frame + HEAD + 2) - IP);
	const uint8_t *payload = p + (p[12] >> 4) * 4;
	CHECK(frame[HEAD + 9] == IPPROTO_TCP && p[13] == flags);
	CHECK((size_t)(end - payload) == strlen(data) && memcmp(payload, data, strlen(data)) == 0);
	CHECK(sum(p, (int)(end - p), sum(frame + HEAD + 12, 8, (uint32_t)(IPPROTO_TCP + (end - p)))) == 0xffff);
}

static uint32_t seq_of(void) { return get32(frame + HEAD + IP + 4); }
static uint32_t ack_of(void) { return get32(frame + HEAD + IP + 8); }

static void knock(struct xdpd_ring *x) { (void)x, xdpd_stack_run(stack); }

/* begin submits an operation; done takes its completion, which must be there. */
static struct xdpd_sqe *begin(int op, int fd)
{
	struct xdpd_sqe *s = xdpd_ring_sqe(&ring);
	CHECK(s);
	s->opcode = (uint8_t)op, s->fd = fd, s->user_data = (uint64_t)op;
	return s;
}

static int done(int op)
{
	struct xdpd_cqe c;
	CHECK(xdpd_ring_take(&ring, &c) && c.user_data == (uint64_t)op);
	return c.res;
}

static int pending(void)
{
	return ring.own.cq_head == atomic_load(xdpd_ring_word(&ring, XDPD_CQ_TAIL));
}

static int call(int op)
{
	xdpd_ring_submit(&ring);
	return done(op);
}

static uint64_t address(const char *a, unsigned port)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = inet_addr(a) };
	memcpy(ring.data + 1024, &in, sizeof in);
	return 1024;
}

static int bound(int type, unsigned port)
{
	struct xdpd_sqe *s = begin(XDPD_SOCKET, AF_INET);
	s->off = (uint64_t)type;
	int fd = call(XDPD_SOCKET);
	CHECK(fd >= 0);
	s = begin(XDPD_BIND, fd);
	s->addr = address(ours, port), s->off = sizeof(struct sockaddr_in);
	CHECK(call(XDPD_BIND) == 0);
	return fd;
}

/* arp asks for the stack's address, by which it learns ours. */
static void arp(void)
{
	memset(frame, 0xff, 6), memcpy(frame + 6, peer_mac, 6), put16(frame + 12, 0x0806);
	uint8_t *p = frame + HEAD;
	put16(p, 1), put16(p + 2, 0x0800), p[4] = 6, p[5] = 4, put16(p + 6, 1);
	memcpy(p + 8, peer_mac, 6), put32(p + 14, ntohl(inet_addr(peers))), memset(p + 18, 0, 6), put32(p + 24, ntohl(inet_addr(ours)));
	CHECK(xdpd_stack_input(stack, frame, HEAD + 28) == 0);
	sent();
	CHECK(get16(frame + 12) == 0x0806 && get16(p + 6) == 2 && memcmp(p + 8, our_mac, 6) == 0);
}

static void datagrams(void)
{
	int fd = bound(SOCK_DGRAM, 9);
	struct xdpd_sqe *s = begin(XDPD_RECV_FROM, fd);
	s->addr = 0, s->len = 1000;
	xdpd_ring_submit(&ring);
	CHECK(pending());

	uint8_t *p = frame + HEAD + IP;
	put16(p, 5000), put16(p + 2, 9), put16(p + 4, UDP + 5), memcpy(p + UDP, "hello", 5);
	ip(IPPROTO_UDP, UDP + 5);
	CHECK(done(XDPD_RECV_FROM) == XDPD_RECV_HEADER + 5 && memcmp(ring.data + XDPD_RECV_HEADER, "hello", 5) == 0);

	s = begin(XDPD_SEND, fd);
	memcpy(ring.data, "world!", 6);
	s->addr = 0, s->len = 6, s->off = address(peers, 5000), s->file_index = sizeof(struct sockaddr_in);
	CHECK(call(XDPD_SEND) == 6);
	sent();
	CHECK(frame[HEAD + 9] == IPPROTO_UDP && get16(p) == 9 && get16(p + 2) == 5000 && memcmp(p + UDP, "world!", 6) == 0);
	begin(XDPD_CLOSE, fd);
	CHECK(call(XDPD_CLOSE) == 0);
	silent();
}

static void server(void)
{
	struct xdpd_stack_tcp info;
	int l = bound(SOCK_STREAM, 80);

	begin(XDPD_LISTEN, l)->len = 5;
	CHECK(call(XDPD_LISTEN) == 0);
	begin(XDPD_ACCEPT, l);
	xdpd_ring_submit(&ring);
	tcp(6000, 80, 1000, 0, SYN, "");
	segment(SYN | ACK, "");
	uint32_t iss = seq_of();
	CHECK(ack_of() == 1001);
	tcp(6000, 80, 1001, iss + 1, ACK, "");
	int fd = done(XDPD_ACCEPT);
	CHECK(fd >= 0);

	struct xdpd_sqe *s = begin(XDPD_RECV, fd);
	s->addr = 0, s->len = 100;
	xdpd_ring_submit(&ring);
	tcp(6000, 80, 1001, iss + 1, PSH | ACK, "question");
	CHECK(done(XDPD_RECV) == 8 && memcmp(ring.data, "question", 8) == 0);

	s = begin(XDPD_SEND, fd);
	memcpy(ring.data, "answer", 6);
	s->addr = 0, s->len = 6;
	CHECK(call(XDPD_SEND) == 6);
	segment(PSH | ACK, "answer");
	CHECK(ack_of() == 1009 && seq_of() == iss + 1);
	int64_t first = at, due = xdpd_stack_run(stack);
	CHECK(due > first && xdpd_stack_advance(stack, due - 1) == due);
	silent();
	xdpd_stack_advance(stack, first + 3000000000); /* nobody acknowledges: the timers on the way fire each at its own time */
	for (int n = 0; n < 3; n++) {
		int64_t before = at;
		segment(PSH | ACK, "answer");
		CHECK(n ? at > before : at >= due);
	}
	CHECK(xdpd_stack_now(stack) == first + 3000000000);
	CHECK(xdpd_stack_tcp_info(stack, inet_addr(ours), htons(80), inet_addr(peers), htons(6000), &info) == 0);
	CHECK(strcmp(info.state, "ESTABLISHED") == 0 && info.unacked == 6 && info.send_queue == 6 && info.retransmits >= 2 && info.received == 8);
	while (xdpd_stack_output(stack, frame, sizeof frame, &at) > 0)
		;
	tcp(6000, 80, 1009, iss + 7, ACK, "");
	tcp(6000, 80, 1009, iss + 7, FIN | ACK, "");
	segment(ACK, "");
	CHECK(ack_of() == 1010);
	begin(XDPD_CLOSE, fd);
	CHECK(call(XDPD_CLOSE) == 0);
	segment(FIN | ACK, "");
	tcp(6000, 80, 1010, iss + 8, ACK, "");
	silent();
	CHECK(xdpd_stack_tcp_info(stack, inet_addr(ours), htons(80), inet_addr(peers), htons(6000), &info) == -ENOENT);
	CHECK(xdpd_stack_counter(stack, "tcp_accepted") == 1 && xdpd_stack_counter(stack, "tcp_timeouts") >= 2);
	begin(XDPD_CLOSE, l);
	CHECK(call(XDPD_CLOSE) == 0);
}

static void client(void)
{
	struct xdpd_sqe *s = begin(XDPD_SOCKET, AF_INET);
	s->off = SOCK_STREAM;
	int fd = call(XDPD_SOCKET);
	s = begin(XDPD_CONNECT, fd);
	s->addr = address(peers, 81), s->off = sizeof(struct sockaddr_in);
	xdpd_ring_submit(&ring);
	segment(SYN | 0xc0, ""); /* with ECE and CWR: it asks for ECN */
	CHECK(get16(frame + HEAD + IP + 2) == 81);
	tcp(81, get16(frame + HEAD + IP), 0, seq_of() + 1, RST | ACK, "");
	CHECK(done(XDPD_CONNECT) == -ECONNREFUSED);
	begin(XDPD_CLOSE, fd);
	CHECK(call(XDPD_CLOSE) == 0);
	silent();
}

int main(int n, char **args)
{
	struct xdpd_stack_config c = { .size = sizeof c, .addr = inet_addr(ours), .prefix = 24, .seed = { (uint8_t)(n > 1 ? atoi(args[1]) : 0) }, .now = 1 };
	struct xdpd_stack_config bad = c;
	struct xdpd_stack_memory m;
	char why[64];

	bad.size--;
	CHECK(xdpd_stack_open(&bad, why, sizeof why) == 0 && strstr(why, "size"));
	bad = c, memcpy(bad.congestion, "bbbbbbbb", 8);
	CHECK(xdpd_stack_open(&bad, why, sizeof why) == 0 && strstr(why, "bbbbbbbb"));
	CHECK(xdpd_stack_run(77) == -EBADF && xdpd_stack_close(77) == -EBADF);

	stack = xdpd_stack_open(&c, why, sizeof why);
	CHECK(stack);
	CHECK(xdpd_stack_ring(stack, 3, 4096, &m) == -EINVAL && xdpd_stack_ring(stack, 64, UINT64_C(1) << 40, &m) == -EINVAL);
	CHECK(xdpd_stack_ring(stack, 64, 4096, &m) == 0 && m.data_len == 4096 && m.mtu == 1500);
	ring.conn = ring.memfd = -1, ring.mtu = m.mtu, ring.size = m.size, ring.knock = knock;
	xdpd_ring_join(&ring, m.mem, m.data, m.data_len);

	CHECK(xdpd_stack_input(stack, frame, 0) == -EMSGSIZE && xdpd_stack_input(stack, frame, 100000) == -EMSGSIZE);
	CHECK(xdpd_stack_counter(stack, "no such thing") == -ENOENT);
	arp();
	datagrams();
	server();
	client();
	CHECK(xdpd_stack_ring_close(stack, m.ring) == 0 && xdpd_stack_ring_close(stack, m.ring) == -EBADF);
	CHECK(xdpd_stack_close(stack) == 0 && xdpd_stack_now(stack) == -EBADF);
	puts("done");
	return 0;
}
