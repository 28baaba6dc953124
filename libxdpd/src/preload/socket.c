/* socket.c: the calls of sockets under libc's names. bind, connect and sends with an address decide whose a socket is. */
#include "preload.h"

#include <netinet/tcp.h>
#include <sys/syscall.h>

/* <sys/socket.h> declares parameters of these types where one calls. */
#define ADDR(a) ((a).__sockaddr__)

/*
 * Bound to any address and port a socket is the kernel's still, and not bound at all until somebody asks for its name, so that it can
 * move when it connects or sends. One for UDP can even then (NAMED), and takes its port along.
 */
enum { LATE = 1, NAMED };
static unsigned char late[PRELOAD_FDS];

static int late_of(int fd) { return fd >= 0 && fd < PRELOAD_FDS ? __atomic_load_n(&late[fd], __ATOMIC_RELAXED) : 0; }

static void set_late(int fd, int is)
{
	if (late_of(fd) != is && fd >= 0 && fd < PRELOAD_FDS)
		__atomic_store_n(&late[fd], (unsigned char)is, __ATOMIC_RELAXED);
}

/* preload_unname has the kernel forget the port that it chose for a name. */
bool preload_unname(int fd)
{
	static const struct sockaddr none = { .sa_family = AF_UNSPEC };
	bool named = late_of(fd) == NAMED;

	set_late(fd, 0);
	return named && LIBC(connect)(fd, &none, sizeof none) == 0;
}

/* preload_forget: these descriptors are closed. */
void preload_forget(unsigned first, unsigned last)
{
	for (unsigned fd = first; fd <= last && fd < PRELOAD_FDS; fd++)
		set_late((int)fd, 0);
}

