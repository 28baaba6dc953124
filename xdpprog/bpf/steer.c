// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

/*
 * Steering: decides for each frame whether it is ours (to the AF_XDP socket of
 * the queue it came in on) or the kernel's (XDP_PASS). It reads headers only;
 * whether what it steers is sound is for the stack to check and to count.
 *
 * Without CAP_PERFMON the verifier refuses data_end - data and packet pointers
 * with a variable offset. So lengths come from bpf_xdp_get_buff_len, and what
 * lies behind a header of variable length is read by bpf_xdp_load_bytes (both
 * Linux 5.18). Both know all fragments of a multi-buffer frame besides.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "metadata.h"

#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/* RFC 792. <linux/icmp.h> has them, and pulls in the C library with them. */
#define ARP_REPLY 2

#define ICMP_UNREACHABLE 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12

/* ipfrag_time of the kernel: a later fragment this late is nobody's any more. */
#define FRAGMENT_LIFE_NS (30ULL * 1000 * 1000 * 1000)

/* 0: own the addresses (their ARP and IPv4). 1: share them with the kernel. */
const volatile __u32 share;

/* 1: steer_metadata puts a stamp in front of our frames. */
const volatile __u32 stamps;

/* In the order of verdictNames in counters.go. */
enum verdict {
	OWN_ARP,
	OWN_IPV4,
	SHARE_PORT,
	SHARE_ICMP_ERROR,
	SHARE_FRAGMENT,
	LAST_OURS = SHARE_FRAGMENT,
	PASS_NOT_OURS,
	PASS_FRAGMENT,
	PASS_NO_SOCKET,
	PASS_MALFORMED,
	PASS_PROBE,
	DROP_NO_ROOM,
	VERDICTS,
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct port_key {
	__be32 addr; /* 0: every configured address */
	__be16 port;
	__u8 proto;
	__u8 zero;
};

/* RFC 791 section 3.2: what names one datagram among the fragments in flight. */
struct frag_key {
	__be32 src;
	__be32 dst;
	__be16 id;
	__u8 proto;
	__u8 zero;
};

struct vlan_tag {
	__be16 tci;
	__be16 type;
};

struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 op;
	__u8 sha[ETH_ALEN];
	__u8 spa[4];
	__u8 tha[ETH_ALEN];
	__be32 tpa;
} __attribute__((packed));

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1); /* the loader sets the device's queue count */
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __be32);
	__type(value, __u8);
	__uint(max_entries, 256);
} addrs SEC(".maps");

/* Not preallocated: few of the 65536 ports are open at any time. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, __u8);
	__uint(max_entries, 65536);
} ports SEC(".maps");

/* Datagrams whose first fragment was ours -> ktime when that is forgotten. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct frag_key);
	__type(value, __u64);
	__uint(max_entries, 4096);
} fragments SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, VERDICTS);
} counters SEC(".maps");

/* The UDP port that waits for a frame of a queue (see probe_reply), in network byte order; 0: none does. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} probe SEC(".maps");

static __always_inline int is_our_addr(__be32 addr)
{
	return bpf_map_lookup_elem(&addrs, &addr) != 0;
}

static __always_inline int is_open(__be32 addr, __u8 proto, __be16 port)
{
	struct port_key key = { .addr = addr, .port = port, .proto = proto };

	if (bpf_map_lookup_elem(&ports, &key))
		return 1;
	key.addr = 0;
	return bpf_map_lookup_elem(&ports, &key) != 0;
}

static __always_inline enum verdict classify_arp(void *l3, void *end)
{
	struct arp_ipv4 *arp = l3;

	if ((void *)(arp + 1) > end)
		return PASS_MALFORMED;
	/* With other address lengths the target address is somewhere else. */
	if (arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_len != ETH_ALEN || arp->protocol_len != 4)
		return PASS_MALFORMED;
	return is_our_addr(arp->tpa) ? OWN_ARP : PASS_NOT_OURS;
}

