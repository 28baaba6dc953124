package xdpprog

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// Drop is an XDP program that counts and drops whatever comes: the cheapest receiver there is.
type Drop struct {
	hook
	objs struct {
		Drop    *ebpf.Program `ebpf:"drop"`
		Dropped *ebpf.Map     `ebpf:"dropped"`
	}
}

// LoadDrop loads and attaches it, as LoadSink does.
func LoadDrop(iface string, ifindex int, attach Attach) (*Drop, error) {
	d := &Drop{}
	var err error
	d.hook, err = hookUp(Config{Interface: iface, Ifindex: ifindex, Attach: attach}, d.load, d.unload)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (d *Drop) load(a attempt) (*ebpf.Program, error) {
	spec, err := sinkSpec(sinkProgDrop, a.frags)
	if err != nil {
		return nil, err
	}
	if err := spec.LoadAndAssign(&d.objs, nil); err != nil {
		return nil, explainPrivilege(err)
	}
	return d.objs.Drop, nil
}

func (d *Drop) unload() error { return errors.Join(d.objs.Drop.Close(), d.objs.Dropped.Close()) }

// Count returns the packets and their bytes, without FCS, since LoadDrop.
func (d *Drop) Count() (packets, bytes uint64, err error) {
	var perCPU []sinkDrops
	if err := d.objs.Dropped.Lookup(uint32(0), &perCPU); err != nil {
		return 0, 0, fmt.Errorf("xdpprog: counters of %s: %w", d.iface, err)
	}
	for _, c := range perCPU {
		packets += c.Packets
		bytes += c.Bytes
	}
	return packets, bytes, nil
}

// Close detaches the program and frees it. The second call does nothing.
func (d *Drop) Close() error { return errors.Join(d.detach(), d.unload()) }
