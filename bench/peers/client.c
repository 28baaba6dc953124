// A UDP echo over the rings of an engine in another process (libxdpd/src/xdpd_client.h, docs/clients.md), which `bench -serve client-c` is.
//
//	client udp-echo PATH PORT
//
// 64 datagrams in hand at a time, each with a place of its own: a RECV_FROM, then the SEND of what it received, with the address that
// came with it, and behind it the next RECV_FROM. A SEND tells only that it failed, and for the RECV_FROM too. It prints "ready", sleeps when nothing is there, and ends with the engine.
#include "../../libxdpd/src/xdpd_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

enum { SLOTS = 64, SLOT = 9600 };
#define SENDING (1ull << 32)

static struct xdpd_ring x;

static int call(struct xdpd_sqe s)
{
	struct xdpd_cqe c;

	*xdpd_ring_sqe(&x) = s;
	xdpd_ring_submit(&x);
	while (!xdpd_ring_take(&x, &c))
		if (xdpd_ring_wait(&x, -1) < 0)
			exit(1);
	if (c.res < 0) {
		fprintf(stderr, "client: opcode %d: %s\n", s.opcode, strerror(-c.res));
		exit(1);
	}
	return c.res;
}

static void receive(int fd, uint64_t slot)
{
	*xdpd_ring_sqe(&x) = (struct xdpd_sqe){ .opcode = XDPD_RECV_FROM, .fd = fd, .addr = slot * SLOT, .len = SLOT, .user_data = slot };
}

int main(int argc, char **argv)
{
	if (argc != 4 || strcmp(argv[1], "udp-echo")) {
		fprintf(stderr, "usage: client udp-echo PATH PORT\n");
		return 2;
	}
	if (xdpd_ring_open(&x, argv[2], 2 * SLOTS, SLOTS * SLOT) < 0) {
		fprintf(stderr, "client: %s: %s %s\n", argv[2], strerror(errno), x.reason);
		return 1;
	}
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[3])) };
	int fd = call((struct xdpd_sqe){ .opcode = XDPD_SOCKET, .fd = AF_INET, .off = SOCK_DGRAM });
	memcpy(x.data, &a, sizeof a);
	call((struct xdpd_sqe){ .opcode = XDPD_BIND, .fd = fd, .off = sizeof a });
	for (uint64_t slot = 0; slot < SLOTS; slot++)
		receive(fd, slot);
	xdpd_ring_submit(&x);
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct xdpd_cqe c;
		int any = 0;

		for (; xdpd_ring_take(&x, &c); any = 1) {
			uint64_t slot = c.user_data & ~SENDING, base = slot * SLOT;

			if (!(c.user_data & SENDING) && c.res >= XDPD_RECV_HEADER)
				*xdpd_ring_sqe(&x) = (struct xdpd_sqe){
					.opcode = XDPD_SEND, .flags = XDPD_SQE_LINK | XDPD_SQE_SKIP_SUCCESS, .fd = fd,
					.addr = base + XDPD_RECV_HEADER, .len = (uint32_t)c.res - XDPD_RECV_HEADER,
					.off = base + XDPD_RECV_HEADER - sizeof a, .file_index = sizeof a, .user_data = slot | SENDING,
				};
			receive(fd, slot);
		}
		if (any)
			xdpd_ring_submit(&x);
		else if (xdpd_ring_wait(&x, -1) < 0)
			return 0;
	}
}
