package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"xdpd/internal/netlab"
)

// measurement is a work, under a load, in a kind of network. Each round every contender that a chosen row names does it once.
type measurement struct {
	name string
	work string
	load load
	lab  netlab.Options
	unit string // of the load's rate
	cold bool   // without a warm-up
	once bool   // in the first round only: it says the same each time

	serve []string // more flags of the contender, if it is in this program
}

// measurements in the order in which a round takes them.
var measurements = []*measurement{
	{name: "raw-echo", work: "raw-echo", load: flood{}, unit: "Mpps", cold: true},
	{name: "raw-tx", work: "raw-tx", load: watch{}, unit: "Mpps", cold: true},
	{name: "udp-open", work: "udp-echo", load: flood{}, unit: "Mpps", cold: true},
	{name: "udp-window", work: "udp-echo", load: udpload("-w", "64"), unit: "Mpps"},
	{name: "udp-rtt", work: "udp-echo", load: udpload("-w", "1", "-s"), unit: "Mpps"},
	{name: "tcp-rr", work: "tcp-echo", load: engineLoad{"rr", []string{"-c", "64"}}, unit: "k/s"},
	{name: "tcp-rr-kernel", work: "tcp-echo", load: tcpload("rr", "-c", "64"), unit: "k/s"},
	{name: "http", work: "http", load: wrk{conns: 32}, unit: "k/s", cold: true},
	{name: "tcp-accept", work: "tcp-accept", load: engineLoad{"connect", []string{"-c", "64", "--close", "peer"}}, unit: "k/s", cold: true}, // the ports of a warm-up would be in TIME-WAIT
	{name: "tcp-accept-kernel", work: "tcp-accept", load: tcpload("connect", "-c", "32"), unit: "k/s"},
	{name: "bulk-1500-in", work: "tcp-sink", load: tcpload("bulk-send"), lab: veth(1500), unit: "Gbit/s"},
	{name: "bulk-1500-out", work: "tcp-source", load: tcpload("bulk-recv"), lab: veth(1500), unit: "Gbit/s"},
	{name: "bulk-9000-in", work: "tcp-sink", load: tcpload("bulk-send"), lab: veth(9000), unit: "Gbit/s"},
	{name: "bulk-9000-out", work: "tcp-source", load: tcpload("bulk-recv"), lab: veth(9000), unit: "Gbit/s"},
	{name: "bulk-64k-in", work: "tcp-sink", load: tcpload("bulk-send"), lab: veth(65535), unit: "Gbit/s"},
	{name: "bulk-64k-out", work: "tcp-source", load: tcpload("bulk-recv"), lab: veth(65535), unit: "Gbit/s"},
	{name: "idle", work: "udp-echo", load: seldom{}, cold: true},
	{name: "memory", load: memory{}, cold: true, once: true},
}

// veth is the network of bulk transfers: as veth is by itself, with checksums left to nobody.
func veth(mtu int) netlab.Options { return netlab.Options{MTU: mtu, TxOffload: true} }

// The curves are of measurements and rows as well, which come last.
func init() {
	ms, more := grown()
	measurements, rows = append(measurements, ms...), append(rows, more...)
}

func measurementOf(name string) *measurement {
	i := slices.IndexFunc(measurements, func(m *measurement) bool { return m.name == name })
	return measurements[i] // rows name measurements that are there: TestRows
}

// unitOf is what a quantity's value is in.
func (m *measurement) unitOf(q quantity) string {
	switch q.name {
	case rate.name:
		return m.unit
	case cpu.name:
		if m.unit == "Gbit/s" {
			return "ns/kB"
		}
		return "ns"
	case p50.name, p99.name:
		return "µs"
	case busy.name:
		return "of a core"
	}
	return q.name
}

// row is a comparison: one contender's quantity with another's, or with a figure.
type row struct {
	name            string // what -only chooses by
	on              string // a measurement
	q               quantity
	one, other      string
	target, stretch float64 // of one/other: at least, or at most where less is better; 0: none
	than            string  // the measurement of the other, if it is not the same
	base            float64 // the figure, if there is no other
	figure          string  // what it is called
}

