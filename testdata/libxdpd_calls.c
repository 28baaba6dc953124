/*
 * libxdpd_calls PATH: does socket calls of libxdpd for a test, which asks for them by messages on descriptor 0. Sockets do not block; each is
 * in one epoll set, edge triggered, beside that descriptor, which is the kernel's, and what it reports is told too.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../libxdpd/src/libxdpd.h"

enum { SOCKET = 1, BIND, LISTEN, ACCEPT, CONNECT, READ, WRITE, SHUTDOWN, CLOSE, NAME, GETOPT, SETOPT };
struct message {
	uint32_t id, call; /* id 0: an event, call says which */
	int32_t fd, res;
	uint32_t a, b;
	uint8_t data[65536];
};
enum { HEAD = 24 };
static struct message m;
static int ep;

static int tell(size_t n)
{
	return write(0, &m, HEAD + n) < 0;
}

static int watch(int fd)
{
	struct epoll_event e = { EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, { .fd = fd } };
	if (fd >= 0 && (!xdpd_is(fd) || xdpd_epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) < 0))
		return -1;
	return fd;
}

/* answer does what m asks for and puts the answer there; it gives the bytes behind it. */
static size_t answer(size_t n)
{
	struct sockaddr *addr = (struct sockaddr *)(void *)m.data;
	socklen_t len = (socklen_t)n;
	ssize_t r = -1;
	size_t out = 0;

	errno = EINVAL;
	switch (m.call) {
	case SOCKET:
		r = watch(xdpd_socket(AF_INET, (int)m.a | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
		break;
	case BIND:
		r = xdpd_bind(m.fd, addr, len);
		break;
	case LISTEN:
		r = xdpd_listen(m.fd, 128);
		break;
	case ACCEPT:
		len = sizeof m.data;
		r = watch(xdpd_accept4(m.fd, addr, &len, SOCK_NONBLOCK | SOCK_CLOEXEC));
		out = r < 0 ? 0 : len;
		break;
	case CONNECT:
		r = xdpd_connect(m.fd, addr, len);
		break;
	case READ:
		r = xdpd_read(m.fd, m.data, m.a < sizeof m.data ? m.a : sizeof m.data);
		out = r < 0 ? 0 : (size_t)r;
		break;
	case WRITE:
		r = xdpd_send(m.fd, m.data, n, MSG_NOSIGNAL);
		break;
	case SHUTDOWN:
		r = xdpd_shutdown(m.fd, (int)m.a);
		break;
	case CLOSE:
		r = xdpd_close(m.fd);
		break;
	case NAME:
		len = sizeof m.data;
		r = m.a ? xdpd_getpeername(m.fd, addr, &len) : xdpd_getsockname(m.fd, addr, &len);
		out = r < 0 ? 0 : len;
		break;
	case GETOPT:
		len = sizeof m.data;
		r = xdpd_getsockopt(m.fd, (int)m.a, (int)m.b, m.data, &len);
		out = r < 0 ? 0 : len;
		break;
	case SETOPT:
		r = xdpd_setsockopt(m.fd, (int)m.a, (int)m.b, m.data, len);
		break;
	}
	m.res = r < 0 ? -errno : (int32_t)r;
	return out;
}

int main(int argc, char **argv)
{
	struct epoll_event events[64], e = { EPOLLIN, { .fd = 0 } };

	if (argc != 2 || xdpd_start(argv[1]) < 0) {
		fprintf(stderr, "%s: %s %s\n", argv[1], strerror(errno), xdpd_reason());
		return 1;
	}
	if ((ep = xdpd_epoll_create1(0)) < 0 || xdpd_epoll_ctl(ep, EPOLL_CTL_ADD, 0, &e) < 0 || fcntl(0, F_SETFL, 0) < 0)
		return 1;
	for (;;) {
		int n = xdpd_epoll_wait(ep, events, 64, -1);
		for (int i = 0; i < n; i++) {
			if (events[i].data.fd) {
				m.id = 0, m.fd = events[i].data.fd, m.call = events[i].events;
				if (tell(0))
					return 1;
				continue;
			}
			ssize_t got = recv(0, &m, sizeof m, 0);
			if (got < HEAD) {
				xdpd_stop();
				return got != 0;
			}
			if (tell(answer((size_t)got - HEAD)))
				return 1;
		}
	}
}
