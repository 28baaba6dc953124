/*
 * internal.h: what the files of libxdpd share.
 *
 * All that is known of sockets lies in the application's own memory of the ring (struct shared), guarded by one lock, so that
 * processes that came from each other by fork use the same ring and sockets. A process has for itself only which of its
 * descriptors mean which file. Nothing in shared memory is a pointer: files, watches, slots and memory are named by number.
 */
#ifndef XDPD_INTERNAL_H
#define XDPD_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>

#include "libxdpd.h"
#include "xdpd_client.h"

enum {
	PROCESSES = 64,  /* bits of file.users */
	SLOTS = 1024,    /* threads that wait at a time */
	FILES = 4096,
	WATCHES = 16384,
	AHEAD = 16,      /* connections of a listener that were taken and not asked for yet */
	SENDS = 64,      /* SENDs of a socket under way */
	RCV_ORDER = 4,   /* of the memory to read from, at most: 64 KiB */
	UDP_ORDER = 6,   /* of a UDP socket's: DATAGRAMS of DATAGRAM bytes */
	DATAGRAMS = 3,   /* RECV_FROMs of a socket under way */
	DATAGRAM = 65600 /* bytes for each: 65507, the header, and some to align */
};
#define SECOND INT64_C(1000000000)
#define NEVER INT64_MAX

/* What a completion belongs to: in the top byte of its user data. */
enum kind { K_NONE = 1, K_CALL, K_RECV, K_SEND, K_ACCEPT, K_CONNECT, K_POLL, K_CLOSE, K_SPARE };

enum file_type { FREE, SOCKET, EPOLL };
enum state { NEW, LISTENING, CONNECTING, CONNECTED };

/* A file is an open file description. Kept while a descriptor, a thread in a call, or a request of the engine needs it. */
struct file {
	uint8_t type, state;
	bool udp, nonblock, closing; /* closing: no descriptor is left */
	uint8_t process;             /* that is changing it, for repair */
	uint64_t users;              /* processes that have descriptors of it */
	uint32_t gen, pins, requests; /* threads in calls; requests of the engine that are under way */
	uint64_t waiters[SLOTS / 64];
	uint32_t watches; /* of it: list, through watch.next */
	uint32_t todo;    /* next in the list of those to arm; its own number: the last; 0: not in it */

	/* Of an epoll instance. */
	uint32_t ready, ready_tail; /* list through watch.ready */
	uint32_t kernel;            /* the kernel's descriptors that were added */
	int64_t looked;             /* at them, the last time */
	bool filled;                /* ours left no place for them: it is their turn */
	int32_t number;             /* the descriptor that it was made with */

	/* Of a socket. */
	int32_t ring; /* its number there; -1: none */
	int32_t error, hint; /* SO_ERROR; hint: the engine has one that nobody fetched */
	bool fresh, bound, eof, rdhup, hup, shut_rd, shut_wr, broken; /* broken: nothing can be sent any more */
	bool dead, crowded, starved, polled; /* dead: nothing can be received; crowded: no room was seen; starved: for want of requests or memory */
	struct sockaddr_in peer;
	bool has_peer;
	int64_t rcvtimeo, sndtimeo; /* ns; 0: none */
	int32_t reuse, broadcast, oobinline, rcvbuf, sndbuf, keepalive, keepidle, keepintvl, keepcnt, nodelay, reset;

	uint32_t rcv, rcv_at, rcv_len; /* memory; what of it is unread */
	uint8_t rcv_order, rcv_want;
	bool receiving, accepting;
	uint32_t rcv_first, rcv_done, rcv_armed; /* datagrams: the oldest, how many came, and are awaited */
	int32_t rcv_size[DATAGRAMS];

	uint32_t snd, snd_at, snd_used; /* memory, a ring of bytes: where the oldest is, how many */
	uint8_t snd_order;
	uint32_t sends, send_first; /* SENDs under way */
	uint32_t send_size[SENDS], send_skip[SENDS];

	uint32_t acc_head, acc_tail; /* without end, so that one store takes one */
	struct { int32_t ring; struct sockaddr_in peer; } acc[AHEAD];
};

/* A watch is what epoll_ctl added. */
struct watch {
	bool used, listed; /* listed: in the ready list */
	uint32_t ep, file, next, prev, ready; /* ready: next in that list */
	int32_t fd;
	uint32_t events;
	uint64_t data;
};

enum slot_state { RUNS, SPINS, SLEEPS, WOKEN, OWED }; /* OWED: woken out of its sleep, by the relay */

