/* start.c: how the library begins, forks and ends, and its lock. */
#include "internal.h"

#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include "kernel.h"

struct xdpd_ring ring = { .conn = -1, .memfd = -1 };
struct shared *S;
int me, relay = -1;
int64_t spin = 20000;
_Atomic int32_t *numbers;
uint32_t held[FILES];
pid_t owner;
static __thread int unborn = -1; /* the place of the process that this thread is forking */
static __thread bool forking;    /* it has the lock for that */

int fail(int err)
{
	errno = err;
	return -1;
}

int64_t now(void)
{
	struct timespec t;

	if (ring.now)
		return ring.now(&ring);
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SECOND + t.tv_nsec;
}

/* retract takes back what a dead process had prepared for the ring and not submitted. */
static void retract(void)
{
	for (uint32_t at = S->at.submitted; at != S->at.sq_tail; at++) {
		const struct xdpd_sqe *s = &ring.sqes[at & (ring.sq_entries - 1)];
		struct file *f = &S->file[(uint32_t)s->user_data % FILES];
		enum kind kind = (enum kind)(s->user_data >> 56);
		if (!kind)
			continue;
		S->requests -= S->requests > 0;
		if (kind != K_CALL)
			f->requests -= f->requests > 0;
		if (kind == K_RECV && f->udp)
			f->rcv_armed -= f->rcv_armed > 0;
		else if (kind == K_RECV)
			f->receiving = false;
		else if (kind == K_ACCEPT)
			f->accepting = false;
		else if (kind == K_POLL)
			f->polled = false;
		else if (kind == K_SPARE)
			S->spare = 0;
	}
	S->at.sq_tail = S->at.submitted;
}

/*
 * repair makes the state whole after a process died with the lock: lists are made anew, and the connection that it was changing, of
 * which nobody knows how much was read or written, is given up.
 */
static void repair(void)
{
	uint32_t id = S->changing;

	retract();
	for (uint32_t i = 1; i < S->files; i++)
		S->file[i].todo = 0;
	S->todo = 0;
	if (id && S->file[id].type == SOCKET && S->file[id].state == CONNECTED && !S->file[id].udp) {
		struct file *f = &S->file[id];
		f->error = ECONNRESET, f->eof = f->broken = f->dead = f->hup = true;
	}
	rewatch();
	S->used = 0;
	for (uint32_t i = 1; i < S->files; i++) {
		struct file *f = &S->file[i];
		if (f->type != SOCKET)
			continue;
		S->used += (f->rcv ? 1u << f->rcv_order : 0) + (f->snd ? 1u << f->snd_order : 0);
		arm_later(f);
	}
}

bool enter(void)
{
	int err = S ? pthread_mutex_lock(&S->lock) : ENETDOWN;

	if (err == EOWNERDEAD) {
		pthread_mutex_consistent(&S->lock);
		repair();
		err = 0;
	}
	if (err)
		errno = err;
	return !err;
}

void leave(void)
{
	int err = errno;

	publish();
	S->changing = 0;
	pthread_mutex_unlock(&S->lock);
	errno = err;
}

/* A process holds the lock of byte PROCESS of the memory's file, which the kernel takes from it when it dies, however that comes. */
bool life(int process, bool take)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = process, .l_len = 1 };

	if (ring.memfd < 0)
		return true;
	if (take)
		return k_fcntl(ring.memfd, F_SETLK, (long)&l) == 0;
	return k_fcntl(ring.memfd, F_GETLK, (long)&l) < 0 || l.l_type != F_UNLCK;
}

static void bury(int process)
{
	for (int i = 0; i < SLOTS; i++)
		if (S->slots[i].used && S->slots[i].process == process)
			slot_put(&S->slots[i]);
	for (uint32_t i = 1; i < S->files; i++)
		file_unuse(&S->file[i], process);
	S->processes[process].used = false;
}

/* check_processes gives back what dead ones had. */
void check_processes(void)
{
	bool found = false;

	for (int i = 0; i < PROCESSES; i++) {
		struct process *p = &S->processes[i];
		if (!p->used || i == me || i == unborn || (p->born && now() - p->born < SECOND) || life(i, false))
			continue;
		bury(i);
		found = true;
	}
	for (uint32_t i = 1; found && i < S->files; i++) { /* what was being made */
		struct file *f = &S->file[i];
		if (f->type != FREE && !f->users && !f->pins && !f->closing) {
			unwatch_all(f);
			if (f->type == SOCKET)
				socket_close(f);
			file_free(f);
		}
	}
}

/* Nobody opens or closes anything while the process forks, so that both have the same descriptors. The lock is the parent's. */
static void before_fork(void)
{
	unborn = -1;
	forking = S && enter();
	if (!forking)
		return;
	check_processes();
	for (int i = 0; i < PROCESSES && ring.memfd >= 0; i++)
		if (!S->processes[i].used) {
			S->processes[i] = (struct process){ .used = true, .born = now() };
			unborn = i;
			for (uint32_t f = 1; f < S->files; f++)
				if (held[f])
					S->file[f].users |= UINT64_C(1) << i;
			break;
		}
}

static void in_parent(void)
{
	if (forking)
		leave();
	forking = false, unborn = -1;
}

static void in_child(void)
{
	forking = false;
	if (!S)
		return;
	if (unborn < 0 || !life(unborn, true)) { /* there is no place for it: none of the descriptors is its */
		for (int fd = 0; fd < NUMBERS; fd++)
			if (numbers[fd])
				numbers[fd] = 0;
		S = NULL;
		return;
	}
	me = unborn, unborn = -1, owner = getpid();
	S->processes[me].born = 0;
}

