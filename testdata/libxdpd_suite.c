/*
 * libxdpd_suite PATH NETNS OURS THEIRS [CASE]: what the calls of libxdpd do, against sockets of the kernel in the namespace NETNS. Each case runs
 * twice: by the library, and by the kernel's own calls, so that what is wanted here is what the kernel does.
 */
#include "libxdpd_suite.h"

static void streams(void)
{
	int fd[2], n;
	char b[64], c[64];
	struct sockaddr_in a;
	socklen_t len = sizeof a;
	struct iovec v[2] = { { b, 3 }, { c, 4 } };

	pair(fd);
	IS(A->getpeername(fd[0], (struct sockaddr *)&a, &len), 0);
	IS(a.sin_addr.s_addr, their.s_addr);
	IS(len, sizeof a);
	IS(A->getsockname(fd[0], (struct sockaddr *)&a, &len), 0);
	IS(a.sin_addr.s_addr, our.s_addr);
	IS(A->write(fd[0], "hello", 5), 5);
	IS(read(fd[1], b, 64), 5);
	IS(memcmp(b, "hello", 5), 0);
	IS(write(fd[1], "abcdefg", 7), 7);
	IS(until(fd[0], POLLIN, PATIENCE), POLLIN);
	IS(A->ioctl(fd[0], FIONREAD, &n), 0);
	IS(n, 7);
	IS(A->recv(fd[0], b, 2, MSG_PEEK), 2);
	IS(A->readv(fd[0], v, 2), 7);
	IS(memcmp(b, "abc", 3) | memcmp(c, "defg", 4), 0);
	IS(A->ioctl(fd[0], FIONREAD, &n), 0);
	IS(n, 0);
	IS(A->writev(fd[0], v, 2), 7);
	IS(recv(fd[1], b, 7, MSG_WAITALL), 7);
	IS(memcmp(b, "abcdefg", 7), 0);
	IS(A->read(fd[0], b, 0), 0);
	IS(A->write(fd[0], b, 0), 0);
	IS(write(fd[1], "123", 3), 3);
	IS(A->recv(fd[0], b, 1, 0), 1);
	FAILS(A->recv(fd[0], b, 1, MSG_OOB), EINVAL);
	IS(write(fd[1], "4567", 4), 4);
	IS(A->recv(fd[0], b, 6, MSG_WAITALL), 6);
	IS(memcmp(b, "234567", 6), 0);
	FAILS(A->recv(fd[0], b, 1, MSG_DONTWAIT), EAGAIN);
	IS(until(fd[0], POLLIN | POLLOUT | POLLRDHUP, 0), POLLOUT);
	IS(A->shutdown(fd[0], SHUT_WR), 0);
	IS(read(fd[1], b, 1), 0);
	FAILS(A->send(fd[0], "x", 1, MSG_NOSIGNAL), EPIPE);
	IS(write(fd[1], "bye", 3), 3);
	shutdown(fd[1], SHUT_WR);
	IS(until(fd[0], POLLRDHUP, PATIENCE), POLLRDHUP | POLLHUP);
	IS(until(fd[0], POLLIN | POLLOUT | POLLRDHUP, 0), POLLIN | POLLOUT | POLLRDHUP | POLLHUP);
	IS(A->read(fd[0], b, 64), 3);
	IS(A->read(fd[0], b, 64), 0);
	IS(A->read(fd[0], b, 64), 0);
	done(fd);
}

static void connects(void)
{
	int p = port++, l = peer_listen(p), fd, err = -1;
	struct sockaddr_in a = addr(their, p), no = addr(their, 1);
	socklen_t len = sizeof err;
	char b[1];

	OK(fd = A->socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
	IS(A->fcntl(fd, F_GETFL), O_RDWR | O_NONBLOCK);
	IS(A->fcntl(fd, F_GETFD), FD_CLOEXEC);
	IS(until(fd, POLLIN | POLLOUT, 0), POLLOUT | POLLHUP);
	FAILS(A->getpeername(fd, (struct sockaddr *)&a, &(socklen_t){ sizeof a }), ENOTCONN);
	FAILS(A->connect(fd, SA(a)), EINPROGRESS);
	IS(until(fd, POLLOUT, PATIENCE), POLLOUT);
	IS(A->getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len), 0);
	IS(err, 0);
	IS(A->connect(fd, SA(a)), 0);
	FAILS(A->connect(fd, SA(a)), EISCONN);
	FAILS(A->listen(fd, 1), EINVAL);
	FAILS(A->read(fd, b, 1), EAGAIN);
	IS(A->close(fd), 0);
	close(l);

	OK(fd = A->socket(AF_INET, SOCK_STREAM, 0));
	FAILS(A->connect(fd, SA(no)), ECONNREFUSED);
	IS(A->fcntl(fd, F_SETFL, O_NONBLOCK), 0);
	FAILS(A->connect(fd, SA(no)), EINPROGRESS);
	IS(until(fd, POLLOUT, PATIENCE), POLLOUT | POLLERR | POLLHUP);
	IS(A->getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len), 0);
	IS(err, ECONNREFUSED);
	IS(A->getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len), 0);
	IS(err, 0);
	FAILS(A->send(fd, b, 1, MSG_NOSIGNAL), EPIPE);
	FAILS(A->shutdown(fd, SHUT_WR), ENOTCONN);
	IS(A->close(fd), 0);
	OK(fd = A->socket(AF_INET, SOCK_STREAM, 0));
	FAILS(A->read(fd, b, 1), ENOTCONN);
	a.sin_family = AF_INET6;
	FAILS(A->connect(fd, SA(a)), EAFNOSUPPORT);
	FAILS(A->connect(fd, (struct sockaddr *)&no, 8), EINVAL);
	IS(A->close(fd), 0);
	FAILS(A->close(fd), EBADF);
	FAILS(A->read(fd, b, 1), EBADF);
	FAILS(A->getsockname(fd, (struct sockaddr *)&a, &len), EBADF);
}

