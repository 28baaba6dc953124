/* process.c: how processes begin and end. */
#include "preload.h"

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

/* ends says that the program to come will find a socket that is not connected where it expects its peer. */
static void ends(const char *program)
{
	for (int fd = 0; fd < 3; fd++)
		if (xdpd_is(fd) && !(LIBC(fcntl)(fd, F_GETFD, NULL) & FD_CLOEXEC) && !xdpd_is(2))
			dprintf(2, "xdpd: %s is started with a socket of the engine's as descriptor %d; it ends here (docs/exec.md)\n", program, fd);
}

EXPORT int execve(const char *path, char *const argv[], char *const env[])
{
	ends(path);
	return LIBC(execve)(path, argv, env);
}

EXPORT int execv(const char *path, char *const argv[])
{
	ends(path);
	return LIBC(execv)(path, argv);
}

EXPORT int execvp(const char *file, char *const argv[])
{
	ends(file);
	return LIBC(execvp)(file, argv);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const env[])
{
	ends(file);
	return LIBC(execvpe)(file, argv, env);
}
