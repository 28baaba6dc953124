package simnic

import "testing"

// TestSpread: the first of Microsoft's vectors, 66.9.149.187:2794 to 161.142.100.80:1766, is 51ccc178 with ports and
// 323e8fc2 without; from the other side it is the answer.
func TestSpread(t *testing.T) {
	s := Spread{Bytes: 12, Key: []byte{
		0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
	}}
	for i := range uint32(1 << 16) {
		s.Table = append(s.Table, i)
	}
	header := make([]byte, 14+12)
	received := append(header[:26:26], 66, 9, 149, 187, 161, 142, 100, 80, 2794>>8, 2794&255, 1766>>8, 1766&255)
	sent := append(header[:26:26], 161, 142, 100, 80, 66, 9, 149, 187, 1766>>8, 1766&255, 2794>>8, 2794&255)
	if q, a := s.Queue(received), s.AnswerQueue(sent); q != 0xc178 || a != 0xc178 {
		t.Errorf("entries %04x and %04x of 51ccc178", q, a)
	}
	s.Bytes = 8
	if q, a := s.Queue(received), s.AnswerQueue(sent); q != 0x8fc2 || a != 0x8fc2 {
		t.Errorf("entries %04x and %04x of 323e8fc2", q, a)
	}
}
