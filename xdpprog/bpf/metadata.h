/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/*
 * What a driver knows of a frame besides its bytes (Documentation/networking/xdp-rx-metadata.rst), for programs that are
 * bound to their device. The kfuncs are calls into its driver. Without CAP_PERFMON the verifier wants what they write to be
 * initialized.
 */

extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym;
extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __be16 *vlan_proto, __u16 *vlan_tci) __ksym;

/* In the order of struct ethhdr, with a tag in it. */
struct tagged {
	__u8 macs[2 * ETH_ALEN];
	__be16 tpid;
	__be16 tci;
};

/* Whether the driver took a VLAN tag out of a frame. */
static __always_inline int has_tag(struct xdp_md *ctx)
{
	__be16 tpid = 0;
	__u16 tci = 0;

	return !bpf_xdp_metadata_rx_vlan_tag(ctx, &tpid, &tci);
}

/*
 * Puts the VLAN tag back that the driver took out of a frame: whoever gets the frame from a socket sees no difference.
 * 0: there is no room for it.
 */
static __always_inline int restore_tag(struct xdp_md *ctx)
{
	struct tagged *frame;
	__be16 tpid = 0;
	__u16 tci = 0;

	if (bpf_xdp_metadata_rx_vlan_tag(ctx, &tpid, &tci))
		return 1;
	if (bpf_xdp_adjust_head(ctx, -4))
		return 0;
	frame = (void *)(long)ctx->data;
	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return 0;
	__builtin_memmove(frame->macs, (__u8 *)frame + 4, sizeof(frame->macs));
	frame->tpid = tpid;
	frame->tci = bpf_htons(tci);
	return 1;
}

/* Of a stamp: the time is the device's own, not CLOCK_MONOTONIC. */
#define STAMP_HARDWARE (1ULL << 63)

/* Writes into the 8 bytes in front of a frame when it was received, in nanoseconds. 0: there is no room for it. */
static __always_inline int put_stamp(struct xdp_md *ctx)
{
	__u64 ns = 0, *stamp;
	int i;

	/* What a program of the sender's end left there, up to 252 bytes, would stand between. */
#pragma unroll
	for (i = 128; i >= 4; i /= 2)
		if ((void *)(long)ctx->data_meta + i <= (void *)(long)ctx->data && bpf_xdp_adjust_meta(ctx, i))
			return 0;
	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*stamp)))
		return 0;
	stamp = (void *)(long)ctx->data_meta;
	if ((void *)(stamp + 1) > (void *)(long)ctx->data)
		return 0;
	/* A veth passes on what the packet had, which may be no time. */
	if (bpf_xdp_metadata_rx_timestamp(ctx, &ns) || !ns)
		*stamp = bpf_ktime_get_ns();
	else
		*stamp = ns | STAMP_HARDWARE;
	return 1;
}
