/*
 * xdpd_stack.h: the stack of xdpd in the caller's own process, over a wire that the caller is: whole Ethernet frames go in and come out by calls,
 * and time is what the caller says. Nothing here reads a clock, starts a timer or asks the kernel for randomness, so that the same calls
 * give the same frames, bit for bit. docs/conformance.md shows what that is good for.
 *
 *	struct xdpd_stack_config c = { .size = sizeof c, .addr = inet_addr("10.0.0.1"), .prefix = 24 };
 *	char why[256];
 *	xdpd_stack s = xdpd_stack_open(&c, why, sizeof why);
 *	xdpd_stack_input(s, frame, n);
 *	while ((n = xdpd_stack_output(s, frame, sizeof frame, &when)) > 0) ...
 *	next = xdpd_stack_advance(s, now);
 *
 * Sockets are used through rings (xdpd_stack_ring), which are those that a daemon shares with its clients (docs/clients.md): an application
 * fills in SQEs, calls xdpd_stack_run where it would knock, and takes completions; where it would sleep it moves frames and time.
 *
 * Any thread may call anything; calls on one stack take turns. Errors are negative errnos.
 */
#ifndef XDPD_STACK_H
#define XDPD_STACK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uintptr_t xdpd_stack; /* a number; 0 is none */

/* xdpd_stack_config: what is 0 has its default. All sizes are in bytes unless they say otherwise. */
struct xdpd_stack_config {
	uint32_t size;    /* of this struct */
	uint32_t addr;    /* in network byte order, as all addresses here */
	uint32_t gateway; /* default none: the subnet is all there is */
	uint32_t mtu;     /* of IP packets, 68 to 65535; default 1500. The MSS is 40 less */
	uint8_t prefix;   /* of addr: 0 to 32 bits */
	uint8_t no_ecn;   /* not 0: neither asks for ECN nor takes it */
	uint8_t mac[6];   /* default 02:00:00:00:00:01 */
	char congestion[8]; /* "cubic" (default) or "reno" */
	uint8_t seed[32]; /* of all that is random: initial sequence numbers, ports, IP identifications, timestamps */
	int64_t now;      /* ns, at which the clock begins; not negative */
	uint32_t frames;  /* how many frames of packet memory there are; default 4096 */
	uint32_t rcv_buf; /* that a socket may queue; default 1 MiB */
	uint32_t rcv_max; /* that a TCP window may grow to; default 3 MiB, or half of rcv_buf */
	uint32_t snd_buf; /* that a connection may have unsent or unacknowledged; default 4 MiB */
	uint32_t backlog; /* connections that wait to be accepted, for each listener; default 1024 */
	uint32_t conns;   /* connections; default 1048576 */
};

/* xdpd_stack_memory is what two sides of a ring share, as the daemon's welcome says it of a client's memfd. */
struct xdpd_stack_memory {
	void *mem;     /* the rings are at its beginning */
	uint64_t size;
	uint64_t data; /* offset of the application's own memory */
	uint64_t data_len;
	uint32_t mtu;
	uint32_t ring; /* number, for xdpd_stack_ring_close */
};

/* xdpd_stack_tcp tells of one connection. */
struct xdpd_stack_tcp {
	char state[16];      /* as ss(8) names it: "ESTAB", "SYN-SENT", ... */
	char phase[12];      /* "open", "cwr", "recovery" or "loss" */
	char congestion[12]; /* "cubic" or "reno" */
	char timer[12];      /* "", "on", "probe", "persist", "keepalive", "timewait" or "delack" */
	int64_t timer_in;    /* ns until it fires */
	int64_t rtt, rtt_var, min_rtt, rto; /* ns */
	uint64_t acked, received; /* bytes */
	uint32_t cwnd, ssthresh;  /* bytes; ssthresh 0: none yet */
	uint32_t in_flight, unacked, sacked, lost, again; /* bytes; again: sent once more since they were lost */
	uint32_t send_queue, recv_queue, out_of_order; /* bytes */
	uint32_t snd_wnd, rcv_wnd;
	uint32_t mss, rcv_mss, pmtu;
	uint32_t retransmits; /* segments */
	uint8_t snd_scale, rcv_scale, backoff; /* backoff: timeouts in a row */
	uint8_t sack, timestamps, ecn; /* 1: in use */
	uint8_t pad[2];
};

/* xdpd_stack_open makes a stack. 0: it cannot be, and reason, of room bytes, says why. */
xdpd_stack xdpd_stack_open(const struct xdpd_stack_config *config, char *reason, size_t room);

/* xdpd_stack_close ends it, with its rings and their memory. -EBADF: there is none. */
int xdpd_stack_close(xdpd_stack s);

/* xdpd_stack_ring makes a ring with sq_entries, a power of two, twice as many completions, and data bytes of memory for the
 * application. -EINVAL: sizes that cannot be; -ENOMEM; -EMFILE: too many rings. */
int xdpd_stack_ring(xdpd_stack s, uint32_t sq_entries, uint64_t data, struct xdpd_stack_memory *memory);

/* xdpd_stack_ring_close closes a ring and its sockets, as a client's end does, and unmaps its memory. */
int xdpd_stack_ring_close(xdpd_stack s, uint32_t ring);

/* xdpd_stack_input has a frame arrive: it is dealt with when it returns. -EMSGSIZE: no frame holds it; -ENOBUFS: there was no free one. */
int xdpd_stack_input(xdpd_stack s, const void *frame, size_t n);

/* xdpd_stack_output moves the oldest frame that was sent to frame, and the time at which it was to when, if that is not NULL. It says how long it
 * is, 0: there is none. -EMSGSIZE: room is too small, and it stays. 16384 frames wait at most; more are lost, and counted as "output_full". */
int64_t xdpd_stack_output(xdpd_stack s, void *frame, size_t room, int64_t *when);

/* xdpd_stack_run does what there is to do now: SQEs are taken, completions come. It says when a timer is due, in ns; INT64_MAX: none is. */
int64_t xdpd_stack_run(xdpd_stack s);

/* xdpd_stack_advance moves the clock to now, in steps: each timer that is due on the way fires at its own time. A time that is past changes nothing.
 * It says when the next timer is due, as xdpd_stack_run does. */
int64_t xdpd_stack_advance(xdpd_stack s, int64_t now);

/* xdpd_stack_step is xdpd_stack_advance to the next timer, but not beyond limit. */
int64_t xdpd_stack_step(xdpd_stack s, int64_t limit);

/* xdpd_stack_now is the time. */
int64_t xdpd_stack_now(xdpd_stack s);

/* xdpd_stack_counter gives a counter of `xdpd stats` by its name: "rx_frames", "tcp_retransmits", "tcp_out_of_window"..., or "output_full". -ENOENT: there
 * is none. */
int64_t xdpd_stack_counter(xdpd_stack s, const char *name);

/* xdpd_stack_tcp_info tells of the connection between two addresses, ports in network byte order. -ENOENT: there is none. */
int xdpd_stack_tcp_info(xdpd_stack s, uint32_t local, uint16_t local_port, uint32_t remote, uint16_t remote_port, struct xdpd_stack_tcp *info);

#ifdef __cplusplus
}
#endif

#endif
