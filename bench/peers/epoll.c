// Kernel sockets the way a C programmer uses them: the peer of everything that the engine does with a stack.
//
//	epoll [-s] [-t THREADS] WORK ADDRESS PORT [DEVICE]
//
//	udp-echo    recvmmsg and sendmmsg of up to 64 datagrams, without epoll: the thread has one socket
//	tcp-echo    what comes in goes back
//	tcp-accept  accepts and closes
//	tcp-sink    reads and drops
//	tcp-source  writes for as long as the peer takes it
//
// Each thread has its own socket on the port (SO_REUSEPORT) and its own edge-triggered epoll. -s spins where it would sleep.
// It prints "ready", and at SIGTERM or SIGINT one line of JSON: frames_in and frames_out are datagrams; for TCP the reads and
// writes that moved something, for tcp-accept the connections. DEVICE is not looked at: the kernel knows it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum {
	BATCH = 64,
	SIZE = 9216,         // the largest datagram: a jumbo frame
	STRIDE = SIZE + 192, // not a multiple of 4096: the buffers' first lines must not share one cache set
	CHUNK = 256 << 10,   // of a TCP read or write: fits the L2 cache
	TURN = 16,           // reads or writes on one connection before the others have their turn
	SPACE = 8 << 20,     // bytes a UDP socket may queue for receiving
	MAX_THREADS = 64,
};

// What is to be sent back and did not fit yet. Kept by the number of the descriptor.
struct rest {
	char *bytes;
	uint32_t from, to;
};

struct worker {
	pthread_t thread;
	int listener, epoll;
	char *buffer; // of CHUNK bytes
	uint64_t frames_in, frames_out, bytes_in, bytes_out, accepted, syscalls, truncated, errors;
} __attribute__((aligned(128)));

struct work {
	const char *name;
	void *(*run)(void *worker);
	void (*ready)(struct worker *w, int fd, uint32_t events); // of a connection
	uint32_t events;
};

static const struct work *work;
static struct worker workers[MAX_THREADS];
static struct rest *rests;
static int stop_fd, spin;
static volatile int stopped;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

// --- UDP

static void *udp_echo(void *arg)
{
	struct worker *w = arg;
	struct mmsghdr msgs[BATCH] = {0};
	struct iovec parts[BATCH];
	struct sockaddr_in from[BATCH];
	char *buffers = malloc((size_t)BATCH * STRIDE);
	int flags = spin ? MSG_DONTWAIT : MSG_WAITFORONE;

	for (int i = 0; i < BATCH; i++) {
		parts[i].iov_base = buffers + (size_t)i * STRIDE;
		msgs[i].msg_hdr.msg_iov = &parts[i];
		msgs[i].msg_hdr.msg_iovlen = 1;
		msgs[i].msg_hdr.msg_name = &from[i];
	}
	while (!stopped) {
		for (int i = 0; i < BATCH; i++) {
			parts[i].iov_len = SIZE;
			msgs[i].msg_hdr.msg_namelen = sizeof from[i];
		}
		int n = recvmmsg(w->listener, msgs, BATCH, flags, NULL);
		w->syscalls++;
		if (n < 0) {
			if (errno != EAGAIN && errno != EINTR)
				w->errors++;
			continue;
		}
		w->frames_in += n;
		for (int i = 0; i < n; i++) {
			parts[i].iov_len = msgs[i].msg_len;
			w->bytes_in += msgs[i].msg_len;
			w->truncated += (msgs[i].msg_hdr.msg_flags & MSG_TRUNC) != 0;
		}
		for (int done = 0; done < n;) {
			int m = sendmmsg(w->listener, msgs + done, n - done, 0);
			w->syscalls++;
			if (m < 0 && errno == EINTR)
				continue;
			if (m < 0) { // that of the first one: leave it out
				w->errors++;
				done++;
				continue;
			}
			for (int i = done; i < done + m; i++)
				w->bytes_out += msgs[i].msg_len;
			w->frames_out += m;
			done += m;
		}
	}
	free(buffers);
	return NULL;
}

// --- TCP

static void hang_up(struct worker *w, int fd)
{
	free(rests[fd].bytes);
	rests[fd] = (struct rest){0};
	close(fd); // which takes it out of the epoll as well
	w->syscalls++;
}

// again has epoll report a connection once more that is still ready: an edge comes only once.
static void again(struct worker *w, int fd)
{
	struct epoll_event event = {.events = work->events, .data.fd = fd};

	epoll_ctl(w->epoll, EPOLL_CTL_MOD, fd, &event);
	w->syscalls++;
}

