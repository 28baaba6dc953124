package xdpprog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// OpenPort makes a port ours: proto is 6 (TCP) or 17 (UDP); addr is one of the configured addresses, or the zero Addr
// or 0.0.0.0 for all of them. Opening an open port changes nothing: who counts users of a port counts them above. In
// Own mode every port is ours already, and OpenPort does nothing.
func (p *Program) OpenPort(proto uint8, addr netip.Addr, port uint16) error {
	if p.steer == Own {
		return nil
	}
	key, err := portKey(proto, addr, port)
	if err == nil && key.Addr != 0 && !p.steers(addr) {
		err = fmt.Errorf("address %s is not one of those steered", addr)
	}
	if err != nil {
		return fmt.Errorf("xdpprog: open a port on %s: %w", p.iface, err)
	}
	if err := p.objs.Ports.Put(key, uint8(1)); err != nil {
		cure := ""
		if errors.Is(err, unix.E2BIG) {
			cure = fmt.Sprintf(" (%d ports are open; open 0.0.0.0 in place of each address)", MaxPorts)
		}
		return fmt.Errorf("xdpprog: open port %d of protocol %d on %s: %w%s", port, proto, p.iface, err, cure)
	}
	return nil
}

// ClosePort gives a port back to the kernel; arguments as they were for OpenPort. A port that is not open is an error
// that matches ebpf.ErrKeyNotExist. In Own mode ClosePort does nothing.
func (p *Program) ClosePort(proto uint8, addr netip.Addr, port uint16) error {
	if p.steer == Own {
		return nil
	}
	key, err := portKey(proto, addr, port)
	if err != nil {
		return fmt.Errorf("xdpprog: close a port on %s: %w", p.iface, err)
	}
	if err := p.objs.Ports.Delete(key); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("xdpprog: close port %d of protocol %d on %s: it is not open: %w", port, proto, p.iface, err)
		}
		return fmt.Errorf("xdpprog: close port %d of protocol %d on %s: %w", port, proto, p.iface, err)
	}
	return nil
}

func (p *Program) steers(addr netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addrs[addr.Unmap()]
}

func portKey(proto uint8, addr netip.Addr, port uint16) (steerPortKey, error) {
	if proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP {
		return steerPortKey{}, fmt.Errorf("protocol %d: only TCP (6) and UDP (17) have ports here", proto)
	}
	if port == 0 {
		return steerPortKey{}, errors.New("port 0 cannot be steered")
	}
	key := steerPortKey{Port: networkOrder16(port), Proto: proto}
	if addr = addr.Unmap(); !addr.IsValid() || addr == netip.IPv4Unspecified() {
		return key, nil
	}
	if !addr.Is4() {
		return steerPortKey{}, fmt.Errorf("address %s is not IPv4", addr)
	}
	a := addr.As4()
	key.Addr = binary.NativeEndian.Uint32(a[:])
	return key, nil
}

// networkOrder16 is htons: the number whose bytes in memory are v's in network order.
func networkOrder16(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}