// rows are what the engine is to be measured by, and against whom, with what it is to reach.
var rows = slices.Concat(
	[]row{
		{name: "raw-echo", on: "raw-echo", q: rate, one: "raw", other: "xsk", target: .97, stretch: 1},
		{name: "raw-tx", on: "raw-tx", q: rate, one: "raw", other: "xsk", target: .97, stretch: 1},
	},
	against("udp-open", "udp-open", rate, "xdpd", goal{"kernel-c", 2.5, 3}, goal{"net", 3.5, 4.5}, goal{"uring", 0, 0}, anyAsavie, anyGvisor),
	against("udp-open-net", "udp-open", rate, "xdpd-net", goal{"kernel-c", 2.2, 2.5}, goal{"net", 3, 3.6}),
	against("udp-window", "udp-window", rate, "xdpd", goal{"kernel-c", 1.8, 2}, goal{"net", 2.3, 2.5}, goal{"uring", 0, 0}, anyAsavie, anyGvisor),
	against("udp-rtt", "udp-rtt", p50, "xdpd", goal{"net", .3, .22}, goal{"kernel-c-spin", .8, .66}, goal{"asavie", 1 / 1.3, 1. / 2}, goal{"gvisor-noqdisc", 1. / 3, 1. / 5}),
	against("udp-rtt", "udp-rtt", p99, "xdpd", goal{"net", .15, .13}),
	against("tcp-rr", "tcp-rr", rate, "xdpd", goal{"kernel-c", 1.5, 2}, goal{"gvisor", 5, 8}, goal{"uring", 0, 0}, goal{"net", 0, 0}, anyAsavie),
	against("tcp-rr-kernel", "tcp-rr-kernel", rate, "xdpd", goal{"kernel-c", 0, 0}, goal{"net", 0, 0}),
	clients("client-net", "xdpd-net", "net"), clients("client-ring", "xdpd", "kernel-c", "uring"), clients("client-c", "xdpd", "kernel-c", "uring"),
	against("client-bulk-in", "bulk-1500-in", rate, "client-net", goal{"xdpd-net", 0, 0}, goal{"kernel-c-nogso", 0, 0}),
	against("client-bulk-out", "bulk-1500-out", rate, "client-net", goal{"xdpd-net", 0, 0}, goal{"kernel-c-nogso", 0, 0}),
	against("client-http", "http", rate, "client-net", goal{"xdpd-net", 0, 0}, goal{"net", 0, 0}),
	against("http", "http", rate, "xdpd-net", goal{"net", 1.2, 1.5}, goal{"gvisor", 3, 4}),
	against("tcp-accept", "tcp-accept", rate, "xdpd", goal{"kernel-c", 2, 4}, anyAsavie, anyGvisor),
	against("tcp-accept-kernel", "tcp-accept-kernel", rate, "xdpd", goal{"kernel-c", 0, 0}),
	bulk("bulk-1500-in"), bulk("bulk-1500-out"),
	against("bulk-9000-in", "bulk-9000-in", rate, "xdpd", goal{"kernel-c-nogso", .9, 1}),
	against("bulk-9000-out", "bulk-9000-out", rate, "xdpd", goal{"kernel-c-nogso", .9, 1}),
	against("bulk-64k-in", "bulk-64k-in", rate, "xdpd", goal{"kernel-c", .7, .9}),
	against("bulk-64k-out", "bulk-64k-out", rate, "xdpd", goal{"kernel-c", .7, .9}),
	[]row{
		{name: "idle-memory", on: "memory", q: each, one: "xdpd", target: 1, stretch: .7, base: 250, figure: "250 bytes"},
		{name: "idle-cpu", on: "idle", q: busy, one: "xdpd", target: 1, base: .01, figure: "1 % of a core"},
		{name: "idle-first", on: "idle", q: p50, one: "xdpd", other: "kernel-c", target: 1.2},
	},
)

// goal is what is to be reached against a contender.
type goal struct {
	other           string
	target, stretch float64
}

