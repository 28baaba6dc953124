package sockets

import (
	"reflect"
	"testing"
)

// TestRecordSizes: with a slot of the demux table (10.7 to 21.3 bytes), and for an established connection what a Poller
// keeps of it (24), these make 250, 64 and 96 bytes.
func TestRecordSizes(t *testing.T) {
	for _, c := range []struct {
		typ  reflect.Type
		most uintptr
	}{
		{reflect.TypeFor[tcb](), 200},
		{reflect.TypeFor[timeWait](), 42},
		{reflect.TypeFor[halfOpen](), 74},
		{reflect.TypeFor[wheelNode](), 24},
	} {
		if n := c.typ.Size(); n > c.most {
			t.Errorf("%v has %d bytes, want at most %d", c.typ, n, c.most)
		}
	}
}
