// A TCP load source on kernel sockets.
//
//	tcpload [-d SECONDS] [-c CONNECTIONS] [-t THREADS] [-r] [-s] WORK ADDRESS PORT
//
//	rr         on each connection one byte goes out, the same byte comes back, and so on (for tcp-echo)
//	connect    connections are opened, CONNECTIONS at a time; each ends when the server closes it (for tcp-accept), or with -r
//	           after one byte has gone out and come back (for tcp-echo)
//	bulk-send  sends as fast as the server takes it (for tcp-sink)
//	bulk-recv  receives as fast as the server sends it (for tcp-source)
//
// The connections are divided among the threads, each of which has an epoll; -s spins where they would sleep. What is
// measured begins when all connections stand (for connect: at once) and ends after SECONDS. One line of JSON goes to stdout:
// "count" are round trips, or connections that ended as they should; "bytes" those that the other side has acknowledged, or
// that came from it; "p50_ns" and "p99_ns" the time of a round trip, or of a connection from connect(2) to its end. "errors"
// are connections that failed, "bad" replies that were not the byte that was sent. The exit status is 1 when something could
// not be set up.
//
// A connection that we end first, with -r, ends by a reset (SO_LINGER 0): in TIME-WAIT it would keep its port for a minute, and
// there are 28,000. One that the server ends first is closed as usual, which frees its port at once.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	BATCH = 64,
	CHUNK = 256 << 10, // of a bulk read or write: fits the L2 cache
	TURN = 16,         // of these on one connection before the others have their turn
	MAX_THREADS = 64,
	MAX_CONNS = 1 << 20,
};

struct conn {
	int fd; // -1: none
	unsigned char byte; // that is out
	uint64_t since;
};

struct worker {
	pthread_t thread;
	int epoll, nconns;
	struct conn *conns;
	char *buffer; // of CHUNK bytes
	uint64_t count, bytes, errors, bad;
	// Times: 64 steps to each power of two, so that a percentile is exact to 1.6 %.
	uint64_t histogram[64 * 64];
} __attribute__((aligned(128)));

struct work {
	const char *name;
	void (*ready)(struct worker *w, struct conn *c, uint32_t events);
	uint32_t events;
};

static const struct work *work;
static struct worker workers[MAX_THREADS];
static struct sockaddr_in to = {.sin_family = AF_INET};
static int request, spin;
static uint64_t end;
static pthread_barrier_t start;

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void record(struct worker *w, uint64_t ns)
{
	int shift = ns < 128 ? 0 : 57 - __builtin_clzll(ns);

	w->histogram[shift * 64 + (ns >> shift)]++;
}

// percentile returns the upper edge of the step that holds the share p of all records, or 0 without any.
static uint64_t percentile(const uint64_t *histogram, double p)
{
	uint64_t total = 0, seen = 0;
	int steps = sizeof workers[0].histogram / sizeof *histogram;

	for (int i = 0; i < steps; i++)
		total += histogram[i];
	for (int i = 0; i < steps; i++) {
		seen += histogram[i];
		if (total && seen >= p * total) {
			int shift = i < 128 ? 0 : i / 64 - 1;
			return ((uint64_t)(i - shift * 64 + 1) << shift) - 1;
		}
	}
	return 0;
}

static void watch(struct worker *w, struct conn *c, int op)
{
	struct epoll_event event = {.events = work->events, .data.ptr = c};

	if (epoll_ctl(w->epoll, op, c->fd, &event))
		die("epoll_ctl");
}

static void hang_up(struct conn *c)
{
	close(c->fd);
	c->fd = -1;
}

static void fail(struct worker *w, struct conn *c)
{
	w->errors++;
	hang_up(c);
}

// --- rr

// ask sends a byte: 0 when the connection is gone. There is always room for it.
static int ask(struct worker *w, struct conn *c)
{
	c->byte++;
	if (send(c->fd, &c->byte, 1, MSG_NOSIGNAL) == 1)
		return 1;
	fail(w, c);
	return 0;
}

// answer receives the byte: 0 when it is not there, or the connection is gone.
static int answer(struct worker *w, struct conn *c)
{
	unsigned char b[2];
	ssize_t n = recv(c->fd, b, sizeof b, 0);

	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n <= 0) {
		fail(w, c);
		return 0;
	}
	if (n != 1 || b[0] != c->byte)
		w->bad++;
	return 1;
}

