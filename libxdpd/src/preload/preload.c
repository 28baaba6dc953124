/* preload.c: which addresses are the engine's, and when a socket becomes the engine's. */
#include "preload.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* --only: networks and ports, in host order. Without any: all but what the kernel keeps to itself anyway. */
static struct rule {
	uint32_t network, mask;
	unsigned first, last;
} *rules;
static size_t nrules;

static bool matches(uint32_t addr, unsigned port, bool local)
{
	/* who connects to 0.0.0.0 means this machine, as with 127.0.0.0/8; multicast and above */
	if (addr >> 24 == 127 || addr >> 28 >= 14 || (!local && addr >> 24 == 0))
		return false;
	if (!nrules)
		return true;
	for (size_t i = 0; i < nrules; i++)
		if (port >= rules[i].first && port <= rules[i].last && ((local && !addr) || (addr & rules[i].mask) == rules[i].network))
			return true;
	return false;
}

/* preload_ours reports whether an address is the engine's. A local one may be any address, then its port counts. */
bool preload_ours(const struct sockaddr *a, socklen_t len, bool local)
{
	const struct sockaddr_in *in = (const void *)a;

	return a && len >= sizeof *in && a->sa_family == AF_INET && matches(ntohl(in->sin_addr.s_addr), ntohs(in->sin_port), local);
}

/* read_rules reads what xdpd exec has written: 10.0.0.0/8:80-80, with commas between. */
static void read_rules(const char *s)
{
	while (s && *s) {
		char dotted[16];
		unsigned bits, first, last;
		struct in_addr a;
		int used = 0;
		struct rule *more = NULL;

		if (sscanf(s, "%15[0-9.]/%u:%u-%u%n", dotted, &bits, &first, &last, &used) != 4 || !inet_aton(dotted, &a) || bits > 32 ||
		    (s[used] && s[used] != ',') || !(more = realloc(rules, (nrules + 1) * sizeof *rules))) {
			fprintf(stderr, "xdpd: XDPD_ONLY: \"%s\" is not what xdpd exec writes\n", s);
			_exit(127); /* rather than use the wrong network */
		}
		uint32_t mask = bits ? ~0u << (32 - bits) : 0;
		rules = more;
		rules[nrules++] = (struct rule){ ntohl(a.s_addr) & mask, mask, first, last };
		s += used + (s[used] == ',');
	}
}

/* A ring is for a program that has sockets or an epoll set: who only starts others, as a shell does, asks the daemon for nothing. */
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static bool started;

/* preload_start begins once. say: the caller fails if it does not, and what the program tells of its errno tells nobody why. */
int preload_start(bool say)
{
	static bool said;
	const char *path = getenv("XDPD_SOCKET");
	int r = 0;

	pthread_mutex_lock(&starting);
	if (!started) {
		r = xdpd_start(path ? path : "");
		started = r == 0;
		if (r < 0 && say && !said) {
			int err = errno;
			fprintf(stderr, "xdpd: the daemon at %s: %s%s%s\n", path ? path : "(XDPD_SOCKET is not set)", strerror(err),
			        *xdpd_reason() ? ": " : "", xdpd_reason());
			said = true;
			errno = err;
		}
	}
	pthread_mutex_unlock(&starting);
	return r;
}

static int query(int fd, int option)
{
	int v = -1;
	socklen_t len = sizeof v;

	return LIBC(getsockopt)(fd, SOL_SOCKET, option, &v, &len) < 0 ? -1 : v;
}

/* preload_may reports whether a socket is of a kind that the engine has. */
bool preload_may(int fd)
{
	int type, protocol, err = errno;
	bool may = query(fd, SO_DOMAIN) == AF_INET && (type = query(fd, SO_TYPE), protocol = query(fd, SO_PROTOCOL),
	           (type == SOCK_STREAM && protocol == IPPROTO_TCP) || (type == SOCK_DGRAM && protocol == IPPROTO_UDP));

	errno = err;
	return may;
}

/* preload_move makes the kernel's socket fd the engine's. 0, or -1 with errno. */
int preload_move(int fd) { return preload_start(true) < 0 ? -1 : xdpd_adopt(fd); }

/* preload_move_to does so if to is the engine's and nothing is decided yet. -1: it should have moved, and could not. */
int preload_move_to(int fd, const struct sockaddr *to, socklen_t len)
{
	struct sockaddr_in now;
	socklen_t n = sizeof now;

	if (!to || xdpd_is(fd))
		return 0;
	if (!preload_ours(to, len, false)) {
		preload_forget((unsigned)fd, (unsigned)fd); /* it is the kernel's now */
		return 0;
	}
	if (!preload_may(fd))
		return 0;
	if (LIBC(getsockname)(fd, (struct sockaddr *)&now, &n) < 0 || (now.sin_port && !preload_unname(fd)))
		return 0; /* bound, or connected: the kernel's */
	if (preload_move(fd) < 0)
		return -1;
	now.sin_addr.s_addr = INADDR_ANY;
	if (now.sin_port) /* if the policy has it so, and else another */
		(void)xdpd_bind(fd, (struct sockaddr *)&now, sizeof now);
	return 0;
}

static void before_fork(void) { pthread_mutex_lock(&starting); }
static void after_fork(void) { pthread_mutex_unlock(&starting); }

__attribute__((constructor)) static void init(void)
{
	const char *ring = getenv("XDPD_RING");

	read_rules(getenv("XDPD_ONLY"));
	if (ring) {
		started = xdpd_take_over(ring) == 0;
		unsetenv("XDPD_RING");
		for (int fd = 0; fd < 3; fd++)
			preload_standard(fd);
	}
	pthread_atfork(before_fork, after_fork, after_fork);
}
