/*
 * handover.c: sockets that go on in another program, when a process calls execve(2). What is known of them lies in the ring's memory,
 * whose descriptor stays open; the lock by which others see that the process lives is of its number, and stays too (fcntl(2)). The
 * environment says which descriptors meant which files.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "internal.h"
#include "kernel.h"

static void keep(bool open)
{
	const int own[] = { ring.conn, ring.memfd, relay };

	for (int i = 0; i < 3; i++)
		k_fcntl(own[i], F_SETFD, open ? 0 : FD_CLOEXEC);
}

char *xdpd_hand_on(void)
{
	struct rlimit l = { NUMBERS, NUMBERS };
	bool any = false;
	char *s = NULL;
	size_t n = 0;
	FILE *out;

	if (!S || S->gone || ring.memfd < 0 || !(out = open_memstream(&s, &n)))
		return NULL;
	getrlimit(RLIMIT_NOFILE, &l);
	fprintf(out, "XDPD_RING=%d %d %d %d %llu %llu", ring.conn, ring.memfd, relay, me, (unsigned long long)(ring.data - ring.mem),
		(unsigned long long)ring.data_len);
	for (int fd = 0; fd < NUMBERS && (rlim_t)fd < l.rlim_cur; fd++)
		if (numbers[fd] && !(k_fcntl(fd, F_GETFD, 0) & FD_CLOEXEC)) {
			any |= S->file[numbers[fd]].type == SOCKET;
			fprintf(out, " %d:%d", fd, numbers[fd]);
		}
	if (fclose(out) != 0 || !any) {
		free(s);
		return NULL;
	}
	keep(true);
	return s;
}

void xdpd_hand_back(char *env)
{
	keep(false);
	free(env);
}

int xdpd_take_over(const char *value)
{
	unsigned long long data, len;
	int at = 0, fd, id;
	struct stat st;

	if (S)
		return fail(EALREADY);
	if (sscanf(value, "%d %d %d %d %llu %llu%n", &ring.conn, &ring.memfd, &relay, &me, &data, &len, &at) != 6)
		return fail(EINVAL);
	if (me < 0 || me >= PROCESSES || fstat(ring.memfd, &st) < 0 || data >= (uint64_t)st.st_size || len > (uint64_t)st.st_size - data || !life(me, true))
		return fail(EBADF);
	void *mem = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, ring.memfd, 0);
	if (mem == MAP_FAILED)
		return -1;
	numbers = mmap(NULL, NUMBERS * sizeof *numbers, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (numbers == MAP_FAILED)
		return -1;
	ring.size = (uint64_t)st.st_size;
	xdpd_ring_join(&ring, mem, data, len);
	S = (struct shared *)(void *)ring.data;
	ring.at = &S->at;
	keep(false);
	for (int used; sscanf(value + at, " %d:%d%n", &fd, &id, &used) == 2; at += used)
		if (fd >= 0 && fd < NUMBERS && id > 0 && id < FILES && S->file[id].users & UINT64_C(1) << me) {
			atomic_store(&numbers[fd], id);
			held[id]++;
		}
	prepare();
	if (!enter())
		return -1;
	for (int i = 0; i < SLOTS; i++) /* of threads that ended with the program */
		if (S->slots[i].used && S->slots[i].process == me)
			slot_put(&S->slots[i]);
	for (uint32_t i = 1; i < S->files; i++) /* closed on execve */
		if (!held[i])
			file_unuse(&S->file[i], me);
	kick();
	leave();
	return 0;
}
