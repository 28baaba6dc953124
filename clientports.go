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
type portOwners struct {
	mu    sync.Mutex
	ports map[ownedPort][]portOwner
}

type ownedPort struct {
	protocol uint8
	port     uint16
}

type portOwner struct {
	addr proto.Addr // 0: all
	uid  uint32
	n    int // sockets
}

// take notes a socket of uid. Errors: EADDRINUSE, somebody else has it.
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

func (p clientPorts) Open(protocol uint8, local proto.Addr, port uint16) sockets.Errno {
	k := ownedPort{protocol, port}
	err := p.owners.take(k, local, p.uid)
	if err != 0 || p.under == nil {
		return err
	}
	if err = p.under.Open(protocol, local, port); err != 0 {
		p.owners.give(k, local, p.uid)
	}
	return err
}

func (p clientPorts) Close(protocol uint8, local proto.Addr, port uint16) {
	if p.under != nil {
		p.under.Close(protocol, local, port)
	}
	p.owners.give(ownedPort{protocol, port}, local, p.uid)
}

func (p clientPorts) Keep(h *sockets.Host, c sockets.Handle) sockets.Errno {
	if p.under == nil {
		return 0
	}
	return p.under.Keep(h, c)
}
