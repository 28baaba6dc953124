// AF_XDP without a stack, in plain C: the floor under everything that the engine does, and the twin of "bench -serve raw".
//
//	xsk [-m PEER_MAC] WORK ADDRESS PORT DEVICE
//
//	raw-echo  every UDP datagram to PORT goes back in the frame it came in, with MACs, addresses and ports exchanged
//	raw-tx    sends the same frame of 64 bytes to the peer as fast as it can
//	raw-drop  receives and drops
//
// The XDP program redirects what goes over UDP to PORT; the rest, ARP among it, is the kernel's, which has ADDRESS on DEVICE.
// The peer of raw-tx is the other host of a /30 that ADDRESS lies in (10.77.0.1 for 10.77.0.2). The kernel is asked for its
// MAC, unless -m gives it. Queue 0 in copy mode, with need_wakeup; the loop spins and handles 64 frames at a time. It prints
// "ready", and at SIGTERM or SIGINT one line of JSON. Sizes are the engine's (rings/socket_linux.go, open_linux.go). Needs root.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef XDP_MAX_TX_SKB_BUDGET // Linux 6.17
#define XDP_MAX_TX_SKB_BUDGET 9
#endif

enum {
	FILL = 4096, // ring sizes
	COMP = 4096,
	RX = 2048,
	TX = 2048,
	CHUNK = 2048,
	FRAMES = 16384,
	HEADROOM = 256, // XDP_PACKET_HEADROOM
	BATCH = 64,
	TX_BUDGET = 256, // descriptors that one system call may send
	FRAME = 64,      // bytes that raw-tx sends, without the FCS
};

struct ring {
	uint32_t *producer, *consumer, *flags;
	uint32_t mask, mine, peer; // our index, and the last we saw of the kernel's
	void *entries;
};

struct packet {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed));

static volatile sig_atomic_t stopped;
static int sock;
static struct ring fill, comp, rx, tx;
static unsigned char *umem;
static uint64_t free_frames[FRAMES]; // a stack: what was used last is still in the cache
static uint32_t nfree, in_fill;
static uint64_t frames_in, frames_out, tx_full, kicks, wakes;

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

// --- Set-up

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof *attr);
}

static int make_xskmap(void)
{
	union bpf_attr attr = {.map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 1};
	int fd = bpf(BPF_MAP_CREATE, &attr);

	if (fd < 0)
		die("BPF_MAP_CREATE");
	return fd;
}

// Instructions of BPF, in words as close to its assembler as C allows.
#define INSN(c, d, s, o, i) ((struct bpf_insn){.code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i)})
#define MOV(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define SET(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ADD(d, i) INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define LOAD(size, d, s, o) INSN(BPF_LDX | BPF_MEM | (size), d, s, o, 0)
#define UNLESS_EQ(d, i, to) INSN(BPF_JMP | BPF_JNE | BPF_K, d, 0, to, i)
#define IF_ANY(d, i, to) INSN(BPF_JMP | BPF_JSET | BPF_K, d, 0, to, i)
#define IF_ABOVE(d, s, to) INSN(BPF_JMP | BPF_JGT | BPF_X, d, s, to, 0)
#define CALL(f) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, f)
#define EXIT() INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)

