/* wait.c: how a thread waits for what another thread, or process, may find in the CQ. */
#include "internal.h"
#include "kernel.h"

struct slot *slot_get(struct file *f)
{
	static __thread unsigned hint;

	for (unsigned i = 0; i < SLOTS; i++) {
		struct slot *s = &S->slots[(hint + i) % SLOTS];
		if (s->used)
			continue;
		hint = (hint + i) % SLOTS;
		s->used = true, s->done = s->skip = false, s->process = (uint8_t)me, s->gen++;
		s->state = RUNS;
		s->file = f ? id_of(f) : 0;
		if (f)
			f->pins++;
		return s;
	}
	return NULL;
}

static void get_up(struct slot *s)
{
	uint64_t count;

	if (s->state == OWED && --S->owed == 0)
		(void)!K(read, relay, &count, sizeof count);
	if ((s->state == OWED || s->state == SLEEPS) && --S->sleepers == 0)
		xdpd_ring_awake(&ring);
	s->state = RUNS;
}

void slot_put(struct slot *s)
{
	struct file *f = s->file ? &S->file[s->file] : NULL;

	get_up(s);
	s->used = false, s->file = 0, s->gen++;
	if (f) {
		f->pins--;
		file_free(f);
	}
}

/* wait_on has the slot woken by the next event on f. */
void wait_on(struct slot *s, struct file *f)
{
	unsigned i = (unsigned)(s - S->slots);

	f->waiters[i / 64] |= UINT64_C(1) << i % 64;
}

/*
 * wake_slot wakes a thread, of any process. It sleeps in ppoll, where the relay, an eventfd that all processes have, stays readable until
 * all who are owed a look have taken it.
 */
void wake_slot(struct slot *s)
{
	uint64_t one = 1;

	if (s->state == SPINS)
		s->state = WOKEN;
	if (s->state != SLEEPS)
		return;
	s->state = OWED;
	if (S->owed++ == 0)
		(void)!K(write, relay, &one, sizeof one);
}

void wake(struct file *f)
{
	for (unsigned w = 0; w < SLOTS / 64; w++)
		while (f->waiters[w]) {
			unsigned i = (unsigned)__builtin_ctzll(f->waiters[w]);
			f->waiters[w] &= f->waiters[w] - 1;
			wake_slot(&S->slots[w * 64 + i]);
		}
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

/* spins looks without the lock for a while whether something came. */
static void spins(struct slot *s, int64_t deadline)
{
	int64_t until = now() + spin;
	uint32_t head = S->at.cq_head;

	s->state = SPINS;
	leave();
	while (atomic_load_explicit(xdpd_ring_word(&ring, XDPD_CQ_TAIL), memory_order_acquire) == head &&
	       atomic_load_explicit(&s->state, memory_order_relaxed) == SPINS) {
		for (int i = 0; i < 32; i++)
			relax();
		int64_t t = now();
		if (t >= until || t >= deadline)
			break;
	}
	enter();
}

/* hear takes the engine's knocks. */
static void hear(short revents)
{
	char knock[8];
	long n = 1;

	for (int i = 0; i < 64 && n > 0; i++)
		n = K(recvfrom, ring.conn, knock, sizeof knock, MSG_DONTWAIT, NULL, NULL);
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || revents & (POLLERR | POLLHUP)) {
		reap();
		lost();
	}
}

static bool alone(void)
{
	int n = 0;

	for (int i = 0; i < PROCESSES; i++)
		n += S->processes[i].used;
	return n <= 1;
}

/* canceled gives back what a thread has that is ended in its sleep. */
static void canceled(void *slot)
{
	if (slot && enter()) {
		slot_put(slot);
		leave();
	}
}

/* sleeps is ppoll(2), where pthread_cancel(3) may end the thread. s may be NULL. */
int sleeps(struct slot *s, struct pollfd *fds, nfds_t n, const struct timespec *t, const sigset_t *mask)
{
	int r, type;

	pthread_cleanup_push(canceled, s);
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &type);
	r = k_ppoll(fds, n, t, mask);
	pthread_setcanceltype(type, NULL); /* which leaves errno as it is */
	pthread_cleanup_pop(0);
	return r;
}

