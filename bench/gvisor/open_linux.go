package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/cilium/ebpf"
	ebpflink "github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/link/qdisc/fifo"
	xdplink "gvisor.dev/gvisor/pkg/tcpip/link/xdp"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/xdp"
	"gvisor.dev/gvisor/runsc/sandbox/bpf"
)

const (
	nicID      = 1
	bufferSize = 8 << 20 // bytes a socket may queue, as every contender
	queueLen   = 1000    // packets in the queueing discipline, as runsc (runsc/boot/network.go)
)

// links make gVisor's end of an interface.
var links = map[string]func(dev *net.Interface) (ep stack.LinkEndpoint, mode string, err error){
	"xdp":    openXDP,
	"packet": openPacket,
}

// open makes a stack with one interface, set up as runsc does (runsc/boot/loader.go, newEmptySandboxNetworkStack, and
// runsc/boot/network.go, CreateLinksAndRoutes).
func open(devName, linkName, qdisc string, addr netip.Prefix) (s *stack.Stack, mode string, err error) {
	dev, err := net.InterfaceByName(devName)
	if err != nil {
		return nil, "", fmt.Errorf("-dev %s: %w", devName, err)
	}
	s = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
		HandleLocal:        true,
	})
	if err := setOptions(s); err != nil {
		return nil, "", err
	}
	ep, mode, err := links[linkName](dev)
	if err != nil {
		return nil, "", fmt.Errorf("%s: -link %s: %w", devName, linkName, err)
	}
	o := stack.NICOptions{Name: devName}
	if qdisc == "fifo" {
		o.QDisc = fifo.New(ep, runtime.GOMAXPROCS(0), queueLen)
	}
	if err := s.CreateNICWithOptions(nicID, ep, o); err != nil {
		return nil, "", fmt.Errorf("create NIC: %s", err)
	}
	ours := tcpip.AddrFrom4(addr.Addr().As4()).WithPrefix()
	ours.PrefixLen = addr.Bits()
	at := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: ours}
	if err := s.AddProtocolAddress(nicID, at, stack.AddressProperties{}); err != nil {
		return nil, "", fmt.Errorf("add address %s: %s", addr, err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: ours.Subnet(), NIC: nicID}})
	return s, mode, nil
}

func setOptions(s *stack.Stack) error {
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	cubic := tcpip.CongestionControlOption("cubic")
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: tcp.DefaultSendBufferSize, Max: bufferSize}
	rcv := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: tcp.DefaultReceiveBufferSize, Max: bufferSize}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &cubic, &snd, &rcv} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	for _, o := range []any{
		tcpip.SendBufferSizeOption{Min: 4096, Default: bufferSize, Max: bufferSize},
		tcpip.ReceiveBufferSizeOption{Min: 4096, Default: bufferSize, Max: bufferSize},
	} {
		if err := s.SetOption(o); err != nil {
			return fmt.Errorf("set %T: %s", o, err)
		}
	}
	return nil
}

// keep holds what must live as long as the process: the finalizers of the program's link would detach it.
var keep []any

// openXDP does what runsc/sandbox/xdp.go and runsc/boot/network.go do.
func openXDP(dev *net.Interface) (stack.LinkEndpoint, string, error) {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("AF_XDP socket: %w", err)
	}
	ep, err := xdplink.New(&xdplink.Options{
		FD: fd, InterfaceIndex: dev.Index, Address: tcpip.LinkAddress(dev.HardwareAddr), RXChecksumOffload: true,
	})
	if err != nil {
		return nil, "", err
	}
	// Bind by hand: the endpoint's own leaves need-wakeup out, and then never kicks (pkg/xdp/xdp_unsafe.go), so that in
	// copy mode nothing would leave.
	if err := xdp.Bind(fd, uint32(dev.Index), 0, true); err != nil {
		return nil, "", fmt.Errorf("bind: %w", err)
	}
	// A batch of its queueing discipline is 47 packets: more than a kick sends unless told to.
	if err := unix.SetsockoptInt(fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, 256); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return nil, "", fmt.Errorf("XDP_MAX_TX_SKB_BUDGET: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bufferSize); err != nil {
		return nil, "", fmt.Errorf("SO_SNDBUFFORCE: %w", err)
	}
	if err := attach(fd, dev); err != nil {
		return nil, "", err
	}
	options, err := unix.GetsockoptInt(fd, unix.SOL_XDP, unix.XDP_OPTIONS)
	if err != nil {
		return nil, "", fmt.Errorf("XDP_OPTIONS: %w", err)
	}
	if options&unix.XDP_OPTIONS_ZEROCOPY != 0 {
		return ep, "zero copy, native", nil
	}
	return ep, "copy, native", nil
}

// attach has gVisor's program send everything that arrives on queue 0 to the socket.
func attach(fd int, dev *net.Interface) error {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bpf.AFXDPProgram))
	if err != nil {
		return err
	}
	var objects struct {
		Program *ebpf.Program `ebpf:"xdp_prog"`
		SockMap *ebpf.Map     `ebpf:"sock_map"`
	}
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return err
	}
	if err := objects.SockMap.Put(uint32(0), uint32(fd)); err != nil {
		return err
	}
	l, err := ebpflink.AttachXDP(ebpflink.XDPOptions{Program: objects.Program, Interface: dev.Index, Flags: ebpflink.XDPDriverMode})
	if err != nil {
		return err
	}
	keep = append(keep, objects.Program, objects.SockMap, l)
	return nil
}

// openPacket does the same for AF_PACKET, as runsc/sandbox/network.go.
func openPacket(dev *net.Interface) (stack.LinkEndpoint, string, error) {
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return nil, "", fmt.Errorf("AF_PACKET socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index}); err != nil {
		return nil, "", fmt.Errorf("bind: %w", err)
	}
	for _, option := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, bufferSize); err != nil {
			return nil, "", err
		}
	}
	ep, err := fdbased.New(&fdbased.Options{
		FDs: []int{fd}, MTU: uint32(dev.MTU), EthernetHeader: true, Address: tcpip.LinkAddress(dev.HardwareAddr),
		PacketDispatchMode: fdbased.RecvMMsg, RXChecksumOffload: true, GRO: true,
		GSOMaxSize: stack.GVisorGSOMaxSize, GVisorGSOEnabled: true,
	})
	return ep, "packet", err
}
