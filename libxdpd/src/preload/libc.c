/* libc.c: libc's own calls, by the names that the linker gives them (--wrap). */
#include "preload.h"

#include <dlfcn.h>
#include <stdlib.h>

/* behind finds a call in the libraries behind this one. */
static void *behind(const char *name)
{
	void *f = dlsym(RTLD_NEXT, name);

	if (!f) {
		(void)!fprintf(stderr, "xdpd: this libc has no %s\n", name);
		abort();
	}
	return f;
}

/* Looked up at the first call: other libraries' constructors may make it before ours. Two threads find the same. */
#define X(result, name, params, args) \
	result LIBC(name) params \
	{ \
		static __typeof__(result(*) params) f; \
		__typeof__(f) now = __atomic_load_n(&f, __ATOMIC_ACQUIRE); \
		if (__builtin_expect(!now, 0)) { \
			*(void **)&now = behind(#name); \
			__atomic_store_n(&f, now, __ATOMIC_RELEASE); \
		} \
		return now args; \
	}
PRELOAD_CALLS(X)
#undef X