/*
 * rest sleeps until something may have happened, one of the kernel's descriptors is ready, or the deadline is there. The lock is let go
 * meanwhile. fds[2] to fds[n+1] are the kernel's, the first two are for rest; NULL: there are none. It gives how many of them are ready, 0,
 * or -EINTR.
 */
int rest(struct slot *s, struct pollfd *fds, nfds_t n, int64_t deadline, const sigset_t *mask)
{
	struct pollfd none[2];
	int64_t ns;
	int r, err;

	if (!fds)
		fds = none;
	kick();
	if (reap())
		return 0;
	if (spin > 0 && !ring.wait && !S->gone) {
		spins(s, deadline);
		bool woken = s->state == WOKEN;
		s->state = RUNS;
		if (reap() || woken)
			return 0;
	}
	s->state = SLEEPS;
	S->sleepers++;
	if (!S->gone && !xdpd_ring_doze(&ring)) {
		get_up(s);
		reap();
		return 0;
	}
	ns = deadline == NEVER ? NEVER : deadline - now();
	if (ns < 0)
		ns = 0;
	if (s->skip && ns > SECOND / 1000)
		ns = SECOND / 1000;
	if (ns > SECOND && !alone())
		ns = SECOND; /* then it is looked whether they live */
	fds[0] = (struct pollfd){ S->gone ? -1 : ring.conn, POLLIN, 0 };
	fds[1] = (struct pollfd){ s->skip ? -1 : relay, POLLIN, 0 };
	s->skip = false;
	leave();
	if (ring.wait) {
		r = ring.wait(&ring, fds + 1, n + 1, ns == NEVER ? -1 : ns);
	} else {
		struct timespec t = { ns / SECOND, ns % SECOND };
		r = sleeps(s, fds, n + 2, ns == NEVER ? NULL : &t, mask);
	}
	err = r < 0 ? errno : 0;
	enter();
	if (r > 0 && fds[1].revents) {
		r--;
		s->skip = s->state != OWED;
	}
	get_up(s);
	if (ring.wait) {
		if (err == EPIPE)
			lost();
	} else if (r > 0 && fds[0].revents) {
		r--;
		hear(fds[0].revents);
	}
	if (r == 0 && !alone())
		check_processes();
	reap();
	return r < 0 ? (err == EINTR ? -EINTR : 0) : r;
}

/* await waits for an event on f: 0 when there may be one, -EINTR, -EAGAIN when the time is over, or why none will come. */
int await(struct slot *s, struct file *f, int64_t deadline)
{
	int r;

	wait_on(s, f);
	r = rest(s, NULL, 0, deadline, NULL);
	if (r == -EINTR)
		return deadline == NEVER && restarts() ? 0 : -EINTR;
	if (f->closing || S->gone)
		return f->closing ? -EBADF : -ENETDOWN;
	return deadline != NEVER && now() >= deadline ? -EAGAIN : 0;
}

/*
 * restarts guesses whether the handler that interrupted us wants calls to go on (SA_RESTART). The kernel knows which it was, and we do
 * not: they go on if all handlers of the process want that. Those for what a thread does itself do not count.
 */
bool restarts(void)
{
	sigset_t faults;

	sigemptyset(&faults);
	sigaddset(&faults, SIGSEGV), sigaddset(&faults, SIGBUS), sigaddset(&faults, SIGFPE), sigaddset(&faults, SIGILL);
	sigaddset(&faults, SIGTRAP), sigaddset(&faults, SIGSYS), sigaddset(&faults, SIGABRT);
	for (int n = 1; n < 64; n++) {
		struct sigaction a;
		if (sigismember(&faults, n) || sigaction(n, NULL, &a) < 0 || a.sa_handler == SIG_DFL || a.sa_handler == SIG_IGN)
			continue;
		if (!(a.sa_flags & SA_RESTART))
			return false;
	}
	return true;
}
