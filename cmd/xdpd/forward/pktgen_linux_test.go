package forward

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/proto"
	"xdpd/scripts"
	"xdpd/umem"
)

// TestKernelPktgen: what the kernel's own generator sends into the one wire comes out of the other, every number once and whole,
// and no byte was copied. Without that generator TestWires and TestEverySequenceNumber say the same of ours.
func TestKernelPktgen(t *testing.T) {
	if _, err := os.Stat("/proc/net/pktgen/pgctrl"); errors.Is(err, os.ErrNotExist) && netlab.NICs() == nil {
		return
	}
	w := wires(t)
	for _, router := range []bool{false, true} {
		t.Logf("router: %v", router) // on this thread, which is in the namespace
		pktgenAcross(t, w, router)
	}
}

func pktgenAcross(t *testing.T, w [4]string, router bool) {
	const count = 2000 // what rings hold, whoever gets a CPU when
	l, dst, end := between(t, w[1], w[2], w[3], router)
	defer end()
	out := listenOn(t, w[3])
	defer unix.Close(out)
	awaitLinks(t, w[:]...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	told, err := exec.CommandContext(ctx, "bash", "-c", scripts.Pktgen, "pktgen", "-i", w[0], "-d", "10.78.0.1", "-m", dst.String(),
		"--src", "10.77.0.2", "--sport", "1024-1027", "-n", fmt.Sprint(count), "-s", "64:1,594:1,1518:1", "--ratep", "2000").CombinedOutput()
	var sent, refused, usec int
	if _, scan := fmt.Sscanf(string(told), "sent %d errors %d usec %d", &sent, &refused, &usec); err != nil || scan != nil || sent != count {
		t.Fatalf("pktgen: %v, %v: %s", err, scan, told)
	}
	sizes := map[int]int{}
	var seen [count + 1]int // they count from 1
	for range count {
		seq, size := nextPktgen(t, out, router)
		if seq < 1 || seq > count {
			t.Fatalf("packet number %d", seq)
		}
		seen[seq]++
		sizes[size]++
	}
	for seq, n := range seen[1:] {
		if n != 1 {
			t.Errorf("packet %d came %d times", seq+1, n)
		}
	}
	if !slices.Equal(slices.Sorted(maps.Keys(sizes)), []int{60, 590, 1514}) {
		t.Errorf("frames by size: %v", sizes)
	}
	st := l.stats()
	if st.Copied() != 0 || st.Ports[0].Counters.RxFrames < count || st.Ports[1].Counters.TxFrames < count || l.f.ledger.Moves(umem.Fill, umem.RX) < count {
		t.Errorf("%d bytes were copied, ports %+v", st.Copied(), st.Ports)
	}
	t.Logf("%d packets in %d ms, by size %v; copied %d bytes; zero copy %v and %v", sent, usec/1000, sizes, st.Copied(),
		st.Ports[0].ZeroCopy, st.Ports[1].ZeroCopy)
}

// listenOn opens a packet socket with room for everything.
func listenOn(t *testing.T, name string) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience.Seconds())}))
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xff<<8, Ifindex: link(t, name).Attrs().Index}))
	return fd
}

// nextPktgen receives a packet with the generator's header (struct pktgen_hdr, net/core/pktgen.c), whose sums must be right.
func nextPktgen(t *testing.T, fd int, router bool) (seq uint32, size int) {
	t.Helper()
	buf := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR { // the Go runtime's signals
			continue
		}
		must(t, err)
		frame := buf[:n]
		eth, fault := proto.ParseEthernet(frame)
		if fault != 0 {
			t.Fatalf("%v: %x", fault, frame)
		}
		ip, fault := proto.ParseIPv4(frame[eth.Len:])
		if fault != 0 {
			t.Fatalf("%v: %x", fault, frame)
		}
		segment := frame[eth.Len:][ip.HeaderLen:ip.TotalLen]
		if len(segment) < 16 || binary.BigEndian.Uint32(segment[8:]) != 0xbe9be955 {
			continue // not pktgen's
		}
		if router == (ip.TTL == 32) {
			t.Fatalf("TTL %d", ip.TTL)
		}
		udp, fault := proto.ParseUDP(segment)
		if sum := proto.VerifyL4(segment, udp.Checksum, proto.PseudoSum(ip.Src, ip.Dst, proto.ProtoUDP, len(segment))); fault != 0 || sum != proto.L4Good {
			t.Fatalf("%v, sum %v: %x", fault, sum, frame)
		}
		return binary.BigEndian.Uint32(segment[12:]), n
	}
}
