package xdpprog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// bpffsPath is where the BPF file system is: libxdp's rule.
func bpffsPath() string {
	if dir := os.Getenv("LIBXDP_BPFFS"); dir != "" {
		return dir
	}
	return "/sys/fs/bpf"
}

// pinDir is the folder in the BPF file system where the parts of dispatchers are pinned, locked against other processes.
type pinDir struct {
	path string
	lock *os.File
}

// Somebody else has the lock for a few system calls only.
const (
	lockPatience = 10 * time.Second
	lockPause    = 5 * time.Millisecond
)

func checkBPFFS(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%s is no BPF file system, and a dispatcher needs one: mount -t bpf bpf %s", path, path)
	}
	return nil
}

func lockPins(bpffs string) (*pinDir, error) {
	if err := checkBPFFS(bpffs); err != nil {
		return nil, err
	}
	path := filepath.Join(bpffs, "xdp")
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("pins of dispatchers: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("pins of dispatchers: %w", err)
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPause) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return &pinDir{path, f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			f.Close()
			return nil, fmt.Errorf("lock %s (fuser -v %s says who has it): %w", path, path, err)
		}
	}
}

func (p *pinDir) unlock() { p.lock.Close() }

// of is the folder of one dispatcher.
func (p *pinDir) of(ifindex int, id ebpf.ProgramID) string {
	return filepath.Join(p.path, fmt.Sprintf("dispatch-%d-%d", ifindex, id))
}

func progPin(dir string, slot int) string {
	return filepath.Join(dir, fmt.Sprintf("prog%d-prog", slot))
}
func linkPin(dir string, slot int) string {
	return filepath.Join(dir, fmt.Sprintf("prog%d-link", slot))
}

// unpin removes a dispatcher's folder, if it is there.
func unpin(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}
