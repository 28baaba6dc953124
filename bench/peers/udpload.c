// A UDP load source on kernel sockets, for an echo at the other end.
//
//	udpload -a ADDRESS [-p PORT] [-f FLOWS] [-l PAYLOAD_BYTES] [-t SECONDS] [-w WINDOW] [-s] [-g]
//
// Without -w the loop is open: one thread sends as fast as sendmmsg(2) can, a second one receives and checks the replies.
// With -w it is closed: WINDOW datagrams are out, spread over the flows, each reply lets the next one go, and round-trip
// times are measured. A WINDOW below FLOWS uses only WINDOW flows. -s spins instead of sleeping while no reply is there. -g
// hands the kernel a batch as one buffer to cut up (UDP_SEGMENT, udp(7)): a faster source, when sendmmsg is the limit.
//
// A datagram carries its number within its flow and when it was sent. A reply counts as received when its length and all
// its bytes are right and its number was sent; as late when a higher number came before it (reordered or duplicated); as
// bad otherwise. Lost is sent less received. One line of JSON goes to stdout; the exit status is 1 when something could
// not be set up, and says nothing about the counts. "pps" is received divided by the time from the first send to the last reply,
// at least SECONDS.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	BATCH = 64,
	HEAD = 16,           // number and time, 8 bytes each, in host order: they come back to us
	SIZE = 9216,         // the largest payload
	SEGMENTED = 65507,   // the largest buffer for UDP_SEGMENT: what one IP packet could hold
	STRIDE = SIZE + 192, // not a multiple of 4096: the buffers' first lines must not share one cache set
	QUIET_MS = 200,      // after this long without a reply, what is out is lost
	MAX_FLOWS = 16384,
};

struct flow {
	int fd;
	_Atomic uint64_t next; // number of the next datagram to send; written by the sender only
	uint64_t expect;       // number that no reply has reached yet
};

struct batch {
	struct mmsghdr msgs[BATCH];
	struct iovec parts[BATCH];
	unsigned char bytes[BATCH][STRIDE];
};

static struct flow *flows;
static int nflows = 1, payload = 22, window, spin, segment;
static double seconds = 5;
static int epoll_fd;
static atomic_int sending = 1;
static struct batch out, in;
static unsigned char pattern[SIZE], segments[SEGMENTED];
static uint64_t sent, send_errors, received, late, bad, last_reply;

// Round-trip times: 64 steps to each power of two, so that a percentile is exact to 1.6 %.
static uint64_t histogram[64 * 64];

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

static void record(uint64_t ns)
{
	int shift = 0;

	while (ns >> shift >= 128)
		shift++;
	histogram[shift * 64 + (ns >> shift)]++;
}

// percentile returns the upper edge of the step that holds the share p of all records, or 0 without any.
static uint64_t percentile(double p)
{
	uint64_t total = 0, seen = 0;
	int steps = sizeof histogram / sizeof *histogram;

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

static void set_up(struct batch *b)
{
	for (int i = 0; i < BATCH; i++) {
		b->parts[i].iov_base = b->bytes[i];
		b->msgs[i].msg_hdr.msg_iov = &b->parts[i];
		b->msgs[i].msg_hdr.msg_iovlen = 1;
		memcpy(b->bytes[i], pattern, payload);
	}
	for (int at = 0; at + payload <= SEGMENTED; at += payload)
		memcpy(segments + at, pattern, payload);
}

static void open_flows(const char *address, int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct timeval quiet = {.tv_usec = QUIET_MS * 1000};
	struct rlimit files;
	int space = 8 << 20;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0) { // the soft limit is often 1024
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (inet_pton(AF_INET, address, &to.sin_addr) != 1) {
		fprintf(stderr, "udpload: %s is no IPv4 address\n", address);
		exit(1);
	}
	if ((epoll_fd = epoll_create1(0)) < 0)
		die("epoll_create1");
	flows = calloc(nflows, sizeof *flows);
	for (int i = 0; i < nflows; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
		int fd = flows[i].fd = socket(AF_INET, SOCK_DGRAM, 0);
		if (fd < 0)
			die("socket");
		if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &space, sizeof space))
			setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &space, sizeof space);
		if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &quiet, sizeof quiet))
			die("SO_RCVTIMEO");
		if (segment && setsockopt(fd, SOL_UDP, UDP_SEGMENT, &payload, sizeof payload))
			die("UDP_SEGMENT");
		// Connected sockets: each has a source port of its own, and no route look-up per datagram.
		if (connect(fd, (struct sockaddr *)&to, sizeof to))
			die("connect");
		if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
			die("epoll_ctl");
	}
}

