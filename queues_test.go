package xdpd_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"xdpd/internal/netlab"
	"xdpd/sockets"
)

// TestQueues has many flows arrive on all queues, wherever the kernel's hash puts them.
func TestQueues(t *testing.T) {
	for _, queues := range []int{2, 4} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			lab, stack := engine(t, netlab.Options{Queues: queues})
			serveTCPEcho(t, stack, 7)
			if n := len(stack.Reactors()); n != queues {
				t.Fatalf("%d reactors for %d queues", n, queues)
			}
			_, to := echo(t, lab, stack)
			for range 32 * queues {
				ask(t, kernelUDP(t, lab.Peer, netip.AddrPort{}, to), "which queue?")
				c, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 7))
				if err != nil {
					t.Fatal(err)
				}
				ask(t, c, "and by TCP?")
				c.Close()
			}
			noConnections(t, stack)
			ping(t, lab.Peer, lab.EngineAddr, 100, "-f")
			ping(t, lab.Peer, lab.EngineAddr, 5, pingWait, "-s", "8000")
			for _, q := range getStats(t, stack).Queues {
				if q.Host.Stats[sockets.RxUDP] == 0 || q.Host.Stats[sockets.RxTCP] == 0 {
					t.Errorf("queue %d received %d UDP and %d TCP packets", q.Queue, q.Host.Stats[sockets.RxUDP], q.Host.Stats[sockets.RxTCP])
				}
			}
			st := getStats(t, stack)
			dropped := st.Drops()
			delete(dropped, "arp_unsolicited") // a reply that another queue had asked for, and was told of
			delete(dropped, "tcp_duplicate")   // a loss probe of a client whom a slow machine kept waiting
			if netlab.Slow > 1 {
				delete(dropped, "tcp_no_socket") // such a probe of the last ACK
			}
			if len(dropped) != 0 {
				t.Errorf("drops: %v", dropped)
			}
		})
	}
}

// TestQueuesShareNeighbours: an ARP reply comes in on one queue, and every queue that asked must hear of it. Here all of
// them ask before the peer has said a word.
func TestQueuesShareNeighbours(t *testing.T) {
	lab, stack := engine(t, netlab.Options{Queues: 4})
	peer := kernelUDP(t, lab.Peer, netip.AddrPortFrom(lab.PeerAddr, 900), netip.AddrPort{})
	for i, r := range stack.Reactors() {
		h, now, _ := r.Enter()
		s, errno := h.UDPBind(0, 800)
		if errno == 0 {
			errno = h.UDPSend(s, []byte{byte(i)}, netip.AddrPortFrom(lab.PeerAddr, 900), now)
		}
		r.Leave()
		if errno != 0 {
			t.Fatal(errno)
		}
		t.Cleanup(func() {
			h, now, ok := r.Enter()
			if ok {
				h.Close(s, now)
			}
			r.Leave()
		})
	}
	var seen [4]bool
	buf := make([]byte, 16)
	for range seen {
		if n, err := peer.Read(buf); n != 1 || err != nil {
			t.Fatalf("the peer got %d bytes, %v; so far from queues %v", n, err, seen)
		}
		seen[buf[0]] = true
	}
	if seen != [4]bool{true, true, true, true} {
		t.Errorf("the peer heard from queues %v", seen)
	}
	if failed := drops(t, stack, "neigh_failed"); failed != 0 {
		t.Errorf("neigh_failed is %d", failed)
	}
}

// TestSomeQueues: the engine takes the queues it is given, and what arrives on the others is the kernel's.
func TestSomeQueues(t *testing.T) {
	lab := newLab(t, netlab.Options{Queues: 4})
	cfg := engineConfig(lab)
	cfg.Queues = []int{2, 1}
	stack := openStack(t, lab, cfg)
	st := getStats(t, stack)
	if len(st.Queues) != 2 || st.Queues[0].Queue != 2 || st.Queues[1].Queue != 1 {
		t.Errorf("queues: %+v", st.Queues)
	}
	// The peer's ARP request may come in on a queue that is not served: it passes to a kernel that has no such address.
	in(t, lab.Peer, func() error {
		link, err := netlink.LinkByName(lab.PeerDev)
		if err != nil {
			return err
		}
		mac := macOf(t, lab.Engine, lab.EngineDev)
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: lab.EngineAddr.AsSlice(), HardwareAddr: mac[:],
		})
	})
	conn := listen(t, stack, ":800")
	passed := func() uint64 {
		st := getStats(t, stack)
		for _, v := range st.Verdicts {
			if v.Name == "pass_no_socket" {
				return v.Packets
			}
		}
		return 0
	}
	eventually(t, "datagrams on both queues, and on others", func() bool {
		prod(t, lab, 800)
		st := getStats(t, stack)
		return passed() > 0 && st.Queues[0].Host.Stats[sockets.RxUDP] > 0 && st.Queues[1].Host.Stats[sockets.RxUDP] > 0
	})
	conn.Close()
}
