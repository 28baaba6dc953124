package sockets

import (
	"bytes"
	"fmt"
	"testing"
)

// packets gives what was sent, without VLAN tags, after a look at every checksum in it, and how many of the checksums
// were left to the device.
func (k *kit) packets() (out []seen, left int) {
	k.t.Helper()
	before, tags := k.finished, 4*len(k.h.cfg.VLANs)
	for _, b := range k.sent() {
		out = append(out, dissect(k.t, concat(b[:12], b[12+tags:])))
	}
	return out, k.finished - before
}

// tagged is a frame for us with our VLAN tags.
func (k *kit) tagged(b []byte) []byte {
	head := b[:12:12]
	for _, id := range k.h.cfg.VLANs {
		head = concat(head, be16(0x8100), be16(id))
	}
	return concat(head, b[12:])
}

// leaving runs f with every kind of Host, of at most so many VLAN tags, that leaves checksums to its device, and with some
// that do not.
func leaving(t *testing.T, most int, f func(t *testing.T, set func(*Config))) {
	for tags := range most + 1 {
		for _, large := range []bool{false, true} {
			for _, leave := range []bool{true, false} {
				t.Run(fmt.Sprintf("tags=%d/jumbo=%v/leave=%v", tags, large, leave), func(t *testing.T) {
					f(t, func(c *Config) {
						if c.LeaveSums, c.VLANs = leave, []uint16{7, 8}[:tags]; large {
							jumbo(c)
						}
					})
				})
			}
		}
	}
}

// TestLeaveSumsUDP: a datagram in one packet that is large enough; no fragment, no answer of ICMP.
func TestLeaveSumsUDP(t *testing.T) {
	leaving(t, 2, func(t *testing.T, set func(*Config)) {
		k := newKit(t, set)
		mtu := k.h.cfg.MTU
		s, _ := k.h.UDPBind(0, 7)
		for _, n := range []int{0, 1, leaveFrom - 9, leaveFrom - 8, leaveFrom - 7, 1000, k.h.room - 8, k.h.room - 7, mtu - 29, mtu - 28, mtu - 27, 2 * mtu} {
			data, want := pattern(n), 0
			if k.h.cfg.LeaveSums && n+8 >= leaveFrom && n+28 <= mtu {
				want = 1
			}
			if err := k.h.UDPSend(s, data, port(peerIP, 5000), k.now); err != 0 {
				t.Fatalf("send %d bytes: %v", n, err)
			}
			before := k.h.counters.Stats[TxPartialSum]
			got, left := k.packets()
			var body []byte
			for _, p := range got {
				body = append(body, p.ip.body...)
			}
			if left != want || !bytes.Equal(body[8:], data) || inetSum(pseudo(usIP, peerIP, 17, len(body)), body) != 0 {
				t.Errorf("%d bytes: %d checksums of %d packets were left to the device, want %d; or the datagram is wrong", n, left, len(got), want)
			}
			if k.h.counters.Stats[TxPartialSum] != before {
				t.Error("counted when the frame left")
			}
		}
		for _, n := range []int{10, 1000} {
			ping := icmpFrame(8, 0, 1, pattern(n))
			k.inject(k.tagged(ping), k.tagged(udpFrame(5000, 9, pattern(n))))
			if got, left := k.packets(); len(got) != 2 || left != 0 {
				t.Errorf("%d answers of ICMP, %d left to the device", len(got), left)
			}
		}
	})
}

// TestLeaveSumsWaiting: a datagram that waits for its neighbour is still for the device to finish when it goes.
func TestLeaveSumsWaiting(t *testing.T) {
	leaving(t, 2, func(t *testing.T, set func(*Config)) {
		k := arpKit(t, set)
		s, _ := k.h.UDPBind(0, 7)
		for _, n := range []int{10, 1100, k.h.cfg.MTU - 28} {
			if err := k.h.UDPSend(s, pattern(n), port(peerIP, 5000), k.now); err != 0 {
				t.Fatal(err)
			}
		}
		k.sent() // the request
		k.inject(k.tagged(arpReplyFrame(peerMAC, peerIP)))
		want := map[bool]int{true: 2}[k.h.cfg.LeaveSums]
		if got, left := k.packets(); len(got) != 3 || left != want {
			t.Errorf("%d packets leave, %d for the device to finish; want 3 and %d", len(got), left, want)
		}
	})
}

// TestLeaveSumsLent: a datagram goes out in the frame that it came in, whose headroom it has.
func TestLeaveSumsLent(t *testing.T) {
	leaving(t, 2, func(t *testing.T, set func(*Config)) {
		k := newKit(t, set)
		s, _ := k.h.UDPBind(0, 7)
		for _, n := range []int{10, 1100} {
			k.inject(k.tagged(udpFrame(5000, 7, pattern(n))))
			f, d, err := k.h.UDPTake(s, 1)
			if err == 0 {
				err = k.h.UDPSendLent(s, f, int(k.pool.Buf(f).Off), d.N, d.Src, 0, k.now)
			}
			if err != 0 {
				t.Fatal(err)
			}
			want := map[bool]int{true: 1}[k.h.cfg.LeaveSums && n == 1100]
			if got, left := k.packets(); len(got) != 1 || left != want || !bytes.Equal(got[0].data, pattern(n)) {
				t.Errorf("%d bytes: %d packets leave, %d for the device to finish; want 1 and %d", n, len(got), left, want)
			}
		}
	})
}

// TestLeaveSumsTCP: data, whole and short segments, what is sent again after the path became narrower, and answers.
func TestLeaveSumsTCP(t *testing.T) {
	leaving(t, 0, func(t *testing.T, set func(*Config)) {
		k, c := established(t, set)
		data := pattern(1200)
		c.write(data)
		got, left := k.packets()
		if want := map[bool]int{true: 1}[k.h.cfg.LeaveSums]; len(got) != 1 || left != want {
			t.Fatalf("%d segments, %d for the device to finish; want 1 and %d", len(got), left, want)
		}
		first := got[0].tcp
		quote := ipPacket{src: usIP, dst: peerIP, proto: 6, body: first.bytes(usIP, peerIP)}.bytes()
		k.inject(icmpFrame(3, 4, 600, quote[:28]))
		got, left = k.packets()
		var again []byte
		for _, s := range got {
			again = append(again, s.tcp.data...)
		}
		if !bytes.Equal(again, data) {
			t.Fatalf("%d bytes in %d segments come again, want %d", len(again), len(got), len(data))
		}
		// What is too small now was not when it went out first.
		if len(got) != 3 || left != 0 {
			t.Errorf("%d segments come again, %d for the device to finish; want 3 and none", len(got), left)
		}
		c.tpeer.ack = first.seq + uint32(len(data))
		c.ackAll()
		c.send(ack|psh, pattern(100))
		k.sleep(second)
		if _, left = k.packets(); left != 0 {
			t.Error("an ACK is left to the device")
		}
		c.wantRead(pattern(100))
	})
}