static void accepts(void)
{
	int p = port++, l, fd, peer[3], on = 1;
	struct sockaddr_in a = addr(our, p);
	socklen_t len = sizeof a;
	char b[8];

	OK(l = A->socket(AF_INET, SOCK_STREAM, 0));
	IS(A->setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), 0);
	FAILS(A->accept4(l, NULL, NULL, 0), EINVAL);
	IS(A->bind(l, SA(a)), 0);
	FAILS(A->bind(l, SA(a)), EINVAL);
	IS(A->listen(l, 8), 0);
	IS(A->listen(l, 8), 0);
	OK(fd = A->socket(AF_INET, SOCK_STREAM, 0));
	FAILS(A->bind(fd, SA(a)), EADDRINUSE);
	IS(A->close(fd), 0);
	IS(A->getsockopt(l, SOL_SOCKET, SO_ACCEPTCONN, &on, &(socklen_t){ sizeof on }), 0);
	IS(on, 1);
	IS(until(l, POLLIN, 0), 0);
	FAILS(A->read(l, b, 1), ENOTCONN);
	FAILS(A->connect(l, SA(a)), EISCONN);
	IS(A->fcntl(l, F_SETFL, O_NONBLOCK), 0);
	FAILS(A->accept4(l, NULL, NULL, 0), EAGAIN);
	FAILS(A->accept4(l, NULL, NULL, 1), EINVAL);
	IS(A->fcntl(l, F_SETFL, 0), 0);
	for (int i = 0; i < 3; i++)
		peer[i] = peer_connect(p);
	for (int i = 0; i < 3; i++) {
		IS(until(l, POLLIN, PATIENCE), POLLIN);
		OK(fd = A->accept4(l, (struct sockaddr *)&a, &len, i ? SOCK_NONBLOCK | SOCK_CLOEXEC : 0));
		IS(a.sin_addr.s_addr, their.s_addr);
		IS(A->fcntl(fd, F_GETFL), O_RDWR | (i ? O_NONBLOCK : 0));
		struct sockaddr_in mine;
		len = sizeof mine;
		IS(getsockname(peer[i], (struct sockaddr *)&mine, &len), 0);
		IS(mine.sin_port, a.sin_port);
		IS(A->write(fd, "hi", 2), 2);
		IS(read(peer[i], b, 8), 2);
		IS(A->close(fd), 0);
		IS(read(peer[i], b, 8), 0);
		close(peer[i]);
	}
	peer[0] = peer_connect(p); /* which nobody accepts */
	nap();
	IS(A->close(l), 0);
	IS(read(peer[0], b, 8), -1);
	close(peer[0]);
}

static int pipes;
static void count_pipe(int s) { pipes += s == SIGPIPE; }

