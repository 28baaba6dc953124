/*
 * xdpd_client.h: the application's end of the rings of an xdpd in another process, in one header of plain C11. docs/clients.md is the contract,
 * docs/ring.md says what the operations do. One thread at a time may submit, and one may take completions.
 *
 *	struct xdpd_ring x;
 *	if (xdpd_ring_open(&x, "/run/xdpd-clients/eth1", 256, 1 << 20) < 0) perror(x.reason);
 *	struct xdpd_sqe *s = xdpd_ring_sqe(&x);        // zeroed; NULL: the SQ is full
 *	s->opcode = XDPD_NOP, s->user_data = 1;
 *	xdpd_ring_submit(&x);
 *	struct xdpd_cqe c;
 *	while (!xdpd_ring_take(&x, &c)) if (xdpd_ring_wait(&x, -1) < 0) break;
 */
#ifndef XDPD_CLIENT_H
#define XDPD_CLIENT_H

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
	XDPD_NOP = 0, XDPD_POLL_ADD = 6, XDPD_POLL_REMOVE = 7, XDPD_TIMEOUT = 11, XDPD_TIMEOUT_REMOVE = 12, XDPD_ACCEPT = 13,
	XDPD_CANCEL = 14, XDPD_LINK_TIMEOUT = 15, XDPD_CONNECT = 16, XDPD_CLOSE = 19, XDPD_SEND = 26, XDPD_RECV = 27, XDPD_EPOLL_CTL = 29,
	XDPD_EPOLL_WAIT = 59, XDPD_SHUTDOWN = 34, XDPD_SOCKET = 45, XDPD_BIND = 56, XDPD_LISTEN = 57, XDPD_RECV_FROM = 128, XDPD_SOCK_NAME = 133,
	XDPD_SET_SOCK_OPT = 134, XDPD_GET_SOCK_OPT = 135,
	XDPD_SQE_LINK = 1 << 2, XDPD_SQE_HARD_LINK = 1 << 3, XDPD_SQE_SKIP_SUCCESS = 1 << 6, /* flags */
	XDPD_POLL_MULTI = 1 << 0, /* len of POLL_ADD */
	XDPD_CQE_MORE = 1 << 1,
	XDPD_RECV_HEADER = 32 /* bytes of RECV_FROM's header: length of the address, 0, length of the datagram, flags; then the sockaddr_in */
};

struct xdpd_sqe {
	uint8_t opcode, flags;
	uint16_t ioprio;
	int32_t fd;
	uint64_t off, addr;
	uint32_t len, op_flags;
	uint64_t user_data;
	uint16_t buf_group, reserved;
	uint32_t file_index;
	uint64_t addr3, pad;
};

struct xdpd_cqe {
	uint64_t user_data;
	int32_t res;
	uint32_t flags;
};

/* How far the application is in the rings. It may lie in memory that processes share, of which one at a time uses the ring. */
struct xdpd_at {
	uint32_t sq_tail, cq_head, submitted;
};

struct xdpd_ring {
	uint8_t *mem, *data; /* all of it, and the application's own: addresses in SQEs are offsets in data */
	uint64_t size, data_len;
	uint32_t mtu, sq_entries, cq_entries;
	uint32_t requests; /* that may be in flight; 0: not known */
	struct xdpd_sqe *sqes;
	struct xdpd_cqe *cqes;
	struct xdpd_at *at; /* own, unless somebody puts it elsewhere */
	struct xdpd_at own;
	int conn, memfd;  /* -1: the engine is in this process */
	char reason[256]; /* why xdpd_ring_open failed, in words; may be empty */

	/*
	 * The way to the engine. NULL is the connection and the clock of the machine; an engine in the same process (xdpd_ring_join)
	 * has its own. knock: it sleeps, and is to look at the SQ. wait: sleep until the CQ's tail reached the wanted one, as
	 * xdpd_ring_wait says below, or an fd is ready as poll(2) has it, or ns nanoseconds are over (negative: no limit); gives what poll
	 * does (a completion alone is 0), or -1 with errno: EINTR, or EPIPE when the engine is gone. now: nanoseconds of the clock.
	 */
	void (*knock)(struct xdpd_ring *);
	int (*wait)(struct xdpd_ring *, struct pollfd *fds, nfds_t n, int64_t ns);
	int64_t (*now)(struct xdpd_ring *);
	void *engine; /* theirs */
};