// receive reads once: the number of bytes, 0 at the end or after an error, -1 when there is nothing now.
static ssize_t receive(struct worker *w, int fd)
{
	ssize_t n = recv(fd, w->buffer, CHUNK, 0);

	w->syscalls++;
	if (n > 0) {
		w->frames_in++;
		w->bytes_in += n;
	}
	if (n < 0 && errno != EAGAIN) {
		w->errors += errno != ECONNRESET;
		return 0;
	}
	return n;
}

// transmit sends once: how many bytes were taken, or -1 when the connection is gone.
static ssize_t transmit(struct worker *w, int fd, const char *bytes, size_t len)
{
	ssize_t n = send(fd, bytes, len, MSG_NOSIGNAL);

	w->syscalls++;
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0) {
		w->errors += errno != ECONNRESET && errno != EPIPE;
		return -1;
	}
	w->frames_out++;
	w->bytes_out += n;
	return n;
}

// flush sends what was left over: 1 when nothing is any more, 0 when something is, -1 when the connection is gone.
static int flush(struct worker *w, int fd)
{
	struct rest *r = &rests[fd];
	ssize_t n;

	if (!r->bytes)
		return 1;
	if ((n = transmit(w, fd, r->bytes + r->from, r->to - r->from)) < 0)
		return -1;
	r->from += n;
	if (r->from < r->to)
		return 0;
	free(r->bytes);
	*r = (struct rest){0};
	return 1;
}

static void echo_ready(struct worker *w, int fd, uint32_t events)
{
	int free_to_send = flush(w, fd);

	for (int i = 0; free_to_send > 0; i++) {
		if (i == TURN) {
			again(w, fd);
			return;
		}
		ssize_t n = receive(w, fd);
		if (n < 0)
			return;
		if (n == 0)
			break;
		ssize_t sent = transmit(w, fd, w->buffer, n);
		if (sent < 0)
			break;
		if (sent < n) {
			rests[fd] = (struct rest){.bytes = malloc(n - sent), .to = n - sent};
			memcpy(rests[fd].bytes, w->buffer + sent, n - sent);
			return;
		}
		// A short read found the end of the queue (epoll(7)): what comes later has an edge of its own. With EPOLLRDHUP
		// the end of the stream is there too, and has had its edge.
		if (n < CHUNK && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
			return;
	}
	if (free_to_send)
		hang_up(w, fd);
}

static void sink_ready(struct worker *w, int fd, uint32_t events)
{
	ssize_t n;

	for (int i = 0; i < TURN; i++) {
		if ((n = receive(w, fd)) == 0) {
			hang_up(w, fd);
			return;
		}
		if (n < 0 || (n < CHUNK && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))))
			return;
	}
	again(w, fd);
}

static void source_ready(struct worker *w, int fd, uint32_t events)
{
	ssize_t n = 0;

	for (int i = 0; i < TURN && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)); i++) {
		if ((n = transmit(w, fd, w->buffer, CHUNK)) < 0)
			break;
		if (n < CHUNK) // full: an edge follows when there is room
			return;
	}
	if (n < CHUNK)
		hang_up(w, fd);
	else
		again(w, fd);
}

static void accept_all(struct worker *w)
{
	int fd;

	while ((fd = accept4(w->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct epoll_event event = {.events = work->events, .data.fd = fd};

		w->syscalls++;
		w->accepted++;
		if (!work->ready) {
			w->frames_in++;
			close(fd);
		} else if (epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &event)) {
			die("epoll_ctl");
		}
		w->syscalls++;
	}
	w->syscalls++;
	w->errors += errno != EAGAIN;
}

static void *tcp_loop(void *arg)
{
	struct worker *w = arg;
	struct epoll_event events[BATCH];

	while (!stopped) {
		int n = epoll_wait(w->epoll, events, BATCH, spin ? 0 : -1);

		w->syscalls++;
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;

			if (fd == w->listener)
				accept_all(w);
			else if (fd != stop_fd)
				work->ready(w, fd, events[i].events);
		}
	}
	return NULL;
}

// EPOLLOUT costs nothing for as long as nobody was refused: the kernel makes an edge only of room after want of it.
static const struct work works[] = {
	{"udp-echo", udp_echo, NULL, 0},
	{"tcp-echo", tcp_loop, echo_ready, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET},
	{"tcp-accept", tcp_loop, NULL, 0},
	{"tcp-sink", tcp_loop, sink_ready, EPOLLIN | EPOLLRDHUP | EPOLLET},
	{"tcp-source", tcp_loop, source_ready, EPOLLOUT | EPOLLRDHUP | EPOLLET},
};

