package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"xdpd/umem"
)

// What a queue has unless the configuration says otherwise (xdpd.Config).
const (
	defaultFrames = 16384
	defaultChunk  = 2048
	queueBytes    = defaultFrames * defaultChunk
)

// checkMachine answers what does not depend on a device.
func checkMachine(tell func(finding)) {
	caps, err := ownCaps()
	for _, f := range []finding{
		checkKernel(unix.Uname), checkNeededCaps(caps, err), checkFurtherCaps(caps, err), checkCPUs(), checkSocket(), checkMemory(caps),
		checkTXBudget(), checkHugePages(), checkBPF(caps),
	} {
		f.Where = "this machine"
		tell(f)
	}
}

// checkKernel: the steering program needs bpf_xdp_get_buff_len and the frags flag, which are of 5.18.
func checkKernel(uname func(*unix.Utsname) error) finding {
	f := finding{Name: "kernel", Status: blocking, Cure: "run Linux 5.18 or newer"}
	var u unix.Utsname
	if err := uname(&u); err != nil {
		f.Text = plain(err)
		return f
	}
	release := unix.ByteSliceToString(u.Release[:])
	f.Text = fmt.Sprintf("Linux %s on %s", release, unix.ByteSliceToString(u.Machine[:]))
	if newEnough(release, 5, 18) {
		f.Status, f.Cure = good, ""
	}
	return f
}

// newEnough compares a release like "6.18.44-lts" with major.minor.
func newEnough(release string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// capSet is the effective capabilities as a bit mask.
type capSet uint64

func (c capSet) has(bit int) bool { return c>>bit&1 != 0 }

// ownCaps reads /proc/self/status. All threads of this process have the same.
func ownCaps() (capSet, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return capSet(mask), err
		}
	}
	return 0, errors.New("/proc/self/status has no line CapEff")
}

type capability struct {
	bit  int
	name string
	use  string
}

// Loading and attaching programs is CAP_SYS_ADMIN's as well (kernel/bpf/token.c, bpf_ns_capable).
var (
	programCaps = []capability{
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "to load and attach a program for an interface"},
		{unix.CAP_BPF, "CAP_BPF", "to load the program and its maps"},
	}
	socketCaps = []capability{
		{unix.CAP_NET_RAW, "CAP_NET_RAW", "to open AF_XDP sockets"},
	}
	furtherCaps = []capability{
		{unix.CAP_IPC_LOCK, "CAP_IPC_LOCK", "for more packet memory than RLIMIT_MEMLOCK"},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "for send buffers above net.core.wmem_max and for driving the NAPI"},
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "for --netns and xdpd demo"},
	}
)

// capCure says how a process gets capabilities, which are listed as split does.
func capCure(lack []string) string {
	var names, adds []string
	for _, l := range lack {
		name, _, _ := strings.Cut(l, " ")
		names, adds = append(names, strings.ToLower(name)), append(adds, name)
	}
	list := strings.Join(names, ",")
	// One by one: docker takes no list.
	cure := fmt.Sprintf("setcap %s+ep ON THE xdpd BINARY, in a container --cap-add %s", list, strings.Join(adds, " --cap-add "))
	if os.Geteuid() != 0 {
		cure = "run as root, or: " + cure
	}
	return cure + "; or xdpd run --from, which needs none (docs/privileges.md)"
}

func checkNeededCaps(caps capSet, err error) finding {
	f := finding{Name: "privileges", Status: blocking}
	if err != nil {
		f.Text, f.Cure = plain(err), "mount /proc"
		return f
	}
	who := fmt.Sprintf("user %d", os.Geteuid())
	have, lack := split(caps, programCaps)
	if caps.has(unix.CAP_SYS_ADMIN) && len(lack) > 0 {
		have, lack = append(have, "CAP_SYS_ADMIN"), nil
	}
	sock, noSock := split(caps, socketCaps)
	have, lack = append(have, sock...), append(lack, noSock...)
	if len(lack) > 0 {
		f.Text, f.Cure = fmt.Sprintf("%s, without %s", who, strings.Join(lack, ", ")), capCure(lack)
		return f
	}
	f.Status, f.Text = good, fmt.Sprintf("%s, with %s", who, strings.Join(have, ", "))
	return f
}

