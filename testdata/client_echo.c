/* client_echo PATH PORT: an echo server on TCP and UDP, over the rings of the xdpd at PATH. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

#include "../libxdpd/src/xdpd_client.h"

enum { SLOTS = 64, SLOT = 2048, UDP_SLOT = 65600 + 64 };
static struct xdpd_ring x;

static struct xdpd_sqe *sqe(int op, int fd, uint64_t user)
{
	struct xdpd_sqe *s;
	while (!(s = xdpd_ring_sqe(&x)))
		xdpd_ring_submit(&x);
	s->opcode = (uint8_t)op, s->fd = fd, s->user_data = user;
	return s;
}

/* call does an operation and waits for it, before the server serves. */
static int call(void)
{
	struct xdpd_cqe c;
	xdpd_ring_submit(&x);
	while (!xdpd_ring_take(&x, &c))
		if (xdpd_ring_wait(&x, -1) < 0)
			return -errno;
	return c.res;
}

static int bound(int type, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct xdpd_sqe *s = sqe(XDPD_SOCKET, AF_INET, 0);
	s->off = (uint64_t)type;
	int fd = call();
	memcpy(x.data, &a, sizeof a);
	s = sqe(XDPD_BIND, fd, 0);
	s->off = sizeof a;
	int err = fd < 0 ? fd : call();
	if (err < 0) {
		fprintf(stderr, "socket: %s\n", strerror(-err));
		exit(1);
	}
	return fd;
}

enum { ACCEPTED = 1, RECEIVED, SENT, DATAGRAM, ECHOED };

static uint64_t place(int fd) { return UDP_SLOT + (uint64_t)fd * SLOT; }

static void receive(int fd)
{
	struct xdpd_sqe *s = sqe(XDPD_RECV, fd, (uint64_t)RECEIVED << 32 | (uint32_t)fd);
	s->addr = place(fd), s->len = SLOT;
}

static void datagram(int fd)
{
	struct xdpd_sqe *s = sqe(XDPD_RECV_FROM, fd, (uint64_t)DATAGRAM << 32);
	s->len = UDP_SLOT;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	if (xdpd_ring_open(&x, argv[1], 256, UDP_SLOT + SLOTS * SLOT) < 0) {
		fprintf(stderr, "%s: %s %s\n", argv[1], strerror(errno), x.reason);
		return 1;
	}
	uint16_t port = (uint16_t)atoi(argv[2]);
	int tcp = bound(SOCK_STREAM, port), udp = bound(SOCK_DGRAM, port);
	sqe(XDPD_LISTEN, tcp, 0);
	if (call() < 0)
		return 1;
	puts("ready");
	fflush(stdout);
	sqe(XDPD_ACCEPT, tcp, (uint64_t)ACCEPTED << 32);
	datagram(udp);
	for (;;) {
		struct xdpd_cqe c;
		xdpd_ring_submit(&x);
		if (!xdpd_ring_take(&x, &c)) {
			if (xdpd_ring_wait(&x, -1) < 0)
				return errno == EPIPE ? 0 : 1;
			continue;
		}
		int fd = (int)(uint32_t)c.user_data;
		struct xdpd_sqe *s;
		switch (c.user_data >> 32) {
		case ACCEPTED:
			if (c.res >= 0 && c.res < SLOTS)
				receive(c.res);
			sqe(XDPD_ACCEPT, tcp, (uint64_t)ACCEPTED << 32);
			break;
		case RECEIVED:
			if (c.res <= 0) {
				sqe(XDPD_CLOSE, fd, 0);
				break;
			}
			s = sqe(XDPD_SEND, fd, (uint64_t)SENT << 32 | (uint32_t)fd);
			s->addr = place(fd), s->len = (uint32_t)c.res, s->op_flags = MSG_WAITALL;
			break;
		case SENT:
			if (c.res < 0)
				sqe(XDPD_CLOSE, fd, 0);
			else
				receive(fd);
			break;
		case DATAGRAM:
			if (c.res < XDPD_RECV_HEADER) {
				datagram(udp);
				break;
			}
			s = sqe(XDPD_SEND, udp, (uint64_t)ECHOED << 32);
			s->addr = XDPD_RECV_HEADER, s->len = (uint32_t)c.res - XDPD_RECV_HEADER;
			s->off = 16, s->file_index = sizeof(struct sockaddr_in);
			break;
		case ECHOED:
			datagram(udp);
			break;
		}
	}
}
