// A UDP echo on kernel sockets: the peer against which the engine's echo is measured. One port, one thread, batches of 64.
//
//	udpecho_kernel [-p PORT] [-s]
//
// -s spins instead of sleeping in recvmmsg(2). Prints "ready" when the port is open, and one line of JSON with its counts
// when SIGTERM or SIGINT ends it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum {
	BATCH = 64,
	SIZE = 9216,         // the largest datagram: a jumbo frame
	STRIDE = SIZE + 192, // not a multiple of 4096: the buffers' first lines must not share one cache set
};

static volatile sig_atomic_t stopped;
static unsigned char buffers[BATCH][STRIDE];

static void stop(int sig)
{
	(void)sig;
	stopped = 1;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int open_port(int port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct timeval look = {.tv_usec = 100000}; // how often a sleeping recvmmsg looks whether it shall stop
	int space = 8 << 20;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0)
		die("socket");
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &look, sizeof look))
		die("SO_RCVTIMEO");
	// The FORCE variant passes rmem_max; without root the plain one gives what it can.
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &space, sizeof space))
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &space, sizeof space);
	if (bind(fd, (struct sockaddr *)&at, sizeof at))
		die("bind");
	return fd;
}

int main(int argc, char **argv)
{
	static struct mmsghdr msgs[BATCH];
	static struct iovec parts[BATCH];
	static struct sockaddr_in from[BATCH];
	uint64_t received = 0, sent = 0, truncated = 0, errors = 0, batches = 0;
	int port = 7, flags = MSG_WAITFORONE, option;
	struct sigaction on_stop = {.sa_handler = stop};

	while ((option = getopt(argc, argv, "p:s")) != -1) {
		if (option == 'p') {
			port = atoi(optarg);
		} else if (option == 's') {
			flags = MSG_DONTWAIT;
		} else {
			fprintf(stderr, "usage: %s [-p PORT] [-s]\n", argv[0]);
			return 2;
		}
	}
	sigaction(SIGTERM, &on_stop, NULL);
	sigaction(SIGINT, &on_stop, NULL);
	int fd = open_port(port);
	for (int i = 0; i < BATCH; i++) {
		parts[i].iov_base = buffers[i];
		msgs[i].msg_hdr.msg_iov = &parts[i];
		msgs[i].msg_hdr.msg_iovlen = 1;
		msgs[i].msg_hdr.msg_name = &from[i];
	}
	printf("ready\n");
	fflush(stdout);

	while (!stopped) {
		for (int i = 0; i < BATCH; i++) {
			parts[i].iov_len = SIZE;
			msgs[i].msg_hdr.msg_namelen = sizeof from[i];
		}
		int n = recvmmsg(fd, msgs, BATCH, flags, NULL);
		if (n < 0) {
			if (errno != EAGAIN && errno != EINTR)
				errors++;
			continue;
		}
		batches++;
		received += n;
		for (int i = 0; i < n; i++) {
			parts[i].iov_len = msgs[i].msg_len;
			truncated += (msgs[i].msg_hdr.msg_flags & MSG_TRUNC) != 0;
		}
		for (int done = 0; done < n;) {
			int m = sendmmsg(fd, msgs + done, n - done, 0);
			if (m < 0 && errno == EINTR)
				continue;
			if (m < 0) { // that of the first one: leave it out
				errors++;
				done++;
				continue;
			}
			sent += m;
			done += m;
		}
	}
	printf("{\"received\":%llu,\"sent\":%llu,\"batches\":%llu,\"truncated\":%llu,\"errors\":%llu}\n",
	       (unsigned long long)received, (unsigned long long)sent, (unsigned long long)batches,
	       (unsigned long long)truncated, (unsigned long long)errors);
	return 0;
}
