package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const runDir = "/run/netns" // where ip-netns(8) keeps names

// NS is a network namespace. Its methods may be called by any goroutine.
type NS struct {
	name string // under runDir; "" means anonymous
	dev  string // the end of the veth pair that Close removes; "" for none

	mu     sync.Mutex // guards handle: its number must not be reused while setns(2) looks at it
	handle netns.NsHandle
}

// newNS makes the namespace NAME-side, or an anonymous one.
func newNS(name, side, dev string) (*NS, error) {
	n := &NS{dev: dev, handle: netns.None()}
	if name != "" {
		name += "-" + side
		if err := removeNamed(name, dev); err != nil {
			return nil, err
		}
	}
	if err := onLockedThread(func() error { return n.unshare(name) }); err != nil {
		return nil, fmt.Errorf("netlab: new namespace %s: %w", name, errors.Join(err, n.close()))
	}
	return n, nil
}

// unshare makes the namespace, on a thread that the caller brings home afterwards.
func (n *NS) unshare(name string) error {
	handle, err := netns.New()
	if err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	n.handle = handle
	if name != "" {
		if err := bindName(name); err != nil {
			return err
		}
		n.name = name // from here on it is ours to remove
	}
	return nil
}

// bindName gives the calling thread's namespace a name, as `ip netns add` does (iproute2 ip/ipnetns.c, netns_add).
func bindName(name string) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(runDir)
	if err != nil {
		return err
	}
	defer dir.Close() // which unlocks
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", runDir, err)
	}
	// A shared mount: a later `ip netns` would otherwise mount runDir over itself, and hide our name beneath.
	err = unix.Mount("", runDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		if err = unix.Mount(runDir, runDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", runDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share mount %s: %w", runDir, err)
	}
	path := filepath.Join(runDir, name)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	file.Close()
	if err := unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("bind mount %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// removeNamed removes a name and the interface dev in its namespace, if they are there. It opens the namespace first,
// because processes that an earlier run left in it would keep the interface alive.
func removeNamed(name, dev string) error {
	path := filepath.Join(runDir, name)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if handle, err := netns.GetFromPath(path); err == nil {
		old := &NS{dev: dev, handle: handle}
		// An error here is a name without a namespace, left by a run that died between the two steps of bindName.
		_ = old.close()
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("netlab: unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("netlab: %w", err)
	}
	return nil
}

// Path names the namespace for setns(2) in any process: /run/netns/NAME-a, or /proc/PID/fd/N, which ends with this
// process or with Close.
func (n *NS) Path() string {
	if n.name != "" {
		return filepath.Join(runDir, n.name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.handle)
}

// Do runs f on the calling goroutine with its thread inside the namespace; Do within Do is fine. Sockets that f makes
// stay in the namespace. Goroutines that f starts are not in it: neither are name lookups, nor a net.Dial that tries two
// addresses.
func (n *NS) Do(f func() error) error {
	return onLockedThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return f()
	})
}

func (n *NS) enter() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.handle.IsOpen() {
		return fmt.Errorf("netlab: enter namespace: %w", os.ErrClosed)
	}
	if err := netns.Set(n.handle); err != nil {
		return fmt.Errorf("netlab: enter namespace: %w", err)
	}
	return nil
}

// onLockedThread runs f locked to its thread, and brings the thread back to the namespace it was in, even when f ends the
// goroutine (t.FailNow). A thread that cannot go home stays locked, and so ends with its goroutine.
func onLockedThread(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("netlab: own namespace: %w", err)
	}
	defer func() {
		back := netns.Set(home)
		home.Close()
		if back != nil {
			err = errors.Join(err, fmt.Errorf("netlab: return from namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// close removes the interface at once (the kernel ends a namespace later, on its own thread), the name, and the handle.
func (n *NS) close() error {
	if n == nil {
		return nil
	}
	var errs []error
	n.mu.Lock()
	open := n.handle.IsOpen()
	n.mu.Unlock()
	if open {
		errs = append(errs, n.Do(n.removeLink))
		n.mu.Lock()
		errs = append(errs, n.handle.Close())
		n.mu.Unlock()
		if n.name != "" {
			errs = append(errs, removeNamed(n.name, n.dev))
		}
	}
	return errors.Join(errs...)
}

func (n *NS) removeLink() error {
	if n.dev == "" {
		return nil
	}
	link, err := netlink.LinkByName(n.dev)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	// The other end's Close may remove the pair between our two calls.
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("netlab: remove %s: %w", n.dev, err)
	}
	return nil
}
