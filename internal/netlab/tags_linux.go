package netlab

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// HideTags has all that a device of the namespace sends get a VLAN tag that does not stand in the frame, as a kernel's VLAN
// interface hands it to a device that takes tags so (tx-vlan-offload), which a veth does. stop ends that.
func HideTags(ns *NS, dev string, id uint16) (stop func() error, err error) {
	l, err := attachTCX(ns, dev, ebpf.AttachTCXEgress, asm.Instructions{
		asm.Mov.Imm(asm.R2, 0x0081), // 0x8100 in network byte order
		asm.Mov.Imm(asm.R3, int32(id)),
		asm.FnSkbVlanPush.Call(),
		asm.Mov.Imm(asm.R0, 0), // TC_ACT_OK
		asm.Return(),
	})
	if err != nil {
		return nil, err
	}
	return l.Close, nil
}

// TagCounter counts what a device received, by whether it had a VLAN tag.
type TagCounter struct {
	counts *ebpf.Map
	link   link.Link
}

// CountTags begins to count on a device of the namespace.
func CountTags(ns *NS, dev string) (*TagCounter, error) {
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 2})
	if err != nil {
		return nil, fmt.Errorf("netlab: count tags: %w", err)
	}
	const vlanPresent = 20 // offset in struct __sk_buff
	l, err := attachTCX(ns, dev, ebpf.AttachTCXIngress, asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, vlanPresent, asm.Word),
		asm.StoreMem(asm.RFP, -4, asm.R6, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, counts.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "done"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("done"), // TC_ACT_OK
		asm.Return(),
	})
	if err != nil {
		return nil, errors.Join(err, counts.Close())
	}
	return &TagCounter{counts, l}, nil
}

// Counts tells how many frames there were.
func (c *TagCounter) Counts() (untagged, tagged uint64, err error) {
	err = errors.Join(c.counts.Lookup(uint32(0), &untagged), c.counts.Lookup(uint32(1), &tagged))
	return untagged, tagged, err
}

// Close ends counting.
func (c *TagCounter) Close() error { return errors.Join(c.link.Close(), c.counts.Close()) }

func attachTCX(ns *NS, dev string, where ebpf.AttachType, program asm.Instructions) (l link.Link, err error) {
	err = ns.Do(func() error {
		d, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, AttachType: where, License: "GPL", Instructions: program})
		if err != nil {
			return err
		}
		defer prog.Close()
		l, err = link.AttachTCX(link.TCXOptions{Interface: d.Attrs().Index, Program: prog, Attach: where})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("netlab: attach to %s: %w", dev, err)
	}
	return l, nil
}
