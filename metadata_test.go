package xdpd_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/proto"
)

// hideTags has everything that the peer sends get a VLAN tag that does not stand in the frame.
func hideTags(t *testing.T, lab *netlab.Lab, id uint16) (stop func()) {
	t.Helper()
	end, err := netlab.HideTags(lab.Peer, lab.PeerDev, id)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	}
}

// onVeth leaves the test out where the kernel peer's tags stand in the frame.
func onVeth(t *testing.T) {
	if netlab.NICs() != nil {
		t.Skipf("%s: only a veth hides the tags of a kernel on its other end", t.Name())
	}
}

// TestHiddenTags: a frame whose tag the driver took out is the tagged frame, for an engine without VLANs and for one with;
// with nobody who asks for it, it looks untagged.
func TestHiddenTags(t *testing.T) {
	onVeth(t)
	for _, mtu := range []int{1500, 9000} {
		for _, c := range []struct {
			vlans []uint16
			how   xdpd.RXMetadata
			heard bool
		}{
			{nil, xdpd.AutoMetadata, false}, {[]uint16{7}, xdpd.AutoMetadata, true}, {[]uint16{8}, xdpd.MetadataOn, false},
			{nil, xdpd.MetadataOff, true}, {[]uint16{7}, xdpd.MetadataOff, false},
		} {
			t.Run(fmt.Sprintf("MTU%d/%v/%d", mtu, c.vlans, c.how), func(t *testing.T) {
				lab := newLab(t, netlab.Options{MTU: mtu})
				cfg := engineConfig(lab)
				cfg.VLANs, cfg.RXMetadata = c.vlans, c.how
				stack := openStack(t, lab, cfg)
				defer hideTags(t, lab, 7)()
				if c.vlans != nil { // ARP of the peer is untagged
					setNeighbour(t, lab)
				}
				conn, err := stack.ListenPacket("udp", ":7")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 7))
				for _, n := range []int{0, 100, mtu - 28} {
					if _, err := peer.Write(make([]byte, n)); err != nil {
						t.Fatal(err)
					}
					if !c.heard {
						eventually(t, "the frame is dropped", func() bool { return drops(t, stack, "eth_vlan_id") > 0 })
						continue
					}
					b := make([]byte, mtu)
					conn.SetDeadline(time.Now().Add(patience))
					if got, _, err := conn.ReadFrom(b); err != nil || got != n {
						t.Fatalf("of a datagram of %d bytes came %d: %v", n, got, err)
					}
				}
				if !c.heard {
					conn.SetDeadline(time.Now().Add(time.Millisecond))
					if n, from, err := conn.ReadFrom(nil); err == nil {
						t.Errorf("a datagram of another VLAN is delivered: %d bytes from %v", n, from)
					}
				}
				st := getStats(t, stack)
				if said := strings.Contains(st.Metadata.Tags, "puts back"); said != (c.how != xdpd.MetadataOff) || st.Metadata.Stamps != (c.how == xdpd.MetadataOn) {
					t.Errorf("%+v", st.Metadata)
				}
			})
		}
	}
}

