package xdpd_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/sockets"
)

// setLink is ip link set dev up or down.
func setLink(t testing.TB, ns *netlab.NS, dev string, up bool) {
	t.Helper()
	in(t, ns, func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

// TestLinkDownAndUp takes each end down and up again while datagrams are on their way.
func TestLinkDownAndUp(t *testing.T) {
	for _, end := range []string{"engine", "peer"} {
		t.Run(end, func(t *testing.T) {
			lab, stack := engine(t, netlab.Options{})
			ns, dev := lab.Engine, lab.EngineDev
			if end == "peer" {
				ns, dev = lab.Peer, lab.PeerDev
			}
			conn, to := echo(t, lab, stack)
			ask(t, kernelUDP(t, lab.Peer, netip.AddrPort{}, to), "before")
			for range 3 {
				setLink(t, ns, dev, false)
				for range 100 { // more than waits for an address; the device refuses them or forgets them
					if _, err := conn.WriteToUDPAddrPort([]byte("into the void"), netip.AddrPortFrom(lab.PeerAddr, 9)); err != nil {
						t.Fatal(err)
					}
				}
				setLink(t, ns, dev, true)
				eventually(t, "an answer after the link came up", func() bool {
					c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
					defer c.Close()
					return tryAsk(c, "after", time.Second) == nil
				})
			}
			if isDone(stack) || stack.Err() != nil {
				t.Errorf("the engine ended: %v", stack.Err())
			}
		})
	}
}

// TestInterfaceDeleted: everything that waits learns why, and Close is as clean as ever.
func TestInterfaceDeleted(t *testing.T) {
	for _, share := range []bool{false, true} {
		lab := newLab(t, netlab.Options{KernelAddr: share, Veth: "a NIC cannot be deleted"})
		cfg := engineConfig(lab)
		if share {
			cfg = shareConfig(lab)
		}
		stack := openStack(t, lab, cfg)
		c := listen(t, stack, ":800")
		reading := blocked(func() error {
			_, _, err := c.ReadFrom(make([]byte, 16))
			return err
		})
		in(t, lab.Engine, func() error {
			link, err := netlink.LinkByName(lab.EngineDev)
			if err != nil {
				return err
			}
			return netlink.LinkDel(link)
		})
		await(t, stack.Done(), "Done")
		err := stack.Err()
		if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), lab.EngineDev) {
			t.Errorf("Err: %v, want %v and the interface's name", err, unix.ENODEV)
		}
		if cause := opError(t, await(t, reading, "the end of the read"), "read", c.LocalAddr(), nil); cause != err {
			t.Errorf("the read ended with %v, not with %v", cause, err)
		}
		if _, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(lab.PeerAddr, 9)); !errors.Is(err, unix.ENODEV) {
			t.Errorf("write: %v, want %v", err, unix.ENODEV)
		}
		if _, err := stack.ListenPacket("udp", ":0"); !errors.Is(err, unix.ENODEV) {
			t.Errorf("ListenPacket: %v, want %v", err, unix.ENODEV)
		}
		if err := c.Close(); err != nil {
			t.Errorf("close the socket: %v", err)
		}
		for range 2 {
			if err := stack.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if stack.Err() != err {
			t.Errorf("after Close, Err is %v", stack.Err())
		}
	}
}

// TestCloseUnderTraffic closes the engine while datagrams come and go and calls wait on it.
func TestCloseUnderTraffic(t *testing.T) {
	for range 5 {
		t.Run("", func(t *testing.T) {
			lab, stack := engine(t, netlab.Options{Queues: 2})
			conn, to := echo(t, lab, stack)
			stop := make(chan struct{})
			sending := blocked(func() error {
				c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
				for {
					select {
					case <-stop:
						return nil
					default:
						// ECONNREFUSED and the like are what is to be expected of an engine that goes away.
						_, _ = c.Write(make([]byte, 3000))
					}
				}
			})
			idle := listen(t, stack, ":0")
			reading := blocked(func() error {
				_, _, err := idle.ReadFrom(make([]byte, 16))
				return err
			})
			eventually(t, "traffic", func() bool { return counted(t, stack, sockets.TxUDP) > 100 })
			if err := stack.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			await(t, stack.Done(), "Done")
			if stack.Err() != nil {
				t.Errorf("after Close, Err is %v", stack.Err())
			}
			if err := await(t, reading, "the end of the read"); err == nil {
				t.Error("the read ended without an error")
			}
			if _, _, err := conn.ReadFrom(make([]byte, 16)); err == nil {
				t.Error("a read after Close has no error")
			}
			close(stop)
			await(t, sending, "the end of the sender")
			if _, err := stack.Stats(); err == nil {
				t.Error("Stats after Close has no error")
			}
		})
	}
}
