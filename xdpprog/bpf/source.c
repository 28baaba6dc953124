// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

/*
 * The traffic source. BPF_PROG_RUN calls it in a loop with frames that it makes
 * of a page pool (net/bpf/test_run.c, xdp_test_run_batch). A frame comes as
 * it was when its last receiver let go of it, so the program writes all that
 * receivers change: every header. It redirects the frame, or gives it back
 * (XDP_DROP) while the next one is not due.
 *
 * Redirecting may fail after the program has ended, in bulk; two tracing programs
 * count that.
 */

#include "stamp.h"

#include <linux/tcp.h>

#include <bpf/bpf_tracing.h>

#define MAX_SIZES 64
#define LOOPBACK_IFINDEX 1

enum fault { FAULT_GONE = 1, FAULT_FRAME }; /* no device any more; a frame cannot be written */
enum mode { MODE_UDP, MODE_SYN, MODE_FRAMES };

struct range {
	__u32 first;
	__u32 count;
};

/* len is without FCS. The sums are of all that does not change in a frame of
 * this length, in words as loaded: ip_sum of the IPv4 header, l4_sum of the
 * pseudo-header, the UDP or TCP header and the payload. */
struct size {
	__u16 len;
	__u16 zero;
	__u32 ip_sum;
	__u32 l4_sum;
};

const volatile __u32 mode;
const volatile __u32 flows;
const volatile __u32 random_flows;
const volatile __u32 macs[3];
const volatile struct range srcs, dsts, src_ports, dst_ports;
const volatile __u32 no_udp_sum;
const volatile __u16 mark;
const volatile __u32 nsizes;
const volatile struct size sizes[MAX_SIZES];
const volatile __u32 full_len; /* of the frames that come, the longest of all */
const volatile __u64 first_seq;
const volatile __u64 burst_ns;
const volatile __u32 gaps;       /* frames have gaps */
const volatile __u32 slot_bytes; /* of data in a slot of frames */
const volatile __u32 redirect_map_id;

/* Of one run at a time, which is on one thread. */
__u64 written, bytes, skipped, first_time, last_time;
__u64 until;     /* the run is over when this many are written */
__u32 stop;      /* or when this is set */
__u32 fault;     /* or when this is: enum fault */
__u32 rebase;    /* the schedule starts anew with the next frame */
__u64 step_ns;   /* from one frame to the next; 0: no rate */
__u32 step_frac; /* and 2^-32 ns */
__u32 due_frac;
__u64 due_ns; /* when the last frame was due */
__u64 task;   /* the thread */
__u64 dropped, redirect_errors;

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} out SEC(".maps");

struct slot {
	__u32 len;
	__u32 zero;
	__u64 gap_ns;
	__u8 data[];
};

/* The loader sets the sizes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, 64);
	__uint(max_entries, 1);
} frames SEC(".maps");

/* Takes what i picks from a range, and leaves what it has for the next one. */
static __always_inline __u32 pick(const volatile struct range *r, __u32 *i)
{
	__u32 first = r->first, count = r->count, at = *i;

	if (count == 1)
		return first;
	*i = at / count;
	return first + at % count;
}

static __always_inline int give_up(enum fault why)
{
	fault = why;
	return XDP_DROP;
}

static __always_inline int write_ip(struct xdp_md *ctx, __u64 now, __u64 seq, const volatile struct size *size)
{
	__u32 i = flow_of(seq, flows, random_flows), saddr, daddr;
	struct udp_frame *f = (void *)(long)ctx->data;
	struct tcphdr *tcp = (void *)&f->udp;
	__u32 *l2 = (void *)f;
	__u16 sport, dport;
	__u64 sum;

	if ((void *)(f + 1) > (void *)(long)ctx->data_end)
		return -1;
	sport = pick(&src_ports, &i);
	dport = pick(&dst_ports, &i);
	saddr = bpf_htonl(pick(&srcs, &i));
	daddr = bpf_htonl(pick(&dsts, &i));

	l2[0] = macs[0];
	l2[1] = macs[1];
	l2[2] = macs[2];
	f->eth.h_proto = bpf_htons(ETH_P_IP);

	*(__u16 *)&f->ip = bpf_htons(0x4500);
	if (mode == MODE_SYN) /* and what fills the frame up */
		f->ip.tot_len = bpf_htons(sizeof(struct iphdr) + sizeof(*tcp));
	else
		f->ip.tot_len = bpf_htons(size->len - ETH_HLEN);
	f->ip.id = 0;
	f->ip.frag_off = bpf_htons(0x4000); /* DF: the ID has no meaning, RFC 6864 */
	f->ip.ttl = 64;
	f->ip.saddr = saddr;
	f->ip.daddr = daddr;
	sum = (__u64)saddr + daddr;
	f->ip.check = ~fold(sum + size->ip_sum);

	f->udp.source = bpf_htons(sport);
	f->udp.dest = bpf_htons(dport);
	sum += size->l4_sum;
	sum += (__u32)f->udp.source + f->udp.dest;
	if (mode == MODE_SYN) {
		f->ip.protocol = IPPROTO_TCP;
		tcp->seq = bpf_htonl((__u32)seq * 2654435761U); /* spread, and the same every time */
		tcp->ack_seq = 0;
		((__u16 *)tcp)[6] = bpf_htons(0x5002);
		tcp->window = bpf_htons(65535);
		tcp->urg_ptr = 0;
		tcp->check = ~fold(sum + tcp->seq);
		return 0;
	}

	f->ip.protocol = IPPROTO_UDP;
	f->udp.len = bpf_htons(size->len - ETH_HLEN - sizeof(struct iphdr));
	f->stamp.mark = mark;
	f->stamp.time_high = bpf_htonl(now >> 32);
	f->stamp.time_low = bpf_htonl((__u32)now);
	f->stamp.seq_high = bpf_htonl(seq >> 32);
	f->stamp.seq_low = bpf_htonl((__u32)seq);
	f->udp.check = 0;
	if (!no_udp_sum) {
		sum += (__u64)f->stamp.time_high + f->stamp.time_low;
		sum += (__u64)f->stamp.seq_high + f->stamp.seq_low;
		f->udp.check = ~fold(sum);
		if (!f->udp.check) /* RFC 768: zero means that there is none */
			f->udp.check = 0xffff;
	}
	return 0;
}

