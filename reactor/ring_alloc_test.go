package reactor

import (
	"encoding/binary"
	"testing"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
)

// ringLoad is a load that a ring serves.
type ringLoad struct {
	*stream
	q    *Ring
	c    *RingClient
	data []byte
	cqes [256]rings.CQE
}

func newRingLoad(t *testing.T) *ringLoad {
	s := &stream{load: newLoad(t, 1500, 1024), seq: 1000}
	g := &ringLoad{stream: s, data: make([]byte, dataSize)}
	q, err := NewRing(g.r, RingConfig{Data: g.data, Lends: 256, LendTable: dataSize - 256*rings.LentSize})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	g.q, g.c = q, q.Client()
	return g
}

func (g *ringLoad) sqe(s rings.SQE) {
	slot := g.c.SQE()
	if slot == nil {
		g.t.Fatal("the SQ is full")
	}
	*slot = s
}

// do submits, does turns, and gives the completions.
func (g *ringLoad) do(list ...rings.SQE) []rings.CQE {
	g.t.Helper()
	for _, s := range list {
		g.sqe(s)
	}
	g.c.Submit()
	g.settle()
	got := g.cqes[:g.c.Reap(g.cqes[:])]
	for _, c := range got {
		if c.Res < 0 {
			g.t.Fatalf("completion %v", c)
		}
	}
	return got
}

// bound opens a UDP socket on echoPort, number 0.
func (g *ringLoad) bound() {
	rings.PutSockAddr(g.data, addrPort(0, echoPort))
	g.do(opSocket(9, sockDgram), rings.SQE{Opcode: rings.OpBind, Off: 16})
}

// TestNoAllocationRing: datagrams received into provided buffers by one multishot request, and sent back from them.
func TestNoAllocationRing(t *testing.T) {
	g := newRingLoad(t)
	g.bound()
	bufs, _ := rings.NewBufGiver(g.data[1024 : 1024+16*128])
	for i := range uint16(128) {
		bufs.Add(rings.Buf{Addr: bufAt + uint64(i)*256, Len: 256, ID: i})
	}
	bufs.Publish()
	g.do(rings.SQE{Opcode: rings.OpBufRing, Addr: 1024, Len: 128}, selectBuf(rings.OpRecvFrom, 1, 0, 0, rings.RecvMultishot))
	frames := g.repeat(g.udpFrame(echoPort, make([]byte, 64)))
	g.noAllocations(burst, func() {
		frames()
		for _, c := range g.do() {
			if c.UserData != 1 {
				continue
			}
			id := c.Flags >> rings.CQEBufferShift
			at := bufAt + uint64(id)*256
			g.sqe(rings.SQE{Opcode: rings.OpSend, Addr: at + rings.RecvHeaderSize, Len: 64, Off: at + 16, FileIndex: 16})
			bufs.Add(rings.Buf{Addr: at, Len: 256, ID: uint16(id)})
		}
		bufs.Publish()
		g.do()
	})
}

// TestNoAllocationRingZC: the same without touching the payload.
func TestNoAllocationRingZC(t *testing.T) {
	g := newRingLoad(t)
	g.bound()
	multi := opRecvZC(1, 0)
	multi.IOPrio = rings.RecvMultishot
	g.do(multi)
	frames := g.repeat(g.udpFrame(echoPort, make([]byte, 64)))
	g.noAllocations(burst, func() {
		frames()
		for _, c := range g.do() {
			if c.UserData != 1 {
				continue
			}
			id := uint16(c.Flags >> rings.CQEBufferShift)
			entry := uint64(len(g.data) - 256*rings.LentSize + int(id)*rings.LentSize)
			g.sqe(rings.SQE{Opcode: rings.OpSendZC, BufGroup: id, Len: 64, Off: entry + 16, FileIndex: 16})
		}
		g.do()
	})
	if c := g.q.Counters(); c.SentZC == 0 || c.CopiedZC != 0 {
		t.Errorf("%+v", c)
	}
}

// accept opens a listener on echoPort and takes the peer's connection, number 1.
func (g *ringLoad) accept() {
	rings.PutSockAddr(g.data, addrPort(0, echoPort))
	g.do(opSocket(9, sockStream), rings.SQE{Opcode: rings.OpBind, Off: 16}, rings.SQE{Opcode: rings.OpListen}, rings.SQE{Opcode: rings.OpAccept})
	g.deliver(g.segment(proto.SYN, 0))
	g.settle()
	g.heard()
	g.deliver(g.segment(proto.ACK, 0))
	if got := g.do(); len(got) != 1 || got[0].Res != 1 {
		g.t.Fatalf("ACCEPT gives %v", got)
	}
}

// heard has the peer take our SYN, or SYN-ACK.
func (g *ringLoad) heard() {
	g.nic.Transmit(1, func(frame []byte) { g.ack = binary.BigEndian.Uint32(frame[14+20+4:]) + 1 })
	g.nic.Complete(1)
}

// TestNoAllocationRingTCP: a segment in, by RECV or lent, its echo out.
func TestNoAllocationRingTCP(t *testing.T) {
	for _, zc := range []bool{false, true} {
		g := newRingLoad(t)
		g.accept()
		recv, op := opMem(rings.OpRecv, 1, 1, bufAt, 1000), opMem(rings.OpSend, 2, 1, bufAt, 500)
		if zc {
			recv = opRecvZC(1, 1)
		}
		g.do(recv)
		g.noAllocations(1, func() {
			g.deliver(g.segment(proto.ACK|proto.PSH, 500))
			g.ack += 500
			for _, c := range g.do() {
				if c.UserData != 1 {
					continue
				}
				if zc {
					op = opSendZC(2, 1, uint16(c.Flags>>rings.CQEBufferShift), 500)
				}
				g.sqe(op)
				g.sqe(recv)
			}
			g.do()
		})
		if c := g.host.Counters(); c.Stats[sockets.TCPRetransmits] != 0 || c.Drops[sockets.TCPDuplicate] != 0 {
			t.Errorf("the stream was not steady: %+v", c)
		}
	}
}

// TestRingSYNData: data that comes with the peer's SYN is received by who waited before there was a connection.
func TestRingSYNData(t *testing.T) {
	g := newRingLoad(t)
	rings.PutSockAddr(g.data, addrPort(ourAddr, echoPort))
	rings.PutSockAddr(g.data[16:], peerPort)
	g.do(opSocket(9, sockStream), rings.SQE{Opcode: rings.OpBind, Off: 16}, rings.SQE{Opcode: rings.OpConnect, Addr: 16, Off: 16, UserData: 5},
		opMem(rings.OpRecv, 6, 0, bufAt, 100))
	g.heard()
	g.deliver(g.segment(proto.SYN|proto.ACK, 10))
	if got := g.do(); len(got) != 2 || got[0] != cqe(5, 0) || got[1] != cqe(6, 10) {
		t.Errorf("completions %v", got)
	}
}
