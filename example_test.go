package xdpd_test

import (
	"log"
	"net/netip"

	"xdpd"
)

// A UDP echo server on an address of its own.
func Example() {
	stack, err := xdpd.Open(xdpd.Config{
		Interface: "eth1",
		Addrs:     []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer stack.Close()
	conn, err := stack.ListenPacket("udp", ":7")
	if err != nil {
		log.Fatal(err)
	}
	buf := make([]byte, 65536)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			log.Fatal(err)
		}
		if _, err := conn.WriteTo(buf[:n], from); err != nil {
			log.Print(err)
		}
	}
}
