/* libxdpd_corners.h: cases of libxdpd_suite.c that few programs meet. */
#include <sys/resource.h>

/* peeks: who looks without taking sees what comes behind it too. */
static void peeks(void)
{
	int fd[2], n = 0, size = 0;
	static char in[30000], out[30000];

	for (int i = 0; i < (int)sizeof in; i++)
		in[i] = (char)(i * 11);
	pair(fd);
	IS(write(fd[1], in, 10), 10);
	IS(until(fd[0], POLLIN, PATIENCE), POLLIN);
	IS(A->recv(fd[0], out, sizeof out, MSG_PEEK), 10);
	IS(write(fd[1], in + 10, 90), 90);
	for (int i = 0; i < 1000 && (n = (int)A->recv(fd[0], out, sizeof out, MSG_PEEK)) == 10; i++)
		usleep(1000);
	IS(n, 100);
	IS(memcmp(in, out, 100), 0);
	IS(write(fd[1], in + 100, sizeof in - 100), sizeof in - 100);
	for (int i = 0; i < 1000 && size != (int)sizeof in; i++, usleep(1000))
		IS(A->ioctl(fd[0], FIONREAD, &size), 0);
	IS(size, sizeof in);
	IS(A->recv(fd[0], out, 200, 0), 200);
	IS(memcmp(in, out, 200), 0);
	IS(A->recv(fd[0], out, sizeof out - 200, MSG_PEEK | MSG_WAITALL), sizeof out - 200);
	IS(memcmp(in + 200, out, sizeof out - 200), 0);
	memset(out, 0, sizeof out);
	IS(A->recv(fd[0], out, sizeof out - 200, MSG_WAITALL), sizeof out - 200);
	IS(memcmp(in + 200, out, sizeof out - 200), 0);
	IS(write(fd[1], "end", 3), 3);
	shutdown(fd[1], SHUT_WR);
	IS(A->recv(fd[0], out, 10, MSG_PEEK | MSG_WAITALL), 3);
	IS(A->recv(fd[0], out, 10, 0), 3);
	IS(A->recv(fd[0], out, 10, MSG_PEEK), 0);
	done(fd);
}

