package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// writeServices lists the services with what they counted, and the backends of proxies.
func writeServices(b *strings.Builder, v *statsView, all bool) {
	if len(v.Services) == 0 {
		return
	}
	b.WriteByte('\n')
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICES\tport\tflows\tcounters")
	for _, s := range v.Services {
		fmt.Fprintf(t, "%s\t%d/%s\t\t%s\n", s.Name, s.Port, s.Protocol, counterText(s.Counters, all))
		for _, k := range s.Backends {
			state := k.State
			if k.Reason != "" {
				state += " (" + k.Reason + ")"
			}
			since := time.Duration(k.SinceSeconds * float64(time.Second)).Round(time.Second)
			fmt.Fprintf(t, "  %s\t\t%d\t%s for %v; %s\n", k.Address, k.Open, state, since, counterText(k.Counters, all))
		}
	}
	t.Flush()
}

// counterText is "NAME N, NAME N".
func counterText(n map[string]uint64, all bool) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(n)) {
		if n[name] > 0 || all {
			list = append(list, fmt.Sprintf("%s %s", name, commas(n[name])))
		}
	}
	return strings.Join(list, ", ")
}
