// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

/*
 * The traffic sink: takes the frames that source.c stamped, or the replies to
 * them, and keeps account of them; passes all else. And a program that drops
 * everything.
 */

#include "stamp.h"

/* histogram.go has the same numbers. */
#define SUB_BITS 5
#define TOP_BIT 40
#define BUCKETS ((TOP_BIT - SUB_BITS) * (1 << SUB_BITS) + 2 * (1 << SUB_BITS))

const volatile __u16 mark;
const volatile __u32 check_sums;
const volatile __u64 seqs;
const volatile __u32 flows;
const volatile __u32 random_flows;

__u64 first_seq;

/* sinkWords.stats in sink.go knows the order. */
struct counters {
	__u64 frames;
	__u64 bytes;
	__u64 bad_sum;
	__u64 partial_sum;
	__u64 unique;
	__u64 duplicates;
	__u64 outside;
	__u64 in_order;
	__u64 ahead;
	__u64 gap;
	__u64 late;
	__u64 passed;
	__u64 latency_sum;
	__u64 latency[BUCKETS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counters);
	__uint(max_entries, 1);
} totals SEC(".maps");

/* A bit for each sequence number. The loader sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} seen SEC(".maps");

/* The next expected sequence number of each flow; 0: none has come. The loader
 * sets the size. A flow is received on one CPU at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} expected SEC(".maps");

struct drops {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct drops);
	__uint(max_entries, 1);
} dropped SEC(".maps");

static __always_inline __u32 bucket_of(__u64 ns)
{
	__u64 v = ns, max = (2ULL << TOP_BIT) - 1;
	__u32 top = 0, shift;

	if (v > max)
		v = max;
	ns = v;
	if (v >> 32) {
		top += 32;
		v >>= 32;
	}
	if (v >> 16) {
		top += 16;
		v >>= 16;
	}
	if (v >> 8) {
		top += 8;
		v >>= 8;
	}
	if (v >> 4) {
		top += 4;
		v >>= 4;
	}
	if (v >> 2) {
		top += 2;
		v >>= 2;
	}
	top += v >> 1;
	shift = top > SUB_BITS ? top - SUB_BITS : 0;
	return (shift << SUB_BITS) + (__u32)(ns >> shift);
}

enum sum { SUM_BAD, SUM_PARTIAL, SUM_GOOD };

/* Checks both sums of a frame that the IPv4 length ends, and that is in one
 * buffer. */
static __always_inline enum sum check(struct udp_frame *f, void *end)
{
	__u32 *ip = (void *)&f->ip, *word;
	void *p = &f->udp;
	__u64 sum, pseudo;
	__u16 found;
	int i;

	sum = (__u64)ip[0] + ip[1] + ip[2] + ip[3] + ip[4];
	if (fold(sum) != 0xffff)
		return SUM_BAD;
	found = f->udp.check;
	if (!found)
		return SUM_GOOD;

	pseudo = (__u64)f->ip.saddr + f->ip.daddr + bpf_htons(IPPROTO_UDP) + f->udp.len;
	sum = pseudo;
	for (i = 0; i < 64; i++) {
		if (p + 64 > end)
			break;
		sum += (__u32)bpf_csum_diff(NULL, 0, p, 64, 0);
		p += 64;
	}
	for (i = 0; i < 16; i++) {
		if (p + 4 > end)
			break;
		word = p;
		sum += *word;
		p += 4;
	}
	if (p + 2 <= end) {
		sum += *(__u16 *)p;
		p += 2;
	}
	if (p + 1 <= end)
		sum += *(__u8 *)p; /* the first of two bytes, in little endian */
	if (fold(sum) == 0xffff)
		return SUM_GOOD;
	return found == fold(pseudo) ? SUM_PARTIAL : SUM_BAD;
}

static __always_inline void note_seq(struct counters *c, __u64 seq)
{
	__u64 at = seq - first_seq, bit, *word;
	__u32 key = at / 64;

	if (at >= seqs) {
		c->outside++;
		return;
	}
	word = bpf_map_lookup_elem(&seen, &key);
	if (!word)
		return;
	bit = 1ULL << (at % 64);
	if (__sync_fetch_and_or(word, bit) & bit)
		c->duplicates++;
	else
		c->unique++;
}

static __always_inline void note_order(struct counters *c, __u64 seq)
{
	__u32 flow = flow_of(seq, flows, random_flows);
	__u64 *next = bpf_map_lookup_elem(&expected, &flow);
	__u64 want;

	if (!next)
		return;
	want = *next;
	if (want && seq < want) {
		c->late++;
		return;
	}
	if (random_flows) {
		c->in_order++;
		*next = seq + 1;
		return;
	}
	if (!want || seq == want) {
		c->in_order++;
	} else {
		c->ahead++;
		c->gap += (seq - want) / flows;
	}
	*next = seq + flows;
}

static __always_inline void note_latency(struct counters *c, __u64 sent)
{
	__s64 ns = bpf_ktime_get_ns() - sent;
	__u32 i;

	if (ns < 0)
		ns = 0;
	i = bucket_of(ns);
	c->latency_sum += ns;
	if (i < BUCKETS)
		c->latency[i]++;
}

static __always_inline int is_ours(struct udp_frame *f, void *end)
{
	return (void *)(f + 1) <= end && f->eth.h_proto == bpf_htons(ETH_P_IP) && *(__u8 *)&f->ip == 0x45 &&
	       f->ip.protocol == IPPROTO_UDP && !(f->ip.frag_off & bpf_htons(0x3fff)) && f->stamp.mark == mark;
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	struct udp_frame *f = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 key = 0, len, want;
	__u64 seq, time;
	struct counters *c = bpf_map_lookup_elem(&totals, &key);

	if (!c)
		return XDP_ABORTED;
	if (!is_ours(f, end)) {
		c->passed++;
		return XDP_PASS;
	}
	len = bpf_xdp_get_buff_len(ctx);
	c->frames++;
	c->bytes += len;
	seq = (__u64)bpf_ntohl(f->stamp.seq_high) << 32 | bpf_ntohl(f->stamp.seq_low);
	time = (__u64)bpf_ntohl(f->stamp.time_high) << 32 | bpf_ntohl(f->stamp.time_low);

	if (check_sums && len == ctx->data_end - ctx->data) {
		want = ETH_HLEN + bpf_ntohs(f->ip.tot_len);
		if (want > len || bpf_ntohs(f->udp.len) != want - ETH_HLEN - sizeof(struct iphdr)) {
			c->bad_sum++;
			return XDP_DROP;
		}
		if (want < len) { /* what a small frame was padded with */
			if (bpf_xdp_adjust_tail(ctx, (int)(want - len)))
				return XDP_ABORTED;
			f = (void *)(long)ctx->data;
			end = (void *)(long)ctx->data_end;
			if ((void *)(f + 1) > end)
				return XDP_ABORTED;
		}
		switch (check(f, end)) {
		case SUM_BAD:
			c->bad_sum++;
			return XDP_DROP;
		case SUM_PARTIAL:
			c->partial_sum++;
			break;
		case SUM_GOOD:
			break;
		}
	}
	if (seqs)
		note_seq(c, seq);
	if (flows)
		note_order(c, seq);
	note_latency(c, time);
	return XDP_DROP;
}

SEC("xdp")
int drop(struct xdp_md *ctx)
{
	__u32 key = 0;
	struct drops *d = bpf_map_lookup_elem(&dropped, &key);

	if (d) {
		d->packets++;
		d->bytes += bpf_xdp_get_buff_len(ctx);
	}
	return XDP_DROP;
}

char dual_license[] SEC("license") = "Dual BSD/GPL";