static void open_worker(struct worker *w, struct sockaddr_in *at)
{
	int udp = work->run == udp_echo, one = 1, space = SPACE;
	struct timeval look = {.tv_usec = 100000}; // how often a sleeping recvmmsg looks whether it shall stop
	int fd = w->listener = socket(AF_INET, (udp ? SOCK_DGRAM : SOCK_STREAM | SOCK_NONBLOCK) | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	if (!udp && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one))
		die("SO_REUSEADDR");
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one))
		die("SO_REUSEPORT");
	if (udp && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &look, sizeof look))
		die("SO_RCVTIMEO");
	// The FORCE variant passes rmem_max; without root the plain one gives what it can.
	if (udp && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &space, sizeof space))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &space, sizeof space);
	if (bind(fd, (struct sockaddr *)at, sizeof *at))
		die("bind");
	if (udp)
		return;
	struct epoll_event listen_event = {.events = EPOLLIN | EPOLLET, .data.fd = fd};
	struct epoll_event stop_event = {.events = EPOLLIN, .data.fd = stop_fd};
	w->buffer = calloc(1, CHUNK);
	// Connections inherit it.
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		die("TCP_NODELAY");
	if ((w->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0 || epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &listen_event) ||
	    epoll_ctl(w->epoll, EPOLL_CTL_ADD, stop_fd, &stop_event))
		die("epoll");
	if (listen(fd, 65535)) // net.core.somaxconn, at most
		die("listen");
}

static void report(int threads)
{
	struct worker sum = {0};

	for (struct worker *w = workers; w < workers + threads; w++) {
		sum.frames_in += w->frames_in;
		sum.frames_out += w->frames_out;
		sum.bytes_in += w->bytes_in;
		sum.bytes_out += w->bytes_out;
		sum.accepted += w->accepted;
		sum.syscalls += w->syscalls;
		sum.truncated += w->truncated;
		sum.errors += w->errors;
	}
	printf("{\"mode\":\"kernel sockets\",\"frames_in\":%llu,\"frames_out\":%llu,\"delivered\":%llu,\"sent\":%llu,"
	       "\"bytes_in\":%llu,\"bytes_out\":%llu,\"accepted\":%llu,\"syscalls\":%llu,"
	       "\"drops\":{\"truncated\":%llu,\"errors\":%llu}}\n",
	       (unsigned long long)sum.frames_in, (unsigned long long)sum.frames_out, (unsigned long long)sum.frames_in,
	       (unsigned long long)sum.frames_out, (unsigned long long)sum.bytes_in, (unsigned long long)sum.bytes_out,
	       (unsigned long long)sum.accepted, (unsigned long long)sum.syscalls, (unsigned long long)sum.truncated,
	       (unsigned long long)sum.errors);
}

static void usage(const char *program)
{
	fprintf(stderr, "usage: %s [-s] [-t 1..%d] WORK ADDRESS PORT [DEVICE]; works:", program, MAX_THREADS);
	for (size_t i = 0; i < sizeof works / sizeof *works; i++)
		fprintf(stderr, " %s", works[i].name);
	fprintf(stderr, "\n");
	exit(2);
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	struct rlimit files;
	int threads = 1, option, sig;
	sigset_t ends;

	while ((option = getopt(argc, argv, "st:")) != -1) {
		switch (option) {
		case 's': spin = 1; break;
		case 't': threads = atoi(optarg); break;
		default: usage(argv[0]);
		}
	}
	char **args = argv + optind;
	if (argc - optind < 3 || argc - optind > 4 || threads < 1 || threads > MAX_THREADS)
		usage(argv[0]);
	for (size_t i = 0; i < sizeof works / sizeof *works; i++)
		if (!strcmp(args[0], works[i].name))
			work = &works[i];
	at.sin_port = htons(atoi(args[2]));
	if (!work || !at.sin_port || inet_pton(AF_INET, args[1], &at.sin_addr) != 1)
		usage(argv[0]);

	if (getrlimit(RLIMIT_NOFILE, &files))
		die("getrlimit");
	files.rlim_cur = files.rlim_max; // the soft limit is often 1024
	setrlimit(RLIMIT_NOFILE, &files);
	rests = calloc(files.rlim_cur, sizeof *rests);
	// Before there are threads, so that all of them leave the signals to sigwait.
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	pthread_sigmask(SIG_BLOCK, &ends, NULL);
	if ((stop_fd = eventfd(0, EFD_CLOEXEC)) < 0)
		die("eventfd");
	for (int i = 0; i < threads; i++)
		open_worker(&workers[i], &at);
	for (int i = 0; i < threads; i++)
		if ((errno = pthread_create(&workers[i].thread, NULL, work->run, &workers[i])))
			die("pthread_create");
	printf("ready\n");
	fflush(stdout);
	sigwait(&ends, &sig);
	stopped = 1;
	if (eventfd_write(stop_fd, 1))
		die("eventfd");
	for (int i = 0; i < threads; i++)
		pthread_join(workers[i].thread, NULL);
	report(threads);
	return 0;
}
