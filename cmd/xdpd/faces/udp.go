package faces

import (
	"fmt"
	"net/netip"

	"xdpd"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
)

// udpPlaces is how many datagrams of one port are echoed at a time. The others wait in the socket's queue.
const udpPlaces = 16

const udpPlace = rings.RecvHeaderSize + 65535

// EchoUDP echoes the datagrams of a port on reactor n by a ring, whose completions the reactor itself handles. Each place
// in its memory receives a datagram, sends it back to where the header in front of it says, and receives the next.
func EchoUDP(st *xdpd.Stack, n int, port uint16) (*reactor.Ring, error) {
	data := make([]byte, udpPlaces*udpPlace)
	q, err := st.Ring(xdpd.RingConfig{Reactor: n, RingConfig: reactor.RingConfig{
		SQEntries: 2 * udpPlaces, Requests: 2 * udpPlaces, Sockets: 1, Data: data,
	}})
	if err != nil {
		return nil, err
	}
	c := q.Client()
	rings.PutSockAddr(data, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	c.SQE().PrepSocket(rings.SockDgram).Flags = rings.SQELink | rings.SQESkipSuccess // number 0
	c.SQE().PrepBind(0, 0)
	c.Submit()
	if _, err := c.Wait(1, -1); err != nil {
		q.Close()
		return nil, err
	}
	if bound, _ := c.Peek(); bound.Res < 0 {
		q.Close()
		return nil, fmt.Errorf("UDP port %d: %w", port, sockets.Errno(-bound.Res))
	}
	c.Seen(1)
	r := st.Reactors()[n]
	r.Enter() // the client is the handler's
	c.Serve(func(e rings.CQE) { echoed(c, e) })
	for place := range uint64(udpPlaces) {
		receive(c, place)
	}
	c.Submit()
	r.Leave()
	return q, nil
}

const udpSent = 1 << 32 // in the user data, beside the place: a datagram was sent

// receive has a place receive.
func receive(c *reactor.RingClient, place uint64) {
	*c.SQE() = rings.SQE{Opcode: rings.OpRecvFrom, Addr: place * udpPlace, Len: udpPlace, UserData: place}
}

// echoed goes on with a place. What fails, by ICMP or for want of a route, costs this datagram only.
func echoed(c *reactor.RingClient, e rings.CQE) {
	place := e.UserData &^ udpSent
	switch {
	case e.Res == -int32(sockets.ECANCELED):
		return
	case e.UserData&udpSent != 0 || e.Res < 0:
		receive(c, place)
	default:
		at := place * udpPlace
		n := uint32(e.Res) - rings.RecvHeaderSize
		s := c.SQE().PrepSendTo(0, at+rings.RecvHeaderSize, n, at+rings.RecvHeaderSize-rings.SockAddrSize)
		s.UserData = place | udpSent
	}
	c.Submit()
}
