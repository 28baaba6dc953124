// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

/*
 * What a forwarder takes off a device. A bridge gets everything that is not for
 * the device itself: frames to its own address and to the groups that no bridge
 * passes on (IEEE 802.1Q table 8-1: spanning tree, LACP, LLDP) are the kernel's.
 * A router gets IPv4 packets that were sent to the device's address and are to
 * go on; what is for the machine itself, broadcasts, groups, VLANs and all other
 * protocols are the kernel's, with ARP and everything that listens there.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "metadata.h"

/* 0: bridge. 1: router. */
const volatile __u32 route;

/* The device's own address; it may change. The last two bytes are 0. */
__u64 own_mac;

/* In the order of forwardNames in forward.go. */
enum verdict {
	FORWARD,
	PASS_OWN,
	PASS_GROUP,
	PASS_PROTOCOL,
	PASS_SHORT,
	PASS_NO_SOCKET,
	DROP_NO_ROOM,
	VERDICTS,
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1); /* the loader sets the device's queue count */
} xsks SEC(".maps");

/* The machine's own addresses, of all devices: one table for all programs of a forwarder. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __be32);
	__type(value, __u8);
	__uint(max_entries, 4096);
} locals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, VERDICTS);
} counters SEC(".maps");

static __always_inline __u64 mac_of(const __u8 *b)
{
	return (__u64)b[0] | (__u64)b[1] << 8 | (__u64)b[2] << 16 | (__u64)b[3] << 24 | (__u64)b[4] << 32 |
	       (__u64)b[5] << 40;
}

static __always_inline enum verdict classify_bridge(struct ethhdr *eth)
{
	__u64 dst = mac_of(eth->h_dest);

	if (dst == own_mac)
		return PASS_OWN;
	if ((dst & 0xf0ffffffffffULL) == 0x0000c28001ULL) /* 01-80-C2-00-00-0x */
		return PASS_GROUP;
	return FORWARD;
}

static __always_inline enum verdict classify_route(struct ethhdr *eth, void *end)
{
	struct iphdr *ip = (void *)(eth + 1);
	__be32 dst;

	if (eth->h_dest[0] & 1)
		return PASS_GROUP;
	if (eth->h_proto != bpf_htons(ETH_P_IP) || mac_of(eth->h_dest) != own_mac)
		return PASS_PROTOCOL;
	if ((void *)(ip + 1) > end)
		return PASS_SHORT;
	dst = ip->daddr;
	if ((bpf_ntohl(dst) & 0xe0000000) == 0xe0000000) /* groups, and what is reserved */
		return PASS_GROUP;
	return bpf_map_lookup_elem(&locals, &dst) ? PASS_OWN : FORWARD;
}

static __always_inline int forward_frame(struct xdp_md *ctx, int metadata)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u32 len = bpf_xdp_get_buff_len(ctx), verdict = PASS_SHORT;
	struct counter *counter;
	int action = XDP_PASS;

	if ((void *)(eth + 1) <= end)
		verdict = route ? classify_route(eth, end) : classify_bridge(eth);
	if (verdict == FORWARD && metadata && route && has_tag(ctx))
		verdict = PASS_PROTOCOL; /* as a frame whose tag is still in it */
	if (verdict == FORWARD) {
		action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
		if (action != XDP_REDIRECT) {
			verdict = PASS_NO_SOCKET;
		} else if (metadata && !route && !restore_tag(ctx)) {
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
int forward(struct xdp_md *ctx)
{
	return forward_frame(ctx, 0);
}

/* For a program that is bound to a device whose driver tells what it knows of a frame. */
SEC("xdp")
int forward_metadata(struct xdp_md *ctx)
{
	return forward_frame(ctx, 1);
}

char dual_license[] SEC("license") = "Dual BSD/GPL";
