package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlace reads a machine of two nodes with a PCI and a virtio device, and this one's.
func TestPlace(t *testing.T) {
	root := t.TempDir()
	put := func(path, text string) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, cpus := range []string{"0-7", "8-15"} {
		put("sys/devices/system/node/node"+string(rune('0'+i))+"/cpulist", cpus)
	}
	put("proc/interrupts", "  CPU0 CPU1\n  9:  1  2  PCI-MSI 0-edge  eth0-TxRx-1\n 100:  1  2  PCI-MSI 1-edge  eth0-TxRx-0\nNMI: 0 0 Non-maskable")
	put("proc/irq/9/effective_affinity_list", "3")
	put("proc/irq/100/effective_affinity_list", "12")
	for _, dev := range []struct{ name, pci, dir string }{
		{"eth0", "sys/devices/pci0/0000:00:04.0", ""}, {"eth1", "sys/devices/pci0/0000:00:05.0", "/virtio1"},
	} {
		put(dev.pci+"/numa_node", "1")
		put(dev.pci+"/msi_irqs/100", "msix")
		put(dev.pci+"/msi_irqs/9", "msix")
		put(dev.pci+dev.dir+"/driver", "")
		put("sys/class/net/"+dev.name+"/ifindex", "7")
		if err := os.Symlink(filepath.Join(root, dev.pci+dev.dir), filepath.Join(root, "sys/class/net", dev.name, "device")); err != nil {
			t.Fatal(err)
		}
		f := placeFinding(placeOf(root, dev.name, 7))
		const want = "NUMA node 1 of 2, CPUs 8-15, interrupt 9 (eth0-TxRx-1) on CPU 3, interrupt 100 (eth0-TxRx-0) on CPU 12"
		if f.Text != want || !strings.Contains(f.Cure, "8-15") {
			t.Errorf("%s: %q, cure %q", dev.name, f.Text, f.Cure)
		}
	}
	if f := placeFinding(placeOf(root, "eth0", 8)); !strings.Contains(f.Text, "in software") {
		t.Errorf("an interface of that name in another namespace: %q", f.Text)
	}
	put("sys/devices/pci0/0000:00:04.0/numa_node", "-1")
	if f := placeFinding(placeOf(root, "eth0", 7)); !strings.Contains(f.Text, "does not say") || f.Cure != "" {
		t.Errorf("a device without a node: %q, %q", f.Text, f.Cure)
	}
	if f := placeFinding(placeOf("/", "lo", 1)); !strings.Contains(f.Text, "in software") {
		t.Errorf("loopback: %q", f.Text)
	}
}