// send_segmented sends n datagrams of a flow in one buffer.
static void send_segmented(struct flow *f, int n)
{
	uint64_t number = atomic_load_explicit(&f->next, memory_order_relaxed), time = now();

	for (int i = 0; i < n; i++) {
		uint64_t head[2] = {number + i, time};
		memcpy(segments + i * payload, head, HEAD);
	}
	atomic_store_explicit(&f->next, number + n, memory_order_release); // before they leave, as in send_batch
	while (send(f->fd, segments, (size_t)n * payload, 0) < 0) {
		if (errno != EINTR) {
			send_errors += n;
			return;
		}
	}
	sent += n;
}

// send_batch sends n datagrams of a flow, at most BATCH.
static void send_batch(struct flow *f, int n)
{
	uint64_t number = atomic_load_explicit(&f->next, memory_order_relaxed), time = now();

	for (int i = 0; i < n; i++) {
		uint64_t head[2] = {number + i, time};
		memcpy(out.bytes[i], head, HEAD);
		out.parts[i].iov_len = payload;
	}
	// Before they leave, because the reply may be here before sendmmsg returns.
	atomic_store_explicit(&f->next, number + n, memory_order_release);
	for (int done = 0; done < n;) {
		int m = sendmmsg(f->fd, out.msgs + done, n - done, 0);
		if (m < 0 && errno == EINTR)
			continue;
		if (m < 0) { // ENOBUFS, or an ICMP error of an earlier one: that datagram is not sent
			send_errors++;
			done++;
			continue;
		}
		sent += m;
		done += m;
	}
}

static void send_some(struct flow *f, int n)
{
	if (segment) {
		int most = SEGMENTED / payload < BATCH ? SEGMENTED / payload : BATCH;

		for (; n > 0; n -= most)
			send_segmented(f, n < most ? n : most);
		return;
	}
	for (; n > 0; n -= BATCH)
		send_batch(f, n < BATCH ? n : BATCH);
}

// check counts one reply and returns how many datagrams of the flow are no longer out on its account: those before it
// that did not come are lost.
static int check(struct flow *f, const unsigned char *b, int len, uint64_t time)
{
	uint64_t head[2];

	if (len != payload) {
		bad++;
		return 0;
	}
	memcpy(head, b, HEAD);
	if (head[0] >= atomic_load_explicit(&f->next, memory_order_acquire) ||
	    memcmp(b + HEAD, pattern + HEAD, payload - HEAD)) {
		bad++;
		return 0;
	}
	if (head[0] < f->expect) {
		late++;
		return 0;
	}
	int gone = head[0] - f->expect + 1;
	f->expect = head[0] + 1;
	received++;
	last_reply = time;
	if (window)
		record(time - head[1]);
	return gone;
}

// receive_flow takes a batch of replies, and returns how many datagrams are no longer out; -1 when there was none.
static int receive_flow(struct flow *f, int flags)
{
	for (int i = 0; i < BATCH; i++)
		in.parts[i].iov_len = SIZE;
	int n = recvmmsg(f->fd, in.msgs, BATCH, flags, NULL);
	if (n < 0)
		return -1; // EAGAIN; an ICMP error shows in the counts
	int gone = 0;
	uint64_t time = now();
	for (int i = 0; i < n; i++)
		gone += check(f, in.bytes[i], in.msgs[i].msg_len, time);
	return gone;
}