/* not_engines reports whether the engine does not have an address: then it is one of the kernel's. */
static bool not_engines(int fd, const struct sockaddr_in *want)
{
	struct sockaddr_in any_port = { .sin_family = AF_INET, .sin_addr = want->sin_addr };
	int type, no = 0;
	socklen_t len = sizeof type;

	if (want->sin_addr.s_addr == INADDR_ANY || LIBC(getsockopt)(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0)
		return false;
	int probe = socket(AF_INET, type | SOCK_CLOEXEC, 0);
	if (probe >= 0 && preload_move(probe) == 0)
		no = xdpd_bind(probe, (struct sockaddr *)&any_port, sizeof any_port) < 0 && errno == EADDRNOTAVAIL;
	if (probe >= 0)
		xdpd_close(probe);
	return no;
}

EXPORT int bind(int fd, __CONST_SOCKADDR_ARG addr, socklen_t len)
{
	const struct sockaddr_in *in = (const void *)ADDR(addr);

	if (!xdpd_is(fd) && preload_ours(ADDR(addr), len, true) && preload_may(fd)) {
		if (in->sin_addr.s_addr == INADDR_ANY && !in->sin_port) {
			set_late(fd, LATE);
			return 0;
		}
		if (!not_engines(fd, in) && preload_move(fd) < 0)
			return -1;
	}
	if (!xdpd_is(fd))
		return LIBC(bind)(fd, ADDR(addr), len);
	/* The sockets of a program that ended are closed when the daemon has noticed: whoever starts it anew need not know. */
	static const struct timespec moment = { 0, 5000000 };
	int r, tries = 0;
	while ((r = xdpd_bind(fd, ADDR(addr), len)) < 0 && errno == EADDRINUSE && tries++ < 20)
		nanosleep(&moment, NULL);
	return r;
}

EXPORT int connect(int fd, __CONST_SOCKADDR_ARG addr, socklen_t len)
{
	if (preload_move_to(fd, ADDR(addr), len) < 0)
		return -1;
	return xdpd_is(fd) ? xdpd_connect(fd, ADDR(addr), len) : LIBC(connect)(fd, ADDR(addr), len);
}

EXPORT int getsockname(int fd, __SOCKADDR_ARG addr, socklen_t *restrict len)
{
	if (late_of(fd) == LATE) {
		struct sockaddr_in any = { .sin_family = AF_INET };
		int type = 0;
		socklen_t n = sizeof type;
		set_late(fd, 0);
		if (!xdpd_is(fd) && preload_may(fd) && LIBC(bind)(fd, (struct sockaddr *)&any, sizeof any) == 0 &&
		    LIBC(getsockopt)(fd, SOL_SOCKET, SO_TYPE, &type, &n) == 0 && type == SOCK_DGRAM)
			set_late(fd, NAMED);
	}
	return xdpd_is(fd) ? xdpd_getsockname(fd, ADDR(addr), len) : LIBC(getsockname)(fd, ADDR(addr), len);
}

EXPORT int getpeername(int fd, __SOCKADDR_ARG addr, socklen_t *restrict len)
{
	return xdpd_is(fd) ? xdpd_getpeername(fd, ADDR(addr), len) : LIBC(getpeername)(fd, ADDR(addr), len);
}

EXPORT int accept(int fd, __SOCKADDR_ARG addr, socklen_t *restrict len)
{
	return xdpd_is(fd) ? xdpd_accept(fd, ADDR(addr), len) : LIBC(accept)(fd, ADDR(addr), len);
}

EXPORT int accept4(int fd, __SOCKADDR_ARG addr, socklen_t *restrict len, int flags)
{
	return xdpd_is(fd) ? xdpd_accept4(fd, ADDR(addr), len, flags) : LIBC(accept4)(fd, ADDR(addr), len, flags);
}

EXPORT ssize_t sendto(int fd, const void *p, size_t n, int flags, __CONST_SOCKADDR_ARG to, socklen_t len)
{
	if (preload_move_to(fd, ADDR(to), len) < 0)
		return -1;
	return xdpd_is(fd) ? xdpd_sendto(fd, p, n, flags, ADDR(to), len) : LIBC(sendto)(fd, p, n, flags, ADDR(to), len);
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
	if (m && preload_move_to(fd, m->msg_name, m->msg_namelen) < 0)
		return -1;
	return xdpd_is(fd) ? xdpd_sendmsg(fd, m, flags) : LIBC(sendmsg)(fd, m, flags);
}

EXPORT int sendmmsg(int fd, struct mmsghdr *m, unsigned n, int flags)
{
	if (n && preload_move_to(fd, m->msg_hdr.msg_name, m->msg_hdr.msg_namelen) < 0)
		return -1;
	return xdpd_is(fd) ? xdpd_sendmmsg(fd, m, n, flags) : LIBC(sendmmsg)(fd, m, n, flags);
}

/* MOVED(r): a receiving call of the kernel's gave nothing because the socket became the engine's while it waited (xdpd_adopt). */
#define MOVED(r) ((r) == 0 && xdpd_is(fd))

EXPORT ssize_t recvfrom(int fd, void *restrict p, size_t n, int flags, __SOCKADDR_ARG from, socklen_t *restrict len)
{
	socklen_t room = len ? *len : 0;

	if (!xdpd_is(fd)) {
		ssize_t r = LIBC(recvfrom)(fd, p, n, flags, ADDR(from), len);
		if (!MOVED(r))
			return r;
		if (len)
			*len = room;
	}
	return xdpd_recvfrom(fd, p, n, flags, ADDR(from), len);
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *m, int flags)
{
	if (!xdpd_is(fd)) {
		struct msghdr before = m ? *m : (struct msghdr){ 0 };
		ssize_t r = LIBC(recvmsg)(fd, m, flags);
		if (!MOVED(r))
			return r;
		*m = before;
	}
	return xdpd_recvmsg(fd, m, flags);
}

/*
 * is_hint: what the engine has not and nobody misses but by how fast it goes. The kernel's socket keeps it, so that it can be read
 * again. What would change the data or who gets it is not among them, and fails.
 */
static bool is_hint(int level, int option)
{
	switch (level) {
	case SOL_SOCKET:
		return option == SO_PRIORITY || option == SO_INCOMING_CPU || option == SO_BUSY_POLL;
	case IPPROTO_IP:
		return option == IP_TOS || option == IP_TTL || option == IP_MTU_DISCOVER || option == IP_BIND_ADDRESS_NO_PORT;
	case IPPROTO_TCP:
		return option == TCP_CORK || option == TCP_QUICKACK || option == TCP_NOTSENT_LOWAT || option == TCP_USER_TIMEOUT ||
		       option == TCP_DEFER_ACCEPT || option == TCP_WINDOW_CLAMP || option == TCP_FASTOPEN || option == TCP_CONGESTION ||
		       option == TCP_MAXSEG || option == TCP_SYNCNT || option == TCP_LINGER2;
	}
	return false;
}

EXPORT int getsockopt(int fd, int level, int option, void *restrict v, socklen_t *restrict n)
{
	int err = errno;

	if (!xdpd_is(fd))
		return LIBC(getsockopt)(fd, level, option, v, n);
	int r = xdpd_getsockopt(fd, level, option, v, n);
	if (r == 0 || errno != ENOPROTOOPT || !is_hint(level, option))
		return r;
	errno = err;
	return LIBC(getsockopt)(fd, level, option, v, n);
}

EXPORT int setsockopt(int fd, int level, int option, const void *v, socklen_t n)
{
	int err = errno;

	if (!xdpd_is(fd))
		return LIBC(setsockopt)(fd, level, option, v, n);
	int r = xdpd_setsockopt(fd, level, option, v, n);
	if (r == 0 || errno != ENOPROTOOPT || !is_hint(level, option))
		return r;
	errno = err;
	return LIBC(setsockopt)(fd, level, option, v, n);
}

/* FORWARD is a call that only asks whose the descriptor is. */
#define FORWARD(result, name, params, args) \
	EXPORT result name params { return xdpd_is(fd) ? xdpd_##name args : LIBC(name) args; }

FORWARD(int, listen, (int fd, int n), (fd, n))
FORWARD(int, shutdown, (int fd, int how), (fd, how))
FORWARD(ssize_t, send, (int fd, const void *p, size_t n, int flags), (fd, p, n, flags))
FORWARD(int, recvmmsg, (int fd, struct mmsghdr *m, unsigned n, int flags, struct timespec *t), (fd, m, n, flags, t))
FORWARD(ssize_t, write, (int fd, const void *p, size_t n), (fd, p, n))
FORWARD(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))

#define RECEIVE(name, params, args) \
	EXPORT ssize_t name params \
	{ \
		ssize_t r = xdpd_is(fd) ? 0 : LIBC(name) args; \
		return MOVED(r) ? xdpd_##name args : r; \
	}

RECEIVE(recv, (int fd, void *p, size_t n, int flags), (fd, p, n, flags))
RECEIVE(read, (int fd, void *p, size_t n), (fd, p, n))
RECEIVE(readv, (int fd, const struct iovec *v, int n), (fd, v, n))

/* What the compiler makes of calls into buffers whose size it knows (_FORTIFY_SOURCE). */
extern void __chk_fail(void) __attribute__((noreturn));

EXPORT ssize_t __read_chk(int fd, void *p, size_t n, size_t room)
{
	if (n > room)
		__chk_fail();
	return read(fd, p, n);
}

EXPORT ssize_t __recv_chk(int fd, void *p, size_t n, size_t room, int flags)
{
	if (n > room)
		__chk_fail();
	return recv(fd, p, n, flags);
}

EXPORT ssize_t __recvfrom_chk(int fd, void *restrict p, size_t n, size_t room, int flags, __SOCKADDR_ARG from, socklen_t *restrict len)
{
	if (n > room)
		__chk_fail();
	return recvfrom(fd, p, n, flags, from, len);
}

/*
 * Some libraries make by syscall(2) what their libc may be too old to have, or what is no place to be canceled at: libuv sends its
 * datagrams so, and closes.
 */
#define P(type, v) ((type)(uintptr_t)(v))

EXPORT long syscall(long n, ...)
{
	va_list list;
	va_start(list, n);
	long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long), d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
	va_end(list);

	switch (n) {
	case SYS_close:
		return preload_close((int)a);
	case SYS_dup3:
		return preload_dup3((int)a, (int)b, (int)c);
	case SYS_sendmmsg:
		return sendmmsg((int)a, P(struct mmsghdr *, b), (unsigned)c, (int)d);
	case SYS_recvmmsg:
		return recvmmsg((int)a, P(struct mmsghdr *, b), (unsigned)c, (int)d, P(struct timespec *, e));
	case SYS_sendmsg:
		return sendmsg((int)a, P(const struct msghdr *, b), (int)c);
	case SYS_recvmsg:
		return recvmsg((int)a, P(struct msghdr *, b), (int)c);
	case SYS_accept4:
		return accept4((int)a, P(struct sockaddr *, b), P(socklen_t *, c), (int)d);
	}
	return LIBC(syscall)(n, a, b, c, d, e, f);
}
