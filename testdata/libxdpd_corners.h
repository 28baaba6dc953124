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
