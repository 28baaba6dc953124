package rings_test

import (
	"net/netip"
	"testing"

	"xdpd/rings"
)

func TestRecvHeader(t *testing.T) {
	b := make([]byte, rings.RecvHeaderSize)
	for _, cut := range []bool{false, true} {
		h := rings.RecvHeader{Src: netip.MustParseAddrPort("10.0.0.1:53"), Size: 70000, At: 1<<63 | 12345}
		rings.PutRecvHeader(b, h, cut)
		if got, c := rings.ParseRecvHeader(b); got != h || c != cut {
			t.Errorf("%+v, %v", got, c)
		}
		if a, ok := rings.SockAddr(b[16:]); !ok || a != h.Src { // as the destination of an answer
			t.Errorf("the address is %v, %v", a, ok)
		}
	}
}
