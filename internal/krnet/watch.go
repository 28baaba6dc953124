package krnet

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Event is one of NeighChange, RouteChange, AddrChange, LinkChange and Resync.
type Event interface{ event() }

// NeighChange tells the new state of a neighbour; Deleted: the kernel has forgotten it.
type NeighChange struct {
	Neigh
	Deleted bool
}

// RouteChange tells that routes through the interface may have changed: take a Snapshot.
type RouteChange struct{}

// AddrChange tells that an IPv4 address of the interface came or went: take a Snapshot. Routes may have gone with it,
// of which the kernel says nothing more.
type AddrChange struct{}

// LinkChange tells the interface's state, as in State; it also comes when something else about the interface changed.
// When Up turned false the kernel dropped routes and neighbours without further notice: take a Snapshot. Deleted: the
// interface is gone from this namespace, for good; Moved: it is in another one now.
type LinkChange struct {
	Name    string
	Up      bool
	MTU     int
	MAC     [6]byte
	Deleted bool
	Moved   bool
}

// Resync tells that events were lost because they came faster than they were taken (ENOBUFS): take a Snapshot.
type Resync struct{}

func (NeighChange) event() {}
func (RouteChange) event() {}
func (AddrChange) event()  {}
func (LinkChange) event()  {}
func (Resync) event()      {}

// Watch tells f of every change of the interface, from one goroutine and in the kernel's order, until ctx is done or
// the Kernel is closed. It returns at once; a Snapshot taken afterwards misses nothing, but may hold changes already
// that are told again. The subscription dates from Open, so that older changes may be told as well. A Kernel can be
// watched once.
func (k *Kernel) Watch(ctx context.Context, f func(Event)) error {
	if k.watched.Swap(true) {
		return fmt.Errorf("krnet: watch interface %d: it is being watched already, or was", k.ifindex)
	}
	go func() {
		defer context.AfterFunc(ctx, k.endNews)()
		for {
			msgs, from, err := k.news.Receive()
			switch {
			case k.ended.Load() || ctx.Err() != nil:
				return
			case err != nil:
				// ENOBUFS, or a message that cannot be read: in both cases something was missed.
				f(Resync{})
				continue
			case from.Pid != 0:
				continue // not from the kernel
			}
			for _, m := range msgs {
				if e := k.decode(m); e != nil && ctx.Err() == nil && !k.ended.Load() {
					f(e)
				}
			}
		}
	}()
	return nil
}

// decode returns the event that a message is to us, or nil.
func (k *Kernel) decode(m syscall.NetlinkMessage) Event {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return k.decodeLink(m)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return k.decodeNeigh(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) >= unix.SizeofIfAddrmsg && int(nl.DeserializeIfAddrmsg(m.Data).Index) == k.ifindex {
			return AddrChange{}
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if k.routeConcernsUs(m) {
			return RouteChange{}
		}
	}
	return nil
}

func (k *Kernel) decodeLink(m syscall.NetlinkMessage) Event {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return nil
	}
	info := nl.DeserializeIfInfomsg(m.Data)
	// A bridge announces its ports in messages of its own family: a port that leaves the bridge is not a deleted link.
	if int(info.Index) != k.ifindex || info.Family != unix.AF_UNSPEC {
		return nil
	}
	if m.Header.Type == unix.RTM_DELLINK {
		return LinkChange{Deleted: true, Moved: movedAway(m.Data[unix.SizeofIfInfomsg:])}
	}
	l, err := netlink.LinkDeserialize(nil, m.Data)
	if err != nil {
		return Resync{}
	}
	return LinkChange{Name: l.Attrs().Name, Up: isUp(info.Flags), MTU: l.Attrs().MTU, MAC: macOf(l.Attrs().HardwareAddr)}
}

// movedAway looks for the namespace that a deleted link went to (net/core/dev.c, __dev_change_net_namespace).
func movedAway(b []byte) bool {
	attrs, err := nl.ParseRouteAttr(b)
	return err == nil && slices.ContainsFunc(attrs, func(a syscall.NetlinkRouteAttr) bool {
		return a.Attr.Type == unix.IFLA_NEW_NETNSID
	})
}

func (k *Kernel) decodeNeigh(m syscall.NetlinkMessage) Event {
	if len(m.Data) < unix.SizeofNdMsg || m.Data[0] != unix.AF_INET {
		return nil
	}
	n, err := netlink.NeighDeserialize(m.Data)
	if err != nil {
		return Resync{}
	}
	ours, ok := neighOf(*n)
	if n.LinkIndex != k.ifindex || !ok {
		return nil
	}
	deleted := m.Header.Type == unix.RTM_DELNEIGH
	ours.Valid = ours.Valid && !deleted
	return NeighChange{Neigh: ours, Deleted: deleted}
}

// routeConcernsUs is false for a route of another table or one that names another interface only. A replaced route
// names its new interface only, and may have been ours before; one with several next hops names them further inside.
func (k *Kernel) routeConcernsUs(m syscall.NetlinkMessage) bool {
	if len(m.Data) < unix.SizeofRtMsg {
		return false
	}
	table, out := uint32(nl.DeserializeRtMsg(m.Data).Table), 0
	attrs, err := nl.ParseRouteAttr(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		switch {
		case len(a.Value) < 4:
		case a.Attr.Type == unix.RTA_TABLE:
			table = binary.NativeEndian.Uint32(a.Value)
		case a.Attr.Type == unix.RTA_OIF:
			out = int(binary.NativeEndian.Uint32(a.Value))
		}
	}
	replaced := m.Header.Flags&unix.NLM_F_REPLACE != 0
	return table == unix.RT_TABLE_MAIN && (out == k.ifindex || out == 0 || replaced)
}