func checkFurtherCaps(caps capSet, err error) finding {
	f := finding{Name: "more privileges", Status: missing}
	if err != nil {
		f.Text, f.Cure = plain(err), "mount /proc"
		return f
	}
	have, lack := split(caps, furtherCaps)
	if len(lack) > 0 {
		f.Text, f.Cure = "without "+strings.Join(lack, ", "), "only where that is needed: "+capCure(lack)
		return f
	}
	f.Status, f.Text = good, "with "+strings.Join(have, ", ")
	return f
}

// split lists which of the capabilities are there, and which are not with what they are for.
func split(caps capSet, list []capability) (have, lack []string) {
	for _, c := range list {
		if caps.has(c.bit) {
			have = append(have, c.name)
		} else {
			lack = append(lack, c.name+" ("+c.use+")")
		}
	}
	return have, lack
}

// checkCPUs: a reactor spins on one while there is traffic; the applications need another.
func checkCPUs() finding {
	n, procs := runtime.NumCPU(), runtime.GOMAXPROCS(0)
	f := finding{Name: "CPUs", Text: fmt.Sprintf("%d, GOMAXPROCS %d", n, procs)}
	switch {
	case n < 2:
		f.Status, f.Cure = missing, "an engine shares its only CPU with its applications and works; give it a second one for speed"
	case procs < 2:
		f.Status, f.Cure = missing, "unset GOMAXPROCS, or set it to 2 at least"
	}
	return f
}

// newRawSocket opens an AF_XDP socket without an interface.
func newRawSocket() (fd int, cure string, err error) {
	fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EAFNOSUPPORT):
		cure = "run a kernel with CONFIG_XDP_SOCKETS"
	case errors.Is(err, unix.EPERM):
		cure = "CAP_NET_RAW: see privileges"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		cure = "more open files: ulimit -n"
	}
	return fd, cure, err
}

func checkSocket() finding {
	fd, cure, err := newRawSocket()
	if err != nil {
		return finding{Name: "AF_XDP", Status: blocking, Text: "no socket: " + plain(err), Cure: cure}
	}
	unix.Close(fd)
	return finding{Name: "AF_XDP", Text: "the kernel has CONFIG_XDP_SOCKETS and gives us a socket"}
}

// checkMemory registers as much memory as an engine does for one queue.
func checkMemory(caps capSet) finding {
	f := finding{Name: "packet memory", Status: blocking}
	limit := memlockText()
	fd, cure, err := newRawSocket()
	if err != nil {
		f.Text, f.Cure = fmt.Sprintf("not tried, no AF_XDP socket: %s; RLIMIT_MEMLOCK is %s", plain(err), limit), cure
		return f
	}
	defer unix.Close(fd)
	region, err := umem.New(umem.Options{Frames: defaultFrames, ChunkSize: defaultChunk})
	if err != nil {
		f.Text, f.Cure = plain(err), "more memory, or fewer frames (frames in the config file)"
		return f
	}
	defer region.Close()
	err = registerMemory(fd, region.Mem(), defaultChunk)
	want := fmt.Sprintf("a queue's %d frames of %d bytes (%d KiB)", defaultFrames, defaultChunk, queueBytes>>10)
	switch {
	case errors.Is(err, unix.ENOBUFS): // xdp_umem_account_pages
		f.Text = fmt.Sprintf("RLIMIT_MEMLOCK is %s and forbids to lock %s", limit, want)
		f.Cure = memlockCure(1, defaultChunk)
	case err != nil:
		f.Text, f.Cure = fmt.Sprintf("cannot lock %s: %s", want, plain(err)), "more memory, or fewer frames (frames in the config file)"
	default:
		f.Status, f.Text = good, fmt.Sprintf("locked %s; RLIMIT_MEMLOCK is %s", want, limit)
		if caps.has(unix.CAP_IPC_LOCK) {
			f.Text += ", which CAP_IPC_LOCK lifts"
		}
	}
	return f
}

// memlock is the limit in bytes; RLIM_INFINITY for none.
func memlock() uint64 {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err != nil {
		return 0
	}
	return lim.Cur
}

// lockable is how much memory may be locked.
func lockable() uint64 {
	if caps, err := ownCaps(); err == nil && caps.has(unix.CAP_IPC_LOCK) {
		return unix.RLIM_INFINITY
	}
	return memlock()
}

