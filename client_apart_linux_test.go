package xdpd_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"xdpd"
	"xdpd/internal/netlab"
)

// TestClientsApart: two users with policies of their own. One can't bind, receive, guess, flood or find what belongs to the other.
func TestClientsApart(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	ports := func(first, last uint16) []xdpd.PortRange { return []xdpd.PortRange{{First: first, Last: last}} }
	s, path := policed(t, stack,
		xdpd.ClientPolicy{Name: "a", Users: []uint32{otherUser}, Bind: ports(4000, 4009)},
		xdpd.ClientPolicy{Name: "b", Users: []uint32{otherUser - 1}, Bind: ports(5000, 5009), Reach: []netip.Prefix{netip.PrefixFrom(lab.PeerAddr, 32)}, CPU: 20})
	a, b := startChild(t, otherUser, path, "sockets 0"), startChild(t, otherUser-1, path, "sockets 0")
	kernel := kernelUDP(t, lab.Peer, netip.AddrPortFrom(lab.PeerAddr, 0), netip.AddrPort{})
	fd := a.ask("udp 0.0.0.0:4000")
	stream := a.ask("tcp 0.0.0.0:4000")
	for _, got := range []string{fd, stream} {
		if got[0] == 'E' {
			t.Fatal(got)
		}
	}
	bound := netip.AddrPortFrom(lab.EngineAddr, 4000)
	check := func(when string) { // a's socket gets what is for it, and nothing else
		t.Helper()
		for i := range 20 {
			want := fmt.Sprintf("%s-%d", strings.Fields(when)[0], i)
			if _, err := kernel.WriteTo([]byte(want), net.UDPAddrFromAddrPort(bound)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a datagram "+when, func() bool {
				got := a.ask("recv %s", fd)
				if got != "EAGAIN" && got != "got "+want {
					t.Fatalf("%s: a %s, want %q", when, got, want)
				}
				return got != "EAGAIN"
			})
		}
	}
	check("before")

	t.Run("bind", func(t *testing.T) {
		for port := 4000; port < 4010; port++ { // of which a has one
			for _, kind := range []string{"udp", "tcp"} {
				for _, addr := range []netip.Addr{netip.IPv4Unspecified(), lab.EngineAddr} {
					if got := b.ask("%s %s", kind, netip.AddrPortFrom(addr, uint16(port))); got != "EACCES" {
						t.Errorf("b binds %s %v:%d: %s", kind, addr, port, got)
					}
				}
			}
		}
		if got := a.ask("udp 0.0.0.0:5000"); got != "EACCES" {
			t.Errorf("a binds b's port: %s", got)
		}
		for _, kind := range []string{"udp", "tcp"} {
			got := b.ask("%s 0.0.0.0:5000", kind)
			if got[0] == 'E' {
				t.Errorf("b binds its own %s port: %s", kind, got)
			}
			b.ask("close %s", got)
		}
		check("bound")
	})
	t.Run("guess", func(t *testing.T) {
		for n := -1; n < 40; n++ { // a's sockets have the first of these numbers
			got := b.ask("touch %d", n)
			for _, outcome := range strings.Fields(got) {
				if outcome != "EBADF" && outcome != "ENOENT" && outcome != "EINVAL" {
					t.Errorf("b touches socket %d: %s", n, got)
				}
			}
		}
		check("guessed")
	})
	t.Run("reach", func(t *testing.T) {
		own := b.ask("udp 0.0.0.0:5000")
		other := netip.AddrPortFrom(lab.PeerAddr.Next().Next(), 9)
		for _, to := range []netip.AddrPort{other, bound, netip.MustParseAddrPort("127.0.0.1:4000"), netip.MustParseAddrPort("255.255.255.255:4000")} {
			if got := b.ask("send %s %s hello", own, to); got != "EACCES" {
				t.Errorf("b sends to %v: %s", to, got)
			}
			for _, kind := range []string{"udp", "tcp"} {
				if got := b.ask("connect %s %s", kind, to); got != "EACCES" {
					t.Errorf("b connects to %v: %s", to, got)
				}
			}
		}
		b.ask("close %s", own)
		check("reached")
	})
	t.Run("memory", func(t *testing.T) {
		a2 := startChild(t, otherUser, path, "sockets 0")
		a2.ask("secret")
		a2.kill()
		eventually(t, "a2 to be gone", func() bool { list, _ := s.Clients(); return len(list) == 2 })
		for range 4 {
			b2 := startChild(t, otherUser-1, path, "sockets 0")
			if got := b2.ask("search"); got != "0" {
				t.Errorf("b finds %s secrets of a in its memory", got)
			}
			b2.kill()
		}
	})
	t.Run("flood", func(t *testing.T) {
		own := b.ask("udp 0.0.0.0:5000")
		if got := b.ask("flood %s %s", own, netip.AddrPortFrom(lab.PeerAddr, 9)); got != "flooding" {
			t.Fatal(got)
		}
		check("flooded")
		for range 3 { // it went on all the while
			if got := b.hear(); got != "flooding" {
				t.Fatal(got)
			}
		}
	})
}
