package asavie

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"sync/atomic"
	"unsafe"

	"github.com/asavie/xdp"
)

// farRings is what the library does not tell about its socket.
type farRings struct {
	umem      []byte
	frameSize int

	fillSize, rxSize, txSize uint32
	comp                     farComp
	maps                     [][]byte // the four rings' mappings
}

// farComp is the library's completion ring.
type farComp struct {
	prod, cons *uint32
	descs      []uint64
}

// peek gives the index of the oldest completion, and how many there are.
func (c *farComp) peek() (cons, avail uint32) {
	cons = *c.cons // only we write it, through Complete
	return cons, min(atomic.LoadUint32(c.prod)-cons, uint32(len(c.descs)))
}

// lookInside reads unexported fields of xdp.Socket as they are in v0.3.3. The
// module is archived: its layout will not change, and if it did, this is an
// error.
func lookInside(s *xdp.Socket) (far farRings, err error) {
	defer func() {
		if p := recover(); p != nil { // reflect on a field that is not there
			err = fmt.Errorf("asavie: xdp.Socket is not laid out as in github.com/asavie/xdp v0.3.3: %v", p)
		}
	}()
	v := reflect.ValueOf(s).Elem()
	far.umem = v.FieldByName("umem").Bytes()
	far.frameSize = int(v.FieldByName("options").FieldByName("FrameSize").Int())
	for _, r := range []struct {
		name string
		size *uint32
	}{{"fillRing", &far.fillSize}, {"rxRing", &far.rxSize}, {"txRing", &far.txSize}, {"completionRing", new(uint32)}} {
		ring := v.FieldByName(r.name)
		descs := ring.FieldByName("Descs")
		if descs.Len() == 0 {
			return far, errors.New("asavie: the socket is closed, or was made without an RX or a TX ring: both are needed")
		}
		*r.size = uint32(descs.Len())
		far.maps = append(far.maps, mappingOf(ring.FieldByName("Producer").UnsafePointer(), descs))
		if r.name == "completionRing" {
			far.comp = farComp{
				prod:  (*uint32)(ring.FieldByName("Producer").UnsafePointer()),
				cons:  (*uint32)(ring.FieldByName("Consumer").UnsafePointer()),
				descs: unsafe.Slice((*uint64)(descs.UnsafePointer()), descs.Len()),
			}
		}
	}
	return far, nil
}

// mappingOf is the memory the library mapped for one ring: from the start of
// the page of its producer word to the end of its entries.
func mappingOf(producer unsafe.Pointer, descs reflect.Value) []byte {
	inPage := uintptr(producer) & uintptr(os.Getpagesize()-1)
	start := unsafe.Add(producer, -int(inPage))
	end := uintptr(descs.UnsafePointer()) + uintptr(descs.Len())*descs.Type().Elem().Size()
	return unsafe.Slice((*byte)(start), end-uintptr(start))
}
