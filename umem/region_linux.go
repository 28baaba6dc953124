package umem

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mapping is a memfd and its memory, rounded up to whole pages.
type mapping struct {
	mem  []byte
	fd   int
	huge bool
}

// mapHuge fails when there are not enough huge pages: mmap of hugetlb memory
// reserves them all at once, so populating cannot fail half-way.
func mapHuge(size int) (mapping, error) {
	fd, err := unix.MemfdCreate("xdpd-umem", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_HUGETLB)
	if err != nil {
		return mapping{}, err
	}
	// The size of a huge page is the block size of its file system; it need not
	// be 2 MiB (arm64, default_hugepagesz=).
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return mapping{}, err
	}
	return mapFD(fd, roundUp(size, int(st.Blksize)), true)
}

func mapNormal(size int) (mapping, error) {
	size = roundUp(size, os.Getpagesize())
	// Memory behind a memfd is not reserved but taken page by page: without this
	// a typing error in Frames wakes the OOM killer.
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil && uint64(size) > uint64(info.Totalram)*uint64(info.Unit) {
		return mapping{}, fmt.Errorf("umem: %d MiB of frames in a machine of %d MiB: %w (use fewer or smaller frames)",
			size>>20, uint64(info.Totalram)*uint64(info.Unit)>>20, unix.ENOMEM)
	}
	fd, err := unix.MemfdCreate("xdpd-umem", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return mapping{}, fmt.Errorf("umem: memfd_create for %d bytes: %w (a kernel with CONFIG_MEMFD_CREATE and a free file descriptor, ulimit -n, are needed)", size, err)
	}
	m, err := mapFD(fd, size, false)
	if err != nil {
		return mapping{}, fmt.Errorf("umem: %w (use fewer or smaller frames, or raise the memory limit: cgroup memory.max, ulimit -v)", err)
	}
	return m, nil
}

// mapFD sizes, seals and maps fd; it closes fd when it fails.
func mapFD(fd, size int, huge bool) (mapping, error) {
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		unix.Close(fd)
		return mapping{}, fmt.Errorf("ftruncate to %d bytes: %w", size, err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		unix.Close(fd)
		return mapping{}, fmt.Errorf("seal against shrinking: %w", err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		unix.Close(fd)
		return mapping{}, fmt.Errorf("mmap of %d bytes: %w", size, err)
	}
	return mapping{mem: mem, fd: fd, huge: huge}, nil
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }

func unmap(mem []byte) error {
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("umem: munmap: %w", err)
	}
	return nil
}

func closeFD(fd int) error {
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("umem: close memfd: %w", err)
	}
	return nil
}