func memlockText() string {
	if n := memlock(); n != unix.RLIM_INFINITY {
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return "unlimited"
}

// memlockCure says how to get the memory for n queues with such frames, and what the limit as it is would do for.
func memlockCure(n, chunk int) string {
	need := n * defaultFrames * chunk
	cure := fmt.Sprintf("ulimit -l %d (in a systemd unit LimitMEMLOCK=%dM), or CAP_IPC_LOCK", need>>10, need>>20)
	if frames := memlock() / uint64(n*chunk); frames >= 64 {
		cure += fmt.Sprintf(", or frames = %d in the config file", frames)
	}
	return cure
}

// checkTXBudget: without the option a system call sends 32 frames at most (XDP_MAX_TX_SKB_BUDGET, Linux 6.17).
func checkTXBudget() finding {
	f := finding{Name: "TX budget", Status: missing}
	fd, cure, err := newRawSocket()
	if err != nil {
		f.Text, f.Cure = "not tried: "+plain(err), cure
		return f
	}
	defer unix.Close(fd)
	const budget = 256
	if err = unix.SetsockoptInt(fd, unix.SOL_XDP, unix.XDP_TX_RING, 2048); err == nil { // it must have a ring to be of use
		err = unix.SetsockoptInt(fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, budget)
	}
	switch {
	case errors.Is(err, unix.ENOPROTOOPT):
		f.Text, f.Cure = "in copy mode a system call sends 32 frames", fmt.Sprintf("Linux 6.17 or newer lets it send %d", budget)
	case err != nil:
		f.Text = plain(err)
	default:
		f.Status, f.Text = good, fmt.Sprintf("in copy mode a system call sends up to %d frames", budget)
	}
	return f
}

// checkHugePages takes the memory of a queue from huge pages.
func checkHugePages() finding {
	f := finding{Name: "huge pages", Status: missing}
	info, err := hugePages()
	if err != nil {
		f.Text = plain(err)
		return f
	}
	f.Text = fmt.Sprintf("%d of %d KiB, %d of them free", info.total, info.sizeKiB, info.free)
	region, err := umem.New(umem.Options{Frames: defaultFrames, ChunkSize: defaultChunk, HugePages: true})
	if err != nil {
		f.Text += ": " + plain(err)
		return f
	}
	defer region.Close()
	if region.Huge() {
		f.Status = good
		f.Text += ": enough for a queue (huge_pages in the config file)"
		return f
	}
	if info.sizeKiB > 0 {
		need := max((queueBytes>>10+info.sizeKiB-1)/info.sizeKiB, 1)
		f.Text += fmt.Sprintf(": a queue needs %d", need)
		f.Cure = fmt.Sprintf("only if huge_pages is wanted: sysctl -w vm.nr_hugepages=%d", info.total+need-info.free)
	}
	return f
}

type hugePageInfo struct{ total, free, sizeKiB int }

func hugePages() (info hugePageInfo, err error) {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return info, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.Atoi(fields[1]) // a line that is no number is none of these
		switch fields[0] {
		case "HugePages_Total:":
			info.total = n
		case "HugePages_Free:":
			info.free = n
		case "Hugepagesize:":
			info.sizeKiB = n
		}
	}
	return info, lines.Err()
}

// checkBPF loads small programs and a map of the kinds that the steering program needs. That one itself is loaded where
// there is a device to attach it to.
func checkBPF(caps capSet) finding {
	f := finding{Name: "BPF", Status: blocking}
	err := errors.Join(
		features.HaveMapType(ebpf.XSKMap),
		features.HaveProgramType(ebpf.XDP),
		features.HaveProgramHelper(ebpf.XDP, asm.FnRedirectMap),
		features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen),
	)
	switch {
	case err == nil:
		f.Status, f.Text = good, "the kernel loads XDP programs that redirect to AF_XDP sockets"
	case errors.Is(err, unix.EPERM):
		f.Text = "the kernel lets us load no XDP program"
		_, lack := split(caps, programCaps)
		f.Cure = "a security module forbids it: ask it (dmesg, audit log)"
		if len(lack) > 0 && !caps.has(unix.CAP_SYS_ADMIN) {
			f.Cure = strings.Join(lack, ", ") + ": see privileges"
		}
	default:
		f.Text, f.Cure = plain(err), "Linux 5.18 or newer with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS"
	}
	return f
}

// plain is an error without the name of the package it comes from.
func plain(err error) string {
	text := err.Error()
	for _, pkg := range []string{"rings: ", "xdpprog: ", "netlab: ", "umem: ", "xdpd: "} {
		text = strings.ReplaceAll(text, pkg, "")
	}
	// The library's guess at EPERM of map creation, which has nothing to do with that limit since Linux 5.11.
	text = strings.ReplaceAll(text, " (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", "")
	return strings.ReplaceAll(text, "\n", "; ")
}
