/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* What source.c writes and sink.c reads. */

#ifndef STAMP_H
#define STAMP_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* At the start of a UDP payload, as Stamp in stamp.go says. The two halves of
 * each number lie at multiples of four from the start of the frame. */
struct stamp {
	__be16 mark;
	__be32 time_high;
	__be32 time_low;
	__be32 seq_high;
	__be32 seq_low;
} __attribute__((packed, aligned(2)));

/* A frame's headers, without IPv4 options. */
struct udp_frame {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	struct stamp stamp;
} __attribute__((packed, aligned(2)));

/* The sum of 32-bit words down to 16 bits, RFC 1071. The order of bytes does
 * not matter to it: words are summed as they are loaded. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* The flow of a frame: one after the other, or by a hash (MurmurHash3's final
 * mix). */
static __always_inline __u32 flow_of(__u64 seq, __u32 flows, __u32 random)
{
	if (flows == 1)
		return 0;
	if (!random)
		return seq % flows;
	seq ^= seq >> 33;
	seq *= 0xff51afd7ed558ccdULL;
	seq ^= seq >> 33;
	seq *= 0xc4ceb9fe1a85ec53ULL;
	seq ^= seq >> 33;
	return ((seq & 0xffffffff) * flows) >> 32;
}

#endif
