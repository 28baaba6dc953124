// Kernel sockets by io_uring: the works of epoll.c, with everything that saves a system call or a look-up.
//
//	uring [-s] WORK ADDRESS PORT [DEVICE]
//
//	udp-echo    one multishot RECVMSG into provided buffers, a SEND from the same buffer for each datagram
//	tcp-echo    a multishot RECV for each connection, a SEND from the same buffer, one at a time so that the order stays
//	tcp-accept  a multishot ACCEPT, a CLOSE for each connection
//	tcp-sink    a multishot RECV for each connection
//	tcp-source  a large SEND after the other on each connection
//
// Connections are direct descriptors and never have a number of their own. The ring has a single issuer and runs its task work
// when it waits, so that a batch of submissions and completions takes one io_uring_enter. -s spins where it would sleep. Output
// and counters are those of epoll.c; "syscalls" are calls of io_uring_enter. It calls the kernel without liburing. Needs Linux 6.1.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	SQ = 4096,
	CQ = 16384,
	SIZE = 9216,       // the largest datagram: a jumbo frame
	CHUNK = 256 << 10, // of a TCP write: fits the L2 cache
	SPACE = 8 << 20,   // bytes a UDP socket may queue for receiving
	SLOTS = 65536,     // connections, at most
};

// What a completion belongs to, in the upper byte of user_data; a buffer's number and a connection's slot follow.
enum op { STOP, ACCEPT, RECV, SEND, CLOSE };

struct conn {
	uint8_t receiving, sending, ended;
	uint16_t first, last; // buffers that wait to be sent, linked by nexts; valid while queued
	uint32_t queued;
	uint32_t next_starved;
};

struct work {
	const char *name;
	int type;                      // of the socket
	uint32_t buffers, size;        // provided for receiving: how many, of how many bytes
	void (*accepted)(uint32_t slot);
	void (*received)(uint32_t slot, uint16_t buffer, int len);
	void (*sent)(uint32_t slot, uint16_t buffer, int result);
};

static const struct work *work;
static int ring, ring_index, listener, stopped, spin;
static struct {
	uint32_t *head, *tail, mask, entries, mine;
	struct io_uring_sqe *sqes;
} sq;
static struct {
	uint32_t *head, *tail, mask;
	struct io_uring_cqe *cqes;
} cq;
static struct io_uring_buf_ring *provided;
static uint16_t provided_tail;
static uint32_t in_use; // buffers that the kernel does not have
static unsigned char *buffers, *chunk;
static size_t stride;
static uint16_t *nexts;
static uint32_t *lengths;
static struct conn *conns;
static uint32_t nslots, starved = ~0u;
static struct msghdr datagram = {.msg_namelen = sizeof(struct sockaddr_in)};
static uint64_t frames_in, frames_out, bytes_in, bytes_out, naccepted, syscalls, truncated, errors;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

// --- The ring

static int io_register(unsigned op, void *arg, unsigned n) { return syscall(SYS_io_uring_register, ring, op, arg, n); }

