package rings

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"xdpd/umem"
)

// DataPathError sorts the errnos of sendto and recvfrom on an AF_XDP socket
// (net/xdp/xsk.c: __xsk_sendmsg, __xsk_generic_xmit, __xsk_recvmsg): nil for
// "come again", ErrDeviceDown, or an error with words. op and where say what
// was done to which interface and queue.
func DataPathError(op, where string, errno unix.Errno) error {
	switch errno {
	case unix.EAGAIN, unix.EBUSY, unix.ENOBUFS, unix.EINTR:
		// The budget is used up, the driver or the completion ring is full, or
		// no skb could be had: what was not taken is still in the ring.
		return nil
	case unix.ENETDOWN, unix.ENXIO, unix.ENODEV, unix.EINVAL:
		// EINVAL is how drivers in zero copy refuse a kick while they have no program, or no memory of ours (igb_xsk_wakeup,
		// ixgbe_xsk_wakeup): for good after a detach, and for the moment in which they are set up anew.
		return fmt.Errorf("rings: %s on %s: %w: %w", op, where, ErrDeviceDown, errno)
	}
	return fmt.Errorf("rings: %s on %s: unexpected error from the kernel: %w", op, where, errno)
}

// explain makes a sentence of an errno met while opening a socket: operation,
// place, cure.
func (o *SocketOptions) explain(op string, r *umem.Region, err error) error {
	cure := ""
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		cure = "CAP_NET_ADMIN is needed"
		if strings.HasPrefix(op, "open") {
			cure = "CAP_NET_RAW is needed: run as root, or setcap cap_net_raw,cap_net_admin,cap_bpf+ep on the program"
		}
	case errors.Is(err, unix.EAFNOSUPPORT):
		cure = "the kernel was built without CONFIG_XDP_SOCKETS"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		cure = "too many open files: raise ulimit -n"
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EAGAIN):
		cure = memoryCure(r)
	case errors.Is(err, unix.EBUSY):
		cure = "another AF_XDP socket has this queue: stop the program that holds it, take another queue, or share its UMEM"
	case errors.Is(err, unix.EOPNOTSUPP):
		cure = "the driver has no XDP: use another interface"
		if o.Mode == ZeroCopy {
			cure = "the driver has no zero copy on this queue: use copy mode"
			if o.SG {
				cure = "the driver has no zero copy on this queue, or none for packets of several frames: use copy mode"
			}
		}
	case errors.Is(err, unix.ENODEV):
		cure = fmt.Sprintf("there is no interface with index %d in this network namespace", o.Ifindex)
	case errors.Is(err, unix.ENETDOWN):
		cure = fmt.Sprintf("the interface is down: ip link set %s up", o.Interface)
	case errors.Is(err, unix.ERANGE):
		cure = fmt.Sprintf("the MTU is too large for XDP in one buffer: ip link set %s mtu 1500", o.Interface)
	case errors.Is(err, unix.EINVAL):
		cure = o.invalidCure(op, r)
	case errors.Is(err, unix.ENOPROTOOPT):
		cure = "the kernel is too old: Linux 6.6 or newer is needed"
	}
	if cure == "" {
		return fmt.Errorf("rings: cannot %s on %s: %w", op, o.where(), err)
	}
	return fmt.Errorf("rings: cannot %s on %s: %s: %w", op, o.where(), cure, err)
}

// memoryCure tells a limit on locked memory (xdp_umem_account_pages gives
// ENOBUFS) from a machine that has no memory.
func memoryCure(r *umem.Region) string {
	limit := "unknown"
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err == nil {
		limit = fmt.Sprintf("%d KiB", lim.Cur>>10)
		if lim.Cur == unix.RLIM_INFINITY {
			limit = "unlimited"
		}
	}
	return fmt.Sprintf("not enough lockable memory for %d KiB of frames and the rings; the limit is %s: raise RLIMIT_MEMLOCK (ulimit -l), give the process CAP_IPC_LOCK, or use fewer frames", len(r.Mem())>>10, limit)
}

// invalidCure finds out which of many things the kernel means by EINVAL.
func (o *SocketOptions) invalidCure(op string, r *umem.Region) string {
	if strings.HasPrefix(op, "register") {
		return fmt.Sprintf("the kernel refuses %d bytes in chunks of %d: the memory must start on a page and be whole chunks", len(r.Mem()), r.ChunkSize())
	}
	if !strings.HasPrefix(op, "bind") {
		return ""
	}
	if n := QueueCount(o.Interface, o.Ifindex); n > 0 && o.Queue >= n {
		return fmt.Sprintf("interface %s has no queue %d; it has %d, counted from 0: use one of them, or ask for more with ethtool -L %s", o.Interface, o.Queue, n, o.Interface)
	}
	if o.Mode == ZeroCopy {
		return "the driver refuses zero copy here although it may advertise it: use copy mode"
	}
	if o.SG {
		return fmt.Sprintf("packets of several frames need Linux 6.6 and a driver that takes them: ip link set %s mtu 1500", o.Interface)
	}
	return fmt.Sprintf("the interface has no queue %d, or the driver refuses these options", o.Queue)
}
