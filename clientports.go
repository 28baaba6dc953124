package xdpd

import (
	"slices"
	"sync"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

// portOwners knows whose a port is that clients have open. Each queue has a Host of its own, which knows of its own sockets only: who
// binds a port on another queue than its owner would receive what the device spreads there. As with SO_REUSEPORT of the kernel, the
// same user may have a port more than once, and nobody else.
//
// Of the free ports, those of port 0, a user may have no more than he leaves to all others together: else one could have all.
type portOwners struct {
	mu    sync.Mutex
	ports map[ownedPort][]portOwner
	free  map[freeKey]int // how many of the free ports a user has; uid -1: all users
}

type freeKey struct {
	protocol uint8
	uid      int64
}

// The free ports: ephemeralFirst and ephemeralCount in package sockets.
const (
	freeFirst = 32768
	freePorts = 28232
)

type ownedPort struct {
	protocol uint8
	port     uint16
}

func (k ownedPort) free() bool { return k.port >= freeFirst && k.port < freeFirst+freePorts }

type portOwner struct {
	addr proto.Addr // 0: all
	uid  uint32
	n    int // sockets
}

// take notes a socket of uid. Errors: EADDRINUSE, somebody else has it, or uid has as many free ports as he may.
func (o *portOwners) take(k ownedPort, addr proto.Addr, uid uint32) sockets.Errno {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := o.ports[k]
	mine := -1
	for i, p := range list {
		if p.uid != uid && (p.addr == 0 || addr == 0 || p.addr == addr) {
			return sockets.EADDRINUSE
		}
		if p.uid == uid && p.addr == addr {
			mine = i
		}
	}
	if mine >= 0 {
		list[mine].n++
		return 0
	}
	if k.free() {
		his, all := freeKey{k.protocol, int64(uid)}, freeKey{k.protocol, -1}
		if o.free[his] >= freePorts-o.free[all] {
			return sockets.EADDRINUSE
		}
		o.free[his]++
		o.free[all]++
	}
	o.ports[k] = append(list, portOwner{addr, uid, 1})
	return 0
}

// give is the end of a socket that take noted.
func (o *portOwners) give(k ownedPort, addr proto.Addr, uid uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := o.ports[k]
	i := slices.IndexFunc(list, func(p portOwner) bool { return p.uid == uid && p.addr == addr })
	if list[i].n--; list[i].n > 0 {
		return
	}
	if k.free() {
		for _, u := range []int64{int64(uid), -1} {
			f := freeKey{k.protocol, u}
			if o.free[f]--; o.free[f] == 0 {
				delete(o.free, f)
			}
		}
	}
	if list = slices.Delete(list, i, i+1); len(list) == 0 {
		delete(o.ports, k)
	} else {
		o.ports[k] = list
	}
}

// clientPorts is told of the ports of a user's rings.
type clientPorts struct {
	owners *portOwners
	uid    uint32
	under  reactor.Ports // the stack's; nil: nobody needs to know
}

func (p clientPorts) Take(protocol uint8, local proto.Addr, port uint16) sockets.Errno {
	return p.owners.take(ownedPort{protocol, port}, local, p.uid)
}

func (p clientPorts) Give(protocol uint8, local proto.Addr, port uint16) {
	p.owners.give(ownedPort{protocol, port}, local, p.uid)
}

func (p clientPorts) Open(protocol uint8, local proto.Addr, port uint16) sockets.Errno {
	if p.under == nil {
		return 0
	}
	return p.under.Open(protocol, local, port)
}

func (p clientPorts) Close(protocol uint8, local proto.Addr, port uint16) {
	if p.under != nil {
		p.under.Close(protocol, local, port)
	}
}

func (p clientPorts) Keep(h *sockets.Host, c sockets.Handle) sockets.Errno {
	if p.under == nil {
		return 0
	}
	return p.under.Keep(h, c)
}
