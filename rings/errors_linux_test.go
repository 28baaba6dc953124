package rings

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/umem"
)

// Every errno that socket, setsockopt, mmap and bind can give becomes a
// sentence with operation, interface, queue and cure, and stays in the chain.
func TestExplain(t *testing.T) {
	r, err := umem.Wrap(make([]byte, 4*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		errno unix.Errno
		mode  Mode
		words string
	}{
		{unix.EPERM, Best, "CAP_NET_ADMIN is needed"},
		{unix.EACCES, Best, "CAP_NET_ADMIN is needed"},
		{unix.EAFNOSUPPORT, Best, "CONFIG_XDP_SOCKETS"},
		{unix.EMFILE, Best, "raise ulimit -n"},
		{unix.ENFILE, Best, "raise ulimit -n"},
		{unix.ENOBUFS, Best, "8 KiB of frames"},
		{unix.ENOBUFS, Best, "raise RLIMIT_MEMLOCK (ulimit -l), give the process CAP_IPC_LOCK, or use fewer frames"},
		{unix.ENOMEM, Best, "raise RLIMIT_MEMLOCK"},
		{unix.EBUSY, Best, "another AF_XDP socket has this queue"},
		{unix.EOPNOTSUPP, Best, "the driver has no XDP"},
		{unix.EOPNOTSUPP, ZeroCopy, "no zero copy on this queue: use copy mode"},
		{unix.ENODEV, Best, "no interface with index 7 in this network namespace"},
		{unix.ENETDOWN, Best, "ip link set nic9 up"},
		{unix.ERANGE, Best, "ip link set nic9 mtu 1500"},
		{unix.EINVAL, ZeroCopy, "the driver refuses zero copy here"},
		{unix.EINVAL, Copy, "has no queue 5, or the driver refuses these options"},
		{unix.ENOPROTOOPT, Best, "Linux 6.6 or newer"},
		{unix.EFAULT, Best, "bad address"},
	} {
		o := SocketOptions{Interface: "nic9", Ifindex: 7, Queue: 5, Mode: c.mode}
		err := o.explain("bind the AF_XDP socket", r, c.errno)
		for _, w := range []string{"rings: cannot bind the AF_XDP socket on interface nic9 queue 5: ", c.words, c.errno.Error()} {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%v: %q does not say %q", c.errno, err, w)
			}
		}
		if !errors.Is(err, c.errno) {
			t.Errorf("%v is not in the chain of %q", c.errno, err)
		}
	}
	o := SocketOptions{Interface: "nic9", Ifindex: 7, Queue: 5, SG: true}
	if err := o.explain("bind the AF_XDP socket", r, unix.EINVAL); !strings.Contains(err.Error(), "need Linux 6.6") {
		t.Errorf("%q does not say what packets of several frames need", err)
	}
	o = SocketOptions{Ifindex: 7, Queue: 5}
	if err := o.explain("make a ring", r, unix.EINVAL); !strings.Contains(err.Error(), "interface number 7 queue 5") {
		t.Errorf("%q does not name an interface without a name", err)
	}
}

func TestDataPathError(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EAGAIN, unix.EBUSY, unix.ENOBUFS, unix.EINTR} {
		if err := DataPathError("kick TX", "here", errno); err != nil {
			t.Errorf("%v: %v, want nil: come again", errno, err)
		}
	}
	for _, errno := range []unix.Errno{unix.ENETDOWN, unix.ENXIO, unix.ENODEV, unix.EINVAL} {
		if err := DataPathError("kick TX", "here", errno); !errors.Is(err, ErrDeviceDown) || !errors.Is(err, errno) {
			t.Errorf("%v: %v, want ErrDeviceDown", errno, err)
		}
	}
	err := DataPathError("kick TX", "here", unix.EBADF)
	if !errors.Is(err, unix.EBADF) || errors.Is(err, ErrDeviceDown) || !strings.Contains(err.Error(), "kick TX on here") {
		t.Errorf("EBADF: %v", err)
	}
}

func TestOptionsRefused(t *testing.T) {
	r, err := umem.Wrap(make([]byte, 4*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	closed, err := umem.Wrap(make([]byte, 2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	ok := SocketOptions{Interface: "nic9", Ifindex: 7}
	for words, c := range map[string]struct {
		region *umem.Region
		change func(o *SocketOptions)
	}{
		"FillSize is 3; it must be a power of two":  {r, func(o *SocketOptions) { o.FillSize = 3 }},
		"CompSize is -1; it must be a power of two": {r, func(o *SocketOptions) { o.CompSize = -1 }},
		"RXSize is 100; it must be a power of two":  {r, func(o *SocketOptions) { o.RXSize = 100 }},
		"TXSize is 6; it must be a power of two":    {r, func(o *SocketOptions) { o.TXSize = 6 }},
		"index 0 and queue 0":                       {r, func(o *SocketOptions) { o.Ifindex = 0 }},
		"index 7 and queue -1":                      {r, func(o *SocketOptions) { o.Queue = -1 }},
		"mode 3":                                    {r, func(o *SocketOptions) { o.Mode = 3 }},
		"needs the region of the socket it shares":  {r, func(o *SocketOptions) { o.Shared = &Socket{region: closed} }},
		"the region is nil or closed":               {closed, func(o *SocketOptions) {}},
	} {
		o := ok
		c.change(&o)
		if _, err := OpenSocket(c.region, o); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("error %v does not say %q", err, words)
		}
	}
	if _, err := OpenSocket(nil, ok); err == nil {
		t.Error("a nil region is accepted")
	}
}
