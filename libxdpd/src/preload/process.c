/* process.c: how processes begin and end. */
#include "preload.h"

#include <string.h>
#include <string.h>
#include <sys/syscall.h>

/* A child of vfork shares its parent's memory and so the table of descriptors, but closes its own. */
EXPORT pid_t vfork(void) { return LIBC(fork)(); }

/* What was written goes out, and peers hear of the end at once: without this they do when another process notices. */
EXPORT void _exit(int status)
{
	xdpd_finish();
	for (;;)
		(void)LIBC(syscall)(SYS_exit_group, status, 0, 0, 0, 0, 0);
}

EXPORT void _Exit(int status) { _exit(status); }

/* has reports whether an environment sets a variable. */
static bool has(char *const env[], const char *name)
{
	size_t n = strlen(name);

	while (env && *env)
		if (strncmp(*env++, name, n) == 0)
			return true;
	return false;
}

/* become starts a program, which goes on with the sockets that stay open if it has this library as well. */
static int become(const char *path, char *const argv[], char *const env[], bool search)
{
	char *ring = has(env, "LD_PRELOAD=") && has(env, "XDPD_SOCKET=") ? xdpd_hand_on() : NULL;
	size_t n = 0, k = 0;

	for (int fd = 0; fd < 3 && !ring; fd++)
		if (xdpd_is(fd) && !(LIBC(fcntl)(fd, F_GETFD, NULL) & FD_CLOEXEC) && !xdpd_is(2))
			(void)!dprintf(2, "xdpd: %s has a socket of the engine's as descriptor %d, and not the library for it (docs/exec.md)\n", path, fd);
	while (env && env[n])
		n++;
	char *all[n + 2];
	for (size_t i = 0; i < n; i++)
		all[k++] = env[i];
	if (ring)
		all[k++] = ring;
	all[k] = NULL;
	int r = search ? LIBC(execvpe)(path, argv, all) : LIBC(execve)(path, argv, all);
	if (ring) {
		int err = errno;
		xdpd_hand_back(ring);
		errno = err;
	}
	return r;
}

EXPORT int execve(const char *path, char *const argv[], char *const env[]) { return become(path, argv, env, false); }
EXPORT int execv(const char *path, char *const argv[]) { return become(path, argv, environ, false); }
EXPORT int execvp(const char *file, char *const argv[]) { return become(file, argv, environ, true); }
EXPORT int execvpe(const char *file, char *const argv[], char *const env[]) { return become(file, argv, env, true); }

/* LIST makes a vector of the arguments of execl(3). */
#define LIST(first) \
	va_list list; \
	size_t n = 1; \
	va_start(list, first); \
	while (va_arg(list, char *)) \
		n++; \
	va_end(list); \
	char *argv[n + 1]; \
	argv[0] = (char *)(uintptr_t)first; \
	va_start(list, first); \
	for (size_t i = 1; i <= n; i++) \
		argv[i] = va_arg(list, char *)

EXPORT int execl(const char *path, const char *first, ...)
{
	LIST(first);
	va_end(list);
	return become(path, argv, environ, false);
}

EXPORT int execlp(const char *file, const char *first, ...)
{
	LIST(first);
	va_end(list);
	return become(file, argv, environ, true);
}

EXPORT int execle(const char *path, const char *first, ...)
{
	LIST(first);
	char *const *env = va_arg(list, char *const *);
	va_end(list);
	return become(path, argv, env, false);
}