/* A slot is a thread that waits. */
struct slot {
	bool used, done, skip; /* done: its call's completion came; skip: the relay was not for it */
	uint8_t process;
	_Atomic uint8_t state; /* its thread looks at it without the lock while it spins */
	int32_t res;
	uint32_t gen, file; /* file 0: none */
	uint8_t data[192]; /* what the call's SQE points to */
};

struct process {
	bool used;
	int64_t born; /* 0: it lives; else when its parent began to fork it */
};

enum { ORDERS = 8 }; /* of memory: pieces of 4096 << order bytes */

struct shared {
	pthread_mutex_t lock;
	struct xdpd_at at;
	uint32_t told;           /* at.sq_tail, when kick was called last */
	bool gone;
	uint32_t sleepers, owed; /* slots in SLEEPS and OWED; in OWED */
	uint32_t todo;           /* files to arm */
	uint32_t requests, limit;
	int32_t spare;           /* the number of a stream socket for the next one, + 1; 0: none; -1: it is asked for */
	bool starved;            /* files wait for requests or memory to be free */
	uint32_t files, watches; /* no used one from here on */
	uint32_t changing;       /* the file that the owner of the lock is at */
	struct process processes[PROCESSES];
	struct slot slots[SLOTS];
	uint32_t units, bump, used, heap; /* of 4096 bytes: how many, the first that never was used, how many are; heap: offset of the first */
	uint32_t free[ORDERS];
	struct watch watch[WATCHES];
	struct file file[FILES];
	uint32_t next[]; /* of a free piece: by its first unit */
};

/* Of the process. */
extern struct xdpd_ring ring;
extern struct shared *S; /* NULL: not started */
extern int me, relay;
extern pid_t owner; /* who me is: not a child of clone(2), of which pthread_atfork's handlers do not hear */
extern int64_t spin;             /* ns before a thread sleeps */
extern _Atomic int32_t *numbers; /* by descriptor: file, or 0 */
extern uint32_t held[FILES];     /* descriptors of each file */
enum { NUMBERS = 1 << 20 };

/* start.c */
bool enter(void); /* takes the lock; false, with errno: it can't be had */
void leave(void);
void check_processes(void);
bool life(int process, bool take);
void prepare(void);
int64_t now(void);
int fail(int err); /* errno = err, -1 */

/* mem.c: order up to at least bytes. 0: none is free */
uint32_t mem_get(uint8_t *order);
uint8_t mem_order(uint8_t order);
void mem_put(uint32_t at, uint8_t order);
static inline uint8_t *mem(uint32_t at) { return ring.data + at; }
static inline uint64_t offset(const void *p) { return (uint64_t)((const uint8_t *)p - ring.data); }

/* engine.c */
struct xdpd_sqe *request(enum kind kind, uint32_t id, int op, int fd);
void publish(void);
void kick(void);
bool reap(void); /* takes completions; reports whether there were any */
void arm(struct file *f);
void arm_later(struct file *f);
void look_on(struct file *f);
void drop_accepted(struct file *f);
void lost(void);
int32_t call(struct slot *slot, struct file *f, int32_t fd, int op, struct xdpd_sqe like);

/* wait.c */
struct slot *slot_get(struct file *f); /* keeps the file; NULL: all are taken */
void slot_put(struct slot *s);
void wait_on(struct slot *s, struct file *f);
int sleeps(struct slot *s, struct pollfd *fds, nfds_t n, const struct timespec *t, const sigset_t *mask);
int rest(struct slot *s, struct pollfd *fds, nfds_t n, int64_t deadline, const sigset_t *mask);
int await(struct slot *s, struct file *f, int64_t deadline);
void wake(struct file *f);
void wake_slot(struct slot *s);
bool restarts(void);

/* file.c */
struct file *file_new(enum file_type type);
struct file *file_of(int fd); /* NULL: the kernel's */
static inline uint32_t id_of(const struct file *f) { return (uint32_t)(f - S->file); }
void file_free(struct file *f); /* if nobody needs it any more */
void file_unuse(struct file *f, int process);
int install(struct file *f, int fd);
void uninstall(int fd);

/* socket.c, recv.c, send.c */
uint32_t ready(struct file *f);
void socket_close(struct file *f);
void happened(struct file *f, uint32_t what); /* epoll.c */
void received(struct file *f, int32_t res);
void sent(struct file *f, int32_t res);
bool roomy(const struct file *f);
ssize_t receive(int fd, struct msghdr *m, int flags);
ssize_t transmit(int fd, const struct msghdr *m, int flags);
int set_option(struct slot *s, struct file *f, int level, int name, int value);
void inherit(struct file *f, const struct file *of);

/* epoll.c */
void unwatch_all(struct file *f);
void rewatch(void);
int epoll_move(int fd, struct file *f);

#endif
