package sockets

import "syscall"

// The errnos that operations return, with Linux's meaning.
const (
	EAGAIN        = syscall.EAGAIN
	EADDRINUSE    = syscall.EADDRINUSE
	EADDRNOTAVAIL = syscall.EADDRNOTAVAIL
	EBADF         = syscall.EBADF
	ECONNREFUSED  = syscall.ECONNREFUSED
	ECONNRESET    = syscall.ECONNRESET
	EDESTADDRREQ  = syscall.EDESTADDRREQ
	EHOSTUNREACH  = syscall.EHOSTUNREACH
	EINVAL        = syscall.EINVAL
	EISCONN       = syscall.EISCONN
	EMSGSIZE      = syscall.EMSGSIZE
	ENETUNREACH   = syscall.ENETUNREACH
	ENOPROTOOPT   = syscall.ENOPROTOOPT
	ENOTCONN      = syscall.ENOTCONN
	EPIPE         = syscall.EPIPE
	EPROTO        = syscall.EPROTO
	ETIMEDOUT     = syscall.ETIMEDOUT
)
