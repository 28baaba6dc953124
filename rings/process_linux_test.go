package rings

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/internal/seeds"
)

var ringProcesses = flag.Duration("ringprocesses", 5*time.Second, "how long TestRingProcesses runs")

const (
	processEnv   = "XDPD_TEST_RING" // seed and time, of the application
	processBytes = 1024             // of memory for each request
	processSlots = 96
	processCQ    = 32 // fewer than requests: the engine has to wait for room
)

// TestRingProcesses: an engine's end and an application's, in processes of their own, as fast as they can, awake and asleep. Each SQE has
// a checksum over itself and the memory that it names, each CQE one over itself and what the engine wrote there; each comes once, and
// none is late for a knock that was lost.
func TestRingProcesses(t *testing.T) {
	if os.Getenv(processEnv) != "" {
		if err := runApplication(); err != nil {
			fmt.Fprintln(os.Stderr, "application:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	seed, _ := seeds.From(t, 1)
	s, err := NewShare(&ShareHello{SQEntries: 16, CQEntries: processCQ, Data: processSlots * processBytes})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	engine := s.Layout.Engine(s.Ring)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := knockConn(pair[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	memory, err := unix.Dup(s.FD())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestRingProcesses$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %d", processEnv, seed, int64(*ringProcesses), len(s.mem)))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(memory), "rings"), os.NewFile(uintptr(pair[1]), "knocks")}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	e := &processEngine{end: engine, data: s.Data, rng: rand.New(rand.NewPCG(seed, 1))}
	e.knocker = knocker{conn: conn}
	err = e.run()
	conn.Close()
	if werr := cmd.Wait(); err != nil || werr != nil {
		t.Fatalf("XDPD_SEED=%d, after %d entries: engine: %v; application: %v", seed, e.n, err, werr)
	}
	t.Logf("%d entries each way in %v; the engine slept %d times and knocked %d times", e.n, *ringProcesses, e.slept, e.knocked)
	if e.n == 0 || e.slept == 0 || e.knocked == 0 {
		t.Error("something was not tried")
	}
}

// knocker is the connection of one end.
type knocker struct {
	conn           *net.UnixConn
	slept, knocked int
}

func knockConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "knocks")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// knock wakes the other end. Of one that ended the next read tells.
func (k *knocker) knock() {
	k.knocked++
	_, _ = k.conn.Write([]byte{1})
}

// wait waits for a knock.
func (k *knocker) wait() error {
	k.slept++
	if err := k.conn.SetReadDeadline(time.Now().Add(netlab.Patience)); err != nil {
		return err
	}
	_, err := k.conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("nobody knocked")
	}
	return err
}

// sealSQE is what an SQE's Off is to be: a checksum of all else in it, and of the memory.
func sealSQE(s SQE, mem []byte) uint64 {
	s.Off = 0
	b, _ := binary.Append(nil, binary.NativeEndian, s.UserData)
	b, _ = binary.Append(b, binary.NativeEndian, []uint64{s.Addr, s.Addr3, uint64(s.Len)<<32 | uint64(s.OpFlags), uint64(s.Opcode)<<8 | uint64(s.Flags)})
	b, _ = binary.Append(b, binary.NativeEndian, []uint32{uint32(s.FD), s.FileIndex, uint32(s.BufGroup)<<16 | uint32(s.IOPrio)})
	return uint64(crc32.Update(crc32.ChecksumIEEE(b), crc32.IEEETable, mem))
}

// sealCQE is what a CQE's Res is to be.
func sealCQE(c CQE, mem []byte) int32 {
	b := binary.NativeEndian.AppendUint64(nil, c.UserData)
	b = binary.NativeEndian.AppendUint32(b, c.Flags)
	return int32(crc32.Update(crc32.ChecksumIEEE(b), crc32.IEEETable, mem))
}

// processEngine checks each SQE, writes an answer in its memory and completes it.
type processEngine struct {
	knocker
	end  *RingEngine
	data []byte
	rng  *rand.Rand
	n    uint64
}

func (e *processEngine) run() error {
	for {
		idx, n := e.end.SQ.Peek(1 + e.rng.Uint32N(16))
		if n == 0 {
			if err := e.sleep(); errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) { // a knock was still unread
				return nil // the application has all that it wanted, or says itself what was wrong
			} else if err != nil {
				return err
			}
			continue
		}
		for k := range n {
			if err := e.serve(e.end.SQ.Read(idx + k)); err != nil {
				return err
			}
		}
		e.end.SQ.Release(n)
		e.publish()
	}
}

// sleep looks again a few times, and sleeps as a reactor does.
func (e *processEngine) sleep() error {
	for range e.rng.IntN(100) {
		if e.end.SQ.Avail() > 0 {
			return nil
		}
	}
	e.end.SQ.SetNeedWakeup(true)
	defer e.end.SQ.SetNeedWakeup(false)
	if e.end.SQ.Avail() > 0 {
		return nil
	}
	return e.wait()
}

func (e *processEngine) serve(s SQE) error {
	mem := e.data[s.Addr:][:s.Len]
	if got, want := sealSQE(s, mem), s.Off; got != want {
		return fmt.Errorf("%+v: checksum %x, want %x", s, got, want)
	}
	for i := range mem {
		mem[i] ^= byte(s.UserData) + byte(i)
	}
	c := CQE{UserData: s.UserData, Flags: s.OpFlags}
	c.Res = sealCQE(c, mem)
	idx, got := e.end.CQ.Reserve(1)
	for end := time.Now().Add(netlab.Patience); got == 0; idx, got = e.end.CQ.Reserve(1) { // the CQ is full
		e.publish()
		if time.Now().After(end) {
			return errors.New("nobody takes completions")
		}
	}
	*e.end.CQ.Slot(idx) = c
	e.n++
	return nil
}

func (e *processEngine) publish() {
	idx, _ := e.end.CQ.Reserve(0)
	e.end.CQ.Submit(e.end.CQ.Reserved())
	if wake, _ := e.end.Sleeper(idx, idx); wake {
		e.knock()
	}
}

// processApp has as many requests in flight as there are places for.
type processApp struct {
	knocker
	app   *RingApp
	data  []byte
	rng   *rand.Rand
	free  []int
	wants [processSlots]uint64 // user data of what is in flight; 0: nothing
	sums  [processSlots]uint32 // of its memory, as the engine is to leave it
	lens  [processSlots]uint32
	sent  uint64
	got   uint64
}

func runApplication() error {
	var seed uint64
	var ns int64
	var size uint64
	if _, err := fmt.Sscan(os.Getenv(processEnv), &seed, &ns, &size); err != nil {
		return err
	}
	conn, err := knockConn(4)
	if err != nil {
		return err
	}
	page := uint64(os.Getpagesize())
	l, err := LayoutRing(16, processCQ)
	if err != nil {
		return err
	}
	at := (uint64(l.Size) + page - 1) &^ (page - 1)
	s, err := JoinShare(3, &ShareWelcome{Size: size, Data: at, DataLen: processSlots * processBytes})
	if err != nil {
		return err
	}
	app, _, err := App(s.Ring)
	if err != nil {
		return err
	}
	a := &processApp{knocker: knocker{conn: conn}, app: app, data: s.Data, rng: rand.New(rand.NewPCG(seed, 2))}
	for i := range processSlots {
		a.free = append(a.free, i)
	}
	for until := time.Now().Add(time.Duration(ns)); time.Now().Before(until) || a.got < a.sent; {
		if time.Now().Before(until) {
			a.submit(1 + a.rng.IntN(8))
		}
		if err := a.reap(); err != nil {
			return err
		}
	}
	if a.slept == 0 || a.knocked == 0 {
		return fmt.Errorf("it slept %d times and knocked %d times", a.slept, a.knocked)
	}
	return nil
}

func (a *processApp) submit(n int) {
	for range min(n, len(a.free)) {
		idx, got := a.app.SQ.Reserve(1)
		if got == 0 {
			break
		}
		slot := a.free[len(a.free)-1]
		a.free = a.free[:len(a.free)-1]
		a.sent++
		s := SQE{
			UserData: a.sent<<8 | uint64(slot), Addr: uint64(slot * processBytes), Len: a.rng.Uint32N(processBytes), OpFlags: a.rng.Uint32(),
			Addr3: a.rng.Uint64(), Opcode: Op(a.rng.Uint32()), Flags: uint8(a.rng.Uint32()), FD: int32(a.rng.Uint32()),
			FileIndex: a.rng.Uint32(), BufGroup: uint16(a.rng.Uint32()), IOPrio: uint16(a.rng.Uint32()),
		}
		mem := a.data[s.Addr:][:s.Len]
		for i := range mem {
			mem[i] = byte(s.Addr3>>(i&7)) + byte(i)
		}
		s.Off = sealSQE(s, mem)
		answer := make([]byte, len(mem))
		for i := range mem {
			answer[i] = mem[i] ^ (byte(s.UserData) + byte(i))
		}
		a.wants[slot], a.sums[slot] = s.UserData, uint32(sealCQE(CQE{UserData: s.UserData, Flags: s.OpFlags}, answer))
		a.lens[slot] = s.Len
		*a.app.SQ.Slot(idx) = s
		if a.rng.IntN(4) == 0 {
			a.publish()
		}
	}
	a.publish()
}

func (a *processApp) publish() {
	n := a.app.SQ.Reserved()
	a.app.SQ.Submit(n)
	if n > 0 && a.app.SQ.NeedWakeup() {
		a.knock()
	}
}

func (a *processApp) reap() error {
	idx, n := a.app.CQ.Peek(1 + a.rng.Uint32N(8))
	if n == 0 && a.got < a.sent {
		for range a.rng.IntN(100) {
			if idx, n = a.app.CQ.Peek(1); n > 0 {
				break
			}
		}
		if n == 0 {
			most := min(a.sent-a.got, processCQ)
			return a.sleep(idx + 1 + a.rng.Uint32N(uint32(most)))
		}
	}
	for k := range n {
		c := a.app.CQ.Read(idx + k)
		slot := int(c.UserData & 0xff)
		if slot >= processSlots || a.wants[slot] != c.UserData {
			return fmt.Errorf("%+v: nobody asked for it, or it came before", c)
		}
		mem := a.data[slot*processBytes:][:a.lens[slot]] // what the engine wrote there is to be seen with the completion
		if got := sealCQE(c, mem); got != c.Res || uint32(got) != a.sums[slot] {
			return fmt.Errorf("%+v: checksum of what is there %x, of what is to be there %x", c, uint32(got), a.sums[slot])
		}
		a.wants[slot] = 0
		a.free = append(a.free, slot)
		a.got++
	}
	a.app.CQ.Release(n)
	return nil
}

// sleep waits until the tail is the wanted one.
func (a *processApp) sleep(want uint32) error {
	a.app.Sleep(want)
	defer a.app.Awake()
	for a.app.CQ.Avail() < want-a.app.CQ.next {
		if err := a.wait(); err != nil {
			return err
		}
	}
	return nil
}