static inline _Atomic uint32_t *xdpd_ring_word(struct xdpd_ring *x, unsigned at)
{
	return (_Atomic uint32_t *)(void *)(x->mem + at);
}

enum { XDPD_SQ_HEAD = 128, XDPD_SQ_TAIL = 256, XDPD_SQ_FLAGS = 384, XDPD_CQ_HEAD = 512, XDPD_CQ_TAIL = 640, XDPD_CQ_FLAGS = 768, XDPD_CQ_WANT = 772 };

static inline void xdpd_ring_close(struct xdpd_ring *x)
{
	if (x->mem)
		munmap(x->mem, x->size);
	if (x->conn >= 0)
		close(x->conn);
	if (x->memfd >= 0)
		close(x->memfd);
	x->mem = NULL, x->conn = x->memfd = -1;
}

/* xdpd_ring_join is the application's end of the ring that an engine made at mem; its own memory is len bytes at data from there. */
static inline void xdpd_ring_join(struct xdpd_ring *x, void *mem, uint64_t data, uint64_t len)
{
	uint32_t head[8];

	memcpy(head, mem, sizeof head);
	x->mem = mem, x->data = x->mem + data, x->data_len = len;
	x->sq_entries = head[3], x->cq_entries = head[4];
	x->sqes = (struct xdpd_sqe *)(void *)(x->mem + head[5]);
	x->cqes = (struct xdpd_cqe *)(void *)(x->mem + head[6]);
	x->at = &x->own;
}

/* The hello of docs/clients.md. */
struct xdpd_hello {
	uint32_t magic, version, sq_entries, cq_entries, requests, sockets, fixed, reactor;
	uint64_t data;
};

/* xdpd_ring_ask asks the daemon at path for what hello says. 0, or -1 with errno. */
static inline int xdpd_ring_ask(struct xdpd_ring *x, const char *path, struct xdpd_hello hello)
{
	hello.magic = 0x68737264, hello.version = 1;
	struct { uint32_t magic, version, err, reactor; uint64_t size, data, len; uint32_t mtu, reactors; char reason[256]; } welcome;
	union { struct cmsghdr h; char space[CMSG_SPACE(sizeof(int))]; } control;
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct iovec io = { &welcome, sizeof welcome };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	int err = 0;

	memset(x, 0, sizeof *x);
	x->conn = x->memfd = -1;
	if (strlen(path) >= sizeof a.sun_path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(a.sun_path, path);
	if ((x->conn = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) < 0)
		return -1;
	if (connect(x->conn, (struct sockaddr *)&a, sizeof a) < 0 ||
	    send(x->conn, &hello, sizeof hello, MSG_NOSIGNAL) != sizeof hello) {
		err = errno;
		goto out;
	}
	ssize_t n = recvmsg(x->conn, &m, MSG_CMSG_CLOEXEC);
	for (struct cmsghdr *c = n < 0 ? NULL : CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof x->memfd))
			memcpy(&x->memfd, CMSG_DATA(c), sizeof x->memfd);
	if (n != (ssize_t)sizeof welcome || welcome.magic != hello.magic || welcome.version != hello.version) {
		err = n < 0 ? errno : EPROTO;
	} else if (welcome.err) {
		err = (int)welcome.err;
		memcpy(x->reason, welcome.reason, sizeof x->reason - 1);
	} else if (x->memfd < 0) {
		err = EPROTO;
	} else {
		x->size = welcome.size, x->mtu = welcome.mtu, x->requests = hello.requests;
		x->mem = mmap(NULL, x->size, PROT_READ | PROT_WRITE, MAP_SHARED, x->memfd, 0);
		if (x->mem == MAP_FAILED)
			err = errno, x->mem = NULL;
	}
	if (err)
		goto out;
	xdpd_ring_join(x, x->mem, welcome.data, welcome.len);
	return 0;
out:
	xdpd_ring_close(x);
	errno = err;
	return -1;
}

