package sockets

import (
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
)

// likely makes steps of the fuzzer's kind that mostly make sense: handshakes that end, data that is in order, calls with
// handles that are open. What a coverage-guided fuzzer finds step by step, this reaches at once.
type likely struct {
	r *rand.Rand
	b []byte
}

func (l *likely) pick(from ...byte) byte { return from[l.r.IntN(len(from))] }

func (l *likely) any() byte { return byte(l.r.Uint32()) }

func (l *likely) op(o, arg int, rest ...byte) {
	l.b = append(l.b, byte(o|arg<<4))
	l.b = append(l.b, append(rest, make([]byte, 16)...)[:stepArgs[o]]...)
}

func (l *likely) step() {
	switch l.r.IntN(16) {
	case 0, 1, 2, 3, 4:
		l.segment()
	case 5, 6, 7:
		l.op(stepTCP, int(l.pick(1, 1, 1, 2, 3, 4, 4, 4, 5, 6, 7, 15, 0)), l.pick(0, 1, 1, 1, 2, 3, 4), l.any()&31, l.any())
	case 8:
		l.op(stepUDP, l.r.IntN(8), l.any()&3, l.any()&3, l.any()&7, l.any()&63, l.any())
	case 9:
		l.op(stepTurn, 0)
	case 10:
		l.op(stepSend, 0)
	case 11:
		l.op(stepComplete, l.r.IntN(16))
	case 12:
		l.op(int(l.pick(stepTick, stepTick, stepTime, stepEvents)), 1, l.pick(10, 20, 25, 28, 30, 33, 35, 36, 38))
	case 13:
		l.op(stepFragment, l.r.IntN(16), l.any()&3, l.pick(1, 2, 3, 0x81, 0x90, 0x88), l.any()&63, l.any())
	case 14:
		l.op(int(l.pick(stepDatagram, stepICMP, stepARP)), l.r.IntN(16), l.any()&7, l.any(), l.any(), 3)
	case 15:
		l.op(stepHost, l.r.IntN(8), l.any()&15)
	}
}

// segment is most often the very next one.
func (l *likely) segment() {
	peer := l.r.IntN(4)
	if l.r.IntN(5) == 0 {
		l.op(stepSegment, peer, syn, l.pick(0, 1, 3, 5, 7)|l.any()<<3, l.pick(0, 2, 5, 255), l.any(), l.any(), l.any(), 0xff, 0xff, 0, 0)
		l.op(stepTurn, 0)
		l.op(stepSegment, peer, ack, 0, 128, 64, 0xff, l.any(), 0, 0)
		return
	}
	l.op(stepSegment, peer+int(l.pick(0, 0, 0, 0, 4, 12)), l.pick(ack, ack, ack, psh|ack, psh|ack, fin|ack, rst, syn, rst|ack, 0),
		l.pick(0, 0, 0, 0, 0, 0, 1, 255, l.any()), l.pick(0, 32, 64, 128, 128, 128, l.any()), l.pick(64, 64, 64, 128, 0, 64),
		l.pick(0, 1, 8, 0xff), l.any(), l.pick(0, 1, 50, 200, 255), l.pick(0, 0, 5, 7))
}

func TestRandomPrograms(t *testing.T) {
	for range 200 {
		seed := seeds.One(t)
		l := likely{r: rand.New(rand.NewPCG(seed, 0))}
		l.b = []byte{l.any()&^0x30 | l.pick(0, 0, 0x20, 0x10)}
		l.op(stepTCP, 0)
		for range l.r.IntN(500) {
			l.step()
		}
		t.Run("", func(t *testing.T) {
			runProgram(t, l.b)
		})
		if t.Failed() {
			return
		}
	}
}
