package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	roundsPerConn = 200
	tcpRTOMaxMS   = 44 // include/uapi/linux/tcp.h, TCP_RTO_MAX_MS, since 6.15; x/sys has no name for it yet
)

// roundSizes are what a client sends and wants back, one after the other: requests, a full segment, bulk.
var roundSizes = []int{1, 64, 1, 1448, 1, 64 << 10}

// startTCP has the engine echo TCP through its net face, and starts the clients.
func (w *world) startTCP(ctx context.Context) (err error) {
	ctx, w.cancel = context.WithCancel(ctx)
	if w.listener, err = w.stack.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
		return err
	}
	w.served.Go(func() {
		for {
			c, err := w.listener.Accept()
			if err != nil {
				return // closed
			}
			w.served.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // the client notices what is amiss
			})
		}
	})
	for i := range w.o.conns {
		w.clients.Go(func() {
			if err := w.client(ctx, uint64(i)); err != nil && ctx.Err() == nil {
				w.broken <- fmt.Errorf("TCP client %d: %w", i, err)
			}
		})
	}
	return nil
}

// client opens one connection after the other until ctx ends.
func (w *world) client(ctx context.Context, seed uint64) error {
	random := rand.NewChaCha8([32]byte{byte(seed)})
	for ctx.Err() == nil {
		if err := w.connection(ctx, random); err != nil {
			return err
		}
	}
	return nil
}

// connection opens, uses and closes one. Between two rounds nothing of it is on its way: that is when the gate may be shut.
func (w *world) connection(ctx context.Context, random *rand.ChaCha8) (err error) {
	var c *net.TCPConn
	for round := range roundsPerConn {
		w.gate.RLock()
		if c == nil {
			if c, err = w.dial(ctx); err != nil {
				w.gate.RUnlock()
				return err
			}
			defer context.AfterFunc(ctx, func() { c.Close() })()
		}
		err := w.round(c, random, roundSizes[round%len(roundSizes)])
		if err == nil && round == roundsPerConn-1 {
			err = hangUp(c)
		}
		w.gate.RUnlock()
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, c.Close())
		}
	}
	return c.Close()
}

func (w *world) dial(ctx context.Context) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: settleLimit, Control: func(_, _ string, raw syscall.RawConn) error {
		// Under overload most segments are lost: a sender that waits twice as long each time would not come to rest, and
		// one that counts its attempts would give up.
		return raw.Control(func(fd uintptr) {
			for option, value := range map[int]int{
				tcpRTOMaxMS: 1000, unix.TCP_SYNCNT: 127, unix.TCP_USER_TIMEOUT: int(settleLimit.Milliseconds()),
			} {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value) // an older kernel takes longer
			}
		})
	}}
	var c net.Conn
	err := w.lab.Peer.Do(func() (err error) {
		c, err = d.DialContext(ctx, "tcp4", fmt.Sprintf("%s:%d", w.lab.EngineAddr, port))
		return err
	})
	if err != nil {
		return nil, err
	}
	w.dials.Add(1)
	return c.(*net.TCPConn), nil
}

// round sends n bytes and compares what comes back.
func (w *world) round(c *net.TCPConn, random *rand.ChaCha8, n int) error {
	if err := c.SetDeadline(time.Now().Add(settleLimit)); err != nil {
		return err
	}
	out, in := make([]byte, n), make([]byte, n)
	_, _ = random.Read(out) // never fails
	if _, err := c.Write(out); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, in); err != nil {
		return err
	}
	if !bytes.Equal(out, in) {
		return fmt.Errorf("%d bytes came back with others among them", n)
	}
	w.rounds.Add(1)
	w.bytes.Add(uint64(n))
	return nil
}

// hangUp ends our stream and waits for the end of the engine's.
func hangUp(c *net.TCPConn) error {
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
		return fmt.Errorf("%d bytes behind the last round, %w", n, err)
	}
	return nil
}