/*
 * The kernel tells a UDP socket which NAPI runs a queue when it receives from it, and only then. So an answer to an ARP
 * probe (RFC 5227: the sender's address is 0), which is of no use to anybody else, becomes an empty datagram to all
 * hosts, 224.0.0.1, which every device hears, with or without addresses. Both are 42 bytes. Its source port is the queue's
 * number.
 */
static __always_inline int probe_reply(void *l3, void *end, __u32 queue)
{
	__u32 zero = 0;
	struct arp_ipv4 *arp = l3;
	struct iphdr *ip = l3;
	struct udphdr *udp = (void *)(ip + 1);
	__u32 *port;

	if ((void *)(arp + 1) > end || (void *)(udp + 1) > end)
		return 0;
	if (arp->op != bpf_htons(ARP_REPLY) || arp->tpa != 0)
		return 0;
	port = bpf_map_lookup_elem(&probe, &zero);
	if (!port || !*port)
		return 0;
	__builtin_memset(ip, 0, sizeof(*ip) + sizeof(*udp));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*udp));
	ip->ttl = 1;
	ip->protocol = IPPROTO_UDP;
	ip->daddr = bpf_htonl(0xe0000001);
	ip->check = bpf_htons(0xd9d0); /* of exactly this header */
	udp->source = bpf_htons(queue);
	udp->dest = *port;
	udp->len = bpf_htons(sizeof(*udp));
	return 1;
}

/*
 * An ICMP error is ours when the packet it quotes left from one of our ports:
 * RFC 792 has routers quote the IPv4 header and 8 bytes, so the ports are there.
 * room is the number of bytes of ICMP, from offset on.
 */
static __always_inline enum verdict classify_icmp(struct xdp_md *ctx, __u32 offset, __u32 room)
{
	struct icmp_header icmp;
	struct iphdr quoted;
	__be16 source;
	__u32 quoted_header;

	if (room < sizeof(icmp) || bpf_xdp_load_bytes(ctx, offset, &icmp, sizeof(icmp)))
		return PASS_MALFORMED;
	if (icmp.type != ICMP_UNREACHABLE && icmp.type != ICMP_TIME_EXCEEDED && icmp.type != ICMP_PARAMETER)
		return PASS_NOT_OURS;

	offset += sizeof(icmp);
	room -= sizeof(icmp);
	if (room < sizeof(quoted) || bpf_xdp_load_bytes(ctx, offset, &quoted, sizeof(quoted)))
		return PASS_MALFORMED;
	quoted_header = quoted.ihl * 4;
	if (quoted.version != 4 || quoted_header < sizeof(quoted) || room < quoted_header + 4)
		return PASS_MALFORMED;
	if (bpf_xdp_load_bytes(ctx, offset + quoted_header, &source, sizeof(source)))
		return PASS_MALFORMED;

	if (quoted.frag_off & bpf_htons(IP_OFFSET))
		return PASS_NOT_OURS;
	if (quoted.protocol != IPPROTO_TCP && quoted.protocol != IPPROTO_UDP)
		return PASS_NOT_OURS;
	if (!is_our_addr(quoted.saddr) || !is_open(quoted.saddr, quoted.protocol, source))
		return PASS_NOT_OURS;
	return SHARE_ICMP_ERROR;
}

/* room is the number of bytes after the IPv4 header that it announces, from offset on. */
static __always_inline enum verdict classify_l4(struct xdp_md *ctx, struct iphdr *ip, void *end, __u32 offset,
						__u32 room)
{
	__be16 *near = (void *)(ip + 1);
	__be16 l4_ports[2];

	if (ip->protocol == IPPROTO_ICMP)
		return classify_icmp(ctx, offset, room);
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return PASS_NOT_OURS;
	if (room < sizeof(l4_ports))
		return PASS_MALFORMED;

	if (ip->ihl == 5 && (void *)(near + 2) <= end)
		l4_ports[1] = near[1];
	else if (bpf_xdp_load_bytes(ctx, offset, l4_ports, sizeof(l4_ports)))
		return PASS_MALFORMED;
	return is_open(ip->daddr, ip->protocol, l4_ports[1]) ? SHARE_PORT : PASS_NOT_OURS;
}

