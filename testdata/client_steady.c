/* client_steady PATH OPERATIONS ADDRESS PORT: does so many operations, always with 64 in flight and never sleeping: with PORT 0 NOPs, else
 * datagrams of 64 bytes to ADDRESS:PORT. "go" and a byte read before it, "done" and a byte read after it. */
#include "../libxdpd/src/xdpd_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

static struct xdpd_ring x;

static void pause_for(const char *word)
{
	char b;

	if (write(1, word, strlen(word)) < 0 || read(0, &b, 1) != 1)
		exit(1);
}

static int call(struct xdpd_sqe s)
{
	struct xdpd_cqe c;
	struct xdpd_sqe *p = xdpd_ring_sqe(&x);

	*p = s;
	xdpd_ring_submit(&x);
	while (!xdpd_ring_take(&x, &c))
		;
	if (c.res < 0) {
		fprintf(stderr, "opcode %d: %s\n", s.opcode, strerror(-c.res));
		exit(1);
	}
	return c.res;
}

static void run(long n, uint8_t opcode, int fd)
{
	struct xdpd_cqe c;
	struct xdpd_sqe *s;

	for (long sent = 0, got = 0; got < n;) {
		for (; sent < n && sent - got < 64 && (s = xdpd_ring_sqe(&x)); sent++)
			s->opcode = opcode, s->fd = fd, s->addr = 64, s->len = opcode == XDPD_SEND ? 64 : 0;
		xdpd_ring_submit(&x);
		for (; xdpd_ring_take(&x, &c); got++)
			if (c.res < 0) {
				fprintf(stderr, "%s\n", strerror(-c.res));
				exit(1);
			}
	}
}

int main(int argc, char **argv)
{
	if (argc != 5 || xdpd_ring_open(&x, argv[1], 128, 1 << 16) < 0) {
		fprintf(stderr, "%s %s\n", strerror(errno), x.reason);
		return 1;
	}
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[4])) };
	uint8_t opcode = XDPD_NOP;
	int fd = 0;

	if (a.sin_port) {
		inet_pton(AF_INET, argv[3], &a.sin_addr);
		memcpy(x.data, &a, sizeof a);
		fd = call((struct xdpd_sqe){ .opcode = XDPD_SOCKET, .fd = AF_INET, .off = SOCK_DGRAM });
		call((struct xdpd_sqe){ .opcode = XDPD_CONNECT, .fd = fd, .off = sizeof a });
		opcode = XDPD_SEND;
	}
	run(1000, opcode, fd);
	pause_for("go\n");
	run(atol(argv[2]), opcode, fd);
	pause_for("done\n");
	return 0;
}