// load_program makes the program: UDP over IPv4 without options or fragments to the port goes to the socket of its queue.
static int load_program(int map, int port)
{
	static char log[16384];
	enum { PASS = 21, LENGTH = 23 };
#define TO_PASS(from) (PASS - (from) - 1)
	struct bpf_insn insns[LENGTH] = {
		[0] = LOAD(BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct xdp_md, data)),
		[1] = LOAD(BPF_W, BPF_REG_3, BPF_REG_1, offsetof(struct xdp_md, data_end)),
		[2] = MOV(BPF_REG_4, BPF_REG_2),
		[3] = ADD(BPF_REG_4, sizeof(struct packet)),
		[4] = IF_ABOVE(BPF_REG_4, BPF_REG_3, TO_PASS(4)),
		[5] = LOAD(BPF_H, BPF_REG_4, BPF_REG_2, offsetof(struct packet, eth.h_proto)),
		[6] = UNLESS_EQ(BPF_REG_4, htons(ETH_P_IP), TO_PASS(6)),
		[7] = LOAD(BPF_B, BPF_REG_4, BPF_REG_2, offsetof(struct packet, ip)), // version and header length
		[8] = UNLESS_EQ(BPF_REG_4, 0x45, TO_PASS(8)),
		[9] = LOAD(BPF_B, BPF_REG_4, BPF_REG_2, offsetof(struct packet, ip.protocol)),
		[10] = UNLESS_EQ(BPF_REG_4, IPPROTO_UDP, TO_PASS(10)),
		[11] = LOAD(BPF_H, BPF_REG_4, BPF_REG_2, offsetof(struct packet, ip.frag_off)),
		[12] = IF_ANY(BPF_REG_4, htons(0x3fff), TO_PASS(12)), // MF, and the offset
		[13] = LOAD(BPF_H, BPF_REG_4, BPF_REG_2, offsetof(struct packet, udp.dest)),
		[14] = UNLESS_EQ(BPF_REG_4, htons(port), TO_PASS(14)),
		[15] = LOAD(BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct xdp_md, rx_queue_index)),
		[16] = INSN(BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, map),
		[17] = INSN(0, 0, 0, 0, 0), // the upper half of the map's address
		[18] = SET(BPF_REG_3, XDP_PASS), // for a queue without a socket
		[19] = CALL(BPF_FUNC_redirect_map),
		[20] = EXIT(),
		[PASS] = SET(BPF_REG_0, XDP_PASS),
		[22] = EXIT(),
	};
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_XDP, .insns = (uintptr_t)insns, .insn_cnt = LENGTH, .license = (uintptr_t) "Dual BSD/GPL",
		.log_level = 1, .log_buf = (uintptr_t)log, .log_size = sizeof log, .prog_name = "xsk_peer",
		.expected_attach_type = BPF_XDP,
	};
	int fd = bpf(BPF_PROG_LOAD, &attr);

	if (fd < 0) {
		fprintf(stderr, "%s", log);
		die("BPF_PROG_LOAD");
	}
	return fd;
}

// attach leaves the program on the device for as long as this process lives.
static void attach(int ifindex, int port)
{
	int map = make_xskmap(), program = load_program(map, port);
	uint32_t queue = 0, value = sock;
	union bpf_attr update = {.map_fd = map, .key = (uintptr_t)&queue, .value = (uintptr_t)&value};
	union bpf_attr link = {.link_create = {.prog_fd = program, .target_ifindex = ifindex, .attach_type = BPF_XDP,
					       .flags = XDP_FLAGS_DRV_MODE}};

	if (bpf(BPF_MAP_UPDATE_ELEM, &update))
		die("put the socket into the XSKMAP");
	if (bpf(BPF_LINK_CREATE, &link) < 0)
		die("attach the XDP program");
}

static void map_ring(struct ring *r, int option, uint32_t entries, size_t entry, uint64_t page, const struct xdp_ring_offset *off)
{
	if (setsockopt(sock, SOL_XDP, option, &entries, sizeof entries))
		die("size of a ring");
	unsigned char *mem = mmap(NULL, off->desc + entries * entry, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, sock, page);
	if (mem == MAP_FAILED)
		die("map a ring");
	r->producer = (uint32_t *)(mem + off->producer);
	r->consumer = (uint32_t *)(mem + off->consumer);
	r->flags = (uint32_t *)(mem + off->flags);
	r->entries = mem + off->desc;
	r->mask = entries - 1;
}

