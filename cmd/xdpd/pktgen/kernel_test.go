package pktgen

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const idle = `Params: count 1000  min_pkt_size: 60  max_pkt_size: 60
Current:
     pkts-sofar: 77  errors: 2
Result: OK: 41937(c41927+d10) usec, 1000 (60byte,0frags)
  23844pps 11Mb/sec (11445120bps) errors: 3
`

// fakePktgen is a directory like /proc/net/pktgen, whose device has sent already.
func fakePktgen(t *testing.T, device string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"pgctrl": "", "kpktgend_0": "", "kpktgend_1": "", "xb0@1": device} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PKTGEN_PROC", dir)
	return dir
}

func kernelConfig(t *testing.T) *Config {
	t.Helper()
	c := &Config{
		Interface: "xb0", Source: "kernel", Sizes: Sizes{{64, 1}}, Count: 1000, Burst: 1, CPU: 1,
		SrcMAC: MAC{[6]byte{2, 0, 0, 0, 0, 1}}, DstMAC: MAC{[6]byte{2, 0, 0, 0, 0, 2}},
		Flows: Flows{
			Src: Addrs{addr(10, 77, 0, 1), addr(10, 77, 0, 1)}, Dst: Addrs{addr(10, 77, 0, 2), addr(10, 77, 0, 2)},
		},
	}
	if err := c.settle(); err != nil {
		t.Fatal(err)
	}
	return c
}

// commands is what was written to the files, one line a command, with the file's name in front.
func commands(t *testing.T, dir, device string) string {
	t.Helper()
	var out strings.Builder
	for _, name := range []string{"kpktgend_1", "xb0@1", "pgctrl"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(strings.TrimPrefix(string(text), device)) {
			out.WriteString(name + ": " + line)
		}
	}
	return out.String()
}

func TestKernelCommands(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"kernel-plain.txt": func(*Config) {},
		"kernel-all.txt": func(c *Config) {
			c.Src.Last, c.Dst.Last, c.Sport, c.Dport = c.Src.Last+3, c.Dst.Last+4, Ports{1000, 1999}, Ports{7, 9}
			c.N, c.Sizes, c.Rate, c.Queue, c.Burst = 5000, imix, Rate{Packets: 250e3}, 2, 8
		},
	} {
		dir := fakePktgen(t, idle)
		c := kernelConfig(t)
		change(c)
		s, err := newKernelSource(c)
		if err != nil {
			t.Fatal(err)
		}
		if now, err := s.sent(); err != nil || now.Packets != 77 || now.Errors != 2 {
			t.Errorf("while it runs %+v, %v", now, err)
		}
		if err := s.run(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden(t, name, commands(t, dir, idle))
		want := Sent{Packets: 1000, Bytes: uint64(1000 * (c.Sizes.mean() - fcs)), Errors: 3, Took: 41937 * time.Microsecond}
		if got, err := s.sent(); err != nil || got != want {
			t.Errorf("%s: sent %+v, %v, want %+v", name, got, err, want)
		}
	}
}

func TestKernelErrors(t *testing.T) {
	for name, c := range map[string]struct {
		change func(dir string, c *Config)
		want   string
	}{
		"no pktgen": {func(dir string, _ *Config) { _ = os.Remove(filepath.Join(dir, "pgctrl")) }, "is not there: the kernel has no pktgen (CONFIG_NET_PKTGEN, modprobe pktgen)"},
		"no CPU":    {func(_ string, c *Config) { c.CPU = 7 }, "--cpu 7: there is no"},
		"refused":   {func(dir string, _ *Config) { unwritable(filepath.Join(dir, "kpktgend_1")) }, "the kernel refuses"},
		"no result": {func(dir string, _ *Config) { _ = os.WriteFile(filepath.Join(dir, "xb0@1"), nil, 0o600) }, "the kernel says: no result"},
		"bad": {func(dir string, _ *Config) {
			_ = os.WriteFile(filepath.Join(dir, "xb0@1"), []byte("Result: ERROR: no such thing\n"), 0o600)
		}, "the kernel says: Result: ERROR: no such thing"},
	} {
		dir := fakePktgen(t, idle)
		cfg := kernelConfig(t)
		c.change(dir, cfg)
		s, err := newKernelSource(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.run(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	cfg := kernelConfig(t)
	cfg.N = kernelFlows + 1
	if _, err := newKernelSource(cfg); err == nil || !strings.Contains(err.Error(), "at most 65536") {
		t.Errorf("too many flows: %v", err)
	}
}

// unwritable makes a file one that cannot be written to.
func unwritable(path string) {
	_ = os.Remove(path)
	_ = os.Mkdir(path, 0o700)
}

// TestKernelStops: while pktgen sends, the write of "start" does not return; the end of the context ends it, and the result
// is told all the same.
func TestKernelStops(t *testing.T) {
	dir := fakePktgen(t, idle)
	control := filepath.Join(dir, "pgctrl")
	if err := os.Remove(control); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(control, 0o600); err != nil { // nobody reads from it
		t.Fatal(err)
	}
	s, err := newKernelSource(kernelConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		// The last command before the start is in the device's file.
		for !strings.Contains(commandsSoFar(dir), "UDPCSUM") {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if err := s.run(ctx); err != nil {
		t.Fatal(err)
	}
	// It may have been stopped just before the start.
	if got, _ := s.sent(); got.Packets != 1000 && got != (Sent{}) {
		t.Errorf("sent %+v", got)
	}
	thread, err := os.ReadFile(filepath.Join(dir, "kpktgend_1"))
	if err != nil || !strings.HasSuffix(string(thread), "rem_device_all\n") {
		t.Errorf("the device is still there: %q, %v", thread, err)
	}
}

func commandsSoFar(dir string) string {
	text, _ := os.ReadFile(filepath.Join(dir, "xb0@1"))
	return string(text)
}