static void open_ring(void)
{
	struct io_uring_params p = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE, .cq_entries = CQ,
	};
	struct io_uring_rsrc_register files = {.nr = nslots, .flags = IORING_RSRC_REGISTER_SPARSE};

	if ((ring = syscall(SYS_io_uring_setup, SQ, &p)) < 0) {
		if (errno == EINVAL)
			fprintf(stderr, "uring: this kernel's io_uring has no DEFER_TASKRUN: Linux 6.1 or newer is needed\n");
		if (errno == ENOSYS || errno == EPERM)
			fprintf(stderr, "uring: io_uring is not there, or forbidden (kernel.io_uring_disabled)\n");
		die("io_uring_setup");
	}
	size_t sq_size = p.sq_off.array + p.sq_entries * sizeof(uint32_t);
	size_t cq_size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	// One mapping holds both (IORING_FEAT_SINGLE_MMAP, Linux 5.4).
	unsigned char *mem = mmap(NULL, sq_size > cq_size ? sq_size : cq_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
				  ring, IORING_OFF_SQ_RING);
	sq.sqes = mmap(NULL, p.sq_entries * sizeof *sq.sqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	if (mem == MAP_FAILED || sq.sqes == MAP_FAILED)
		die("map the rings");
	sq.head = (uint32_t *)(mem + p.sq_off.head);
	sq.tail = (uint32_t *)(mem + p.sq_off.tail);
	sq.entries = p.sq_entries;
	sq.mask = p.sq_entries - 1;
	cq.head = (uint32_t *)(mem + p.cq_off.head);
	cq.tail = (uint32_t *)(mem + p.cq_off.tail);
	cq.mask = p.cq_entries - 1;
	cq.cqes = (struct io_uring_cqe *)(mem + p.cq_off.cqes);
	for (uint32_t i = 0; i < p.sq_entries; i++) // entries are taken in order, always
		((uint32_t *)(mem + p.sq_off.array))[i] = i;
	if (io_register(IORING_REGISTER_FILES2, &files, sizeof files))
		die("IORING_REGISTER_FILES2");
	// The ring by an index of its own: no look-up of the descriptor in each call.
	struct io_uring_rsrc_update self = {.offset = -1U, .data = ring};
	if (io_register(IORING_REGISTER_RING_FDS, &self, 1) != 1)
		die("IORING_REGISTER_RING_FDS");
	ring_index = self.offset;
}

// enter submits what there is, runs what the kernel has put off, and waits for a completion or not.
static void enter(unsigned wait)
{
	uint32_t n = sq.mine - __atomic_load_n(sq.head, __ATOMIC_ACQUIRE);

	__atomic_store_n(sq.tail, sq.mine, __ATOMIC_RELEASE);
	syscalls++;
	if (syscall(SYS_io_uring_enter, ring_index, n, wait, IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING, NULL, 0) < 0 &&
	    errno != EINTR && errno != EBUSY && errno != EAGAIN)
		die("io_uring_enter");
}

static struct io_uring_sqe *submit(enum op op, uint8_t opcode, uint32_t slot, uint16_t buffer)
{
	while (sq.mine - __atomic_load_n(sq.head, __ATOMIC_ACQUIRE) == sq.entries)
		enter(0);
	struct io_uring_sqe *e = &sq.sqes[sq.mine++ & sq.mask];

	memset(e, 0, sizeof *e);
	e->opcode = opcode;
	e->user_data = (uint64_t)op << 56 | (uint64_t)buffer << 32 | slot;
	return e;
}

// --- Provided buffers

static unsigned char *bytes_of(uint16_t buffer) { return buffers + buffer * stride; }

static void provide(uint16_t buffer)
{
	struct io_uring_buf *b = &provided->bufs[provided_tail++ & (work->buffers - 1)];

	b->addr = (uintptr_t)bytes_of(buffer);
	b->len = work->size;
	b->bid = buffer;
	in_use--;
}

static void publish(void) { __atomic_store_n(&provided->tail, provided_tail, __ATOMIC_RELEASE); }

