package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// vethLink is a veth pair between two network namespaces: the engine on an AF_XDP socket, the peer on an AF_PACKET socket
// at the other end. Time is real.
type vethLink struct {
	lab     *netlab.Lab
	socket  *rings.Socket
	program *xdpprog.Program
	fd      int // the peer's socket
	to      unix.SockaddrLinklayer
	own     proto.MAC
	buf     [2048]byte
}

func newVethLink(region *umem.Region) (l *vethLink, err error) {
	l = &vethLink{fd: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.lab, err = netlab.New(netlab.Options{}); err != nil {
		return l, err
	}
	if err := l.lab.Engine.Do(func() error { return l.openEngine(region) }); err != nil {
		return l, err
	}
	return l, l.lab.Peer.Do(l.openPeer)
}

func (l *vethLink) openEngine(region *umem.Region) error {
	dev, err := net.InterfaceByName(l.lab.EngineDev)
	if err != nil {
		return err
	}
	l.own = proto.MAC(dev.HardwareAddr)
	l.socket, err = rings.OpenSocket(region, rings.SocketOptions{Interface: dev.Name, Ifindex: dev.Index})
	if err != nil {
		return err
	}
	l.program, err = xdpprog.Load(xdpprog.Config{
		Interface: dev.Name, Ifindex: dev.Index, Steer: xdpprog.Own, Addrs: []netip.Addr{ourAddr.Netip()}, Queues: 1,
	})
	if err != nil {
		return err
	}
	return l.program.SetSocket(0, l.socket.FD())
}

func (l *vethLink) openPeer() error {
	dev, err := net.InterfaceByName(l.lab.PeerDev)
	if err != nil {
		return err
	}
	const all = 0x0300 // ETH_P_ALL in network byte order
	l.to = unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index, Halen: 6}
	if l.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
		return fmt.Errorf("AF_PACKET socket: %w", err)
	}
	return errors.Join(
		unix.Bind(l.fd, &l.to),
		unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptInt(l.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
	)
}

func (l *vethLink) port() *rings.Port { return l.socket.Port() }
func (l *vethLink) mac() proto.MAC    { return l.own }
func (l *vethLink) now() int64        { return reactor.Monotonic() }
func (l *vethLink) pass(int64)        {}

func (l *vethLink) send(frame []byte) error {
	if _, err := unix.Write(l.fd, frame); err != nil {
		return fmt.Errorf("AF_PACKET: %w", err)
	}
	return nil
}

func (l *vethLink) receive(take func([]byte)) {
	for {
		n, err := unix.Read(l.fd, l.buf[:])
		if err != nil {
			return
		}
		take(l.buf[:n])
	}
}

func (l *vethLink) close() (err error) {
	if l.program != nil {
		err = errors.Join(err, l.program.Close())
	}
	if l.socket != nil {
		err = errors.Join(err, l.socket.Close())
	}
	if l.fd >= 0 {
		err = errors.Join(err, unix.Close(l.fd))
	}
	if l.lab != nil {
		err = errors.Join(err, l.lab.Close())
	}
	return err
}