/* Whether the next frame is due, by the rate or after gap. */
static __always_inline int due(__u64 now, __u64 gap)
{
	__u64 step = step_ns, when, late;
	__u32 frac = due_frac;

	if (!step && !gaps)
		return 1;
	if (rebase) {
		rebase = 0;
		due_ns = now - step;
		due_frac = frac = 0;
		if (step && step_frac) /* what carries into the first */
			frac = due_frac = -step_frac;
	}
	when = due_ns + gap;
	if (step) {
		when = due_ns + step;
		frac += step_frac;
		if (frac < step_frac)
			when++;
	}
	if (now < when)
		return 0;
	late = now - when;
	if (late > burst_ns) {
		late -= burst_ns;
		if (step) {
			skipped += late / step;
			late -= late % step;
		}
		when += late;
	}
	due_ns = when;
	due_frac = frac;
	return 1;
}

SEC("xdp")
int source(struct xdp_md *ctx)
{
	__u64 n = written, seq = first_seq + n, now, gap = 0;
	const volatile struct size *size = &sizes[0];
	struct slot *slot = NULL;
	__u32 len, key;

	if (stop || fault || n >= until)
		return XDP_DROP;
	if (!task)
		task = bpf_get_current_task();
	if (mode == MODE_FRAMES) {
		key = seq % flows;
		slot = bpf_map_lookup_elem(&frames, &key);
		if (!slot)
			return give_up(FAULT_FRAME);
		gap = slot->gap_ns;
		len = slot->len;
	} else {
		if (nsizes > 1)
			size = &sizes[(seq % nsizes) & (MAX_SIZES - 1)];
		len = size->len;
	}
	now = bpf_ktime_get_ns();
	if (!due(now, gap))
		return XDP_DROP;

	if (len != full_len && bpf_xdp_adjust_tail(ctx, (int)(len - full_len)))
		return give_up(FAULT_FRAME);
	if (mode == MODE_FRAMES) {
		if (len < ETH_HLEN || len > slot_bytes || bpf_xdp_store_bytes(ctx, 0, slot->data, len))
			return give_up(FAULT_FRAME);
	} else if (write_ip(ctx, now, seq, size)) {
		return give_up(FAULT_FRAME);
	}

	if (bpf_redirect_map(&out, 0, 0) != XDP_REDIRECT)
		return give_up(FAULT_GONE);
	if (!first_time)
		first_time = now;
	last_time = now;
	bytes += len;
	written = n + 1;
	return XDP_REDIRECT;
}

struct net_device {
	int ifindex;
} __attribute__((preserve_access_index));

/* kernel/bpf/devmap.c, bq_xmit_all. Only a test run comes from the loopback,
 * whose hook is the generic one. */
SEC("tp_btf/xdp_devmap_xmit")
int BPF_PROG(source_xmit, const struct net_device *from, const struct net_device *to, int sent, int drops, int err)
{
	if (drops > 0 && bpf_get_current_task() == task && from->ifindex == LOOPBACK_IFINDEX)
		dropped += drops;
	return 0;
}

/* net/core/filter.c, xdp_do_redirect_frame. */
SEC("tp_btf/xdp_redirect_err")
int BPF_PROG(source_err, const struct net_device *dev, const void *xdp, const void *tgt, int err, int map_type,
	     __u32 map_id)
{
	if (map_id == redirect_map_id)
		redirect_errors++;
	return 0;
}

char dual_license[] SEC("license") = "Dual BSD/GPL";
