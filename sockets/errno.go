package sockets

import "syscall"

// The errnos that operations return, with Linux's meaning.
const (
	EACCES          = syscall.EACCES
	EADDRINUSE      = syscall.EADDRINUSE
	EADDRNOTAVAIL   = syscall.EADDRNOTAVAIL
	EAFNOSUPPORT    = syscall.EAFNOSUPPORT
	EAGAIN          = syscall.EAGAIN
	EBADF           = syscall.EBADF
	EBADFD          = syscall.EBADFD
	ECANCELED       = syscall.ECANCELED
	ECONNREFUSED    = syscall.ECONNREFUSED
	ECONNRESET      = syscall.ECONNRESET
	EDESTADDRREQ    = syscall.EDESTADDRREQ
	EEXIST          = syscall.EEXIST
	EFAULT          = syscall.EFAULT
	EHOSTUNREACH    = syscall.EHOSTUNREACH
	EINPROGRESS     = syscall.EINPROGRESS
	EINVAL          = syscall.EINVAL
	EISCONN         = syscall.EISCONN
	EMFILE          = syscall.EMFILE
	EMSGSIZE        = syscall.EMSGSIZE
	ENETUNREACH     = syscall.ENETUNREACH
	ENFILE          = syscall.ENFILE
	ENOBUFS         = syscall.ENOBUFS
	ENOENT          = syscall.ENOENT
	ENOMEM          = syscall.ENOMEM
	ENOPROTOOPT     = syscall.ENOPROTOOPT
	ENOTCONN        = syscall.ENOTCONN
	EOPNOTSUPP      = syscall.EOPNOTSUPP
	EOVERFLOW       = syscall.EOVERFLOW
	EPIPE           = syscall.EPIPE
	EPROTO          = syscall.EPROTO
	EPROTONOSUPPORT = syscall.EPROTONOSUPPORT
	ETIME           = syscall.ETIME
	ETIMEDOUT       = syscall.ETIMEDOUT
)