static void rr_ready(struct worker *w, struct conn *c, uint32_t events)
{
	(void)events;
	if (!answer(w, c))
		return;
	uint64_t time = now();
	record(w, time - c->since);
	w->count++;
	c->since = time;
	ask(w, c);
}

// --- connect

static void begin(struct worker *w, struct conn *c)
{
	c->since = now();
	if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0)
		die("socket");
	if (request) {
		struct linger at_once = {.l_onoff = 1};

		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
	}
	if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
		fail(w, c); // EADDRNOTAVAIL: tried again when others have ended
	else
		watch(w, c, EPOLL_CTL_ADD);
}

static void done(struct worker *w, struct conn *c)
{
	record(w, now() - c->since);
	w->count++;
	hang_up(c);
	begin(w, c);
}

static void connect_ready(struct worker *w, struct conn *c, uint32_t events)
{
	char b;
	ssize_t n;

	if (request) {
		if (!(events & EPOLLIN)) { // it stands, or could not be made
			ask(w, c);
		} else if (answer(w, c)) {
			done(w, c);
		}
		return;
	}
	if ((n = recv(c->fd, &b, 1, 0)) == 0)
		done(w, c);
	else if (n > 0 || errno != EAGAIN)
		fail(w, c);
}

// --- bulk

static void send_ready(struct worker *w, struct conn *c, uint32_t events)
{
	(void)events;
	for (int i = 0; i < TURN; i++) {
		ssize_t n = send(c->fd, w->buffer, CHUNK, MSG_NOSIGNAL);

		if (n < 0 && errno != EAGAIN) {
			fail(w, c);
			return;
		}
		if (n < 0)
			return;
		w->bytes += n;
		if (n < CHUNK) // full: an edge follows when there is room
			return;
	}
	watch(w, c, EPOLL_CTL_MOD); // once more: an edge comes only once
}

