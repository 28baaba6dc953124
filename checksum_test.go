package xdpd_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/proto"
	"xdpd/sockets"
)

// txChecksum is ethtool -K tx on|off on the engine's end.
func txChecksum(t *testing.T, lab *netlab.Lab, on string) {
	t.Helper()
	in(t, lab.Engine, func() error {
		if out, err := exec.Command("ethtool", "-K", lab.EngineDev, "tx", on).CombinedOutput(); err != nil {
			return fmt.Errorf("ethtool: %w: %s", err, out)
		}
		return nil
	})
}

// TestTXChecksum looks at the checksums that the engine sends, at the other end of the veth: of larger packets unfinished
// where the device says that it finishes them, else whole; and the kernel takes them all.
func TestTXChecksum(t *testing.T) {
	for _, c := range []struct {
		name           string
		before, during string // tx on|off when the engine begins, and then
		own            bool   // Config.NoTXChecksum
		device, left   bool
	}{
		{"on", "on", "on", false, true, true},
		{"off", "off", "off", false, false, false},
		{"off later", "on", "off", false, true, false},
		{"on later", "off", "on", false, false, false},
		{"not wanted", "on", "on", true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var o netlab.Options
			if c.before == "on" || c.during == "on" {
				o.Veth = "what is left to the device is whole when it is on their wire"
			}
			lab := newLab(t, o)
			txChecksum(t, lab, c.before)
			cfg := engineConfig(lab)
			cfg.NoTXChecksum = c.own
			stack := openStack(t, lab, cfg)
			txChecksum(t, lab, c.during)
			if st := getStats(t, stack).Checksums; st.Device != c.device || st.What == "" {
				t.Errorf("the device finishes checksums: %v (%s), want %v", st.Device, st.What, c.device)
			}
			testTXChecksum(t, lab, stack, c.left)
			if left := counted(t, stack, sockets.TxPartialSum) > 0; left != c.device {
				t.Errorf("checksums were left to the device: %v, want %v", left, c.device)
			}
		})
	}
}

func testTXChecksum(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, left bool) {
	_, to := echo(t, lab, stack)
	udp := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	w := openWire(t, lab.Peer, lab.PeerDev, unix.ETH_P_IP)
	for _, n := range []int{10, 900, 1200, 1201, 1472} {
		if err := tryAsk(udp, string(bytes.Repeat([]byte{byte(n)}, n)), patience); err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		wantSum(t, w, proto.ProtoUDP, n+8, left && n > 1000)
	}
	serveTCPEcho(t, stack, 7)
	tcp, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 7))
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	sent := bytes.Repeat([]byte("0123456"), 171)
	if _, err := tcp.Write(sent); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(tcp, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("the answer is wrong: %v", err)
	}
	wantSum(t, w, proto.ProtoTCP, 32+len(sent), left)
}

// wantSum waits for a packet with a message of n bytes and looks at its checksum.
func wantSum(t *testing.T, w *wire, protocol uint8, n int, left bool) {
	t.Helper()
	b := w.next("the engine's packet", func(b []byte) bool {
		return int(binary.BigEndian.Uint16(b[16:])) == 20+n && b[23] == protocol
	})[:34+n] // a NIC pads short ones
	field := map[uint8]int{proto.ProtoUDP: 6, proto.ProtoTCP: 16}[protocol]
	sum := binary.BigEndian.Uint16(b[34+field:])
	pseudo := proto.PseudoSum(proto.GetAddr(b[26:]), proto.GetAddr(b[30:]), protocol, n)
	want := proto.L4Good
	if left {
		want = proto.L4Partial
	}
	if is := proto.VerifyL4(b[34:], sum, pseudo); is != want {
		t.Errorf("protocol %d, %d bytes: the checksum is %v, want %v", protocol, n, is, want)
	}
}