static void open_buffers(void)
{
	struct io_uring_buf_reg reg = {.ring_entries = work->buffers};

	stride = work->size + 192; // not a multiple of 4096: the buffers' first lines must not share one cache set
	provided = mmap(NULL, work->buffers * sizeof(struct io_uring_buf), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	buffers = mmap(NULL, work->buffers * stride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	nexts = calloc(work->buffers, sizeof *nexts);
	lengths = calloc(work->buffers, sizeof *lengths);
	if (provided == MAP_FAILED || buffers == MAP_FAILED)
		die("buffers");
	reg.ring_addr = (uintptr_t)provided;
	if (io_register(IORING_REGISTER_PBUF_RING, &reg, 1))
		die("IORING_REGISTER_PBUF_RING");
	in_use = work->buffers;
	for (uint32_t i = 0; i < work->buffers; i++)
		provide(i);
	publish();
}

// --- Operations

static void start_accept(void)
{
	struct io_uring_sqe *e = submit(ACCEPT, IORING_OP_ACCEPT, 0, 0);

	e->fd = listener;
	e->ioprio = IORING_ACCEPT_MULTISHOT;
	e->file_index = IORING_FILE_INDEX_ALLOC;
}

static void start_recv(uint32_t slot)
{
	int udp = work->type == SOCK_DGRAM;
	struct io_uring_sqe *e = submit(RECV, udp ? IORING_OP_RECVMSG : IORING_OP_RECV, slot, 0);

	e->fd = slot;
	e->flags = IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT;
	e->ioprio = IORING_RECV_MULTISHOT;
	e->addr = udp ? (uintptr_t)&datagram : 0;
	conns[slot].receiving = 1;
}

// start_send sends all of it, however long that takes.
static void start_send(uint32_t slot, uint16_t buffer, const void *bytes, uint32_t len)
{
	struct io_uring_sqe *e = submit(SEND, IORING_OP_SEND, slot, buffer);

	e->fd = slot;
	e->flags = IOSQE_FIXED_FILE;
	e->addr = (uintptr_t)bytes;
	e->len = len;
	e->msg_flags = MSG_NOSIGNAL | MSG_WAITALL;
	conns[slot].sending = 1;
}

static void start_close(uint32_t slot)
{
	struct io_uring_sqe *e = submit(CLOSE, IORING_OP_CLOSE, slot, 0);

	e->file_index = slot + 1;
	e->flags = IOSQE_CQE_SKIP_SUCCESS;
	conns[slot] = (struct conn){0};
}

static void close_if_done(uint32_t slot)
{
	struct conn *c = &conns[slot];

	if (c->ended && !c->receiving && !c->sending)
		start_close(slot);
}

// --- Works

static void udp_received(uint32_t slot, uint16_t buffer, int len)
{
	struct io_uring_recvmsg_out *m = (void *)bytes_of(buffer);
	struct sockaddr_in *from = (void *)(m + 1);

	(void)len;
	bytes_in += m->payloadlen;
	truncated += (m->flags & MSG_TRUNC) != 0;
	start_send(slot, buffer, from + 1, m->payloadlen);
	struct io_uring_sqe *e = &sq.sqes[(sq.mine - 1) & sq.mask];
	e->addr2 = (uintptr_t)from;
	e->addr_len = sizeof *from;
	e->msg_flags = 0;
}

static void udp_sent(uint32_t slot, uint16_t buffer, int result)
{
	(void)slot;
	(void)result;
	provide(buffer);
}

static void tcp_received(uint32_t slot, uint16_t buffer, int len)
{
	struct conn *c = &conns[slot];

	bytes_in += len;
	lengths[buffer] = len;
	if (!c->sending) {
		start_send(slot, buffer, bytes_of(buffer), len);
		return;
	}
	if (c->queued++)
		nexts[c->last] = buffer;
	else
		c->first = buffer;
	c->last = buffer;
}

static void tcp_sent(uint32_t slot, uint16_t buffer, int result)
{
	struct conn *c = &conns[slot];

	provide(buffer);
	c->sending = 0;
	if (result < 0) // what waits is for nobody; the receive ends by itself
		for (; c->queued; c->queued--, c->first = nexts[c->first])
			provide(c->first);
	if (c->queued) {
		uint16_t next = c->first;

		c->queued--;
		c->first = nexts[next];
		start_send(slot, next, bytes_of(next), lengths[next]);
	}
	close_if_done(slot);
}

static void sink_received(uint32_t slot, uint16_t buffer, int len)
{
	(void)slot;
	bytes_in += len;
	provide(buffer);
}

static void source_accepted(uint32_t slot) { start_send(slot, 0, chunk, CHUNK); }

static void source_sent(uint32_t slot, uint16_t buffer, int result)
{
	(void)buffer;
	conns[slot].sending = 0;
	if (result >= 0)
		source_accepted(slot);
	else
		start_close(slot);
}

static const struct work works[] = {
	{"udp-echo", SOCK_DGRAM, 512, SIZE + sizeof(struct io_uring_recvmsg_out) + sizeof(struct sockaddr_in), NULL, udp_received,
	 udp_sent},
	{"tcp-echo", SOCK_STREAM, 512, 4096, start_recv, tcp_received, tcp_sent},
	{"tcp-accept", SOCK_STREAM, 0, 0, start_close, NULL, NULL},
	{"tcp-sink", SOCK_STREAM, 16, 64 << 10, start_recv, sink_received, NULL},
	{"tcp-source", SOCK_STREAM, 0, 0, source_accepted, NULL, source_sent},
};

// --- Completions

static void complete_accept(const struct io_uring_cqe *e)
{
	if (e->res >= 0) {
		naccepted++;
		frames_in += !work->received && !work->sent; // tcp-accept
		work->accepted(e->res);
	} else {
		errors++; // ENFILE: all slots are taken
	}
	if (!(e->flags & IORING_CQE_F_MORE))
		start_accept();
}

static void complete_recv(const struct io_uring_cqe *e, uint32_t slot)
{
	struct conn *c = &conns[slot];

	if (!(e->flags & IORING_CQE_F_MORE))
		c->receiving = 0;
	if (e->res > 0) {
		frames_in++;
		in_use++;
		work->received(slot, e->flags >> IORING_CQE_BUFFER_SHIFT, e->res);
		if (!c->receiving)
			start_recv(slot);
	} else if (e->res == -ENOBUFS) { // again, as soon as there are buffers
		c->next_starved = starved;
		starved = slot;
	} else {
		errors += e->res < 0 && e->res != -ECONNRESET;
		if (work->type == SOCK_DGRAM) {
			start_recv(slot);
			return;
		}
		c->ended = 1;
		close_if_done(slot);
	}
}

static void complete(const struct io_uring_cqe *e)
{
	uint32_t slot = e->user_data;
	uint16_t buffer = e->user_data >> 32;

	switch ((enum op)(e->user_data >> 56)) {
	case STOP:
		stopped = 1;
		break;
	case ACCEPT:
		complete_accept(e);
		break;
	case RECV:
		complete_recv(e, slot);
		break;
	case SEND:
		frames_out += e->res >= 0;
		bytes_out += e->res >= 0 ? e->res : 0;
		errors += e->res < 0 && e->res != -EPIPE && e->res != -ECONNRESET;
		work->sent(slot, buffer, e->res);
		break;
	case CLOSE: // only of a failure
		errors++;
		break;
	}
}

static void run(void)
{
	while (!stopped) {
		uint32_t head = *cq.head, tail;

		enter(!spin);
		tail = __atomic_load_n(cq.tail, __ATOMIC_ACQUIRE);
		for (; head != tail; head++)
			complete(&cq.cqes[head & cq.mask]);
		__atomic_store_n(cq.head, head, __ATOMIC_RELEASE);
		if (work->buffers)
			publish();
		while (starved != ~0u && in_use < work->buffers) {
			uint32_t slot = starved;

			starved = conns[slot].next_starved;
			start_recv(slot);
		}
	}
}

// --- Set-up

static void open_socket(struct sockaddr_in *at)
{
	int one = 1, space = SPACE;

	if ((listener = socket(AF_INET, work->type | SOCK_CLOEXEC, 0)) < 0)
		die("socket");
	if (work->type == SOCK_DGRAM) {
		// The FORCE variant passes rmem_max; without root the plain one gives what it can.
		if (setsockopt(listener, SOL_SOCKET, SO_RCVBUFFORCE, &space, sizeof space))
			setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &space, sizeof space);
	} else if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
		   setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one)) { // connections inherit it
		die("setsockopt");
	}
	if (bind(listener, (struct sockaddr *)at, sizeof *at))
		die("bind");
	if (work->type == SOCK_STREAM && listen(listener, 65535)) // net.core.somaxconn, at most
		die("listen");
}

