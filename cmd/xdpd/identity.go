package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// identity is the user and group that an engine becomes once it is set up.
type identity struct {
	name     string
	uid, gid int
}

// UnmarshalText implements encoding.TextUnmarshaler: NAME or NAME:GROUP, names or numbers. Without GROUP it is the user's own,
// and for a number that no user has, the same number.
func (id *identity) UnmarshalText(text []byte) error {
	name, group, given := strings.Cut(string(text), ":")
	uid, gid, err := lookUpUser(name)
	if err == nil && given {
		gid, err = lookUpGroup(group)
	}
	if err != nil {
		return fmt.Errorf("user %q: %w", text, err)
	}
	if uid == 0 {
		return fmt.Errorf("user %q is root, whom many files belong to even without a capability: take another", text)
	}
	*id = identity{name, uid, gid}
	return nil
}

func lookUpUser(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if n, nerr := strconv.ParseUint(name, 10, 31); nerr == nil {
		if u, err = user.LookupId(name); err != nil { // an image without /etc/passwd has numbers all the same
			return int(n), int(n), nil
		}
	}
	if err != nil {
		return 0, 0, err
	}
	uid, err = strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	return uid, gid, errors.Join(err, gerr)
}

func lookUpGroup(name string) (int, error) {
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// assume makes all threads of the process, and those to come, that user's, without further groups, and without any capability: the
// permitted, effective, inheritable, ambient and bounding sets are empty, the secure bits are locked so that no file and no
// user id gives any back, and no_new_privs is on.
func (id identity) assume() error {
	const cure = "xdpd run --user takes CAP_SETPCAP and, to become another user, CAP_SETUID and CAP_SETGID: run as root, or add them"
	if os.Getuid() != id.uid || os.Getgid() != id.gid {
		if err := cap.SetGroups(id.gid); err != nil {
			return fmt.Errorf("become group %d: %w: %s", id.gid, err, cure)
		}
		if err := cap.SetUID(id.uid); err != nil {
			return fmt.Errorf("become user %s: %w: %s", id.name, err, cure)
		}
	}
	if err := cap.ModeNoPriv.Set(); err != nil {
		return fmt.Errorf("give up all capabilities: %w: %s", err, cure)
	}
	// The library takes the last steps without looking whether they succeed.
	if mode := cap.GetMode(); mode != cap.ModeNoPriv {
		return fmt.Errorf("give up all capabilities: the kernel left us in mode %v", mode)
	}
	if on, err := cap.Prctl(unix.PR_GET_NO_NEW_PRIVS); err != nil || on != 1 {
		return fmt.Errorf("set no_new_privs: it is %d, %w", on, err)
	}
	return nil
}

// controlPath is where an engine of this identity listens for xdpd stats: in a folder of its own, for it must be able to remove
// the socket when it ends.
func (id identity) controlPath(iface string) string {
	if id.uid == os.Getuid() {
		return defaultControlPath(iface)
	}
	return filepath.Join(controlDir+"-"+id.name, iface+".sock")
}

// makeRoom makes the folder of a socket, which is then the identity's. option names another path.
func (id identity) makeRoom(path string, mode os.FileMode, option string) error {
	dir := filepath.Dir(path)
	made, err := makeFolder(dir, mode)
	if err != nil {
		return fmt.Errorf("socket %s: %w", path, explainUnwritable(err, option))
	}
	if !made {
		return nil // whether a socket can be made in it shows when it is
	}
	if err := os.Chown(dir, id.uid, id.gid); err != nil {
		// One that is left would be taken for the identity's the next time.
		return errors.Join(fmt.Errorf("socket %s: %w: it takes CAP_CHOWN, or a folder that %s may write to, named with %s", path, err, id.name, option),
			os.Remove(dir))
	}
	return nil
}

// makeFolder makes a folder, if there is none, with this mode whatever the umask is. Whether a socket can be made in it shows when it is.
func makeFolder(dir string, mode os.FileMode) (made bool, err error) {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return false, err
	}
	return true, os.Chmod(dir, mode)
}
