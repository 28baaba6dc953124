package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/rings"
)

// A client is an application of a daemon, in a process of its own: this program serves it as `xdpd run` does, and starts it. Both count.

// serveClient is a daemon whose application does the work.
func serveClient(face string) serveFunc {
	return func(ctx context.Context, o serveOptions, ready func()) (c counters, err error) {
		st, err := open(o)
		if err != nil {
			return c, err
		}
		defer st.Close()
		dir, err := os.MkdirTemp("", "xdpd-bench-client-")
		if err != nil {
			return c, err
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "clients")
		l, err := xdpd.ListenClients(ctx, path)
		if err != nil {
			return c, err
		}
		srv, err := st.ServeClients(l, []xdpd.ClientPolicy{{
			Name: "bench", Users: []uint32{uint32(os.Getuid())}, Bind: []xdpd.PortRange{{First: 1, Last: 65535}}, CPU: 100,
		}})
		if err != nil {
			return c, errors.Join(err, l.Close())
		}
		defer func() { err = errors.Join(err, srv.Close()) }()
		app := exec.CommandContext(ctx, "/proc/self/exe", "-app", face, o.work, path, strconv.Itoa(int(o.port)))
		if o.app != "" {
			app = exec.CommandContext(ctx, o.app, o.work, path, strconv.Itoa(int(o.port)))
		}
		app.Stderr = os.Stderr
		app.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := app.StdoutPipe()
		if err == nil {
			err = app.Start()
		}
		if err != nil {
			return c, err
		}
		defer func() { _ = app.Wait() }() // it ends with ctx, by a signal
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			return c, fmt.Errorf("the application says %q: %w", line, err)
		}
		return whileRunning(ctx, st, ready)
	}
}

// runApp is what runs behind -app FACE WORK PATH PORT.
func runApp(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return errors.New("-app FACE WORK PATH PORT")
	}
	number, err := strconv.ParseUint(args[3], 10, 16)
	if err != nil {
		return err
	}
	if args[0] == "client-ring" {
		return ringEcho(ctx, args[2], uint16(number))
	}
	c, err := xdpd.Connect(ctx, args[2])
	if err != nil {
		return err
	}
	at := fmt.Sprintf(":%d", number)
	f := network{
		packet: func() (socket, error) {
			pc, err := c.ListenPacket("udp", at)
			if err != nil {
				return nil, err
			}
			return pc.(*xdpd.ClientConn), nil
		},
		listen: func() (net.Listener, error) { return c.Listen("tcp", at) },
	}
	if _, err := f.start(args[1], new(moved)); err != nil {
		return err
	}
	fmt.Println("ready")
	<-ctx.Done()
	return nil
}

const (
	ringSlots = 64   // datagrams in hand at a time
	ringSlot  = 9600 // bytes of memory for each: a header and the largest
)

// ringEcho is a UDP echo on a ring: each place has a RECVFROM, or the SEND of what it received, with the address that came with it, and behind it
// the next RECVFROM. A SEND tells only that it failed, and for the RECVFROM too.
func ringEcho(ctx context.Context, path string, port uint16) error {
	q, err := xdpd.OpenRing(ctx, path, xdpd.RemoteConfig{SQEntries: 2 * ringSlots, Data: ringSlots * ringSlot})
	if err != nil {
		return err
	}
	do := func(s rings.SQE) (int32, error) {
		*q.SQE() = s
		q.Submit()
		if _, err := q.Wait(1, -1); err != nil {
			return 0, err
		}
		c, _ := q.Peek()
		q.Seen(1)
		if c.Res < 0 {
			return 0, unix.Errno(-c.Res)
		}
		return c.Res, nil
	}
	fd, err := do(rings.SQE{Opcode: rings.OpSocket, FD: unix.AF_INET, Off: unix.SOCK_DGRAM})
	if err != nil {
		return err
	}
	rings.PutSockAddr(q.Data, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	if _, err = do(rings.SQE{Opcode: rings.OpBind, FD: fd, Off: rings.SockAddrSize}); err != nil {
		return err
	}
	receive := func(slot uint64) {
		*q.SQE() = rings.SQE{Opcode: rings.OpRecvFrom, FD: fd, Addr: slot * ringSlot, Len: ringSlot, UserData: slot}
	}
	for slot := range uint64(ringSlots) {
		receive(slot)
	}
	fmt.Println("ready")
	for c := range q.All() {
		slot := c.UserData &^ sending
		if c.UserData&sending != 0 || c.Res < rings.RecvHeaderSize {
			receive(slot)
			continue
		}
		base := slot * ringSlot
		*q.SQE() = rings.SQE{
			Opcode: rings.OpSend, Flags: rings.SQELink | rings.SQESkipSuccess, FD: fd, Addr: base + rings.RecvHeaderSize, Len: uint32(c.Res) - rings.RecvHeaderSize,
			Off: base + rings.RecvHeaderSize - rings.SockAddrSize, FileIndex: rings.SockAddrSize, UserData: slot | sending,
		}
		receive(slot)
	}
	return io.ErrUnexpectedEOF // the daemon is gone
}

// sending is in the user data of a SEND.
const sending = 1 << 32