/* xdpd_ring_open asks for rings of entries (a power of two) and data bytes of memory. 0, or -1 with errno. */
static inline int xdpd_ring_open(struct xdpd_ring *x, const char *path, uint32_t entries, uint64_t data)
{
	return xdpd_ring_ask(x, path, (struct xdpd_hello){ .sq_entries = entries, .cq_entries = 2 * entries, .data = data });
}

/* xdpd_ring_sqe gives a free entry, all zero; NULL: the SQ is full. */
static inline struct xdpd_sqe *xdpd_ring_sqe(struct xdpd_ring *x)
{
	if (x->at->sq_tail - atomic_load_explicit(xdpd_ring_word(x, XDPD_SQ_HEAD), memory_order_acquire) >= x->sq_entries)
		return NULL;
	struct xdpd_sqe *s = &x->sqes[x->at->sq_tail++ & (x->sq_entries - 1)];
	memset(s, 0, sizeof *s);
	return s;
}

/* xdpd_ring_submit hands what was filled in to the engine. It makes a system call only when the engine sleeps. */
static inline void xdpd_ring_submit(struct xdpd_ring *x)
{
	if (x->at->submitted != x->at->sq_tail)
		atomic_store(xdpd_ring_word(x, XDPD_SQ_TAIL), x->at->sq_tail); /* ordered before the load: the engine looks again after it said that it sleeps */
	x->at->submitted = x->at->sq_tail;
	if (!(atomic_load(xdpd_ring_word(x, XDPD_SQ_FLAGS)) & 1))
		return;
	if (x->knock)
		x->knock(x);
	else if (send(x->conn, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		return; /* full of knocks, or gone: xdpd_ring_wait tells */
}

/* xdpd_ring_take moves the oldest completion to c. 0: there is none. */
static inline int xdpd_ring_take(struct xdpd_ring *x, struct xdpd_cqe *c)
{
	if (x->at->cq_head == atomic_load_explicit(xdpd_ring_word(x, XDPD_CQ_TAIL), memory_order_acquire))
		return 0;
	*c = x->cqes[x->at->cq_head++ & (x->cq_entries - 1)];
	atomic_store_explicit(xdpd_ring_word(x, XDPD_CQ_HEAD), x->at->cq_head, memory_order_release);
	if (atomic_load(xdpd_ring_word(x, XDPD_SQ_FLAGS)) & 2) /* completions wait for the place */
		xdpd_ring_submit(x);
	return 1;
}

/* xdpd_ring_doze tells the engine to knock when there is a completion to take. 0: there is one already. xdpd_ring_awake takes it back. */
static inline int xdpd_ring_doze(struct xdpd_ring *x)
{
	atomic_store(xdpd_ring_word(x, XDPD_CQ_WANT), x->at->cq_head + 1);
	atomic_fetch_or(xdpd_ring_word(x, XDPD_CQ_FLAGS), 1);
	return x->at->cq_head == atomic_load(xdpd_ring_word(x, XDPD_CQ_TAIL));
}

static inline void xdpd_ring_awake(struct xdpd_ring *x)
{
	atomic_fetch_and(xdpd_ring_word(x, XDPD_CQ_FLAGS), ~1u);
}

/* xdpd_ring_wait sleeps until there is a completion to take, for ms milliseconds at most (negative: no limit). -1: the daemon is gone (EPIPE). */
static inline int xdpd_ring_wait(struct xdpd_ring *x, int ms)
{
	int gone = 0;

	if (xdpd_ring_doze(x)) {
		struct pollfd p = { x->conn, POLLIN, 0 };
		char knock;
		if (x->wait)
			gone = x->wait(x, NULL, 0, ms < 0 ? -1 : ms * INT64_C(1000000)) < 0 && errno == EPIPE;
		else if (poll(&p, 1, ms) > 0) /* else the time is over, or a signal came */
			gone = recv(x->conn, &knock, 1, MSG_DONTWAIT) == 0 || p.revents & (POLLERR | POLLHUP);
	}
	xdpd_ring_awake(x);
	if (gone)
		errno = EPIPE;
	return gone ? -1 : 0;
}

#endif
