/*
 * libxdpd.h: sockets of an xdpd in another process, with the calls of POSIX. docs/libxdpd.md says what each does otherwise than the kernel's.
 *
 *	if (xdpd_start("/run/xdpd-clients/eth1") < 0) perror(xdpd_reason());
 *	int fd = xdpd_socket(AF_INET, SOCK_STREAM, 0);
 *
 * A descriptor here is one of the process: behind each socket of xdpd stands a socket of the kernel that is never used, so that its
 * number is nobody else's, and dup2, FD_SETSIZE, FD_CLOEXEC and the limit of open files mean what they always mean. Every call
 * may be given any descriptor; what is not xdpd's goes to the kernel as it is. The calls set errno and return what POSIX says.
 * They may be called by any thread, and after fork by both processes.
 */
#ifndef LIBXDPD_H
#define LIBXDPD_H

#ifdef __cplusplus
extern "C" {
#endif

#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#define XDPD_API __attribute__((visibility("default")))

struct xdpd_ring; /* xdpd_client.h */

/* xdpd_start asks the daemon at path for a ring, once in a process and before the first socket. 0, or -1 with errno. */
XDPD_API int xdpd_start(const char *path);
/* xdpd_start_ring is the same over a ring that is there already, at best with an engine in this process. It is the library's from then on. */
XDPD_API int xdpd_start_ring(struct xdpd_ring *ring);
/* xdpd_stop sends what is under way, closes everything, and takes the library back to its beginning. Nobody may be in a call. */
XDPD_API void xdpd_stop(void);
/* xdpd_finish is what exit(3) does here, for who is about to call _exit(2). */
XDPD_API void xdpd_finish(void);
/*
 * Sockets go on over execve(2) in a program that uses this library as well. xdpd_hand_on gives what is to be in its environment, or NULL: no
 * descriptor of xdpd's stays open. xdpd_hand_back is for an execve that failed. xdpd_take_over, instead of xdpd_start, is given what
 * stands behind XDPD_RING= there. 0, or -1 with errno.
 */
XDPD_API char *xdpd_hand_on(void);
XDPD_API void xdpd_hand_back(char *env);
XDPD_API int xdpd_take_over(const char *value);
/* xdpd_reason says in words why xdpd_start failed; it may be empty. */
XDPD_API const char *xdpd_reason(void);
/* xdpd_gone: the daemon ended, or threw us out. What is asked of sockets fails from then on. */
XDPD_API int xdpd_gone(void);

/* xdpd_is: fd is a socket of xdpd, or an epoll instance made by xdpd_epoll_create1. */
XDPD_API int xdpd_is(int fd);
/* xdpd_own: fd is one of the library's own, which nobody else may close or change. */
XDPD_API int xdpd_own(int fd);
/*
 * xdpd_adopt makes a socket of the kernel, AF_INET and of type SOCK_STREAM or SOCK_DGRAM, that is neither bound nor connected a socket
 * of xdpd under its number, with O_NONBLOCK, timeouts and the options that both have. A registration in an xdpd_epoll comes along. 0, or -1 with errno.
 */
XDPD_API int xdpd_adopt(int fd);

XDPD_API int xdpd_socket(int domain, int type, int protocol); /* what is not AF_INET, stream or datagram: the kernel's */
XDPD_API int xdpd_bind(int fd, const struct sockaddr *addr, socklen_t len);
XDPD_API int xdpd_listen(int fd, int backlog);
XDPD_API int xdpd_accept(int fd, struct sockaddr *addr, socklen_t *len);
XDPD_API int xdpd_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags);
XDPD_API int xdpd_connect(int fd, const struct sockaddr *addr, socklen_t len);
XDPD_API int xdpd_shutdown(int fd, int how);
XDPD_API int xdpd_close(int fd);
XDPD_API int xdpd_dup(int fd);
XDPD_API int xdpd_dup2(int fd, int to);
XDPD_API int xdpd_dup3(int fd, int to, int flags);

XDPD_API ssize_t xdpd_read(int fd, void *buf, size_t n);
XDPD_API ssize_t xdpd_readv(int fd, const struct iovec *v, int n);
XDPD_API ssize_t xdpd_recv(int fd, void *buf, size_t n, int flags);
XDPD_API ssize_t xdpd_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *addr, socklen_t *len);
XDPD_API ssize_t xdpd_recvmsg(int fd, struct msghdr *m, int flags);
XDPD_API ssize_t xdpd_write(int fd, const void *buf, size_t n);
XDPD_API ssize_t xdpd_writev(int fd, const struct iovec *v, int n);
XDPD_API ssize_t xdpd_send(int fd, const void *buf, size_t n, int flags);
XDPD_API ssize_t xdpd_sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *addr, socklen_t len);
XDPD_API ssize_t xdpd_sendmsg(int fd, const struct msghdr *m, int flags);
#ifdef __USE_GNU
XDPD_API int xdpd_recvmmsg(int fd, struct mmsghdr *m, unsigned n, int flags, struct timespec *timeout);
XDPD_API int xdpd_sendmmsg(int fd, struct mmsghdr *m, unsigned n, int flags);
#endif

XDPD_API int xdpd_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
XDPD_API int xdpd_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
XDPD_API int xdpd_getsockname(int fd, struct sockaddr *addr, socklen_t *len);
XDPD_API int xdpd_getpeername(int fd, struct sockaddr *addr, socklen_t *len);
XDPD_API int xdpd_fcntl(int fd, int cmd, ...); /* F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL */
XDPD_API int xdpd_ioctl(int fd, unsigned long request, ...); /* FIONREAD, FIONBIO, SIOCOUTQ */

/* These take descriptors of xdpd and of the kernel in one set. */
XDPD_API int xdpd_poll(struct pollfd *fds, nfds_t n, int ms);
XDPD_API int xdpd_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask);
XDPD_API int xdpd_select(int n, fd_set *in, fd_set *out, fd_set *except, struct timeval *timeout);
XDPD_API int xdpd_pselect(int n, fd_set *in, fd_set *out, fd_set *except, const struct timespec *timeout, const sigset_t *mask);
XDPD_API int xdpd_epoll_create(int size);
XDPD_API int xdpd_epoll_create1(int flags);
XDPD_API int xdpd_epoll_ctl(int ep, int op, int fd, struct epoll_event *event);
XDPD_API int xdpd_epoll_wait(int ep, struct epoll_event *events, int max, int ms);
XDPD_API int xdpd_epoll_pwait(int ep, struct epoll_event *events, int max, int ms, const sigset_t *mask);

#ifdef __cplusplus
}
#endif

#endif