/* private gives a descriptor a high number, where programs that count on low ones do not meet it. */
static int private(int fd)
{
	struct rlimit l = { 1024, 1024 };
	int high = -1;

	if (fd < 0)
		return fd;
	getrlimit(RLIMIT_NOFILE, &l);
	for (long from = (long)(l.rlim_cur < 65536 ? l.rlim_cur : 65536) - 16; high < 0 && from > 64; from -= 64)
		high = k_fcntl(fd, F_DUPFD_CLOEXEC, from);
	if (high < 0)
		return fd;
	k_close(fd);
	return high;
}

static void forks(void) { pthread_atfork(before_fork, in_parent, in_child); }

/* prepare is what a process does once. */
void prepare(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	const char *s = getenv("XDPD_SPIN_US");

	if (s)
		spin = atoi(s) * INT64_C(1000);
	owner = getpid();
	pthread_once(&once, forks);
}

static int begin(void)
{
	pthread_mutexattr_t a;

	if (ring.data_len < sizeof(struct shared) + (1 << 20))
		return fail(ENOMEM);
	numbers = mmap(NULL, NUMBERS * sizeof *numbers, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (numbers == MAP_FAILED)
		return -1;
	relay = private((int)K(eventfd2, 0, EFD_NONBLOCK | EFD_CLOEXEC));
	if (relay < 0)
		return -1;
	ring.conn = private(ring.conn);
	ring.memfd = private(ring.memfd);
	me = 0;
	memset(held, 0, sizeof held);
	if (!life(me, true))
		return fail(EBUSY);
	struct shared *s0 = (struct shared *)(void *)ring.data;
	uint64_t units = (ring.data_len - sizeof *s0) / (4096 + sizeof s0->next[0]);
	if (ring.memfd < 0)
		memset(s0, 0, sizeof *s0); /* a new file is all zero */
	s0->at = *ring.at, ring.at = &s0->at;
	s0->limit = ring.requests ? ring.requests : 4096;
	s0->files = s0->watches = 1;
	s0->heap = (uint32_t)((sizeof *s0 + (units + 1) * sizeof s0->next[0] + 4095) & ~UINT64_C(4095));
	s0->units = (uint32_t)((ring.data_len - s0->heap) / 4096);
	s0->processes[0].used = true;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_settype(&a, PTHREAD_MUTEX_ERRORCHECK);
	pthread_mutex_init(&s0->lock, &a);
	pthread_mutexattr_destroy(&a);
	S = s0;
	prepare();
	return 0;
}

static void end(void)
{
	if (relay >= 0)
		k_close(relay);
	relay = -1;
	if (numbers)
		munmap((void *)numbers, NUMBERS * sizeof *numbers);
	numbers = NULL;
	xdpd_ring_close(&ring);
}

int xdpd_start(const char *path)
{
	struct xdpd_hello h = { .sq_entries = 1024, .cq_entries = 4096, .requests = 4096, .data = 64 << 20 };

	if (S)
		return fail(EALREADY);
	/* What the policy does not allow, half of it may be. */
	while (xdpd_ring_ask(&ring, path, h) < 0) {
		if (errno == EAGAIN && h.requests > 64)
			h.requests /= 2;
		else if (errno == ENOMEM && h.data > 4 << 20)
			h.data /= 2;
		else
			return -1;
	}
	if (begin() < 0) {
		int err = errno;
		end();
		return fail(err);
	}
	return 0;
}

int xdpd_start_ring(struct xdpd_ring *r)
{
	if (S)
		return fail(EALREADY);
	ring = *r;
	if (r->at == &r->own)
		ring.at = &ring.own;
	if (begin() < 0) {
		int err = errno;
		end();
		return fail(err);
	}
	return 0;
}

const char *xdpd_reason(void) { return ring.reason; }

int xdpd_gone(void) { return S && S->gone; }

int xdpd_own(int fd) { return S && fd >= 0 && (fd == ring.conn || fd == ring.memfd || fd == relay); }

/* last: no other process has the ring. */
static bool last(void)
{
	for (int i = 0; i < PROCESSES; i++)
		if (i != me && S->processes[i].used)
			return false;
	return true;
}

static bool closing(void)
{
	for (uint32_t i = 1; i < S->files; i++)
		if (S->file[i].type == SOCKET && S->file[i].closing && S->file[i].requests)
			return true;
	return false;
}

/*
 * finish closes what the process has. The last one waits until what was written has gone to the engine, at most 5 seconds as long as
 * the peer takes some: the connection to the daemon, and with it every socket, ends with the process.
 */
static void finish(void)
{
	if (!enter())
		return;
	check_processes();
	for (uint32_t i = 1; i < S->files; i++) {
		held[i] = 0;
		file_unuse(&S->file[i], me);
	}
	kick();
	if (last()) {
		int64_t until = now() + 5 * SECOND;
		struct slot *s = slot_get(NULL);
		while (s && !S->gone && closing() && now() < until)
			rest(s, NULL, 0, until, NULL);
		if (s)
			slot_put(s);
	}
	/* Its place is free now, and not when it is dead: who is forked next may get it before. */
	struct flock l = { .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = me, .l_len = 1 };
	if (ring.memfd >= 0)
		k_fcntl(ring.memfd, F_SETLK, (long)&l);
	S->processes[me].used = false;
	leave();
}

void xdpd_stop(void)
{
	if (!S)
		return;
	for (int fd = 0; fd < NUMBERS; fd++)
		if (numbers[fd]) {
			uninstall(fd);
			k_close(fd);
		}
	finish();
	S = NULL;
	end();
}

void xdpd_finish(void)
{
	if (S && owner == getpid())
		finish();
}

/* The last of the library's destructors: that of preload/file.c writes still. */
__attribute__((destructor(101))) static void at_exit(void) { xdpd_finish(); }