// setNeighbour tells the peer the engine's MAC.
func setNeighbour(t *testing.T, lab *netlab.Lab) {
	t.Helper()
	var engine netlink.Link
	err := lab.Engine.Do(func() (err error) {
		engine, err = netlink.LinkByName(lab.EngineDev)
		return err
	})
	if err == nil {
		err = lab.Peer.Do(func() error {
			peer, err := netlink.LinkByName(lab.PeerDev)
			if err != nil {
				return err
			}
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: peer.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST,
				IP: lab.EngineAddr.AsSlice(), HardwareAddr: engine.Attrs().HardwareAddr,
			})
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func monotonic(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// TestStamps: each datagram says when its frame came in, whole, in fragments, and in several frames.
func TestStamps(t *testing.T) {
	onVeth(t)
	for _, mtu := range []int{1500, 9000} {
		for _, queues := range []int{1, 2} {
			t.Run(fmt.Sprintf("MTU%d/queues%d", mtu, queues), func(t *testing.T) {
				lab := newLab(t, netlab.Options{MTU: mtu, Queues: queues})
				cfg := engineConfig(lab)
				cfg.RXMetadata = xdpd.MetadataOn
				stack := openStack(t, lab, cfg)
				l, err := stack.ListenPacket("udp", ":7")
				if err != nil {
					t.Fatal(err)
				}
				conn := l.(*xdpd.UDPConn)
				defer conn.Close()
				peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 7))
				last := monotonic(t)
				for _, n := range []int{0, 1, 1000, mtu - 28, mtu, 30000} {
					for range 20 {
						if _, err := peer.Write(make([]byte, n)); err != nil {
							t.Fatal(err)
						}
						conn.SetDeadline(time.Now().Add(patience))
						got, _, at, err := conn.ReadStamped(make([]byte, 40000))
						now := monotonic(t)
						if err != nil || got != n {
							t.Fatalf("of a datagram of %d bytes came %d: %v", n, got, err)
						}
						if at.Hardware() || at.Time() < last || at.Time() > now {
							t.Fatalf("%d bytes: received at %v (%#x), between %v and %v", n, at.Time(), uint64(at), last, now)
						}
						last = now
					}
				}
				if st := getStats(t, stack); len(st.Drops()) > 0 {
					t.Errorf("drops: %v", st.Drops())
				}
			})
		}
	}
}

// TestStampsRefused: who demands stamps gets them, or an error that says why not.
func TestStampsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*xdpd.Config)
		want   string
	}{
		"generic":    {func(c *xdpd.Config) { c.Attach = xdpd.Generic }, "no metadata"},
		"dispatcher": {func(c *xdpd.Config) { c.Dispatch = xdpd.AlwaysDispatch }, "dispatcher"},
		"unknown":    {func(c *xdpd.Config) { c.RXMetadata = 9 }, "RX metadata 9"},
	} {
		t.Run(name, func(t *testing.T) {
			lab := newLab(t, netlab.Options{})
			cfg := engineConfig(lab)
			cfg.RXMetadata, cfg.JournalDir = xdpd.MetadataOn, t.TempDir()
			c.change(&cfg)
			stack, err := xdpd.Open(cfg)
			if err == nil {
				err = errors.Join(errors.New("it works"), stack.Close())
			}
			if netlab.NICs() == nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			checkDetached(t, lab)
		})
	}
}

// TestStampsBehindMetadata: what a sender's XDP program left in front of a frame is not taken for its stamp.
func TestStampsBehindMetadata(t *testing.T) {
	onVeth(t)
	lab := newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	cfg.RXMetadata = xdpd.MetadataOn
	stack := openStack(t, lab, cfg)
	l, err := stack.ListenPacket("udp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, size := range []int32{4, 8, 12, 32} {
		last := monotonic(t)
		sendBehind(t, lab, size)
		l.SetDeadline(time.Now().Add(patience))
		n, _, at, err := l.(*xdpd.UDPConn).ReadStamped(make([]byte, 100))
		if now := monotonic(t); err != nil || n != 1 || at.Hardware() || at.Time() < last || at.Time() > now {
			t.Errorf("behind %d bytes: %d bytes at %#x, between %v and %v: %v", size, n, uint64(at), last, now, err)
		}
	}
}

// sendBehind sends a datagram from the peer's end, with bytes of metadata in front of it, from a program of its own.
func sendBehind(t *testing.T, lab *netlab.Lab, size int32) {
	t.Helper()
	in(t, lab.Peer, func() error {
		peer, err := netlink.LinkByName(lab.PeerDev)
		if err != nil {
			return err
		}
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, -size),
			asm.FnXdpAdjustMeta.Call(),
			asm.Mov.Imm(asm.R1, int32(peer.Attrs().Index)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
		}})
		if err != nil {
			return err
		}
		defer prog.Close()
		_, err = prog.Run(&ebpf.RunOptions{Data: datagram(t, lab), Repeat: 1, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES})
		return err
	})
}

// datagram is a frame from the peer to port 7 of the engine.
func datagram(t *testing.T, lab *netlab.Lab) []byte {
	t.Helper()
	var engine netlink.Link
	in(t, lab.Engine, func() (err error) {
		engine, err = netlink.LinkByName(lab.EngineDev)
		return err
	})
	src, _ := proto.AddrFrom(lab.PeerAddr)
	dst, _ := proto.AddrFrom(lab.EngineAddr)
	frame := make([]byte, 14+20+8+1)
	proto.PutEthernet(frame, proto.MAC(engine.Attrs().HardwareAddr), proto.MAC{2, 0, 0, 0, 0, 9}, proto.EtherIPv4)
	proto.PutIPv4(frame[14:], &proto.IPv4{TotalLen: 29, TTL: 9, Proto: proto.ProtoUDP, Src: src, Dst: dst})
	copy(frame[34:], []byte{0, 9, 0, 7, 0, 9, 0, 0, 'x'}) // without a checksum
	return frame
}
