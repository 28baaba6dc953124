package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"xdpd/rings"
)

// place is where a device is in the machine: what reactors and their memory should be near to.
type place struct {
	node  int    // NUMA node; -1: the machine has one, or the device does not say
	nodes int    // of the machine
	cpus  string // of the node, as 0-3,8
	irqs  []irq
}

type irq struct {
	number int
	name   string
	cpus   string // that take it now
}

// placeOf reads it from sysfs and procfs, which are at root. ok is false for a device that is in software only.
func placeOf(root, name string, index int) (p place, ok bool) {
	read := func(path ...string) string {
		b, _ := os.ReadFile(filepath.Join(append([]string{root}, path...)...))
		return strings.TrimSpace(string(b))
	}
	p.node = -1
	if read("sys/class/net", name, "ifindex") != strconv.Itoa(index) { // of another namespace
		return p, false
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(root, "sys/class/net", name, "device"))
	if err != nil {
		return p, false
	}
	var numbers []os.DirEntry
	for range 2 { // virtio devices hang below the PCI device that has the interrupts
		if numbers, err = os.ReadDir(filepath.Join(dir, "msi_irqs")); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	nodes, _ := filepath.Glob(filepath.Join(root, "sys/devices/system/node/node[0-9]*"))
	p.nodes = len(nodes)
	b, _ := os.ReadFile(filepath.Join(dir, "numa_node"))
	if node, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && node >= 0 {
		p.node, p.cpus = node, read("sys/devices/system/node", fmt.Sprintf("node%d", node), "cpulist")
	}
	names := irqNames(read("proc/interrupts"))
	for _, n := range numbers {
		if number, err := strconv.Atoi(n.Name()); err == nil {
			p.irqs = append(p.irqs, irq{number, names[number], read("proc/irq", n.Name(), "effective_affinity_list")})
		}
	}
	slices.SortFunc(p.irqs, func(a, b irq) int { return a.number - b.number })
	return p, true
}

// irqNames are the last words of the lines of /proc/interrupts.
func irqNames(text string) map[int]string {
	names := make(map[int]string)
	for line := range strings.Lines(text) {
		number, rest, _ := strings.Cut(line, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(number)); err == nil {
			if f := strings.Fields(rest); len(f) > 0 {
				names[n] = f[len(f)-1]
			}
		}
	}
	return names
}

// checkPlace says which CPUs are the device's.
func (d *trialDevice) checkPlace() finding {
	p, ok := placeOf("/", d.name, d.index)
	f := placeFinding(p, ok)
	if sizes, err := rings.ReadRingSizes(d.name); err == nil {
		f.Text += fmt.Sprintf("; rings of %d packets to receive (at most %d) and %d to send (%d)", sizes.RX, sizes.MaxRX, sizes.TX, sizes.MaxTX)
	}
	return f
}

const irqsShown = 16

func placeFinding(p place, ok bool) finding {
	f := finding{Name: "place", Text: "in software: no interrupts and no NUMA node of its own"}
	if !ok {
		return f
	}
	f.Text = "the device does not say its NUMA node"
	if p.node >= 0 {
		f.Text = fmt.Sprintf("NUMA node %d of %d, CPUs %s", p.node, p.nodes, p.cpus)
	}
	if p.nodes > 1 && p.node >= 0 {
		f.Cure = "none is needed, but reactors are faster on the device's node: --cpu with CPUs of " + p.cpus
	}
	if p.nodes == 1 {
		f.Text = "the machine has one NUMA node"
	}
	for i, q := range p.irqs {
		if i == irqsShown {
			f.Text += fmt.Sprintf(", and %d more", len(p.irqs)-i)
			break
		}
		f.Text += fmt.Sprintf(", interrupt %d (%s) on CPU %s", q.number, q.name, q.cpus)
	}
	return f
}
