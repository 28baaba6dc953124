package sockets

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// MaxHosts is how many Hosts a Directory can tell apart.
const MaxHosts = 64

// Directory tells the Hosts of a group, which serve the same addresses on several queues, who has a flow: what
// rps_sock_flow_table is in Linux, but exact. A Host looks here only for what it does not have itself, and enters what
// comes and goes. It is the one thing that Hosts share, and safe from any goroutine; a lock is held for the time of a probe.
type Directory struct {
	parts [256]dirPart

	mu    sync.RWMutex
	binds map[bindKey]binding
	last  uint32 // binding.id that was given

	members  atomic.Uint64 // the Hosts that there are, a bit each
	conns    [MaxHosts]atomic.Int64
	cookieAt atomic.Int64 // when any of them last sent a SYN cookie
}

// bindKey is where sockets wait for packets: of anybody, and key is without the remote side, or, connected ones of UDP, of
// one peer. There may be one on each Host.
type bindKey struct {
	proto uint8
	key   flowKey
}

// binding is who has a socket at a place.
type binding struct {
	hosts uint64 // a bit each
	id    uint32 // of no other binding, before or after
}

// dirPart is an open-addressing table of 8 bytes a slot: 56 bits of the flow's keyed hash, and 1 + the Host's number. Two
// flows of a million share such a fingerprint once in 100,000 years of new ones every second; nobody who does not know the
// key can look for them.
type dirPart struct {
	mu    sync.Mutex
	slots []uint64 // 0: empty
	n     int
	_     [24]byte // a cache line each, or neighbours fight for it
}

// NewDirectory makes one for at most MaxHosts Hosts with the same Config.Seed.
func NewDirectory() *Directory { return &Directory{binds: make(map[bindKey]binding)} }

// has reports whether there is a Host of that number.
func (d *Directory) has(host int) bool {
	return host >= 0 && host < MaxHosts && d.members.Load()>>host&1 != 0
}

// Conns is how many TCP connections Host i has, with those that are on their way to it (TCPSpread).
func (d *Directory) Conns(i int) int { return int(d.conns[i].Load()) }

func (d *Directory) part(hash uint64) *dirPart { return &d.parts[hash>>56] }

// find is the slot of a fingerprint, or the empty one where its search ends. The table has an empty slot.
func (p *dirPart) find(print uint64) (slot int, ok bool) {
	mask := len(p.slots) - 1
	for i := dirHome(print, mask); ; i = (i + 1) & mask {
		switch s := p.slots[i]; {
		case s == 0:
			return i, false
		case s>>8 == print:
			return i, true
		}
	}
}

// dirHome is where the search for a fingerprint begins. Its top bits chose the part.
func dirHome(print uint64, mask int) int { return int(print) & mask }

func fingerprint(hash uint64) uint64 { return hash & (1<<56 - 1) }

// get finds the Host that has a flow.
func (d *Directory) get(hash uint64) (host int, ok bool) {
	p := d.part(hash)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == 0 {
		return 0, false
	}
	i, ok := p.find(fingerprint(hash))
	return int(p.slots[i]&0xff) - 1, ok
}

// set says that a flow is host's, whoever had it before.
func (d *Directory) set(hash uint64, host int) {
	p := d.part(hash)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.put(hash, host, true)
}

// claim makes a flow host's, unless another has it.
func (d *Directory) claim(hash uint64, host int) bool {
	p := d.part(hash)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.put(hash, host, false)
}

func (p *dirPart) put(hash uint64, host int, whoever bool) bool {
	if (p.n+1)*4 > len(p.slots)*3 {
		p.resize(max(8, 2*len(p.slots)))
	}
	i, ok := p.find(fingerprint(hash))
	if ok && !whoever && p.slots[i]&0xff != uint64(host+1) {
		return false
	}
	if !ok {
		p.n++
	}
	p.slots[i] = fingerprint(hash)<<8 | uint64(host+1)
	return true
}

// del says that host has a flow no more. Somebody else's entry stays.
func (d *Directory) del(hash uint64, host int) {
	p := d.part(hash)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == 0 {
		return
	}
	i, ok := p.find(fingerprint(hash))
	if !ok || p.slots[i]&0xff != uint64(host+1) {
		return
	}
	p.n--
	mask := len(p.slots) - 1
	for j := i; ; { // Knuth 6.4, algorithm R, as demux.del
		j = (j + 1) & mask
		if p.slots[j] == 0 {
			break
		}
		if home := dirHome(p.slots[j]>>8, mask); (j-home)&mask >= (j-i)&mask {
			p.slots[i] = p.slots[j]
			i = j
		}
	}
	p.slots[i] = 0
	if len(p.slots) > 8 && p.n*8 < len(p.slots) {
		p.resize(len(p.slots) / 2)
	}
}

func (p *dirPart) resize(n int) {
	old := p.slots
	p.slots = make([]uint64, n)
	for _, s := range old {
		if s != 0 {
			i, _ := p.find(s >> 8)
			p.slots[i] = s
		}
	}
}

// bind says that host has a socket at k. The id is the same for all Hosts that have one there, and another once none had.
func (d *Directory) bind(k bindKey, host int) (id uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.binds[k]
	if b.hosts == 0 {
		d.last++
		b.id = d.last
	}
	b.hosts |= 1 << host
	d.binds[k] = b
	return b.id
}

// unbind says that host has none any more.
func (d *Directory) unbind(k bindKey, host int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.binds[k]
	if b.hosts &^= 1 << host; b.hosts == 0 {
		delete(d.binds, k)
		return
	}
	d.binds[k] = b
}

// at finds a Host with a socket at k. Of several the one that hash chooses, always the same.
func (d *Directory) at(k bindKey, hash uint64) (host int, ok bool) {
	d.mu.RLock()
	hosts := d.binds[k].hosts
	d.mu.RUnlock()
	if hosts == 0 {
		return 0, false
	}
	for n := int(hash>>32) % bits.OnesCount64(hosts); n > 0; n-- {
		hosts &= hosts - 1
	}
	return bits.TrailingZeros64(hosts), true
}

// bound finds a Host with a socket that takes what comes to k from anybody: on the address, or on all.
func (d *Directory) bound(proto uint8, k flowKey, hash uint64) (host int, ok bool) {
	k.Remote, k.RPort = 0, 0
	if host, ok = d.at(bindKey{proto, k}, hash); !ok {
		k.Local = 0
		host, ok = d.at(bindKey{proto, k}, hash)
	}
	return host, ok
}
