package xdpprog

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// progRunAttr is what union bpf_attr is for BPF_PROG_RUN (include/uapi/linux/bpf.h).
type progRunAttr struct {
	progFD, retval          uint32
	dataSizeIn, dataSizeOut uint32
	dataIn, dataOut         uint64
	repeat, duration        uint32
	ctxSizeIn, ctxSizeOut   uint32
	ctxIn, ctxOut           uint64
	flags, cpu              uint32
	batchSize, _            uint32
}

// runLive runs an XDP program repeat times on frames that hold data, and does what it returns with them. EINTR: a signal
// came; it is not told after how many times. (ebpf.Program.Run would begin anew.)
func runLive(fd int, data []byte, repeat, batch uint32) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&data[0])
	attr := progRunAttr{
		progFD:     uint32(fd),
		dataSizeIn: uint32(len(data)),
		dataIn:     uint64(uintptr(unsafe.Pointer(&data[0]))),
		repeat:     repeat,
		flags:      unix.BPF_F_TEST_XDP_LIVE_FRAMES,
		batchSize:  batch,
	}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_RUN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return errno
	}
	return nil
}