// What any of the rows is to reach against these two.
var (
	anyAsavie = goal{"asavie", 1.3, 2}
	anyGvisor = goal{"gvisor", 3, 5}
)

func against(name, on string, q quantity, one string, goals ...goal) []row {
	var out []row
	for _, g := range goals {
		out = append(out, row{name: name, on: on, q: q, one: one, other: g.other, target: g.target, stretch: g.stretch})
	}
	return out
}

// clients are rows of an application in a process of its own, against who does its work in his own.
func clients(one string, others ...string) []row {
	var goals []goal
	for _, name := range others {
		goals = append(goals, goal{other: name})
	}
	return slices.Concat(against(one+"-rtt", "udp-rtt", p50, one, goals...), against(one+"-window", "udp-window", rate, one, goals...))
}

func bulk(name string) []row {
	return against(name, name, rate, "xdpd", goal{"kernel-c-nogso", 1.5, 1.8}, goal{"kernel-c", .6, .8}, anyAsavie, anyGvisor)
}

// work and against are what a row is called in the result.

func (w row) work() string {
	if w.than != "" {
		return fmt.Sprintf("%s %s %s", w.on, w.one, w.q.name)
	}
	return fmt.Sprintf("%s %s %s", w.name, w.one, w.q.name)
}

func (w row) against() string {
	switch {
	case w.base > 0:
		return w.figure
	case w.than != "":
		return strings.TrimPrefix(w.than, w.name+" ")
	}
	return w.other
}

// others is the measurement that has the other's samples.
func (w row) others() string {
	if w.than != "" {
		return w.than
	}
	return w.on
}

// better is where a ratio is good.
func (w row) better() string {
	if w.q.less {
		return "lower"
	}
	return "higher"
}

// verdict judges a ratio by the row's goal.
func (w row) verdict(ratio float64) string {
	reaches := func(goal float64) bool { return goal > 0 && (w.q.less && ratio <= goal || !w.q.less && ratio >= goal) }
	switch {
	case w.target == 0:
		return ""
	case reaches(w.stretch):
		return "stretch"
	case reaches(w.target):
		return "reached"
	}
	return "missed"
}

// chooseRows finds the rows that match one of the patterns, with commas between, by NAME or NAME/AGAINST. Without a pattern it
// is all of them but the curves.
func chooseRows(all []row, patterns string) ([]row, error) {
	var out []row
	if patterns == "" {
		for _, w := range all {
			if !strings.HasPrefix(w.name, "grow-") {
				out = append(out, w)
			}
		}
		return out, nil
	}
	list := strings.Split(patterns, ",")
	used := make([]bool, len(list))
	for _, w := range all {
		chosen := false
		for i, p := range list {
			ok, err := path.Match(p, w.name)
			one, _ := path.Match(p, w.name+"/"+w.against())
			if err != nil {
				return nil, fmt.Errorf("%q: %w", p, err)
			}
			used[i] = used[i] || ok || one
			chosen = chosen || ok || one
		}
		if chosen {
			out = append(out, w)
		}
	}
	if i := slices.Index(used, false); i >= 0 {
		return nil, fmt.Errorf("no row is called %s; there are %s", list[i], strings.Join(rowNames(all), ", "))
	}
	return out, nil
}

// rowNames are the names of rows, each once.
func rowNames(all []row) []string {
	var names []string
	for _, w := range all {
		if !slices.Contains(names, w.name) {
			names = append(names, w.name)
		}
	}
	return names
}

// players are the measurements that rows need, in order, and who does each.
func players(chosen []row) (ms []*measurement, who map[string][]string) {
	who = make(map[string][]string)
	for _, w := range chosen {
		for _, p := range [][2]string{{w.on, w.one}, {w.others(), w.other}} {
			if p[1] != "" && !slices.Contains(who[p[0]], p[1]) {
				who[p[0]] = append(who[p[0]], p[1])
			}
		}
	}
	for _, m := range measurements {
		if who[m.name] != nil {
			ms = append(ms, m)
		}
	}
	return ms, who
}