static void open_socket(int ifindex)
{
	struct xdp_mmap_offsets off;
	socklen_t size = sizeof off;
	struct sockaddr_xdp at = {.sxdp_family = AF_XDP, .sxdp_ifindex = ifindex, .sxdp_flags = XDP_COPY | XDP_USE_NEED_WAKEUP};
	int budget = TX_BUDGET, room = TX * CHUNK * 2;

	umem = mmap(NULL, (size_t)FRAMES * CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (umem == MAP_FAILED)
		die("packet memory");
	struct xdp_umem_reg reg = {.addr = (uintptr_t)umem, .len = (uint64_t)FRAMES * CHUNK, .chunk_size = CHUNK};
	if ((sock = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0)) < 0)
		die("AF_XDP socket");
	if (setsockopt(sock, SOL_XDP, XDP_UMEM_REG, &reg, sizeof reg))
		die("XDP_UMEM_REG");
	if (getsockopt(sock, SOL_XDP, XDP_MMAP_OFFSETS, &off, &size))
		die("XDP_MMAP_OFFSETS");
	map_ring(&rx, XDP_RX_RING, RX, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING, &off.rx);
	map_ring(&tx, XDP_TX_RING, TX, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING, &off.tx);
	map_ring(&fill, XDP_UMEM_FILL_RING, FILL, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING, &off.fr);
	map_ring(&comp, XDP_UMEM_COMPLETION_RING, COMP, sizeof(uint64_t), XDP_UMEM_PGOFF_COMPLETION_RING, &off.cr);
	// Before Linux 6.17: 32 a call.
	if (setsockopt(sock, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof budget) && errno != ENOPROTOOPT)
		die("XDP_MAX_TX_SKB_BUDGET");
	// Packets in flight are charged to the socket, which by default has room for 90 full ones.
	if (setsockopt(sock, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room))
		die("SO_SNDBUFFORCE");
	if (bind(sock, (struct sockaddr *)&at, sizeof at))
		die("bind to queue 0");
	for (int i = FRAMES; i-- > 0;)
		free_frames[nfree++] = (uint64_t)i * CHUNK;
}

// --- Rings. Each end writes its own index; one load and one store of them a batch.

// available is how many entries, up to n, a consumer finds.
static uint32_t available(struct ring *r, uint32_t n)
{
	if (r->peer - r->mine < n)
		r->peer = __atomic_load_n(r->producer, __ATOMIC_ACQUIRE);
	return r->peer - r->mine < n ? r->peer - r->mine : n;
}

static void release(struct ring *r, uint32_t n)
{
	r->mine += n;
	__atomic_store_n(r->consumer, r->mine, __ATOMIC_RELEASE);
}

// room is how many entries, up to n, a producer may write.
static uint32_t room(struct ring *r, uint32_t n)
{
	uint32_t size = r->mask + 1;

	if (size - (r->mine - r->peer) < n)
		r->peer = __atomic_load_n(r->consumer, __ATOMIC_ACQUIRE);
	return size - (r->mine - r->peer) < n ? size - (r->mine - r->peer) : n;
}

static void submit(struct ring *r, uint32_t n)
{
	r->mine += n;
	__atomic_store_n(r->producer, r->mine, __ATOMIC_RELEASE);
}

static struct xdp_desc *desc(struct ring *r, uint32_t i) { return (struct xdp_desc *)r->entries + ((r->mine + i) & r->mask); }

static uint64_t *address(struct ring *r, uint32_t i) { return (uint64_t *)r->entries + ((r->mine + i) & r->mask); }

static uint64_t frame_of(uint64_t addr) { return addr & ~(uint64_t)(CHUNK - 1); }

// --- The loop's steps

static void reap(void)
{
	uint32_t n = available(&comp, COMP);

	for (uint32_t i = 0; i < n; i++)
		free_frames[nfree++] = frame_of(*address(&comp, i));
	if (n)
		release(&comp, n);
}

