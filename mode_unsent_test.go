package xdpd_test

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/rings"
)

// relay stands between an engine and its Granter and passes on what they say. Of the sockets that the engine is given, the next
// few can be made ones of which drivers take a zero-copy socket and then never send from it: they prefer busy polling.
type relay struct {
	t    *testing.T
	deaf atomic.Int32 // so many
}

// newRelay gives the path for Config.Grant.
func newRelay(t *testing.T, granter string) (*relay, string) {
	t.Helper()
	r := &relay{t: t}
	path := filepath.Join(t.TempDir(), "relay")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	done := blocked(func() error {
		for {
			engine, err := l.AcceptUnix()
			if err != nil {
				return nil
			}
			helper, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: granter, Net: "unixpacket"})
			if err != nil {
				engine.Close()
				return err
			}
			go r.pass(engine, helper)
			go r.pass(helper, engine)
		}
	})
	t.Cleanup(func() {
		l.Close()
		if err := await(t, done, "the relay's end"); err != nil {
			t.Error(err)
		}
	})
	return r, path
}

// pass passes messages on until either end closes.
func (r *relay) pass(from, to *net.UnixConn) {
	defer to.Close()
	text, oob := make([]byte, 1<<16), make([]byte, unix.CmsgSpace(4))
	for {
		n, k, _, _, err := from.ReadMsgUnix(text, oob)
		if err != nil || n == 0 {
			return
		}
		fd := -1
		if messages, err := unix.ParseSocketControlMessage(oob[:k]); err == nil && len(messages) == 1 {
			fds, err := unix.ParseUnixRights(&messages[0])
			if err != nil || len(fds) != 1 {
				r.t.Errorf("descriptors %v: %v", fds, err)
				return
			}
			fd = fds[0]
			if r.deaf.Load() > 0 {
				r.deaf.Add(-1)
				r.preferBusyPoll(fd)
			}
		}
		_, _, err = to.WriteMsgUnix(text[:n], oob[:k], nil)
		if fd >= 0 {
			unix.Close(fd)
		}
		if err != nil {
			return
		}
	}
}

// preferBusyPoll has a wake-up of the device skipped (xsk_no_wakeup, net/xdp/xsk.c).
func (r *relay) preferBusyPoll(fd int) {
	for _, opt := range []struct{ opt, value int }{
		{unix.SO_PREFER_BUSY_POLL, 1}, {unix.SO_BUSY_POLL, 20}, {unix.SO_BUSY_POLL_BUDGET, 64},
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt.opt, opt.value); err != nil {
			r.t.Error(err)
		}
	}
}

// TestModeThatNeverSends: a mode of which the driver takes the sockets and then never sends is left again, with an error, and
// what is open goes on in the former one. If that does not send either, the engine ends and says so. Where there is no zero
// copy, the driver refuses it at once. Nothing is under way at the switch: what comes in may have such a socket send after all.
func TestModeThatNeverSends(t *testing.T) {
	lab, granter := granted(t, netlab.Options{}, xdpd.Granter{})
	relay, path := newRelay(t, granter)
	cfg := engineConfig(lab)
	cfg.Grant, cfg.Mode, cfg.MaxSpin = path, xdpd.Copy, -1 // poll(2) would wake the device all the same
	stack := openStack(t, lab, cfg)
	serveTCPEcho(t, stack, 7)
	mac := macOf(t, lab.Engine, lab.EngineDev)
	run(t, lab.Peer, "ip", "neigh", "replace", lab.EngineAddr.String(), "lladdr", mac.String(), "dev", lab.PeerDev)
	open := func() *net.TCPConn {
		c, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 7))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		ask(t, c, "before")
		return c
	}
	zero, _ := netlab.ZeroCopy()
	for _, c := range []struct {
		mode xdpd.Mode
		deaf int32
		is   xdpd.Mode // afterwards
		err  bool
	}{
		{xdpd.ZeroCopy, 1, xdpd.Copy, true},
		{xdpd.Best, 1, xdpd.Copy, true},
		{xdpd.ZeroCopy, 0, xdpd.ZeroCopy, false},
		{xdpd.Best, 1, xdpd.ZeroCopy, true},
	} {
		if !zero && c.mode == xdpd.Best {
			continue
		}
		if !zero {
			c.deaf, c.is, c.err = 0, xdpd.Copy, true
		}
		conn := open()
		relay.deaf.Store(c.deaf)
		err := stack.SetMode(c.mode)
		if (err != nil) != c.err || errors.Is(err, rings.ErrUnsent) != (c.deaf > 0) || c.err && !strings.Contains(err.Error(), lab.EngineDev) {
			t.Errorf("mode %d, of which %d sockets send nothing: %v", c.mode, c.deaf, err)
		}
		if got, is := stack.Mode(), getStats(t, stack).ZeroCopy; got != c.is || is != (c.is == xdpd.ZeroCopy) {
			t.Errorf("after mode %d it is %d, and zero copy %v", c.mode, got, is)
		}
		if err := echoBulk(conn, 256<<10, 1); err != nil {
			t.Fatalf("after mode %d: %v", c.mode, err)
		}
	}
	if !zero {
		return
	}
	relay.deaf.Store(2)
	err := stack.SetMode(xdpd.Best)
	await(t, stack.Done(), "Done")
	if !errors.Is(err, rings.ErrUnsent) || !errors.Is(stack.Err(), rings.ErrUnsent) {
		t.Errorf("neither mode sends: %v, and the engine ended with %v", err, stack.Err())
	}
}