static void recv_ready(struct worker *w, struct conn *c, uint32_t events)
{
	for (int i = 0; i < TURN; i++) {
		ssize_t n = recv(c->fd, w->buffer, CHUNK, 0);

		if (n == 0 || (n < 0 && errno != EAGAIN)) {
			fail(w, c);
			return;
		}
		if (n < 0)
			return;
		w->bytes += n;
		if (n < CHUNK && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
			return;
	}
	watch(w, c, EPOLL_CTL_MOD);
}

static const struct work works[] = {
	{"rr", rr_ready, EPOLLIN | EPOLLET},
	{"connect", connect_ready, EPOLLIN | EPOLLET}, // with -r, and EPOLLOUT
	{"bulk-send", send_ready, EPOLLOUT | EPOLLET},
	{"bulk-recv", recv_ready, EPOLLIN | EPOLLRDHUP | EPOLLET},
};

// --- all

static void open_standing(struct worker *w)
{
	int one = 1;

	for (struct conn *c = w->conns; c < w->conns + w->nconns; c++) {
		if ((c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) < 0)
			die("socket");
		if (setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
			die("TCP_NODELAY");
		if (connect(c->fd, (struct sockaddr *)&to, sizeof to))
			die("connect");
		if (ioctl(c->fd, FIONBIO, &one))
			die("FIONBIO");
	}
}

// unacknowledged is how much of what was sent has not arrived.
static uint64_t unacknowledged(struct worker *w)
{
	uint64_t sum = 0;
	int n;

	for (struct conn *c = w->conns; c < w->conns + w->nconns; c++)
		if (c->fd >= 0 && ioctl(c->fd, SIOCOUTQ, &n) == 0)
			sum += n;
	return sum;
}

static void *run(void *arg)
{
	struct worker *w = arg;
	struct epoll_event events[BATCH];
	int connects = work->ready == connect_ready;
	uint64_t time;

	if (!connects)
		open_standing(w);
	pthread_barrier_wait(&start); // main sets the end
	pthread_barrier_wait(&start);
	for (struct conn *c = w->conns; c < w->conns + w->nconns; c++) {
		if (connects) {
			begin(w, c);
			continue;
		}
		watch(w, c, EPOLL_CTL_ADD);
		c->since = now();
		if (work->ready == rr_ready)
			ask(w, c);
	}
	while ((time = now()) < end) {
		int left = (end - time) / 1000000 + 1;
		int n = epoll_wait(w->epoll, events, BATCH, spin ? 0 : connects && left > 10 ? 10 : left);

		for (int i = 0; i < n; i++)
			work->ready(w, events[i].data.ptr, events[i].events);
		for (int i = 0; connects && i < w->nconns && n <= 0; i++) // a pause: the time to try again what failed
			if (w->conns[i].fd < 0)
				begin(w, &w->conns[i]);
	}
	w->bytes -= work->ready == send_ready ? unacknowledged(w) : 0;
	return NULL;
}

static void usage(const char *program)
{
	fprintf(stderr, "usage: %s [-d SECONDS] [-c 1..%d] [-t 1..%d] [-r] [-s] rr|connect|bulk-send|bulk-recv ADDRESS PORT\n",
		program, MAX_CONNS, MAX_THREADS);
	exit(1);
}

int main(int argc, char **argv)
{
	static struct worker sum;
	double seconds = 5;
	int threads = 1, conns = 1, option;
	struct rlimit files;

	while ((option = getopt(argc, argv, "d:c:t:rs")) != -1) {
		switch (option) {
		case 'd': seconds = atof(optarg); break;
		case 'c': conns = atoi(optarg); break;
		case 't': threads = atoi(optarg); break;
		case 'r': request = 1; break;
		case 's': spin = 1; break;
		default: usage(argv[0]);
		}
	}
	char **args = argv + optind;
	if (argc - optind != 3 || seconds <= 0 || threads < 1 || threads > MAX_THREADS || conns < threads || conns > MAX_CONNS)
		usage(argv[0]);
	for (size_t i = 0; i < sizeof works / sizeof *works; i++)
		if (!strcmp(args[0], works[i].name))
			work = &works[i];
	to.sin_port = htons(atoi(args[2]));
	if (!work || !to.sin_port || inet_pton(AF_INET, args[1], &to.sin_addr) != 1)
		usage(argv[0]);
	static struct work with_request;
	if (work->ready == connect_ready && request) {
		with_request = *work;
		with_request.events |= EPOLLOUT;
		work = &with_request;
	}

	if (getrlimit(RLIMIT_NOFILE, &files) == 0) { // the soft limit is often 1024
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	pthread_barrier_init(&start, NULL, threads + 1);
	for (int i = 0; i < threads; i++) {
		struct worker *w = &workers[i];

		w->nconns = conns / threads + (i < conns % threads);
		w->conns = calloc(w->nconns, sizeof *w->conns);
		w->buffer = calloc(1, CHUNK);
		if ((w->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
			die("epoll_create1");
		if ((errno = pthread_create(&w->thread, NULL, run, w)))
			die("pthread_create");
	}
	pthread_barrier_wait(&start);
	uint64_t began = now();
	end = began + (uint64_t)(seconds * 1e9);
	pthread_barrier_wait(&start);
	for (int i = 0; i < threads; i++) {
		struct worker *w = &workers[i];

		pthread_join(w->thread, NULL);
		sum.count += w->count;
		sum.bytes += w->bytes;
		sum.errors += w->errors;
		sum.bad += w->bad;
		for (size_t j = 0; j < sizeof sum.histogram / sizeof *sum.histogram; j++)
			sum.histogram[j] += w->histogram[j];
	}
	double took = (now() - began) / 1e9;
	printf("{\"work\":\"%s\",\"conns\":%d,\"threads\":%d,\"seconds\":%.3f,\"count\":%llu,\"per_second\":%.1f,"
	       "\"bytes\":%llu,\"mbit_per_second\":%.1f,\"p50_ns\":%llu,\"p99_ns\":%llu,\"errors\":%llu,\"bad\":%llu}\n",
	       args[0], conns, threads, took, (unsigned long long)sum.count, sum.count / took, (unsigned long long)sum.bytes,
	       sum.bytes * 8 / took / 1e6, (unsigned long long)percentile(sum.histogram, .5),
	       (unsigned long long)percentile(sum.histogram, .99), (unsigned long long)sum.errors, (unsigned long long)sum.bad);
	return 0;
}
