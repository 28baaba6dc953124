package xdpd

import (
	"net/netip"
	"os"
	"testing"

	"xdpd/internal/krnet"
	"xdpd/internal/netlab"
)

// openInLab is an engine for tests of what it does not export, until the end of the test.
func openInLab(t *testing.T) *Stack {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lab.Close() })
	s, err := Open(Config{Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestResync: after events were lost, the engine has the interface's MTU and address as they are.
func TestResync(t *testing.T) {
	s := openInLab(t)
	is := s.linkState()
	s.followLink(krnet.LinkChange{Name: is.name, MTU: 900, MAC: [6]byte{2, 0, 0, 0, 0, 9}}) // as it was before they were lost
	s.kernelEvent(krnet.Resync{})
	st, err := s.Stats()
	if now := s.linkState(); err != nil || now != is || st.MTU != is.mtu {
		t.Errorf("%+v, want %+v; MTU %d, %v", now, is, st.MTU, err)
	}
}
