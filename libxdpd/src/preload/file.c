/* file.c: what descriptors of sockets share with files. */
#include "preload.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

EXPORT int close(int fd)
{
	if (xdpd_own(fd)) { /* programs close what they do not know */
		errno = EBADF;
		return -1;
	}
	preload_forget((unsigned)fd, (unsigned)fd);
	return xdpd_is(fd) ? xdpd_close(fd) : LIBC(close)(fd);
}

/* close_range closes the engine's one by one, leaves the library's own, and gives the kernel what is between them. */
EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	struct rlimit limit;
	unsigned from = first, end = last < PRELOAD_FDS ? last : PRELOAD_FDS;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < end)
		end = (unsigned)limit.rlim_cur;
	if (!(flags & CLOSE_RANGE_CLOEXEC))
		preload_forget(first, end);
	for (unsigned fd = first; fd <= end && fd >= first; fd++) {
		bool own = xdpd_own((int)fd), is = xdpd_is((int)fd);
		if (!own && !is)
			continue;
		if (fd > from && LIBC(close_range)(from, fd - 1, flags) < 0)
			return -1;
		if (is && flags & CLOSE_RANGE_CLOEXEC)
			(void)LIBC(fcntl)((int)fd, F_SETFD, (void *)FD_CLOEXEC);
		else if (is)
			xdpd_close((int)fd);
		from = fd + 1;
	}
	return from <= last || first > last ? LIBC(close_range)(from, last, flags) : 0;
}

EXPORT void closefrom(int first) { (void)close_range(first < 0 ? 0 : (unsigned)first, ~0u, 0); }

EXPORT int dup(int fd) { return xdpd_dup(fd); }

EXPORT int dup3(int fd, int to, int flags)
{
	if (xdpd_own(to)) {
		errno = EBUSY; /* dup(2): another thread is about to have it */
		return -1;
	}
	if (fd != to)
		preload_forget((unsigned)to, (unsigned)to);
	int r = xdpd_dup3(fd, to, flags);
	if (r >= 0)
		preload_standard(to);
	return r;
}

EXPORT int dup2(int fd, int to)
{
	if (fd == to)
		return LIBC(fcntl)(fd, F_GETFD, NULL) < 0 ? -1 : to;
	return dup3(fd, to, 0);
}

int preload_close(int fd) { return close(fd); }
int preload_dup3(int fd, int to, int flags) { return dup3(fd, to, flags); }

static int control(int fd, int cmd, void *arg)
{
	return xdpd_is(fd) ? xdpd_fcntl(fd, cmd, arg) : LIBC(fcntl)(fd, cmd, arg);
}

#define ARGUMENT(last) \
	va_list list; \
	va_start(list, last); \
	void *arg = va_arg(list, void *); \
	va_end(list)

EXPORT int fcntl(int fd, int cmd, ...)
{
	ARGUMENT(cmd);
	return control(fd, cmd, arg);
}

EXPORT int fcntl64(int fd, int cmd, ...)
{
	ARGUMENT(cmd);
	return control(fd, cmd, arg);
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	ARGUMENT(request);
	return xdpd_is(fd) ? xdpd_ioctl(fd, request, arg) : LIBC(ioctl)(fd, request, arg);
}

/* send_file copies: the engine takes data from memory. */
static ssize_t send_file(int fd, int in, off_t *offset, size_t n)
{
	enum { ONCE = 1 << 16 };
	size_t done = 0;
	bool failed = false;
	off_t at = offset ? *offset : lseek(in, 0, SEEK_CUR);
	char *buf = at < 0 ? NULL : malloc(ONCE);

	if (!buf)
		return -1;
	while (done < n && !failed) {
		ssize_t r = pread(in, buf, n - done < ONCE ? n - done : ONCE, at), w = 0;
		if (r == 0)
			break;
		failed = r < 0 || (w = xdpd_send(fd, buf, (size_t)r, 0)) < 0;
		if (failed)
			break;
		done += (size_t)w, at += w;
		if (w < r)
			break;
	}
	int err = errno;
	free(buf);
	if (offset)
		*offset = at;
	else
		(void)lseek(in, at, SEEK_SET);
	errno = err;
	return failed && !done ? -1 : (ssize_t)done;
}

EXPORT ssize_t sendfile(int fd, int in, off_t *at, size_t n)
{
	return xdpd_is(fd) ? send_file(fd, in, at, n) : LIBC(sendfile)(fd, in, at, n);
}

_Static_assert(sizeof(off_t) == sizeof(off64_t), "sendfile64 is sendfile");
EXPORT ssize_t sendfile64(int fd, int in, off64_t *at, size_t n) { return sendfile(fd, in, (off_t *)at, n); }

