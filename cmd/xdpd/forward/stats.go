package forward

import (
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// Stats is what a forwarder counted, from the XDP verdicts to the devices that frames left by.
type Stats struct {
	Router     bool
	ChunkSize  int
	HugePages  bool
	Ports      []PortStats
	Stations   int // of a bridge
	Prefixes   int // of a router, its own addresses and broadcasts among them
	Neighbours int
	Waiting    int // packets that wait for neighbours
	Frames     FrameStats
}

// FrameStats says where the frames are.
type FrameStats struct {
	Total, Free, Fill, TX int
	Exhausted             uint64         // times that none was free
	Owners                map[string]int // with the ledger on
}

// PortStats is one interface's part.
type PortStats struct {
	Interface string
	Driver    string
	Native    bool
	ZeroCopy  bool
	Tags      string // how VLAN tags of what comes in may get lost; "": they do not
	OwnMemory bool   // the packet memory is registered for this interface anew: the others' mode is another
	Config    sockets.PortConfig
	Verdicts  []xdpprog.Counter
	Counters  sockets.PortCounters
	Used      int // frames queued for the device or with it
	Limit     int // of Used
	Queues    []QueueStats
}

// QueueStats is one queue's part.
type QueueStats struct {
	Kernel  rings.Stats
	Reactor reactor.Counters
}

// Copied is how many bytes were copied, for any reason.
func (s *Stats) Copied() (n uint64) {
	for i := range s.Ports {
		for _, c := range s.Ports[i].Counters.Copied {
			n += c
		}
	}
	return n
}

// Stats takes the counters.
func (f *Forward) Stats() (Stats, error) {
	st := Stats{Router: f.router != nil, ChunkSize: f.region.ChunkSize(), HugePages: f.region.Huge()}
	for _, p := range f.ports {
		verdicts, err := p.program.Counters()
		if err != nil {
			return st, err
		}
		st.Ports = append(st.Ports, PortStats{
			Interface: p.name, Driver: p.driver, Native: p.program.Native(), ZeroCopy: p.sockets[0].ZeroCopy(), OwnMemory: p.owns,
			Verdicts: verdicts, Tags: p.tags,
		})
	}
	_, ok := f.loop.Enter()
	defer f.loop.Leave()
	if !ok {
		return st, reactor.ErrStopped
	}
	for i, p := range f.ports {
		ps := &st.Ports[i]
		ps.Config = f.machinePortNow(i)
		if f.router != nil {
			ps.Counters = *f.router.Counters(i)
			ps.Used, ps.Limit = f.router.Used(i)
		} else {
			ps.Counters = *f.bridge.Counters(i)
			ps.Used, ps.Limit = f.bridge.Used(i)
		}
		for q, s := range p.sockets {
			kernel, err := s.Stats()
			if err != nil {
				return st, err
			}
			ps.Queues = append(ps.Queues, QueueStats{kernel, f.loop.Counters(i, q)})
		}
	}
	if f.router != nil {
		st.Prefixes = f.router.Routes()
		st.Neighbours, st.Waiting = f.router.Neighbours()
	} else {
		st.Stations = f.bridge.Stations()
	}
	fr := &st.Frames
	fr.Total, fr.Free, fr.Exhausted = f.pool.Total(), f.pool.Avail(), f.pool.Exhausted()
	fr.Fill, fr.TX = f.loop.InRings()
	if f.ledger != nil {
		fr.Owners = make(map[string]int)
		for o, n := range f.ledger.Counts() {
			fr.Owners[umem.Owner(o).String()] = n
		}
	}
	return st, nil
}