static void start(int stop_fd)
{
	struct io_uring_sqe *e = submit(STOP, IORING_OP_POLL_ADD, 0, 0);
	struct io_uring_rsrc_update file = {.offset = 0, .data = (uintptr_t)&listener};

	e->fd = stop_fd;
	e->poll32_events = POLLIN;
	if (work->type == SOCK_STREAM) {
		start_accept();
		return;
	}
	if (io_register(IORING_REGISTER_FILES_UPDATE, &file, 1) != 1)
		die("IORING_REGISTER_FILES_UPDATE");
	start_recv(0);
}

// finish ends what is under way and lets go of the sockets. Otherwise the kernel does that some time after our exit, and until
// then the port is taken.
static void finish(void)
{
	struct io_uring_sync_cancel_reg all = {
		.fd = -1, .flags = IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL, .timeout = {.tv_sec = -1, .tv_nsec = -1},
	};

	if (io_register(IORING_REGISTER_SYNC_CANCEL, &all, 1) < 0 && errno != ENOENT)
		die("IORING_REGISTER_SYNC_CANCEL");
	enter(0); // runs what that has put off: only then are the files free
	if (io_register(IORING_UNREGISTER_FILES, NULL, 0))
		die("IORING_UNREGISTER_FILES");
	close(listener);
}

