package xdpd_test

import (
	"context"
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/xdpprog"
)

// autoDriver is an engine that may drive.
func autoDriver(t *testing.T, cfg xdpd.Config) xdpd.Config {
	cfg.NAPI, cfg.JournalDir = xdpd.AutoNAPI, t.TempDir()
	return cfg
}

// TestAutoNAPI: under a load of many datagrams in flight, whose sender is the slower one, the engine tries to drive. When the
// load is over it does not, and the settings are what they were.
func TestAutoNAPI(t *testing.T) {
	lab := napiLab(t, netlab.Options{})
	stack := openStack(t, lab, autoDriver(t, engineConfig(lab)))
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	load, enough := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		const inFlight = 64
		b := make([]byte, 16)
		for lost := inFlight; load.Err() == nil; { // a machine with other things to do drops some
			for ; lost > 0; lost-- {
				_, _ = c.Write(b)
			}
			c.SetReadDeadline(time.Now().Add(time.Second))
			lost = 1
			if _, err := c.Read(b); err != nil {
				lost = inFlight
			}
		}
	}()
	eventually(t, "a trial", func() bool { return getStats(t, stack).Queues[0].Reactor.Drives > 0 })
	enough()
	<-ended
	eventually(t, "its end", func() bool { return !getStats(t, stack).Queues[0].Drives })
	st := getStats(t, stack)
	if !hasSettings(t, lab, st.NAPI.ID, rings.NAPISettings{}) {
		t.Error("the settings are not what they were")
	}
	ask(t, kernelUDP(t, lab.Peer, netip.AddrPort{}, to), "hello")
}

// TestAutoNAPIFlood: under a flood that is answered on the reactor it has enough to do, and does not even ask which NAPI is
// its queue's.
func TestAutoNAPIFlood(t *testing.T) {
	lab := napiLab(t, netlab.Options{})
	stack := openStack(t, lab, autoDriver(t, engineConfig(lab)))
	const port = 7
	r := stack.Reactors()[0]
	p := reactor.NewPoller(r)
	h, _, _ := r.Enter()
	s, errno := h.UDPBind(0, port)
	if errno != 0 {
		t.Fatal(errno)
	}
	var buf [2048]byte
	p.Serve(func(h *sockets.Host, now int64, e reactor.Event) {
		for range 256 { // as many as a turn takes
			d, errno := h.UDPRecv(e.Sock, buf[:])
			if errno != 0 {
				return
			}
			_ = h.UDPSend(e.Sock, buf[:d.N], d.Src, now)
		}
	})
	if err := p.Add(s, sockets.In, 0); err != nil {
		t.Fatal(err)
	}
	r.Leave()
	t.Cleanup(func() {
		h, now, _ := r.Enter()
		h.Close(s, now)
		r.Leave()
		p.Close()
	})
	to := netip.AddrPortFrom(lab.EngineAddr, port)
	ask(t, kernelUDP(t, lab.Peer, netip.AddrPort{}, to), "hello") // they know each other now
	flood, enough := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var engine netlink.Link
	in(t, lab.Engine, func() (err error) {
		engine, err = netlink.LinkByName(lab.EngineDev)
		return err
	})
	in(t, lab.Peer, func() error {
		peer, err := netlink.LinkByName(lab.PeerDev)
		if err != nil {
			return err
		}
		// It takes the answers, which else the peer's kernel would answer again.
		sink, err := xdpprog.LoadSink(xdpprog.SinkConfig{Interface: lab.PeerDev, Ifindex: peer.Attrs().Index})
		if err != nil {
			return err
		}
		t.Cleanup(func() { sink.Close() })
		source, err := xdpprog.LoadSource(xdpprog.SourceConfig{
			Interface: lab.PeerDev, Ifindex: peer.Attrs().Index, SrcMAC: peer.Attrs().HardwareAddr, DstMAC: engine.Attrs().HardwareAddr,
			Src: xdpprog.Addrs{First: lab.PeerAddr}, SrcPort: xdpprog.Ports{First: 1024, Count: 64},
			Dst: xdpprog.Addrs{First: lab.EngineAddr}, DstPort: xdpprog.Ports{First: to.Port()},
			Pin: runtime.NumCPU() > 1, CPU: runtime.NumCPU() - 1,
		})
		if err != nil {
			return err
		}
		t.Cleanup(func() { source.Close() })
		go func() { ended <- source.Run(flood, 0) }()
		return nil
	})
	eventually(t, "a flood", func() bool { return getStats(t, stack).Queues[0].Reactor.RxFrames > 300_000 })
	enough()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if st := getStats(t, stack); st.NAPI.ID != 0 || st.Queues[0].Reactor.Drives != 0 {
		t.Errorf("it drove %d times: %+v", st.Queues[0].Reactor.Drives, st.NAPI)
	}
}
