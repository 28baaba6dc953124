/* libxdpd_suite.h: what the cases of libxdpd_suite.c stand on. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../libxdpd/src/libxdpd.h"

/* The calls, of the library or of the kernel. */
static struct api {
	const char *name;
	int (*socket)(int, int, int), (*bind)(int, const struct sockaddr *, socklen_t), (*listen)(int, int);
	int (*accept4)(int, struct sockaddr *, socklen_t *, int), (*connect)(int, const struct sockaddr *, socklen_t);
	int (*shutdown)(int, int), (*close)(int), (*dup)(int), (*dup2)(int, int);
	ssize_t (*read)(int, void *, size_t), (*write)(int, const void *, size_t), (*recv)(int, void *, size_t, int), (*send)(int, const void *, size_t, int);
	ssize_t (*readv)(int, const struct iovec *, int), (*writev)(int, const struct iovec *, int);
	ssize_t (*recvfrom)(int, void *, size_t, int, struct sockaddr *, socklen_t *);
	ssize_t (*sendto)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
	ssize_t (*recvmsg)(int, struct msghdr *, int), (*sendmsg)(int, const struct msghdr *, int);
	int (*recvmmsg)(int, struct mmsghdr *, unsigned, int, struct timespec *), (*sendmmsg)(int, struct mmsghdr *, unsigned, int);
	int (*getsockopt)(int, int, int, void *, socklen_t *), (*setsockopt)(int, int, int, const void *, socklen_t);
	int (*getsockname)(int, struct sockaddr *, socklen_t *), (*getpeername)(int, struct sockaddr *, socklen_t *);
	int (*fcntl)(int, int, ...), (*ioctl)(int, unsigned long, ...);
	int (*poll)(struct pollfd *, nfds_t, int), (*select)(int, fd_set *, fd_set *, fd_set *, struct timeval *);
	int (*epoll_create1)(int), (*epoll_ctl)(int, int, int, struct epoll_event *), (*epoll_wait)(int, struct epoll_event *, int, int);
} apis[2] = {
#define CALLS(p) p(socket), p(bind), p(listen), p(accept4), p(connect), p(shutdown), p(close), p(dup), p(dup2), p(read), p(write), p(recv), p(send), \
	p(readv), p(writev), p(recvfrom), p(sendto), p(recvmsg), p(sendmsg), p(recvmmsg), p(sendmmsg), p(getsockopt), p(setsockopt), p(getsockname), \
	p(getpeername), p(fcntl), p(ioctl), p(poll), p(select), p(epoll_create1), p(epoll_ctl), p(epoll_wait)
#define OURS(name) xdpd_##name
#define THEIRS(name) name
	{ "libxdpd", CALLS(OURS) }, { "kernel", CALLS(THEIRS) },
}, *A;
static struct in_addr our, their; /* the address of A's sockets, and of the peer's */
static int port = 2000;
static const char *at = "";
static volatile int line;
static int faults;

static void fault(int line, const char *what, long got, long want)
{
	printf("%s: %s, line %d: %s is %ld, want %ld (errno %d)\n", A->name, at, line, what, got, want, errno);
	faults++;
}
#define IS(what, want) do { errno = 0, line = __LINE__; long got_ = (long)(what), want_ = (long)(want); if (got_ != want_) fault(__LINE__, #what, got_, want_); } while (0)
/* FAILS: -1 with that errno. */
#define FAILS(what, err) do { errno = 0, line = __LINE__; long got_ = (long)(what); if (got_ != -1 || errno != (err)) fault(__LINE__, #what, got_ == -1 ? errno : -got_, err); } while (0)
#define OK(what) do { errno = 0, line = __LINE__; if ((long)(what) < 0) fault(__LINE__, #what, -1, 0); } while (0)

static struct sockaddr_in addr(struct in_addr a, int p) { return (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons((uint16_t)p), .sin_addr = a }; }
#define SA(a) (struct sockaddr *)&(a), sizeof(a)

/* peer_listen and peer_connect are the kernel's other end. */
static int peer_listen(int p)
{
	struct sockaddr_in a = addr(their, p);
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(fd, SA(a)) < 0 || listen(fd, 16) < 0)
		perror("the peer listens");
	return fd;
}

static int peer_connect(int p)
{
	struct sockaddr_in a = addr(our, p);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, SA(a)) < 0)
		perror("the peer connects");
	return fd;
}

/* pair is a connection: [0] is A's end. */
static void pair(int fd[2])
{
	int p = port++, l = peer_listen(p);
	struct sockaddr_in a = addr(their, p);
	OK(fd[0] = A->socket(AF_INET, SOCK_STREAM, 0));
	IS(A->connect(fd[0], SA(a)), 0);
	fd[1] = accept(l, NULL, NULL);
	close(l);
}

static void done(int fd[2])
{
	IS(A->close(fd[0]), 0);
	close(fd[1]);
}

static int until(int fd, short events, int ms)
{
	struct pollfd p = { fd, events, 0 };
	int r = A->poll(&p, 1, ms);
	return r < 0 ? -1 : p.revents;
}
enum { PATIENCE = 20000 };

static void nap(void) { usleep(20000); } /* only where something must not happen */