static void resets(void)
{
	int fd[2], err = 0;
	struct linger hard = { 1, 0 };
	char b[8];

	signal(SIGPIPE, count_pipe);
	pair(fd);
	setsockopt(fd[1], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
	close(fd[1]);
	IS(until(fd[0], 0, PATIENCE), POLLERR | POLLHUP);
	IS(until(fd[0], POLLIN | POLLOUT | POLLRDHUP, 0), POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP);
	FAILS(A->read(fd[0], b, 8), ECONNRESET);
	IS(A->read(fd[0], b, 8), 0);
	pipes = 0;
	FAILS(A->write(fd[0], "x", 1), EPIPE);
	IS(pipes, 1);
	FAILS(A->send(fd[0], "x", 1, MSG_NOSIGNAL), EPIPE);
	IS(pipes, 1);
	IS(A->close(fd[0]), 0);

	pair(fd); /* the data that came before it is read all the same, and SO_ERROR takes the error */
	IS(write(fd[1], "abc", 3), 3);
	IS(until(fd[0], POLLIN, PATIENCE), POLLIN);
	setsockopt(fd[1], SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
	close(fd[1]);
	IS(until(fd[0], 0, PATIENCE), POLLERR | POLLHUP);
	IS(A->getsockopt(fd[0], SOL_SOCKET, SO_ERROR, &err, &(socklen_t){ sizeof err }), 0);
	IS(err, ECONNRESET);
	IS(A->read(fd[0], b, 8), 3);
	IS(A->read(fd[0], b, 8), 0);
	IS(A->close(fd[0]), 0);

	pair(fd); /* what is not read makes close a reset */
	IS(write(fd[1], "abc", 3), 3);
	IS(until(fd[0], POLLIN, PATIENCE), POLLIN);
	IS(A->close(fd[0]), 0);
	IS(read(fd[1], b, 8), -1);
	close(fd[1]);
	pair(fd); /* as SO_LINGER does */
	IS(A->setsockopt(fd[0], SOL_SOCKET, SO_LINGER, &hard, sizeof hard), 0);
	IS(A->close(fd[0]), 0);
	IS(read(fd[1], b, 8), -1);
	close(fd[1]);
}

static void options(void)
{
	static const int rw[][3] = { { SOL_SOCKET, SO_KEEPALIVE, 1 }, { SOL_SOCKET, SO_REUSEADDR, 1 }, { IPPROTO_TCP, TCP_NODELAY, 1 },
				     { IPPROTO_TCP, TCP_KEEPIDLE, 100 }, { IPPROTO_TCP, TCP_KEEPINTVL, 10 }, { IPPROTO_TCP, TCP_KEEPCNT, 4 },
				     { SOL_SOCKET, SO_BROADCAST, 1 }, { SOL_SOCKET, SO_OOBINLINE, 1 } };
	int fd[2], v;
	struct timeval t = { 0, 30000 };
	socklen_t len = sizeof v;
	char b[1];

	pair(fd);
	for (unsigned i = 0; i < sizeof rw / sizeof *rw; i++) {
		IS(A->setsockopt(fd[0], rw[i][0], rw[i][1], &rw[i][2], sizeof(int)), 0);
		v = -1;
		IS(A->getsockopt(fd[0], rw[i][0], rw[i][1], &v, &len), 0);
		IS(v, rw[i][2]);
	}
	v = 20000;
	IS(A->setsockopt(fd[0], SOL_SOCKET, SO_RCVBUF, &v, sizeof v), 0);
	IS(A->getsockopt(fd[0], SOL_SOCKET, SO_RCVBUF, &v, &len), 0);
	IS(v, 40000);
	IS(A->getsockopt(fd[0], SOL_SOCKET, SO_TYPE, &v, &len), 0);
	IS(v, SOCK_STREAM);
	IS(A->getsockopt(fd[0], SOL_SOCKET, SO_DOMAIN, &v, &len), 0);
	IS(v, AF_INET);
	IS(A->getsockopt(fd[0], SOL_SOCKET, SO_PROTOCOL, &v, &len), 0);
	IS(v, IPPROTO_TCP);
	struct tcp_info info;
	memset(&info, 0, sizeof info);
	len = sizeof info;
	IS(A->getsockopt(fd[0], IPPROTO_TCP, TCP_INFO, &info, &len), 0);
	IS(info.tcpi_state, 1);
	IS(info.tcpi_snd_mss > 500, 1);
	IS(info.tcpi_snd_cwnd > 1, 1);
	FAILS(A->setsockopt(fd[0], IPPROTO_TCP, 9999, &v, sizeof v), ENOPROTOOPT);
	FAILS(A->setsockopt(fd[0], SOL_SOCKET, SO_KEEPALIVE, &v, 1), EINVAL);
	v = 0;
	FAILS(A->setsockopt(fd[0], IPPROTO_TCP, TCP_KEEPIDLE, &v, sizeof v), EINVAL);
	IS(A->setsockopt(fd[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t), 0);
	len = sizeof t;
	t.tv_usec = 0;
	IS(A->getsockopt(fd[0], SOL_SOCKET, SO_RCVTIMEO, &t, &len), 0);
	IS(t.tv_usec >= 28000 && t.tv_usec <= 32000, 1);
	FAILS(A->read(fd[0], b, 1), EAGAIN);
	v = 1;
	IS(A->ioctl(fd[0], FIONBIO, &v), 0);
	IS(A->fcntl(fd[0], F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	done(fd);
}

static int bound_udp(int p)
{
	struct sockaddr_in a = addr(our, p);
	int fd;
	OK(fd = A->socket(AF_INET, SOCK_DGRAM, 0));
	IS(A->bind(fd, SA(a)), 0);
	return fd;
}

static void datagrams(void)
{
	int p = port++, q = port++, fd = bound_udp(p), peer = socket(AF_INET, SOCK_DGRAM, 0), n;
	struct sockaddr_in a = addr(their, q), b = addr(our, p), from, no = addr(their, 9);
	socklen_t len = sizeof from;
	static char big[70000], got[70000];

	if (bind(peer, SA(a)) < 0 || connect(peer, SA(b)) < 0)
		perror("the peer's datagrams");
	FAILS(A->recv(fd, got, 10, MSG_DONTWAIT), EAGAIN);
	IS(until(fd, POLLIN | POLLOUT, 0), POLLOUT);
	FAILS(A->send(fd, "x", 1, 0), EDESTADDRREQ);
	for (int i = 0; i < 5; i++)
		IS(send(peer, "abcdefgh", (size_t)i * 2, 0), i * 2);
	for (int i = 0; i < 5; i++) {
		IS(until(fd, POLLIN, PATIENCE), POLLIN);
		len = sizeof from;
		IS(A->ioctl(fd, FIONREAD, &n), 0);
		IS(n, i * 2);
		IS(A->recvfrom(fd, got, sizeof got, 0, (struct sockaddr *)&from, &len), i * 2);
		IS(from.sin_port, a.sin_port);
		IS(from.sin_addr.s_addr, a.sin_addr.s_addr);
	}
	IS(send(peer, "abcdefgh", 8, 0), 8);
	struct iovec v = { got, 3 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_name = &from, .msg_namelen = sizeof from };
	IS(A->recvmsg(fd, &m, 0), 3);
	IS(m.msg_flags, MSG_TRUNC);
	IS(m.msg_namelen, sizeof from);
	IS(send(peer, "abcdefgh", 8, 0), 8);
	IS(A->recv(fd, got, 3, MSG_TRUNC | MSG_PEEK), 8);
	IS(A->recv(fd, got, 3, 0), 3);
	for (int i = 0; i < (int)sizeof big; i++)
		big[i] = (char)(i * 7);
	IS(A->sendto(fd, big, 65507, 0, SA(a)), 65507);
	IS(recv(peer, got, sizeof got, 0), 65507);
	IS(memcmp(big, got, 65507), 0);
	IS(A->sendto(fd, got, 0, 0, SA(a)), 0);
	IS(recv(peer, got, sizeof got, 0), 0);
	IS(send(peer, big, 65507, 0), 65507);
	IS(A->recv(fd, got, sizeof got, 0), 65507);
	IS(memcmp(big, got, 65507), 0);
	FAILS(A->sendto(fd, big, 65508, 0, SA(a)), EMSGSIZE);
	IS(A->connect(fd, SA(a)), 0);
	struct mmsghdr mm[3];
	struct iovec vs[3] = { { "one", 3 }, { "two", 3 }, { "three", 5 } };
	memset(mm, 0, sizeof mm);
	for (int i = 0; i < 3; i++)
		mm[i].msg_hdr.msg_iov = &vs[i], mm[i].msg_hdr.msg_iovlen = 1;
	IS(A->sendmmsg(fd, mm, 3, 0), 3);
	for (int i = 0; i < 3; i++)
		IS(recv(peer, got, sizeof got, 0), vs[i].iov_len);
	for (int i = 0; i < 3; i++) {
		IS(send(peer, vs[i].iov_base, vs[i].iov_len, 0), vs[i].iov_len);
		vs[i].iov_base = got + 100 * i, vs[i].iov_len = 100;
	}
	n = 0;
	while (n < 3) {
		int r = A->recvmmsg(fd, mm + n, (unsigned)(3 - n), MSG_WAITFORONE, NULL);
		if (r <= 0) {
			fault(__LINE__, "recvmmsg", r, 1);
			break;
		}
		n += r;
	}
	IS(mm[2].msg_len, 5);
	IS(memcmp(got + 200, "three", 5), 0);
	IS(A->getpeername(fd, (struct sockaddr *)&from, &len), 0);
	IS(A->connect(fd, SA(no)), 0); /* where nobody is */
	IS(A->send(fd, "x", 1, 0), 1);
	IS(until(fd, 0, PATIENCE), POLLERR);
	FAILS(A->recv(fd, got, 1, MSG_DONTWAIT), ECONNREFUSED);
	FAILS(A->recv(fd, got, 1, MSG_DONTWAIT), EAGAIN);
	FAILS(A->listen(fd, 1), EOPNOTSUPP);
	FAILS(A->accept4(fd, NULL, NULL, 0), EOPNOTSUPP);
	IS(A->close(fd), 0);
	close(peer);
}

static void polls(void)
{
	int fd[2], pipe_[2], r;
	struct timeval t = { 0, 10000 };
	char b[8];

	if (pipe(pipe_) < 0)
		return;
	pair(fd);
	struct pollfd p[4] = { { fd[0], POLLIN, 0 }, { pipe_[0], POLLIN, 0 }, { -1, POLLIN, 1 }, { 900, POLLIN, 0 } };
	IS(A->poll(p, 3, 10), 0);
	IS(p[2].revents, 0);
	IS(A->poll(p, 4, -1), 1);
	IS(p[3].revents, POLLNVAL);
	IS(write(pipe_[1], "x", 1), 1);
	IS(A->poll(p, 2, PATIENCE), 1);
	IS(p[1].revents, POLLIN);
	IS(write(fd[1], "x", 1), 1);
	IS(until(fd[0], POLLIN, PATIENCE), POLLIN);
	IS(A->poll(p, 2, PATIENCE), 2);
	IS(p[0].revents, POLLIN);
	fd_set in, out, ex;
	FD_ZERO(&in);
	FD_ZERO(&out);
	FD_ZERO(&ex);
	FD_SET(fd[0], &in);
	FD_SET(fd[0], &out);
	FD_SET(pipe_[0], &in);
	FD_SET(fd[0], &ex);
	IS(A->select(FD_SETSIZE, &in, &out, &ex, NULL), 3);
	IS(FD_ISSET(fd[0], &in) && FD_ISSET(fd[0], &out) && FD_ISSET(pipe_[0], &in) && !FD_ISSET(fd[0], &ex), 1);
	IS(A->read(fd[0], b, 8), 1);
	FD_ZERO(&in);
	FD_SET(fd[0], &in);
	IS(A->select(fd[0] + 1, &in, NULL, NULL, &t), 0);
	IS(t.tv_sec | t.tv_usec, 0);
	IS(FD_ISSET(fd[0], &in), 0);
	FD_ZERO(&in);
	FD_SET(fd[0], &in);
	FD_SET(900, &in);
	FAILS(A->select(901, &in, NULL, NULL, &t), EBADF);
	/* Full, then with room again. */
	IS(A->fcntl(fd[0], F_SETFL, O_NONBLOCK), 0);
	static char block[40000];
	long sent = 0, got = 0;
	for (int idle = 0; idle < 5; idle++, nap())
		while ((r = (int)A->write(fd[0], block, sizeof block)) > 0)
			sent += r, idle = 0;
	FAILS(A->write(fd[0], block, 1), EAGAIN);
	IS(until(fd[0], POLLOUT, 0), 0);
	while (got < sent && (r = (int)read(fd[1], block, sizeof block)) > 0)
		got += r;
	IS(got, sent);
	IS(until(fd[0], POLLOUT, PATIENCE), POLLOUT);
	close(pipe_[0]);
	close(pipe_[1]);
	done(fd);
}

static int waited(int ep, uint64_t *data, int ms)
{
	struct epoll_event e = { 0, { .u64 = 0 } };
	int n = A->epoll_wait(ep, &e, 1, ms);
	if (data)
		*data = e.data.u64;
	return n == 1 ? (int)e.events : n;
}

static void epolls(void)
{
	int fd[2], pipe_[2], ep, dup_;
	struct epoll_event e = { EPOLLIN, { .u64 = 1ull << 40 } }, all[8];
	uint64_t data;
	char b[8];

	if (pipe(pipe_) < 0)
		return;
	pair(fd);
	OK(ep = A->epoll_create1(EPOLL_CLOEXEC));
	IS(A->fcntl(ep, F_GETFD), FD_CLOEXEC);
	FAILS(A->epoll_ctl(ep, EPOLL_CTL_MOD, fd[0], &e), ENOENT);
	IS(A->epoll_ctl(ep, EPOLL_CTL_ADD, fd[0], &e), 0);
	FAILS(A->epoll_ctl(ep, EPOLL_CTL_ADD, fd[0], &e), EEXIST);
	FAILS(A->epoll_ctl(ep, EPOLL_CTL_ADD, 900, &e), EBADF);
	FAILS(A->epoll_ctl(ep, 9, fd[0], &e), EINVAL);
	FAILS(A->epoll_wait(ep, all, 0, 0), EINVAL);
	FAILS(A->epoll_wait(fd[0], all, 1, 0), EINVAL);
	IS(waited(ep, NULL, 0), 0);
	IS(waited(ep, NULL, 10), 0);
	IS(write(fd[1], "abc", 3), 3);
	IS(waited(ep, &data, PATIENCE), EPOLLIN);
	IS(data, 1ull << 40);
	IS(waited(ep, NULL, 0), EPOLLIN); /* level triggered: as long as there is something */
	IS(A->read(fd[0], b, 1), 1);
	IS(waited(ep, NULL, 0), EPOLLIN);
	IS(A->read(fd[0], b, 8), 2);
	IS(waited(ep, NULL, 0), 0);
	e.events = EPOLLIN | EPOLLOUT | EPOLLET;
	IS(A->epoll_ctl(ep, EPOLL_CTL_MOD, fd[0], &e), 0);
	IS(waited(ep, NULL, 0), EPOLLOUT);
	IS(waited(ep, NULL, 0), 0);
	IS(write(fd[1], "abc", 3), 3);
	IS(waited(ep, NULL, PATIENCE), EPOLLIN | EPOLLOUT);
	IS(waited(ep, NULL, 0), 0); /* edge triggered: once */
	IS(A->read(fd[0], b, 8), 3);
	IS(write(fd[1], "d", 1), 1);
	IS(waited(ep, NULL, PATIENCE), EPOLLIN | EPOLLOUT);
	e.events = EPOLLIN | EPOLLONESHOT;
	IS(A->epoll_ctl(ep, EPOLL_CTL_MOD, fd[0], &e), 0);
	IS(waited(ep, NULL, PATIENCE), EPOLLIN);
	IS(waited(ep, NULL, 0), 0);
	IS(A->epoll_ctl(ep, EPOLL_CTL_MOD, fd[0], &e), 0);
	IS(waited(ep, NULL, 0), EPOLLIN);
	IS(A->epoll_ctl(ep, EPOLL_CTL_DEL, fd[0], NULL), 0);
	FAILS(A->epoll_ctl(ep, EPOLL_CTL_DEL, fd[0], NULL), ENOENT);
	e.events = EPOLLIN;
	IS(A->epoll_ctl(ep, EPOLL_CTL_ADD, fd[0], &e), 0);
	e.data.u64 = 7;
	IS(A->epoll_ctl(ep, EPOLL_CTL_ADD, pipe_[0], &e), 0);
	IS(A->epoll_wait(ep, all, 8, PATIENCE), 1);
	IS(write(pipe_[1], "x", 1), 1);
	IS(A->read(fd[0], b, 8), 1);
	IS(waited(ep, &data, PATIENCE), EPOLLIN);
	IS(data, 7);
	IS(read(pipe_[0], b, 8), 1);
	IS(waited(ep, NULL, 0), 0);
	OK(dup_ = A->dup(fd[0]));
	IS(A->close(fd[0]), 0); /* the file is open still, and watched */
	close(fd[1]);
	IS(waited(ep, NULL, PATIENCE), EPOLLIN);
	IS(A->close(dup_), 0);
	IS(waited(ep, NULL, 0), 0);
	IS(A->close(ep), 0);
	close(pipe_[0]);
	close(pipe_[1]);
}

static void dups(void)
{
	int fd[2], d, e;
	char b[8];

	pair(fd);
	OK(d = A->dup(fd[0]));
	OK(e = A->fcntl(fd[0], F_DUPFD_CLOEXEC, 100));
	IS(e >= 100, 1);
	IS(A->fcntl(e, F_GETFD), FD_CLOEXEC);
	IS(A->fcntl(fd[0], F_SETFL, O_NONBLOCK), 0);
	IS(A->fcntl(d, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
	IS(A->dup2(fd[0], 120), 120);
	IS(A->dup2(fd[0], fd[0]), fd[0]);
	FAILS(A->dup2(901, 121), EBADF);
	IS(A->close(fd[0]), 0);
	IS(A->close(d), 0);
	IS(A->close(e), 0);
	IS(A->write(120, "x", 1), 1);
	IS(read(fd[1], b, 8), 1);
	int k = open("/dev/null", O_RDWR);
	IS(A->dup2(k, 120), 120); /* which closes the connection */
	IS(read(fd[1], b, 8), 0);
	IS(A->write(120, "x", 1), 1);
	IS(A->close(120), 0);
	close(k);
	close(fd[1]);
}

static _Atomic int alarms;
static void on_alarm(int s) { (void)s; alarms++; }

static void *write_later(void *fd)
{
	while (alarms < 3)
		usleep(1000);
	return (void *)write(*(int *)fd, "x", 1);
}

static void interrupts(void)
{
	int fd[2], p = port++, l;
	char b[1];
	struct sockaddr_in a = addr(our, p);
	struct sigaction act = { .sa_handler = on_alarm }, old, pipes_ = { .sa_handler = SIG_IGN };
	struct itimerval often = { { 0, 10000 }, { 0, 10000 } }, never = { { 0, 0 }, { 0, 0 } };
	pthread_t th;

	pair(fd);
	sigaction(SIGPIPE, &pipes_, NULL);
	sigaction(SIGALRM, &act, &old);
	OK(l = A->socket(AF_INET, SOCK_STREAM, 0));
	IS(A->bind(l, SA(a)), 0);
	IS(A->listen(l, 1), 0);
	setitimer(ITIMER_REAL, &often, NULL);
	FAILS(A->read(fd[0], b, 1), EINTR);
	FAILS(A->accept4(l, NULL, NULL, 0), EINTR);
	FAILS(until(fd[0], POLLIN, -1), EINTR);
	act.sa_flags = SA_RESTART;
	sigaction(SIGALRM, &act, NULL);
	alarms = 0;
	pthread_create(&th, NULL, write_later, &fd[1]);
	IS(A->read(fd[0], b, 1), 1);
	pthread_join(th, NULL);
	FAILS(until(fd[0], POLLIN, -1), EINTR); /* never goes on */
	setitimer(ITIMER_REAL, &never, NULL);
	sigaction(SIGALRM, &old, NULL);
	IS(A->close(l), 0);
	done(fd);
}

/* echo reads and writes n bytes by a blocking socket. */
static void *echo(void *arg)
{
	int fd = *(int *)arg;
	char b[5000];
	long n;

	while ((n = A->read(fd, b, sizeof b)) > 0)
		if (A->write(fd, b, (size_t)n) != n)
			return (void *)1;
	return (void *)(long)(n < 0 || A->shutdown(fd, SHUT_WR) < 0);
}

static void *flood(void *arg)
{
	unsigned char b[30000];
	int fd = *(int *)arg;
	for (long at_ = 0; at_ < 2000000; at_ += (long)sizeof b) {
		for (unsigned i = 0; i < sizeof b; i++)
			b[i] = (unsigned char)((at_ + i) % 251);
		if (write(fd, b, sizeof b) != (ssize_t)sizeof b)
			return (void *)1;
	}
	return (void *)(long)shutdown(fd, SHUT_WR);
}

static void *wrong(void *arg) /* bytes that are not flood's, of its length */
{
	int fd = *(int *)arg;
	unsigned char b[8192];
	long at_ = 0, bad = 0, n;
	while ((n = read(fd, b, sizeof b)) > 0)
		for (long i = 0; i < n; i++, at_++)
			bad += b[i] != at_ % 251;
	return (void *)(at_ == 2010000 ? bad : -at_ - 1);
}

static void threads(void)
{
	enum { N = 6 };
	int fd[N][2];
	pthread_t ours[N], floods[N], readers[N];
	void *r;

	for (int i = 0; i < N; i++) {
		pair(fd[i]);
		pthread_create(&ours[i], NULL, echo, &fd[i][0]);
		pthread_create(&floods[i], NULL, flood, &fd[i][1]);
		pthread_create(&readers[i], NULL, wrong, &fd[i][1]);
	}
	for (int i = 0; i < N; i++) {
		pthread_join(readers[i], &r);
		IS((long)r, 0);
		pthread_join(ours[i], &r);
		IS((long)r, 0);
		pthread_join(floods[i], &r);
		IS((long)r, 0);
		done(fd[i]);
	}
}

static void forks(void)
{
	int p = port++, l, fd, peer, status;
	struct sockaddr_in a = addr(our, p);
	char b[8];
	pid_t child;

	OK(l = A->socket(AF_INET, SOCK_STREAM, 0));
	IS(A->bind(l, SA(a)), 0);
	IS(A->listen(l, 8), 0);
	for (int round = 0; round < 4; round++) { /* who accepts gives the connection to a child, as servers of old do */
		peer = peer_connect(p);
		OK(fd = A->accept4(l, NULL, NULL, 0));
		if ((child = fork()) == 0) {
			A->close(l);
			echo(&fd);
			_exit(faults);
		}
		IS(A->close(fd), 0);
		IS(write(peer, "ping", 4), 4);
		IS(recv(peer, b, 4, MSG_WAITALL), 4);
		if (round == 3) { /* its connection ends with it */
			kill(child, SIGKILL);
			waitpid(child, &status, 0);
			if (A == apis) /* somebody must look */
				A->poll(&(struct pollfd){ l, POLLIN, 0 }, 1, 20);
		} else {
			shutdown(peer, SHUT_WR);
			waitpid(child, &status, 0);
			IS(status, 0);
		}
		IS(read(peer, b, 8), 0);
		close(peer);
	}
	/* Three wait at once in the same call, and each connection is one's. */
	pid_t servers[3];
	for (int i = 0; i < 3; i++)
		if ((servers[i] = fork()) == 0)
			for (;;)
				if ((fd = A->accept4(l, NULL, NULL, 0)) < 0 || A->write(fd, "c", 1) != 1 || A->read(fd, b, 1) != 1 || A->close(fd))
					_exit(1);
	for (int i = 0; i < 30; i++) {
		peer = peer_connect(p);
		IS(read(peer, b, 8), 1);
		IS(write(peer, "d", 1), 1);
		IS(read(peer, b, 8), 0);
		close(peer);
	}
	for (int i = 0; i < 3; i++) {
		kill(servers[i], SIGKILL);
		waitpid(servers[i], &status, 0);
		IS(WIFSIGNALED(status), 1);
	}
	IS(A->close(l), 0);
}

/* churn opens, uses and closes sockets until somebody kills it. */
static void churn(unsigned seed)
{
	struct sockaddr_in nobody = addr(their, 9), a = addr(our, 0);
	char b[3000] = { 0 };

	for (;;) {
		int fd = A->socket(AF_INET, rand_r(&seed) % 2 ? SOCK_STREAM : SOCK_DGRAM, 0), ep = A->epoll_create1(0);
		struct epoll_event e = { EPOLLIN | EPOLLOUT, { .fd = fd } };
		A->fcntl(fd, F_SETFL, O_NONBLOCK);
		A->epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
		if (rand_r(&seed) % 2)
			A->bind(fd, SA(a));
		A->connect(fd, SA(nobody));
		A->epoll_wait(ep, &e, 1, (int)(rand_r(&seed) % 2));
		A->send(fd, b, rand_r(&seed) % sizeof b, MSG_NOSIGNAL);
		A->recv(fd, b, sizeof b, 0);
		if (rand_r(&seed) % 2)
			A->close(ep);
		A->close(fd);
		if (ep >= 0 && rand_r(&seed) % 2)
			A->close(ep);
	}
}

/* killed: processes that share the ring die at any time, with the lock too, and nobody else notices. */
static void killed(void)
{
	enum { N = 25, OPEN = 900 };
	int fd[2], many[OPEN], n = 0;
	char b[16];
	unsigned seed = 1;

	pair(fd);
	for (int i = 0; i < N; i++) {
		pid_t child[2];
		for (int k = 0; k < 2; k++)
			if ((child[k] = fork()) == 0)
				churn((unsigned)(i * 2 + k));
		usleep(rand_r(&seed) % 8000);
		for (int k = 0; k < 2; k++)
			kill(child[k], SIGKILL);
		IS(A->write(fd[0], "still here", 10), 10);
		IS(recv(fd[1], b, 10, MSG_WAITALL), 10);
		IS(send(fd[1], "and here", 8, 0), 8);
		IS(A->recv(fd[0], b, 8, MSG_WAITALL), 8);
		for (int k = 0; k < 2; k++)
			waitpid(child[k], NULL, 0);
	}
	A->poll(&(struct pollfd){ fd[0], POLLIN, 0 }, 1, A == apis ? 1200 : 0); /* somebody looks for what the dead had */
	while (n < OPEN && (many[n] = A->socket(AF_INET, SOCK_STREAM, 0)) >= 0)
		n++;
	IS(n, OPEN);
	while (n > 0)
		A->close(many[--n]);
	done(fd);
}

/* The linker sends what the library asks of the kernel through here (--wrap). */
static _Atomic unsigned long asked;
long __real_syscall(long n, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long n, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long n, long a, long b, long c, long d, long e, long f)
{
	asked++;
	return __real_syscall(n, a, b, c, d, e, f);
}
ssize_t __real_send(int fd, const void *b, size_t n, int flags);
ssize_t __wrap_send(int fd, const void *b, size_t n, int flags);
ssize_t __wrap_send(int fd, const void *b, size_t n, int flags)
{
	asked++;
	return __real_send(fd, b, n, flags);
}

static void *bounce(void *fds) /* the peer: back with what comes, on N connections */
{
	struct pollfd *p = fds;
	char b[256];
	for (;;) {
		poll(p, 8, -1);
		for (int i = 0; i < 8; i++) {
			ssize_t n = p[i].revents ? read(p[i].fd, b, sizeof b) : 0;
			if (p[i].revents && n <= 0)
				return NULL;
			if (n > 0 && write(p[i].fd, b, (size_t)n) != n)
				return NULL;
		}
	}
}

/* silent: a thousand reads and writes in a row ask nothing of the kernel; for an engine that never sleeps, only by its name. */
static void silent(void)
{
	int fd[8][2], ep, row = 0;
	struct pollfd peers[8];
	struct epoll_event e[8];
	char b[256] = { 0 };
	pthread_t th;
	time_t over = time(NULL) + PATIENCE / 1000;

	signal(SIGPIPE, SIG_IGN); /* bounce may be answering when we close */
	OK(ep = A->epoll_create1(0));
	for (int i = 0; i < 8; i++) {
		pair(fd[i]);
		peers[i] = (struct pollfd){ fd[i][1], POLLIN, 0 };
		e[0] = (struct epoll_event){ EPOLLIN, { .fd = fd[i][0] } };
		IS(A->fcntl(fd[i][0], F_SETFL, O_NONBLOCK), 0);
		IS(A->epoll_ctl(ep, EPOLL_CTL_ADD, fd[i][0], &e[0]), 0);
	}
	pthread_create(&th, NULL, bounce, peers);
	for (int i = 0; i < 8; i++)
		for (int k = 0; k < 4; k++)
			IS(A->write(fd[i][0], b, 100), 100);
	asked = 0;
	while (row < 1000 && time(NULL) < over) {
		int n = A->epoll_wait(ep, e, 8, 0);
		for (int i = 0; i < n; i++) {
			ssize_t got = A->read(e[i].data.fd, b, sizeof b);
			if (got > 0)
				IS(A->write(e[i].data.fd, b, (size_t)got), got);
			row++;
		}
		if (asked) {
			row = 0;
			asked = 0;
		}
	}
	IS(row >= 1000, 1);
	for (int i = 0; i < 8; i++)
		A->close(fd[i][0]);
	pthread_join(th, NULL);
	for (int i = 0; i < 8; i++)
		close(fd[i][1]);
	A->close(ep);
}

#include "libxdpd_corners.h"

static void adopts(void)
{
	int p = port++, l = peer_listen(p), fd, ep, on = 1;
	struct sockaddr_in a = addr(their, p);
	struct epoll_event e = { EPOLLOUT | EPOLLET, { .u64 = 5 } };
	uint64_t data;

	OK(ep = A->epoll_create1(0));
	OK(fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	IS(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on), 0);
	IS(A->epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e), 0);
	if (A == apis) {
		IS(xdpd_is(fd), 0);
		IS(xdpd_adopt(fd), 0);
		IS(xdpd_is(fd), 1);
		FAILS(xdpd_adopt(l), EINVAL);
	}
	on = 0;
	IS(A->getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &(socklen_t){ sizeof on }), 0);
	IS(on, 1);
	IS(waited(ep, &data, 0), EPOLLOUT | EPOLLHUP);
	IS(data, 5);
	FAILS(A->connect(fd, SA(a)), EINPROGRESS);
	IS(waited(ep, &data, PATIENCE), EPOLLOUT);
	IS(waited(ep, NULL, 0), 0);
	IS(A->close(fd), 0);
	IS(A->close(ep), 0);
	close(l);
	adopts_twice();
}

static void stuck(int s)
{
	(void)s;
	printf("%s: %s does not end, line %d or behind it\n", A->name, at, line);
	_exit(1);
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*run)(void); } cases[] = {
		{ "streams", streams }, { "connects", connects }, { "accepts", accepts }, { "resets", resets }, { "options", options },
		{ "datagrams", datagrams }, { "polls", polls }, { "epolls", epolls }, { "dups", dups }, { "interrupts", interrupts },
		{ "threads", threads }, { "adopts", adopts }, { "forks", forks }, { "killed", killed }, { "silent", silent },
		{ "peeks", peeks }, { "parts", parts }, { "ends", ends }, { "selects", selects }, { "turns", turns }, { "ephemeral", ephemeral }, { "crowds", crowds },
	};
	int ns;

	if (argc < 5)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (xdpd_start(argv[1]) < 0) {
		printf("%s: %s %s\n", argv[1], strerror(errno), xdpd_reason());
		return 1;
	}
	if ((ns = open(argv[2], O_RDONLY)) < 0 || setns(ns, CLONE_NEWNET) < 0) {
		perror(argv[2]);
		return 1;
	}
	close(ns);
#ifdef __SANITIZE_THREAD__ /* which holds back the signals that interrupt the kernel's calls */
	const struct api *end = apis + 1;
#else
	const struct api *end = apis + 2;
#endif
	for (A = apis; A < end; A++) {
		inet_aton(argv[4], &their);
		inet_aton(A == apis ? argv[3] : argv[4], &our);
		for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
			if (argc > 5 ? strcmp(argv[5], cases[i].name) != 0 : cases[i].run == silent || cases[i].run == crowds)
				continue;
			if (A != apis && (cases[i].run == killed || cases[i].run == silent || cases[i].run == crowds))
				continue;
			at = cases[i].name;
			signal(SIGALRM, stuck);
			alarm(20);
			cases[i].run();
			alarm(0);
		}
	}
	A = apis, at = "again", inet_aton(argv[3], &our);
	xdpd_stop();
	IS(xdpd_start(argv[1]), 0);
	streams();
	return faults != 0;
}
