/* libxdpd_corners.h: cases of libxdpd_suite.c that few programs meet. */

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
	IS(A->write(fd[0], big, sizeof big) > 0, 1);
	nap();
	IS(A->ioctl(fd[0], SIOCOUTQ, &n), 0);
	IS(n > 0, 1);
	done(fd);
}
