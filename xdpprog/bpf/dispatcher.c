// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

/*
 * Several programs on one device: this one runs on the device and calls up to
 * ten others in turn. Each slot below is a function that an extension program
 * (BPF_PROG_TYPE_EXT) replaces while it is attached to it. Names, layout and
 * rules are those of libxdp's dispatcher version 2 (protocol.org of xdp-tools),
 * so that its tools and this engine can take over each other's dispatchers.
 */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define SLOTS 10

/* What a slot without a program returns: its bit is set in all the actions. */
#define EMPTY 31

/* Read-only and frozen before the program is loaded: the verifier drops the
 * calls of slots that are not enabled. */
const volatile struct {
	__u8 magic;
	__u8 dispatcher_version;
	__u8 num_progs_enabled;
	__u8 is_xdp_frags;
	__u32 chain_call_actions[SLOTS];
	__u32 run_prios[SLOTS];
	__u32 program_flags[SLOTS];
} conf;

/*
 * The volatile value keeps the compiler from knowing the answer of a function
 * that will be another one. A program that resizes packets may only replace one
 * that does so as well (Linux 6.13): hence the resizing by nothing.
 */
#define SLOT(name)                                  \
	__attribute__((noinline))                   \
	int name(struct xdp_md *ctx)                \
	{                                           \
		volatile int empty = EMPTY;         \
                                                    \
		if (!ctx)                           \
			return XDP_ABORTED;         \
		bpf_xdp_adjust_tail(ctx, 0);        \
		return empty;                       \
	}

SLOT(prog0)
SLOT(prog1)
SLOT(prog2)
SLOT(prog3)
SLOT(prog4)
SLOT(prog5)
SLOT(prog6)
SLOT(prog7)
SLOT(prog8)
SLOT(prog9)

#define CALL(n)                                                 \
	do {                                                    \
		int action;                                     \
                                                                \
		if (conf.num_progs_enabled <= n)                \
			return XDP_PASS;                        \
		action = prog##n(ctx);                          \
		if (!(1U << action & conf.chain_call_actions[n])) \
			return action;                          \
	} while (0)

SEC("xdp")
int xdp_dispatcher(struct xdp_md *ctx)
{
	CALL(0);
	CALL(1);
	CALL(2);
	CALL(3);
	CALL(4);
	CALL(5);
	CALL(6);
	CALL(7);
	CALL(8);
	CALL(9);
	return XDP_PASS;
}

char dual_license[] SEC("license") = "Dual BSD/GPL";
