package main

import (
	"xdpd/proto"
	"xdpd/rings"
	"xdpd/rings/simnic"
	"xdpd/umem"
)

// link is what joins the engine's port and the peer.
type link interface {
	port() *rings.Port
	mac() proto.MAC // the engine's
	now() int64
	pass(ns int64)                   // lets time go by, if it does not by itself
	send(frame []byte) error         // to the engine; a frame that the link drops is an error
	receive(take func(frame []byte)) // from the engine, what there is
	close() error
}

// simLink is a simulated NIC in virtual time.
type simLink struct {
	nic  *simnic.SimNIC
	time int64
}

func newSimLink(region *umem.Region) *simLink {
	return &simLink{nic: simnic.NewSimNIC(region, ringSize, ringSize, ringSize, ringSize), time: 1e12}
}

func (l *simLink) port() *rings.Port { return l.nic.Port() }
func (l *simLink) mac() proto.MAC    { return proto.MAC{2, 0, 0, 0, 0, 1} }
func (l *simLink) now() int64        { return l.time }
func (l *simLink) pass(ns int64)     { l.time += ns }
func (l *simLink) close() error      { return nil }

func (l *simLink) send(frame []byte) error {
	if !l.nic.Deliver(frame) {
		return errDropped
	}
	return nil
}

func (l *simLink) receive(take func([]byte)) { l.nic.Complete(l.nic.Transmit(ringSize, take)) }