static __always_inline enum verdict classify_shared(struct xdp_md *ctx, struct iphdr *ip, void *end, __u32 offset,
						    __u32 room)
{
	__u32 header = ip->ihl * 4, total = bpf_ntohs(ip->tot_len);
	struct frag_key key = { .src = ip->saddr, .dst = ip->daddr, .id = ip->id, .proto = ip->protocol };
	enum verdict v;

	if (ip->version != 4 || header < sizeof(*ip) || total < header || total > room)
		return PASS_MALFORMED;

	if (ip->frag_off & bpf_htons(IP_OFFSET)) {
		__u64 *until = bpf_map_lookup_elem(&fragments, &key);

		/* One that overtook its first fragment passes: nothing tells whose it is. */
		return until && bpf_ktime_get_ns() < *until ? SHARE_FRAGMENT : PASS_FRAGMENT;
	}

	v = classify_l4(ctx, ip, end, offset + header, total - header);
	if (ip->frag_off & bpf_htons(IP_MF)) {
		__u64 until = bpf_ktime_get_ns() + FRAGMENT_LIFE_NS;

		/* IDs come round again: a datagram for the kernel ends an older one's claim. */
		if (v <= LAST_OURS)
			bpf_map_update_elem(&fragments, &key, &until, BPF_ANY);
		else
			bpf_map_delete_elem(&fragments, &key);
	}
	return v;
}

/* room is the number of bytes of the frame from the IPv4 header on, which is at offset. */
static __always_inline enum verdict classify_ipv4(struct xdp_md *ctx, struct iphdr *ip, void *end, __u32 offset,
						  __u32 room)
{
	if ((void *)(ip + 1) > end)
		return PASS_MALFORMED;
	if (!is_our_addr(ip->daddr))
		return PASS_NOT_OURS;
	return share ? classify_shared(ctx, ip, end, offset, room) : OWN_IPV4;
}

static __always_inline enum verdict classify(struct xdp_md *ctx, __u32 len)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *l3 = eth + 1;
	__u32 offset = sizeof(*eth);
	__be16 type;
	int i;

	if (l3 > end)
		return PASS_MALFORMED;
	type = eth->h_proto;

#pragma unroll
	for (i = 0; i < 2; i++) {
		struct vlan_tag *tag = l3;

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > end)
			return PASS_MALFORMED;
		type = tag->type;
		l3 = tag + 1;
		offset += sizeof(*tag);
	}

	if (type == bpf_htons(ETH_P_IP))
		return classify_ipv4(ctx, l3, end, offset, len - offset);
	if (type == bpf_htons(ETH_P_ARP) && l3 == (void *)(eth + 1) && probe_reply(l3, end, ctx->rx_queue_index)) {
		eth->h_proto = bpf_htons(ETH_P_IP);
		return PASS_PROBE;
	}
	if (type == bpf_htons(ETH_P_ARP) && !share)
		return classify_arp(l3, end);
	return PASS_NOT_OURS;
}

static __always_inline int steer_frame(struct xdp_md *ctx, int metadata)
{
	__u32 len = bpf_xdp_get_buff_len(ctx);
	__u32 verdict = classify(ctx, len);
	struct counter *counter;
	int action = XDP_PASS;

	if (verdict <= LAST_OURS) {
		/* The last argument is what it returns for a queue without a socket. */
		action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
		if (action != XDP_REDIRECT) {
			verdict = PASS_NO_SOCKET;
		} else if (metadata && (!restore_tag(ctx) || (stamps && !put_stamp(ctx)))) {
			verdict = DROP_NO_ROOM;
			action = XDP_DROP;
		}
	}

	counter = bpf_map_lookup_elem(&counters, &verdict);
	if (counter) {
		counter->packets++;
		counter->bytes += len;
	}
	return action;
}

SEC("xdp")
int steer(struct xdp_md *ctx)
{
	return steer_frame(ctx, 0);
}

/* For a program that is bound to a device whose driver tells what it knows of a frame. */
SEC("xdp")
int steer_metadata(struct xdp_md *ctx)
{
	return steer_frame(ctx, 1);
}

char dual_license[] SEC("license") = "Dual BSD/GPL";
