package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings/simnic"
	"xdpd/sockets"
	"xdpd/umem"
)

// nicLoops make what echoes datagrams behind a simulated NIC.
var nicLoops = map[string]func(d *datagrams) error{"raw": (*datagrams).behindRings, "udp": (*datagrams).behindStack}

var nicRows = []instrRow{
	{"raw", "a frame of 64 bytes back in place, without a stack"},
	{"udp", "a datagram in 64 bytes, echoed by a handler"},
}

// datagrams come in frames of 64 bytes through a simulated NIC, and must come back the same way.
type datagrams struct {
	region *umem.Region
	pool   *umem.Pool
	nic    *simnic.SimNIC
	now    int64        // ns
	turn   func() error // of who echoes
	frame  [rawLen]byte
	wrong  int // replies
}

const (
	nicTurn   = 64 // frames in a turn
	nicFrames = rawFill + nicRing
	nicRing   = 2048
	nicData   = 14 + 20 + 8
)

// newDatagrams has kind's echo behind the NIC. A ledger slows it down, and counts.
func newDatagrams(kind string, ledger func(frames int) *umem.Ledger) (*datagrams, error) {
	region, err := umem.Wrap(make([]byte, nicFrames*rawChunk), rawChunk)
	if err != nil {
		return nil, err
	}
	d := &datagrams{
		region: region, pool: umem.NewPool(region, 0, nicFrames, ledger(nicFrames)), now: 1e9,
		nic: simnic.NewSimNIC(region, rawFill, nicRing, nicRing, nicRing),
	}
	for i := range d.frame {
		d.frame[i] = byte(i)
	}
	p, udp := d.frame[:], d.frame[34:]
	proto.PutEthernet(p, ourMAC, peerMAC, proto.EtherIPv4)
	proto.PutIPv4(p[14:], &proto.IPv4{Src: peerAddr, Dst: ourAddr, TTL: 64, Proto: proto.ProtoUDP, TotalLen: rawLen - 14})
	proto.PutUDP(udp, peerPort, ourPort, len(udp), 0)
	sum := proto.Sum(udp, proto.PseudoSum(peerAddr, ourAddr, proto.ProtoUDP, len(udp)))
	proto.PutUDP(udp, peerPort, ourPort, len(udp), ^proto.Fold(sum))
	return d, nicLoops[kind](d)
}

// behindRings has the loop of bench -serve raw echo, which changes the frame in place.
func (d *datagrams) behindRings() error {
	w := &raw{region: d.region, pool: d.pool, port: d.nic.Port()}
	d.nic.SetNeedWakeup(false, false) // there is no socket to kick
	d.turn = func() error {
		w.reap()
		return errors.Join(w.refill(), w.echo())
	}
	return w.refill()
}

// behindStack has a handler on a reactor echo, that of bench -serve xdpd.
func (d *datagrams) behindStack() error {
	host, err := sockets.New(sockets.Config{
		MAC: ourMAC, MTU: 1500, Addrs: []sockets.Prefix{{Addr: ourAddr, Bits: 24}}, KernelNeighbours: true,
	}, d.pool, d.now)
	if err != nil {
		return err
	}
	host.SetNeighbour(peerAddr, peerMAC, true, d.now)
	r, err := reactor.New(reactor.Config{
		Port: d.nic.Port(), Pool: d.pool, Host: host, Clock: func() int64 { return d.now }, MaxSpin: -1,
	})
	if err != nil {
		return err
	}
	d.turn = func() error {
		r.Turn()
		return nil
	}
	return errors.Join(startUDP(r, serveOptions{addr: netip.PrefixFrom(netip.IPv4Unspecified(), 24), port: ourPort, ports: 1}), d.turn())
}

// take looks at a reply.
func (d *datagrams) take(p []byte) {
	if len(p) != rawLen || proto.MAC(p) != peerMAC || binary.BigEndian.Uint32(p[34:]) != ourPort<<16|peerPort ||
		binary.BigEndian.Uint64(p[nicData:]) != binary.BigEndian.Uint64(d.frame[nicData:]) {
		d.wrong++
	}
}

// echoes has n datagrams go there and back.
func (d *datagrams) echoes(n int) error {
	for range n / nicTurn {
		for range nicTurn {
			if !d.nic.Deliver(d.frame[:]) {
				return errors.New("a frame was dropped")
			}
		}
		if err := d.turn(); err != nil {
			return err
		}
		if back := d.nic.Transmit(nicTurn, d.take); back != nicTurn || d.wrong > 0 {
			return fmt.Errorf("%d of %d datagrams came back in a turn, %d of them wrong", back, nicTurn, d.wrong)
		}
		d.nic.Complete(nicTurn)
		d.now += 50_000
	}
	return nil
}

func noLedger(int) *umem.Ledger { return nil }

// nicLoop runs a loop n times.
func nicLoop(name string, n int) error {
	debug.SetGCPercent(-1)
	d, err := newDatagrams(name, noLedger)
	if err != nil {
		return err
	}
	return d.echoes(n)
}