static void refill(void)
{
	uint32_t n = FILL - in_fill;

	if (n < BATCH)
		return;
	n = room(&fill, n < nfree ? n : nfree);
	for (uint32_t i = 0; i < n; i++)
		*address(&fill, i) = free_frames[--nfree];
	if (n)
		submit(&fill, n);
	in_fill += n;
	if (__atomic_load_n(fill.flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP) {
		wakes++;
		recvfrom(sock, NULL, 0, MSG_DONTWAIT, NULL, NULL);
	}
}

// kick has the kernel send, if there is something that it has not taken.
static void kick(void)
{
	if (__atomic_load_n(tx.consumer, __ATOMIC_ACQUIRE) == tx.mine)
		return;
	if (!(__atomic_load_n(tx.flags, __ATOMIC_RELAXED) & XDP_RING_NEED_WAKEUP))
		return;
	kicks++;
	if (sendto(sock, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN && errno != EBUSY && errno != ENOBUFS)
		die("send");
}

static void reverse(struct packet *p)
{
	unsigned char mac[ETH_ALEN];
	uint32_t address = p->ip.saddr;
	uint16_t port = p->udp.source;

	memcpy(mac, p->eth.h_source, ETH_ALEN);
	memcpy(p->eth.h_source, p->eth.h_dest, ETH_ALEN);
	memcpy(p->eth.h_dest, mac, ETH_ALEN);
	p->ip.saddr = p->ip.daddr;
	p->ip.daddr = address;
	p->udp.source = p->udp.dest;
	p->udp.dest = port; // the sums stay what they are
}

static void raw_echo(void)
{
	uint32_t n = available(&rx, BATCH), out = room(&tx, n);

	for (uint32_t i = 0; i < out; i++) {
		struct xdp_desc d = *desc(&rx, i);

		reverse((struct packet *)(umem + d.addr));
		*desc(&tx, i) = (struct xdp_desc){.addr = d.addr, .len = d.len};
	}
	for (uint32_t i = out; i < n; i++) // the TX ring is full
		free_frames[nfree++] = frame_of(desc(&rx, i)->addr);
	tx_full += n - out;
	if (n) {
		release(&rx, n);
		submit(&tx, out);
		frames_out += out;
		in_fill -= n;
		frames_in += n;
	}
	kick();
}

static void raw_drop(void)
{
	uint32_t n = available(&rx, BATCH);

	for (uint32_t i = 0; i < n; i++)
		free_frames[nfree++] = frame_of(desc(&rx, i)->addr);
	if (n) {
		release(&rx, n);
		in_fill -= n;
		frames_in += n;
	}
}

static void raw_tx(void)
{
	uint32_t n = room(&tx, BATCH < nfree ? BATCH : nfree);

	for (uint32_t i = 0; i < n; i++)
		*desc(&tx, i) = (struct xdp_desc){.addr = free_frames[--nfree] + HEADROOM, .len = FRAME};
	if (n)
		submit(&tx, n);
	frames_out += n;
	kick();
}

// --- raw-tx's frame

// ask_kernel has the kernel resolve an address, and waits for it.
static void ask_kernel(const char *dev, struct in_addr addr, unsigned char *mac)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = addr, .sin_port = htons(9)}; // discard
	struct arpreq ask = {0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	memcpy(&ask.arp_pa, &to, sizeof to);
	strncpy(ask.arp_dev, dev, sizeof ask.arp_dev - 1);
	for (int try = 0; try < 300 && !stopped; try++) {
		if (try % 100 == 0)
			sendto(fd, "", 0, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to);
		if (ioctl(fd, SIOCGARP, &ask) == 0 && ask.arp_flags & ATF_COM) {
			memcpy(mac, ask.arp_ha.sa_data, ETH_ALEN);
			close(fd);
			return;
		}
		usleep(10000);
	}
	fprintf(stderr, "xsk: no answer to ARP for %s: -m PEER_MAC\n", inet_ntoa(addr));
	exit(1);
}

static uint16_t checksum(const void *from, size_t len)
{
	const uint16_t *words = from;
	uint32_t sum = 0;

	for (size_t i = 0; i < len / 2; i++)
		sum += words[i];
	sum = (sum >> 16) + (sum & 0xffff);
	return ~(sum + (sum >> 16));
}

// write_frames puts the same UDP datagram, without a checksum, into every frame.
static void write_frames(const char *dev, struct in_addr own, int port, const unsigned char *peer_mac)
{
	struct {
		struct packet p;
		char payload[FRAME - sizeof(struct packet)];
	} f = {0};
	struct ifreq ifr = {0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	uint16_t head[sizeof(struct iphdr) / 2];

	strncpy(ifr.ifr_name, dev, sizeof ifr.ifr_name - 1);
	if (ioctl(fd, SIOCGIFHWADDR, &ifr))
		die(dev);
	close(fd);
	memcpy(f.p.eth.h_source, ifr.ifr_hwaddr.sa_data, ETH_ALEN);
	memcpy(f.p.eth.h_dest, peer_mac, ETH_ALEN);
	f.p.eth.h_proto = htons(ETH_P_IP);
	f.p.ip.version = 4;
	f.p.ip.ihl = 5;
	f.p.ip.tot_len = htons(FRAME - ETH_HLEN);
	f.p.ip.ttl = 64;
	f.p.ip.protocol = IPPROTO_UDP;
	f.p.ip.saddr = own.s_addr;
	f.p.ip.daddr = own.s_addr ^ htonl(3);
	memcpy(head, &f.p.ip, sizeof head);
	f.p.ip.check = checksum(head, sizeof head);
	f.p.udp.source = f.p.udp.dest = htons(port);
	f.p.udp.len = htons(FRAME - ETH_HLEN - sizeof f.p.ip);
	for (int i = 0; i < FRAMES; i++)
		memcpy(umem + (size_t)i * CHUNK + HEADROOM, &f, sizeof f);
}

static void report(void)
{
	struct xdp_statistics st = {0};
	socklen_t size = sizeof st;

	getsockopt(sock, SOL_XDP, XDP_STATISTICS, &st, &size);
	frames_out -= tx.mine - __atomic_load_n(tx.consumer, __ATOMIC_ACQUIRE); // those the kernel has not taken
	printf("{\"mode\":\"copy, native\",\"frames_in\":%llu,\"frames_out\":%llu,\"syscalls\":%llu,\"drops\":{\"tx_full\":%llu,"
	       "\"rx_dropped\":%llu,\"rx_ring_full\":%llu,\"tx_invalid\":%llu}}\n",
	       (unsigned long long)frames_in, (unsigned long long)frames_out, (unsigned long long)(kicks + wakes),
	       (unsigned long long)tx_full, (unsigned long long)st.rx_dropped, (unsigned long long)st.rx_ring_full,
	       (unsigned long long)st.tx_invalid_descs);
}

static void usage(const char *program)
{
	fprintf(stderr, "usage: %s [-m PEER_MAC] raw-echo|raw-tx|raw-drop ADDRESS PORT DEVICE\n", program);
	exit(2);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} works[] = {{"raw-echo", raw_echo}, {"raw-tx", raw_tx}, {"raw-drop", raw_drop}};
	struct sigaction on_stop = {.sa_handler = stop};
	unsigned char m[ETH_ALEN];
	void (*work)(void) = NULL;
	int option, known = 0;
	struct in_addr own;

	while ((option = getopt(argc, argv, "m:")) != -1) {
		known = option == 'm' && sscanf(optarg, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", m, m + 1, m + 2, m + 3, m + 4, m + 5) == 6;
		if (!known)
			usage(argv[0]);
	}
	char **args = argv + optind;
	if (argc - optind != 4)
		usage(argv[0]);
	for (size_t i = 0; i < sizeof works / sizeof *works; i++)
		if (!strcmp(args[0], works[i].name))
			work = works[i].run;
	if (!work || inet_pton(AF_INET, args[1], &own) != 1 || atoi(args[2]) < 1)
		usage(argv[0]);
	int port = atoi(args[2]), ifindex = if_nametoindex(args[3]);
	if (!ifindex)
		die(args[3]);
	sigaction(SIGTERM, &on_stop, NULL);
	sigaction(SIGINT, &on_stop, NULL);
	open_socket(ifindex);
	if (work == raw_tx) {
		if (!known)
			ask_kernel(args[3], (struct in_addr){own.s_addr ^ htonl(3)}, m);
		write_frames(args[3], own, port, m);
	}
	refill(); // a frame that comes at once needs a place
	attach(ifindex, port);
	printf("ready\n");
	fflush(stdout);
	while (!stopped) {
		reap();
		refill();
		work();
	}
	// What was received before the end counts: the sums agree with the sender's, if that has ended first.
	for (int i = 0; i < RX / BATCH && available(&rx, 1); i++) {
		reap();
		refill();
		work();
	}
	report();
	return 0;
}
