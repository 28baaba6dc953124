package main

import (
	"slices"
	"strings"
	"testing"
)

// TestRows: what rows name is there, and no two rows are called the same.
func TestRows(t *testing.T) {
	seen := make(map[string]bool)
	for _, w := range rows {
		for _, on := range []string{w.on, w.others()} {
			if !slices.ContainsFunc(measurements, func(m *measurement) bool { return m.name == on }) {
				t.Errorf("%s: there is no measurement %q", w.name, on)
			}
		}
		for _, name := range []string{w.one, w.other} {
			if name != "" && !slices.ContainsFunc(contenders, func(c contender) bool { return c.name == name }) {
				t.Errorf("%s: there is no contender %q", w.name, name)
			}
		}
		if (w.other == "") != (w.base > 0) {
			t.Errorf("%s: against %q and the figure %v", w.name, w.other, w.base)
		}
		if key := w.work() + " / " + w.against(); seen[key] {
			t.Errorf("two rows are called %s", key)
		} else {
			seen[key] = true
		}
		if w.stretch > 0 && w.target > 0 && w.q.less != (w.stretch < w.target) {
			t.Errorf("%s: target %v, stretch %v", w.name, w.target, w.stretch)
		}
	}
	for _, m := range measurements {
		if !slices.ContainsFunc(rows, func(w row) bool { return w.on == m.name || w.others() == m.name }) {
			t.Errorf("no row needs the measurement %s", m.name)
		}
	}
	for _, c := range contenders {
		if !slices.ContainsFunc(rows, func(w row) bool { return w.one == c.name || w.other == c.name }) {
			t.Errorf("no row needs the contender %s", c.name)
		}
	}
}

// TestOwnWorks: a contender of this program has every work that rows ask of it.
func TestOwnWorks(t *testing.T) {
	ms, who := players(rows)
	for _, m := range ms {
		for _, name := range who[m.name] {
			if contenderOf(name).source == "" && m.work != "" && serveFuncs[name][m.work] == nil {
				t.Errorf("%s does not serve %s", name, m.work)
			}
		}
	}
}

func TestChooseRows(t *testing.T) {
	for _, c := range []struct {
		patterns string
		want     string // names, each once
	}{
		{"http", "http"},
		{"udp-open*", "udp-open,udp-open-net"},
		{"tcp-rr,bulk-1500-*", "tcp-rr,bulk-1500-in,bulk-1500-out"},
		{"idle-*,raw-tx", "raw-tx,idle-memory,idle-cpu,idle-first"},
		{"udp-*/kernel-c", "udp-open,udp-open-net,udp-window"},
		{"grow-*", "grow-flows,grow-sockets,grow-conns,grow-rules,grow-reactors"},
		{"*", strings.Join(rowNames(rows), ",")},
		{"", strings.TrimSuffix(strings.Join(rowNames(rows), ","), ",grow-flows,grow-sockets,grow-conns,grow-rules,grow-reactors")},
	} {
		got, err := chooseRows(rows, c.patterns)
		if names := strings.Join(rowNames(got), ","); err != nil || names != c.want {
			t.Errorf("%s: %s, %v, want %s", c.patterns, names, err, c.want)
		}
	}
	for _, bad := range []string{"sctp", "http,sctp*", "[", "http,"} {
		if got, err := chooseRows(rows, bad); err == nil {
			t.Errorf("%s gives %v", bad, rowNames(got))
		}
	}
}

func TestPlayers(t *testing.T) {
	chosen, err := chooseRows(rows, "http,udp-open-net,idle-memory")
	if err != nil {
		t.Fatal(err)
	}
	ms, who := players(chosen)
	var got []string
	for _, m := range ms {
		got = append(got, m.name+":"+strings.Join(who[m.name], "+"))
	}
	if want := "udp-open:xdpd-net+kernel-c+net http:xdpd-net+net+gvisor memory:xdpd"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func TestTableFlags(t *testing.T) {
	b, o, err := parseTable([]string{"--quick", "--only", "http", "--json", "f", "--plots", "d"})
	if err != nil || b.rounds != 3 || b.seconds != .5 || len(b.rows) != 2 || o.jsonFile != "f" || o.plots != "d" {
		t.Errorf("%+v, %+v, %v", b, o, err)
	}
	if b, _, err = parseTable([]string{"--full", "--seconds", "1"}); err != nil || b.rounds < 7 || b.seconds != 1 {
		t.Errorf("%+v, %v", b, err)
	}
	if _, o, err = parseTable([]string{"--compare", "a", "b"}); err != nil || !slices.Equal(o.compare, []string{"a", "b"}) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range []string{
		"-rounds 0", "-seconds 0", "-only sctp", "-quick -full", "http", "-compare a", "-compare a b c", "-conns 0",
		"-cpuprofile f", "-cpuprofile f -only http -rounds 2",
	} {
		if _, _, err := parseTable(strings.Fields(args)); err == nil {
			t.Errorf("%s is accepted", args)
		}
	}
	if b, _, err = parseTable(strings.Fields("-cpuprofile f -only udp-open-net -rounds 1")); err != nil || b.profile != "f" {
		t.Errorf("-cpuprofile: %v", err)
	}
}

// TestList shows each row with its goals.
func TestList(t *testing.T) {
	text := squeezed(listRows(rows))
	for _, want := range []string{
		"| raw-echo | xsk | raw raw-echo | rate | 0.97 | 1.00 |",
		"| udp-open | kernel-c | xdpd udp-echo | rate | 2.50 | 3.00 |",
		"| udp-rtt | net | xdpd udp-echo | p99 | ≤ 0.15 | ≤ 0.13 |",
		"| tcp-accept | kernel-c | xdpd tcp-accept | rate | 2.00 | 4.00 |",
		"| bulk-1500-in | kernel-c-nogso | xdpd tcp-sink | rate | 1.50 | 1.80 |",
		"| idle-memory | 250 bytes | xdpd | bytes | ≤ 1.00 | ≤ 0.70 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %s in\n%s", want, text)
		}
	}
}
