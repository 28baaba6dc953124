package main

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// egress counts what the kernel itself sends on a device: packets of an AF_XDP socket go past where it sits, as they go past a
// queue (net/core/dev.c, __dev_direct_xmit). Unlike a queue it leaves alone how the device treats these. Needs Linux 6.6.
type egress struct {
	count   *ebpf.Map
	program *ebpf.Program
	link    link.Link
}

// countEgress must be called in the device's namespace.
func countEgress(ifindex int) (_ *egress, err error) {
	e := &egress{}
	defer func() {
		if err != nil {
			err = fmt.Errorf("count what the kernel sends: %w", errors.Join(err, e.close()))
		}
	}()
	if e.count, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		return nil, err
	}
	const next = -1 // include/uapi/linux/bpf.h, TCX_NEXT
	if e.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS,
		Instructions: asm.Instructions{
			asm.LoadMapValue(asm.R1, e.count.FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
			asm.Mov.Imm(asm.R0, next),
			asm.Return(),
		},
	}); err != nil {
		return nil, err
	}
	e.link, err = link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: e.program, Attach: ebpf.AttachTCXEgress})
	return e, err
}

func (e *egress) packets() (n uint64, err error) {
	if err = e.count.Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("count of what the kernel sent: %w", err)
	}
	return n, nil
}

func (e *egress) close() error {
	var err error
	if e.link != nil {
		err = e.link.Close()
	}
	return errors.Join(err, e.program.Close(), e.count.Close()) // nil is fine for both
}
