/*
 * preload.h: inside of the library that xdpd exec preloads: libxdpd under the names of libc. docs/exec.md says what it does.
 *
 * A socket begins as the kernel's, and becomes the engine's (xdpd_adopt) when it binds, connects or sends to an address that is the
 * engine's. The library is linked with --wrap: what libxdpd and these files call by libc's names is libc's, and what the program
 * calls by them is ours.
 */
#ifndef XDPD_PRELOAD_H
#define XDPD_PRELOAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>

#include "../libxdpd.h"

#define EXPORT __attribute__((visibility("default")))

/* What is replaced: result, name, parameters, arguments. cc.args has the same names for the linker. */
#define PRELOAD_CALLS(X) \
	X(int, bind, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n)) \
	X(int, listen, (int fd, int n), (fd, n)) \
	X(int, accept, (int fd, struct sockaddr *a, socklen_t *n), (fd, a, n)) \
	X(int, accept4, (int fd, struct sockaddr *a, socklen_t *n, int flags), (fd, a, n, flags)) \
	X(int, connect, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n)) \
	X(int, shutdown, (int fd, int how), (fd, how)) \
	X(int, getsockname, (int fd, struct sockaddr *a, socklen_t *n), (fd, a, n)) \
	X(int, getpeername, (int fd, struct sockaddr *a, socklen_t *n), (fd, a, n)) \
	X(int, getsockopt, (int fd, int level, int option, void *v, socklen_t *n), (fd, level, option, v, n)) \
	X(int, setsockopt, (int fd, int level, int option, const void *v, socklen_t n), (fd, level, option, v, n)) \
	X(ssize_t, send, (int fd, const void *p, size_t n, int flags), (fd, p, n, flags)) \
	X(ssize_t, sendto, (int fd, const void *p, size_t n, int flags, const struct sockaddr *a, socklen_t len), (fd, p, n, flags, a, len)) \
	X(ssize_t, sendmsg, (int fd, const struct msghdr *m, int flags), (fd, m, flags)) \
	X(int, sendmmsg, (int fd, struct mmsghdr *m, unsigned n, int flags), (fd, m, n, flags)) \
	X(ssize_t, recv, (int fd, void *p, size_t n, int flags), (fd, p, n, flags)) \
	X(ssize_t, recvfrom, (int fd, void *p, size_t n, int flags, struct sockaddr *a, socklen_t *len), (fd, p, n, flags, a, len)) \
	X(ssize_t, recvmsg, (int fd, struct msghdr *m, int flags), (fd, m, flags)) \
	X(int, recvmmsg, (int fd, struct mmsghdr *m, unsigned n, int flags, struct timespec *t), (fd, m, n, flags, t)) \
	X(ssize_t, read, (int fd, void *p, size_t n), (fd, p, n)) \
	X(ssize_t, write, (int fd, const void *p, size_t n), (fd, p, n)) \
	X(ssize_t, readv, (int fd, const struct iovec *v, int n), (fd, v, n)) \
	X(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n)) \
	X(int, close, (int fd), (fd)) \
	X(int, close_range, (unsigned first, unsigned last, int flags), (first, last, flags)) \
	X(int, dup, (int fd), (fd)) \
	X(int, dup2, (int fd, int to), (fd, to)) \
	X(int, dup3, (int fd, int to, int flags), (fd, to, flags)) \
	X(int, fcntl, (int fd, int cmd, void *arg), (fd, cmd, arg)) \
	X(int, ioctl, (int fd, unsigned long request, void *arg), (fd, request, arg)) \
	X(ssize_t, sendfile, (int fd, int in, off_t *at, size_t n), (fd, in, at, n)) \
	X(ssize_t, splice, (int in, off64_t *in_at, int out, off64_t *out_at, size_t n, unsigned flags), (in, in_at, out, out_at, n, flags)) \
	X(FILE *, fdopen, (int fd, const char *mode), (fd, mode)) \
	X(int, vdprintf, (int fd, const char *text, va_list l), (fd, text, l)) \
	X(int, __vdprintf_chk, (int fd, int flag, const char *text, va_list l), (fd, flag, text, l)) \
	X(int, poll, (struct pollfd *p, nfds_t n, int ms), (p, n, ms)) \
	X(int, ppoll, (struct pollfd *p, nfds_t n, const struct timespec *t, const sigset_t *s), (p, n, t, s)) \
	X(int, select, (int n, fd_set *r, fd_set *w, fd_set *x, struct timeval *t), (n, r, w, x, t)) \
	X(int, pselect, (int n, fd_set *r, fd_set *w, fd_set *x, const struct timespec *t, const sigset_t *s), (n, r, w, x, t, s)) \
	X(int, epoll_create, (int n), (n)) \
	X(int, epoll_create1, (int flags), (flags)) \
	X(int, epoll_ctl, (int ep, int op, int fd, struct epoll_event *e), (ep, op, fd, e)) \
	X(int, epoll_wait, (int ep, struct epoll_event *e, int max, int ms), (ep, e, max, ms)) \
	X(int, epoll_pwait, (int ep, struct epoll_event *e, int max, int ms, const sigset_t *s), (ep, e, max, ms, s)) \
	X(pid_t, fork, (void), ()) \
	X(int, execve, (const char *p, char *const a[], char *const e[]), (p, a, e)) \
	X(int, execvpe, (const char *p, char *const a[], char *const e[]), (p, a, e)) \
	X(long, syscall, (long n, long a, long b, long c, long d, long e, long g), (n, a, b, c, d, e, g))

/* LIBC(read)(fd, p, n) is libc's read. The linker gives it these names. */
#define LIBC(name) __wrap_##name
#define X(result, name, params, args) result LIBC(name) params;
PRELOAD_CALLS(X)
#undef X

/* Descriptors above are never looked at one by one. */
enum { PRELOAD_FDS = 1 << 20 };

int preload_start(bool say);
bool preload_may(int fd);
bool preload_ours(const struct sockaddr *a, socklen_t len, bool local);
int preload_move(int fd);
int preload_move_to(int fd, const struct sockaddr *to, socklen_t len);
int preload_close(int fd); /* close and dup3 as the program has them */
int preload_dup3(int fd, int to, int flags);
bool preload_unname(int fd);
void preload_standard(int fd);
void preload_forget(unsigned first, unsigned last);

#endif