// receive_all takes what is there, of every flow, and refills the window if there is one. It returns the number of flows
// that had something: 0 after QUIET_MS without anything, or at once when it spins.
static int receive_all(void)
{
	struct epoll_event events[BATCH];
	int n, some = 0;

	if (nflows == 1) { // no epoll between the reply and us
		n = receive_flow(&flows[0], spin ? MSG_DONTWAIT : MSG_WAITFORONE);
		if (n > 0 && window && sending)
			send_some(&flows[0], n);
		return n >= 0;
	}
	int ready = epoll_wait(epoll_fd, events, BATCH, spin ? 0 : QUIET_MS);
	for (int i = 0; i < ready; i++) {
		struct flow *f = &flows[events[i].data.u32];
		n = receive_flow(f, MSG_DONTWAIT);
		some += n >= 0;
		if (n > 0 && window && sending)
			send_some(f, n);
	}
	return some;
}

// receive_until_quiet receives until nothing came for QUIET_MS after sending has ended.
static void *receive_until_quiet(void *unused)
{
	uint64_t last = now();

	while (sending || now() - last < QUIET_MS * 1000000ull)
		if (receive_all() || sending)
			last = now();
	return unused;
}

static void open_loop(uint64_t end)
{
	pthread_t receiver;

	if ((errno = pthread_create(&receiver, NULL, receive_until_quiet, NULL)))
		die("pthread_create");
	for (int i = 0; now() < end; i = (i + 1) % nflows)
		send_some(&flows[i], BATCH);
	sending = 0;
	pthread_join(receiver, NULL);
}

// fill_window starts the window anew: what is out is lost.
static void fill_window(void)
{
	int used = window < nflows ? window : nflows;

	for (int i = 0; i < nflows; i++)
		flows[i].expect = flows[i].next;
	for (int i = 0; i < used; i++)
		send_some(&flows[i], window / used + (i < window % used));
}

static void closed_loop(uint64_t end)
{
	uint64_t last = now(), time;

	fill_window();
	while ((time = now()) < end) {
		if (receive_all()) {
			last = time;
		} else if (time - last >= QUIET_MS * 1000000ull) {
			fill_window();
			last = time;
		}
	}
	sending = 0;
	receive_until_quiet(NULL);
}

static void usage(const char *program)
{
	fprintf(stderr, "usage: %s -a ADDRESS [-p PORT] [-f 1..%d] [-l %d..%d] [-t SECONDS] [-w WINDOW] [-s] [-g]\n", program,
		MAX_FLOWS, HEAD, SIZE);
	exit(1);
}

int main(int argc, char **argv)
{
	const char *address = NULL;
	int port = 7, option;

	while ((option = getopt(argc, argv, "a:p:f:l:t:w:sg")) != -1) {
		switch (option) {
		case 'a': address = optarg; break;
		case 'p': port = atoi(optarg); break;
		case 'f': nflows = atoi(optarg); break;
		case 'l': payload = atoi(optarg); break;
		case 't': seconds = atof(optarg); break;
		case 'w': window = atoi(optarg); break;
		case 's': spin = 1; break;
		case 'g': segment = 1; break;
		default: usage(argv[0]);
		}
	}
	if (!address || nflows < 1 || nflows > MAX_FLOWS || payload < HEAD || payload > SIZE || window < 0 || seconds <= 0)
		usage(argv[0]);
	for (int i = 0; i < SIZE; i++)
		pattern[i] = i * 31 + 7;
	set_up(&out);
	set_up(&in);
	open_flows(address, port);

	uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9);
	if (window)
		closed_loop(end);
	else
		open_loop(end);

	double took = ((last_reply > end ? last_reply : end) - start) / 1e9;
	printf("{\"mode\":\"%s\",\"flows\":%d,\"payload\":%d,\"window\":%d,\"sent\":%llu,\"send_errors\":%llu,"
	       "\"received\":%llu,\"late\":%llu,\"bad\":%llu,\"lost\":%llu,\"seconds\":%.3f,\"pps\":%.0f,"
	       "\"p50_ns\":%llu,\"p99_ns\":%llu}\n",
	       window ? "closed" : "open", nflows, payload, window, (unsigned long long)sent,
	       (unsigned long long)send_errors, (unsigned long long)received, (unsigned long long)late,
	       (unsigned long long)bad, (unsigned long long)(sent > received ? sent - received : 0), took,
	       received / took, (unsigned long long)percentile(.5), (unsigned long long)percentile(.99));
	return 0;
}