static void *reset_later(void *fd)
{
	struct linger hard = { 1, 0 };

	nap();
	setsockopt(*(int *)fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
	return (void *)(long)close(*(int *)fd);
}

/* parts: an error behind what a call did is the next call's. */
static void parts(void)
{
	static char big[8 << 20];
	int fd[2], l, p = port++;
	struct sockaddr_in a = addr(their, p), from;
	socklen_t len;
	struct iovec v = { big, 3 };
	char control[64];
	pthread_t th;

	signal(SIGPIPE, count_pipe);
	pipes = 0;
	pair(fd);
	IS(write(fd[1], "abc", 3), 3);
	pthread_create(&th, NULL, reset_later, &fd[1]);
	IS(A->recv(fd[0], big, 8, MSG_WAITALL), 3);
	FAILS(A->recv(fd[0], big, 8, MSG_WAITALL), ECONNRESET);
	pthread_join(th, NULL);
	len = sizeof from;
	IS(A->getsockname(fd[0], (struct sockaddr *)&from, &len), 0);
	IS(from.sin_addr.s_addr, our.s_addr);
	FAILS(A->getpeername(fd[0], (struct sockaddr *)&from, &len), ENOTCONN);
	IS(A->close(fd[0]), 0);
	pair(fd);
	pthread_create(&th, NULL, reset_later, &fd[1]);
	IS(A->write(fd[0], big, sizeof big) > 0, 1);
	FAILS(A->write(fd[0], big, 1), ECONNRESET);
	IS(pipes, 0);
	pthread_join(th, NULL);
	IS(A->close(fd[0]), 0);

	pair(fd);
	IS(write(fd[1], "abc", 3), 3);
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_name = &from, .msg_namelen = sizeof from, .msg_control = control, .msg_controllen = sizeof control };
	IS(A->recvmsg(fd[0], &m, MSG_WAITALL), 3);
	IS(m.msg_controllen, 0);
	IS(m.msg_namelen, 0);
	struct timeval for_ever = { INT64_MAX, 0 };
	IS(A->setsockopt(fd[0], SOL_SOCKET, SO_RCVTIMEO, &for_ever, sizeof for_ever), 0);
	IS(A->getsockopt(fd[0], SOL_SOCKET, SO_RCVTIMEO, &for_ever, &(socklen_t){ sizeof for_ever }), 0);
	IS(for_ever.tv_sec, 0);
	IS(write(fd[1], "abc", 3), 3);
	IS(A->recv(fd[0], big, 3, MSG_WAITALL), 3);
	done(fd);

	/* Who waits for a connection that was begun without waiting, or was interrupted, calls connect again. */
	l = peer_listen(p);
	OK(fd[0] = A->socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
	FAILS(A->connect(fd[0], SA(a)), EINPROGRESS);
	IS(A->fcntl(fd[0], F_SETFL, 0), 0);
	IS(A->connect(fd[0], SA(a)), 0);
	FAILS(A->connect(fd[0], SA(a)), EISCONN);
	fd[1] = accept(l, NULL, NULL);
	close(l);

	/* What the peer did not acknowledge. */
	int n = 1;
	for (int i = 0; i < 1000 && n != 0; i++, usleep(1000))
		IS(A->ioctl(fd[0], SIOCOUTQ, &n), 0);
	IS(n, 0);
	IS(A->fcntl(fd[0], F_SETFL, O_NONBLOCK), 0);
	for (int i = 0; i < 5; i++, nap()) /* until the peer takes no more */
		while (A->write(fd[0], big, sizeof big) > 0)
			i = 0;
	IS(A->ioctl(fd[0], SIOCOUTQ, &n), 0);
	IS(n > 0, 1);
	done(fd);
}

static int listener, listener_errno;

static void *accept_one(void *arg)
{
	long r = A->accept4(listener, NULL, NULL, 0);

	(void)arg;
	listener_errno = errno;
	return (void *)r;
}

static void *poll_pipe(void *fd)
{
	struct pollfd p = { *(int *)fd, POLLIN, 0 };

	A->poll(&p, 1, -1);
	return NULL;
}

static void *receive_one(void *fd)
{
	char b[1];

	return (void *)(long)A->recv(*(int *)fd, b, 1, 0);
}

static int refused(int p)
{
	struct sockaddr_in a = addr(our, p);
	int fd = socket(AF_INET, SOCK_STREAM, 0), r = connect(fd, SA(a)) < 0 && errno == ECONNREFUSED;

	close(fd);
	return r;
}

/* ends: what wakes threads that wait. */
static void ends(void)
{
	int p = port++, fd[2], peer, pipe_[2];
	struct sockaddr_in a = addr(our, p);
	pthread_t th;
	void *r;

	if (pipe(pipe_) < 0)
		return;
	pthread_create(&th, NULL, poll_pipe, &pipe_[0]);
	nap();
	IS(pthread_cancel(th), 0);
	pthread_join(th, &r);
	IS((long)r, (long)PTHREAD_CANCELED);
	close(pipe_[0]);
	close(pipe_[1]);

	OK(listener = A->socket(AF_INET, SOCK_STREAM, 0));
	IS(A->bind(listener, SA(a)), 0);
	FAILS(A->shutdown(listener, SHUT_RD), ENOTCONN);
	IS(A->listen(listener, 8), 0);
	IS(A->shutdown(listener, SHUT_WR), 0); /* nothing */
	close(peer_connect(p));
	A->close(A->accept4(listener, NULL, NULL, 0));
	pthread_create(&th, NULL, accept_one, NULL);
	nap();
	IS(A->shutdown(listener, SHUT_RDWR), 0);
	pthread_join(th, &r);
	IS((long)r, -1);
	IS(listener_errno, EINVAL);
	IS(until(listener, POLLIN, 0), POLLHUP);
	FAILS(A->shutdown(listener, SHUT_RD), ENOTCONN);
	IS(refused(p), 1);
	fd[0] = bound_udp(p); /* what is not connected fails, and wakes all the same */
	pthread_create(&th, NULL, receive_one, &fd[0]);
	nap();
	FAILS(A->shutdown(fd[0], SHUT_RDWR), ENOTCONN);
	pthread_join(th, &r);
	IS((long)r, 0);
	IS(A->close(fd[0]), 0);
	OK(fd[0] = A->socket(AF_INET, SOCK_DGRAM, 0)); /* which of our addresses it is is known when it is connected */
	IS(A->connect(fd[0], (struct sockaddr *)&(struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = their, .sin_port = htons(9) }, sizeof a), 0);
	struct sockaddr_in name;
	IS(A->getsockname(fd[0], (struct sockaddr *)&name, &(socklen_t){ sizeof name }), 0);
	IS(name.sin_addr.s_addr, our.s_addr);
	IS(name.sin_port != 0, 1);
	IS(A->close(fd[0]), 0);
	IS(A->listen(listener, 8), 0); /* again, at its port */
	peer = peer_connect(p);
	OK(fd[0] = A->accept4(listener, NULL, NULL, 0));
	fd[1] = peer;
	done(fd);
	pthread_create(&th, NULL, accept_one, NULL);
	nap();
	IS(pthread_cancel(th), 0);
	pthread_join(th, &r);
	IS((long)r, (long)PTHREAD_CANCELED);
	IS(A->close(listener), 0);
	for (int i = 0; i < 1000 && !refused(p); i++) /* nothing holds it */
		usleep(1000);
	IS(refused(p), 1);
}

static pthread_barrier_t both;
static struct sockaddr_in receiver;

static void *adopt_and_send(void *fd)
{
	pthread_barrier_wait(&both);
	return (void *)(long)((A == apis && xdpd_adopt(*(int *)fd) < 0) || A->sendto(*(int *)fd, "x", 1, 0, SA(receiver)) != 1);
}

/* adopts_twice: two threads send their first datagram at the same time, by one socket. */
static void adopts_twice(void)
{
	int peer = socket(AF_INET, SOCK_DGRAM, 0), fd;
	struct sockaddr_in from[2];
	socklen_t len = sizeof receiver;
	pthread_t th[2];
	char b[1];
	void *r;

	receiver = addr(their, 0);
	if (bind(peer, SA(receiver)) < 0 || getsockname(peer, (struct sockaddr *)&receiver, &len) < 0)
		return;
	pthread_barrier_init(&both, NULL, 2);
	for (int i = 0; i < 20; i++) {
		OK(fd = socket(AF_INET, SOCK_DGRAM, 0));
		for (int k = 0; k < 2; k++)
			pthread_create(&th[k], NULL, adopt_and_send, &fd);
		for (int k = 0; k < 2; k++) {
			pthread_join(th[k], &r);
			IS((long)r, 0);
			IS(recvfrom(peer, b, 1, 0, (struct sockaddr *)&from[k], &len), 1);
		}
		IS(from[0].sin_port, from[1].sin_port);
		IS(A->close(fd), 0);
	}
	pthread_barrier_destroy(&both);
	close(peer);
}

/* selects: sets larger than FD_SETSIZE, and who says by getdtablesize(3) that all of theirs counts. */
static void selects(void)
{
	enum { HIGH = 2000 };
	int fd[2];
	fd_set large[4], in;
	struct rlimit l;

	getrlimit(RLIMIT_NOFILE, &l);
	l.rlim_cur = l.rlim_max;
	setrlimit(RLIMIT_NOFILE, &l);
	pair(fd);
	memset(large, 0, sizeof large);
	FD_ZERO(&in);
	FD_SET(fd[0], &in);
	IS(A->dup2(fd[0], HIGH), HIGH);
	((long *)large)[HIGH / 64] |= 1L << HIGH % 64;
	IS(write(fd[1], "x", 1), 1);
	IS(A->select(HIGH + 1, large, NULL, NULL, NULL), 1);
	IS(((long *)large)[HIGH / 64], 1L << HIGH % 64);
	IS(A->select(A == apis ? getdtablesize() : FD_SETSIZE, &in, NULL, NULL, NULL), 1);
	IS(FD_ISSET(fd[0], &in), 1);
	IS(A->close(HIGH), 0);
	done(fd);
}

static void *wait_for_one(void *ep)
{
	struct epoll_event e;

	return (void *)(long)A->epoll_wait(*(int *)ep, &e, 1, -1);
}

/* turns: where there is place for one event only, each descriptor has its turn, of either kind. */
static void turns(void)
{
	int fd[2], pipe_[2], ep, seen[2] = { 0, 0 };
	struct epoll_event e = { EPOLLIN, { .u32 = 0 } };

	if (pipe(pipe_) < 0)
		return;
	pair(fd);
	OK(ep = A->epoll_create1(0));
	IS(A->epoll_ctl(ep, EPOLL_CTL_ADD, fd[0], &e), 0);
	e.data.u32 = 1;
	IS(A->epoll_ctl(ep, EPOLL_CTL_ADD, pipe_[0], &e), 0);
	IS(write(fd[1], "x", 1), 1);
	IS(write(pipe_[1], "x", 1), 1);
	IS(until(fd[0], POLLIN, PATIENCE), POLLIN);
	for (int i = 0; i < 8; i++) {
		IS(A->epoll_wait(ep, &e, 1, PATIENCE), 1);
		seen[e.data.u32]++;
	}
	IS(seen[0], 4);
	IS(seen[1], 4);
	IS(A->close(ep), 0);
	/* What joins a set while a thread waits for it. */
	pthread_t th;
	void *r;
	OK(ep = A->epoll_create1(0));
	pthread_create(&th, NULL, wait_for_one, &ep);
	nap();
	IS(A->epoll_ctl(ep, EPOLL_CTL_ADD, pipe_[0], &e), 0);
	pthread_join(th, &r);
	IS((long)r, 1);
	IS(A->close(ep), 0);
	close(pipe_[0]);
	close(pipe_[1]);
	done(fd);
}

/* ephemeral: a UDP socket for each question, as resolvers have it. */
static void ephemeral(void)
{
	int peer = socket(AF_INET, SOCK_DGRAM, 0), fd;
	struct sockaddr_in a = addr(their, 0), from;
	socklen_t len = sizeof a;
	char b[8];

	if (bind(peer, SA(a)) < 0 || getsockname(peer, (struct sockaddr *)&a, &len) < 0)
		return;
	for (int i = 0; i < 300; i++) {
		OK(fd = A->socket(AF_INET, SOCK_DGRAM, 0));
		IS(A->sendto(fd, "ask", 3, 0, SA(a)), 3);
		IS(recvfrom(peer, b, 8, 0, (struct sockaddr *)&from, &len), 3);
		IS(sendto(peer, "answer", 6, 0, SA(from)), 6);
		IS(A->recv(fd, b, 8, 0), 6);
		IS(A->close(fd), 0);
	}
	close(peer);
}

/* crowds: many who wait for little, after much came to each, leave memory to write and to those behind them. */
static void crowds(void)
{
	enum { CROWD = 250, ANSWER = 30000 };
	static char b[ANSWER];
	int fd[CROWD][2], p = 7000, l = peer_listen(p), n;
	struct sockaddr_in a = addr(their, p);

	for (int round = 0; round < 2; round++)
		for (int i = 0; i < CROWD; i++) {
			if (round == 0) {
				OK(fd[i][0] = A->socket(AF_INET, SOCK_STREAM, 0));
				IS(A->connect(fd[i][0], SA(a)), 0);
				fd[i][1] = accept(l, NULL, NULL);
			}
			IS(A->write(fd[i][0], "x", 1), 1);
			IS(read(fd[i][1], b, 1), 1);
			IS(write(fd[i][1], b, ANSWER), ANSWER);
			while (ioctl(fd[i][1], SIOCOUTQ, &n) == 0 && n) /* until all of it is there */
				usleep(100);
			IS(A->recv(fd[i][0], b, ANSWER, MSG_WAITALL), ANSWER);
		}
	for (int i = 0; i < CROWD; i++)
		done(fd[i]);
	close(l);
}
