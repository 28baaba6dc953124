package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/sockets"
)

const (
	faultPort = "9000"
	// drainTime is how long the rest of a transfer may take after its time is over. It decides nothing but when to give up.
	drainTime = 3 * time.Minute
)

// transfer is what one transfer came to. The sender is the stack itself, or its peer if its duty is to receive.
type transfer struct {
	goodput     float64 // Mbit/s of the data that arrived within the time
	segments    uint64  // sent by the sender
	retransmits uint64  // of these
}

// again is the percentage of segments that the sender sent again.
func (t transfer) again() float64 { return 100 * float64(t.retransmits) / float64(max(t.segments, 1)) }

// transfer has a stack in the engine's place send or receive for a while, over a wire with faults. It is an error if not
// all that was sent arrives, unchanged.
func (b *faultBench) transfer(ctx context.Context, stack string, c faultCase, d duty, seed uint64) (t transfer, err error) {
	lab, err := netlab.New(netlab.Options{Middle: true, KernelAddr: stack == "linux"})
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	wire, err := startWire(ctx, lab, b.chaosbox, c, seed)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, wire.stop()) }()

	ln, engine, err := listenIn(lab, stack)
	if err != nil {
		return t, err
	}
	if engine != nil {
		defer func() { err = errors.Join(err, engine.Close()) }()
	}
	defer ln.Close()
	theirs, err := dialFrom(ctx, lab)
	if err != nil {
		return t, err
	}
	defer theirs.Close()
	ours, err := ln.Accept()
	if err != nil {
		return t, err
	}
	defer ours.Close()
	sender, receiver := ours, theirs
	if d == "receive" {
		sender, receiver = theirs, ours
	}
	if t.goodput, err = stream(sender, receiver, b.seconds, seed); err != nil {
		return t, err
	}
	if sender == ours && engine != nil {
		t.segments, t.retransmits, err = engineSegments(engine)
	} else {
		t.segments, t.retransmits, err = kernelSegments(sender.(*net.TCPConn))
	}
	return t, err
}

// listenIn opens a listener of the stack that is measured; for xdpd also the engine, which the caller closes.
func listenIn(lab *netlab.Lab, stack string) (ln net.Listener, engine *xdpd.Stack, err error) {
	if stack == "linux" {
		err = lab.Engine.Do(func() error {
			ln, err = (&net.ListenConfig{Control: cubic}).Listen(context.Background(), "tcp4", ":"+faultPort)
			return err
		})
		return ln, nil, err
	}
	engine, err = xdpd.Open(xdpd.Config{
		Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
	})
	if err != nil {
		return nil, nil, err
	}
	if ln, err = engine.Listen("tcp", ":"+faultPort); err != nil {
		return nil, nil, errors.Join(err, engine.Close())
	}
	return ln, engine, nil
}

func dialFrom(ctx context.Context, lab *netlab.Lab) (c net.Conn, err error) {
	err = lab.Peer.Do(func() error {
		d := net.Dialer{Control: cubic, Timeout: drainTime}
		c, err = d.DialContext(ctx, "tcp4", net.JoinHostPort(lab.EngineAddr.String(), faultPort))
		return err
	})
	return c, err
}

// cubic chooses the kernel's congestion control for a socket, whatever the machine's default is.
func cubic(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
	})
	return errors.Join(err, failed)
}

// stream sends for so many seconds, and then waits for the rest to arrive.
func stream(sender, receiver net.Conn, seconds float64, seed uint64) (goodput float64, err error) {
	length := time.Duration(seconds * float64(time.Second))
	end := time.Now().Add(length)
	giveUp := end.Add(drainTime)
	if err := errors.Join(sender.SetDeadline(giveUp), receiver.SetDeadline(giveUp)); err != nil {
		return 0, err
	}
	type sum struct {
		sha []byte
		n   int64
		err error
	}
	sent := make(chan sum, 1)
	go func() {
		source, sha := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)}), sha256.New()
		s, buf := sum{}, make([]byte, 32<<10)
		for s.err == nil && time.Now().Before(end) {
			source.Read(buf)
			var n int
			n, s.err = sender.Write(buf)
			sha.Write(buf[:n])
			s.n += int64(n)
		}
		s.err = errors.Join(s.err, sender.(interface{ CloseWrite() error }).CloseWrite())
		s.sha = sha.Sum(nil)
		sent <- s
	}()
	sha, buf, total, inTime := sha256.New(), make([]byte, 256<<10), int64(0), int64(0)
	for {
		n, err := receiver.Read(buf)
		sha.Write(buf[:n])
		total += int64(n)
		if time.Now().Before(end) {
			inTime = total
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("after %d bytes: %w", total, err)
		}
	}
	s := <-sent
	if s.err != nil {
		return 0, s.err
	}
	if s.n != total || !bytes.Equal(s.sha, sha.Sum(nil)) {
		return 0, fmt.Errorf("%d bytes were sent, %d arrived, SHA-256 %x and %x", s.n, total, s.sha, sha.Sum(nil))
	}
	return 8 * float64(inTime) / seconds / 1e6, nil
}

// kernelSegments asks a kernel socket for the segments with data that it sent, and how many of these again.
func kernelSegments(c *net.TCPConn) (segments, retransmits uint64, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); failed == nil {
			segments, retransmits = uint64(info.Data_segs_out), uint64(info.Total_retrans)
		}
		if name, err := unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || name != "cubic" {
			failed = fmt.Errorf("the kernel's congestion control is %q: %w", name, err)
		}
	})
	return segments, retransmits, errors.Join(err, failed)
}

// engineSegments are the segments that the engine sent; it did nothing but send data.
func engineSegments(engine *xdpd.Stack) (segments, retransmits uint64, err error) {
	st, err := engine.Stats()
	for _, q := range st.Queues {
		segments += q.Host.Stats[sockets.TxTCP]
		retransmits += q.Host.Stats[sockets.TCPRetransmits]
	}
	return segments, retransmits, err
}

// wire is a running chaosbox.
type wire struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

func startWire(ctx context.Context, lab *netlab.Lab, program string, c faultCase, seed uint64) (*wire, error) {
	if c.rate != "" {
		for _, dev := range netlab.MiddleDevs {
			// The queue holds what 20 ms bring.
			out, err := lab.Middle.Run(ctx, "tc", "qdisc", "add", "dev", dev, "root", "tbf", "rate", c.rate, "burst", "16kb", "latency", "20ms")
			if err != nil {
				return nil, fmt.Errorf("%w: %s", err, out)
			}
		}
	}
	args := append([]string{
		"-a", netlab.MiddleDevs[0], "-b", netlab.MiddleDevs[1], "-seed", strconv.FormatUint(seed, 10),
	}, c.wire...)
	w := &wire{cmd: exec.CommandContext(ctx, program, args...)}
	w.cmd.Stdout, w.cmd.Stderr = &w.out, &w.out
	return w, lab.Middle.Start(w.cmd)
}

func (w *wire) stop() error {
	err := w.cmd.Process.Signal(unix.SIGTERM)
	if err = errors.Join(err, w.cmd.Wait()); err != nil {
		return fmt.Errorf("chaosbox: %w: %s", err, w.out.Bytes())
	}
	return nil
}