/* Who splices can do without: EINVAL is what descriptors say that cannot. */
EXPORT ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t n, unsigned flags)
{
	if (!xdpd_is(in) && !xdpd_is(out))
		return LIBC(splice)(in, in_at, out, out_at, n, flags);
	errno = EINVAL;
	return -1;
}

/* dprintf(3) writes inside of libc as well. */
static int print(int fd, const char *format, va_list list)
{
	char *text;
	int n = vasprintf(&text, format, list), err;
	ssize_t w = 0;

	if (n < 0)
		return n;
	for (int done = 0; done < n && w >= 0; done += (int)w)
		w = xdpd_write(fd, text + done, (size_t)(n - done));
	err = errno;
	free(text);
	errno = err;
	return w < 0 ? -1 : n;
}

EXPORT int vdprintf(int fd, const char *restrict format, va_list list)
{
	return xdpd_is(fd) ? print(fd, format, list) : LIBC(vdprintf)(fd, format, list);
}

EXPORT int __vdprintf_chk(int fd, int flag, const char *restrict format, va_list list)
{
	return xdpd_is(fd) ? print(fd, format, list) : LIBC(__vdprintf_chk)(fd, flag, format, list);
}

EXPORT int dprintf(int fd, const char *restrict format, ...)
{
	va_list list;
	va_start(list, format);
	int n = vdprintf(fd, format, list);
	va_end(list);
	return n;
}

EXPORT int __dprintf_chk(int fd, int flag, const char *restrict format, ...)
{
	va_list list;
	va_start(list, format);
	int n = __vdprintf_chk(fd, flag, format, list);
	va_end(list);
	return n;
}

/* A stream of stdio calls libc's own read and write, which nobody can replace. One over the engine's socket has ours instead. */
static ssize_t stream_read(void *fd, char *p, size_t n) { return xdpd_read((int)(long)fd, p, n); }

static FILE *standard[3]; /* streams over the engine's sockets in the place of libc's */
static FILE *written[PRELOAD_FDS]; /* those that may have something to write */
static long streams;               /* none of them is behind it */

static int stream_close(void *cookie)
{
	long fd = (long)cookie;

	if (fd < 3)
		standard[fd] = NULL;
	if (fd < PRELOAD_FDS)
		__atomic_store_n(&written[fd], NULL, __ATOMIC_RELAXED);
	return close((int)fd);
}

static int stream_seek(void *fd, off64_t *at, int whence)
{
	(void)fd, (void)at, (void)whence;
	errno = ESPIPE; /* which fflush expects of a socket */
	return -1;
}

/* exit(3) has streams written after the libraries have ended, and the sockets with them. As it does, this does not wait for their locks. */
__attribute__((destructor)) static void flush(void)
{
	for (long fd = 0; fd < streams; fd++)
		if (written[fd])
			(void)fflush_unlocked(written[fd]);
}

static ssize_t stream_write(void *fd, const char *p, size_t n)
{
	ssize_t r = xdpd_write((int)(long)fd, p, n);

	return r < 0 ? 0 : r; /* fopencookie(3): never negative */
}

EXPORT FILE *fdopen(int fd, const char *mode)
{
	if (!xdpd_is(fd))
		return LIBC(fdopen)(fd, mode);
	FILE *f = fopencookie((void *)(long)fd, mode, (cookie_io_functions_t){ stream_read, stream_write, stream_seek, stream_close });
	if (!f)
		return NULL;
	f->_fileno = fd; /* fileno(3) tells it */
	if (fd < PRELOAD_FDS && (*mode != 'r' || strchr(mode, '+'))) {
		__atomic_store_n(&written[fd], f, __ATOMIC_RELAXED);
		if (fd >= streams)
			streams = fd + 1;
	}
	return f;
}

/* preload_standard has standard input, output or error be a stream of the right kind, after its descriptor has become something else. */
void preload_standard(int fd)
{
	static FILE *libcs[3];
	FILE **streams[] = { &stdin, &stdout, &stderr }, **stream;

	if (fd < 0 || fd > 2)
		return;
	stream = streams[fd];
	if (!xdpd_is(fd)) {
		if (standard[fd] && *stream == standard[fd])
			*stream = libcs[fd];
		return;
	}
	if (!standard[fd] && (standard[fd] = fdopen(fd, fd ? "w" : "r")) && fd == 2)
		setvbuf(standard[fd], NULL, _IONBF, 0);
	if (standard[fd] && *stream != standard[fd])
		libcs[fd] = *stream, *stream = standard[fd];
}