static void report(void)
{
	printf("{\"mode\":\"kernel sockets, io_uring\",\"frames_in\":%llu,\"frames_out\":%llu,\"delivered\":%llu,\"sent\":%llu,"
	       "\"bytes_in\":%llu,\"bytes_out\":%llu,\"accepted\":%llu,\"syscalls\":%llu,"
	       "\"drops\":{\"truncated\":%llu,\"errors\":%llu}}\n",
	       (unsigned long long)frames_in, (unsigned long long)frames_out, (unsigned long long)frames_in,
	       (unsigned long long)frames_out, (unsigned long long)bytes_in, (unsigned long long)bytes_out,
	       (unsigned long long)naccepted, (unsigned long long)syscalls, (unsigned long long)truncated,
	       (unsigned long long)errors);
}

static void usage(const char *program)
{
	fprintf(stderr, "usage: %s [-s] WORK ADDRESS PORT [DEVICE]; works:", program);
	for (size_t i = 0; i < sizeof works / sizeof *works; i++)
		fprintf(stderr, " %s", works[i].name);
	fprintf(stderr, "\n");
	exit(2);
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	struct rlimit files;
	sigset_t ends;
	int option, stop_fd;

	while ((option = getopt(argc, argv, "s")) != -1) {
		if (option != 's')
			usage(argv[0]);
		spin = 1;
	}
	char **args = argv + optind;
	if (argc - optind < 3 || argc - optind > 4)
		usage(argv[0]);
	for (size_t i = 0; i < sizeof works / sizeof *works; i++)
		if (!strcmp(args[0], works[i].name))
			work = &works[i];
	at.sin_port = htons(atoi(args[2]));
	if (!work || !at.sin_port || inet_pton(AF_INET, args[1], &at.sin_addr) != 1)
		usage(argv[0]);

	if (getrlimit(RLIMIT_NOFILE, &files))
		die("getrlimit");
	files.rlim_cur = files.rlim_max; // the soft limit is often 1024; it bounds direct descriptors as well
	setrlimit(RLIMIT_NOFILE, &files);
	nslots = files.rlim_cur < SLOTS ? files.rlim_cur : SLOTS;
	conns = calloc(nslots, sizeof *conns);
	chunk = calloc(1, CHUNK);
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	if ((stop_fd = signalfd(-1, &ends, SFD_CLOEXEC)) < 0)
		die("signalfd");
	open_socket(&at);
	open_ring();
	if (work->buffers)
		open_buffers();
	start(stop_fd);
	printf("ready\n");
	fflush(stdout);
	run();
	finish();
	report();
	return 0;
}
