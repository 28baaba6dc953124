package pktgen

import (
	"net/netip"
	"testing"

	"xdpd/internal/krnet"
)

// routes is a host in two networks.
func routes(t *testing.T) *krnet.State {
	t.Helper()
	prefix, ip := netip.MustParsePrefix, netip.MustParseAddr
	return &krnet.State{
		Addrs: []netip.Prefix{prefix("10.1.0.1/24"), prefix("10.2.0.1/24")},
		Routes: []krnet.Route{
			{Dst: prefix("10.1.0.0/24")}, {Dst: prefix("10.2.0.0/24")},
			{Dst: prefix("10.3.0.0/16"), Gateway: ip("10.1.0.7")},
			{Dst: prefix("10.3.1.0/24"), Gateway: ip("10.2.0.7"), Src: ip("10.2.0.5")},
			{Dst: prefix("0.0.0.0/0"), Gateway: ip("10.1.0.8"), Metric: 100},
			{Dst: prefix("0.0.0.0/0"), Gateway: ip("10.2.0.8"), Metric: 50},
		},
	}
}
