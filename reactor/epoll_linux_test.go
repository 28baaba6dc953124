package reactor

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNAPIEpoll: what SuspendNAPI sleeps in tells the two descriptors apart, keeps its time below a millisecond, and follows a
// socket that takes another's place.
func TestNAPIEpoll(t *testing.T) {
	wake, err := newEventFD()
	if err != nil {
		t.Fatal(err)
	}
	defer wake.close()
	e, err := newNAPIEpoll(wake.fd)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	pair := func() [2]int {
		t.Helper()
		p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	want := func(sock int, ns int64, woken, broken bool) {
		t.Helper()
		if w, b := e.wait(sock, ns); w != woken || b != broken {
			t.Errorf("woken %v, broken %v", w, b)
		}
	}
	const forever = int64(time.Hour)
	p := pair()
	from := time.Now()
	want(p[0], 300_000, false, false)
	if d := time.Since(from); d < 300*time.Microsecond {
		t.Errorf("it slept for %v", d)
	}
	wake.signal()
	want(p[0], forever, true, false)
	wake.drain()
	unix.Write(p[1], []byte("x"))
	want(p[0], forever, false, false)
	wake.signal()
	want(p[0], forever, true, false)
	wake.drain()

	number := p[0]
	unix.Close(p[0])
	unix.Close(p[1])
	if p = pair(); p[0] != number {
		t.Fatalf("the next descriptor is %d, not %d again", p[0], number)
	}
	e.forget()
	unix.Write(p[1], []byte("x"))
	want(p[0], forever, false, false)
	unix.Close(p[1])
	unix.Close(p[0])
	want(-1, forever, false, true)
}
