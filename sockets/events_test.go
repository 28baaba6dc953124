package sockets

import "testing"

// What happens on a socket is told as Linux wakes its pollers: these are the keys of ep_poll_callback. That readiness and
// occasions together are Linux's, reactor's TestPollerIsEpoll shows.

const state = In | Pri | Out | Err | Hup | RdHup

// wantWhat expects that this happened on s, and nothing on others. 0: nothing at all.
func wantWhat(t testing.TB, k *kit, s Handle, what Ready, times int) {
	t.Helper()
	got := k.h.TakeEvents(nil)
	if what == 0 && len(got) == 0 {
		return
	}
	if len(got) != 1 || got[0] != (Event{s, what, times}) {
		t.Errorf("events %+v, want %#x on %#x %d times", got, what, s, times)
	}
}

func TestEventsUDP(t *testing.T) {
	k, s := fragKit(t)
	for range 3 {
		k.inject(udpFrame(1000, 7, nil))
	}
	wantWhat(t, k, s, In|Pri, 3)
	wantWhat(t, k, s, 0, 0)
	k.inject(udpFrame(1000, 7, nil))
	wantWhat(t, k, s, In|Pri, 1)
	send := func() {
		if err := k.h.UDPSend(s, []byte("x"), port(peerIP, 1000), k.now); err != 0 {
			t.Fatal(err)
		}
	}
	send()
	wantWhat(t, k, s, 0, 0) // nobody asked
	k.h.UDPTellSent(s)
	send()
	wantWhat(t, k, s, Out, 1)
}

func TestEventsListener(t *testing.T) {
	k := newKit(t)
	l, err := k.h.TCPListen(0, 80)
	if err != 0 {
		t.Fatal(err)
	}
	for n := range uint16(3) {
		dial(k, 80, 4000+n)
	}
	wantWhat(t, k, l, In|Pri, 3)
}

func TestEventsTCP(t *testing.T) {
	k, c := established(t)
	k.h.TakeEvents(nil)
	c.send(ack, []byte("data"))
	wantWhat(t, k, c.h, In|Pri, 1)
	c.ackAll()
	wantWhat(t, k, c.h, 0, 0) // an ACK without news
	k.h.TCPShutdown(c.h, k.now)
	wantWhat(t, k, c.h, state, 1)
	c.got()
	c.ackAll() // of the FIN: FIN-WAIT-2
	wantWhat(t, k, c.h, state, 1)
	c.send(fin|ack, nil)
	wantWhat(t, k, c.h, state, 1)
	k.h.TCPShutdown(c.h, k.now)
	wantWhat(t, k, c.h, state, 1)
}

// TestEventsRoom: room to write is told to who was refused, or was shown that there is none, and to nobody else.
func TestEventsRoom(t *testing.T) {
	for _, c := range []struct {
		name           string
		fill           float64 // of the send queue's limit
		refused, asked bool
		want           Ready
	}{
		{"half full", 0.5, false, true, 0},
		{"full, and nobody noticed", 1, false, false, 0},
		{"full, and a poll saw it", 1, false, true, Out},
		{"full, and a writer was refused", 1, true, false, Out},
	} {
		t.Run(c.name, func(t *testing.T) {
			k, conn := established(t)
			conn.wnd = 65535
			n := int(c.fill * float64(k.h.sndLimit(conn.tcb())))
			if c.refused {
				n++
			}
			if got, err := k.h.TCPWrite(conn.h, make([]byte, n), k.now); err != 0 || c.refused != (got < n) {
				t.Fatalf("TCPWrite of %d bytes: %d, %v", n, got, err)
			}
			k.h.TakeEvents(nil)
			if c.asked {
				k.h.Ready(conn.h)
			}
			var all Ready
			for range 200 {
				conn.got()
				conn.ackAll()
				for _, e := range k.h.TakeEvents(nil) {
					all |= e.What
				}
			}
			if conn.tcb().sndBytes != 0 {
				t.Fatalf("%d bytes are left", conn.tcb().sndBytes)
			}
			if all != c.want {
				t.Errorf("told %#x, want %#x", all, c.want)
			}
		})
	}
}

// TestResetBehindFIN: the reader has his end of the stream; the error is for who writes, or asks (SOCK_DONE).
func TestResetBehindFIN(t *testing.T) {
	k, c := established(t)
	c.send(fin|ack, nil)
	c.got()
	c.reset()
	if n, err := k.h.TCPRead(c.h, make([]byte, 1), k.now); n != 0 || err != 0 {
		t.Errorf("TCPRead = %d, %v, want the end of the stream", n, err)
	}
	if r := k.h.Ready(c.h); r != In|Out|RdHup|Hup|Err {
		t.Errorf("ready for %#x", r)
	}
	if err := k.h.TCPError(c.h); err != ECONNRESET {
		t.Errorf("TCPError = %v, want ECONNRESET", err)
	}
}

// TestDataBehindBothShutdowns: who shut down both directions and is sent data resets (RFC 1122 4.2.2.13, as Linux does).
func TestDataBehindBothShutdowns(t *testing.T) {
	k, c := established(t)
	k.h.TCPShutdownRead(c.h, k.now)
	c.send(ack, []byte("taken, and forgotten"))
	c.wantState(tcpEstablished)
	k.h.TCPShutdown(c.h, k.now)
	c.got()
	c.ackAll()
	k.h.TakeEvents(nil)
	c.send(ack, []byte("for nobody"))
	wantWhat(t, k, c.h, state, 1)
	if s := c.one(); s.flags&rst == 0 {
		t.Errorf("sent %+v, want a reset", s)
	}
	if err := k.h.TCPError(c.h); err != ECONNRESET {
		t.Errorf("TCPError = %v, want ECONNRESET", err)
	}
}
