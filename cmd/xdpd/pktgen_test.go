package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"xdpd/cmd/xdpd/pktgen"
)

// parsePktgen is xdpd pktgen with these arguments.
func parsePktgen(t *testing.T, line string) (pktgen.Config, error) {
	t.Helper()
	var c struct {
		Pktgen pktgenCmd `cmd:""`
	}
	parser, err := kong.New(&c, kong.Exit(func(int) {}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(strings.Fields("pktgen " + line)); err != nil {
		return pktgen.Config{}, err
	}
	return c.Pktgen.config()
}

// TestPktgenReport: the report is shown, whether there is a file for it or not.
func TestPktgenReport(t *testing.T) {
	dir := t.TempDir()
	for _, file := range []string{"", filepath.Join(dir, "report"), filepath.Join(dir, "none", "report")} {
		for _, asJSON := range []bool{false, true} {
			var out bytes.Buffer
			err := (&pktgenCmd{JSON: asJSON, JSONFile: file}).write(&pktgen.Report{}, &out)
			wrong := strings.Contains(file, "none")
			if out.Len() == 0 || (err != nil) != wrong || wrong && !strings.Contains(err.Error(), "--json-file") {
				t.Errorf("%q, JSON %v: %d bytes, %v", file, asJSON, out.Len(), err)
			}
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "report")); err != nil || !json.Valid(text) {
		t.Errorf("the file has %q, %v", text, err)
	}
}

// TestPktgenFlags: what other generators call otherwise is the same.
func TestPktgenFlags(t *testing.T) {
	for _, same := range [][]string{
		{"-i a --dst 10.0.0.1-10.0.0.9 -P 7-9", "-i a --dst-min 10.0.0.1 --dst-max 10.0.0.9 --udp-dst-min 7 --udp-dst-max 9", "-i a -A 10.0.0.1-10.0.0.9 --udp_dst_min 7 --udp_dst_max 9"},
		{"-i a --dst 10.0.0.1 --src 10.1.0.1-10.1.0.3 --sport 5", "-i a --dst_min 10.0.0.1 --src_min 10.1.0.1 --src_max 10.1.0.3 --udp-src-min 5"},
		{"-i a --dst 10.0.0.1 --size 128", "-i a --dst 10.0.0.1 --pkt_size 124", "-i a --dst 10.0.0.1 --pkt-size 124"},
		{"-i a --dst 10.0.0.1 --rate 1M --source bpf", "-i a --dst 10.0.0.1 --ratep 1000000", "-i a --dst 10.0.0.1 --delay 1000"},
		{"-i a --dst 10.0.0.1 --dst-mac 02:00:00:00:00:01 --count 1k", "-i a --dst 10.0.0.1 --dst_mac 02:00:00:00:00:01 -n 1000"},
	} {
		first, err := parsePktgen(t, same[0])
		if err != nil {
			t.Errorf("%s: %v", same[0], err)
		}
		for _, line := range same[1:] {
			if got, err := parsePktgen(t, line); err != nil || !reflect.DeepEqual(got, first) {
				t.Errorf("%s\n     is %+v, %v\n%s\n     is %+v", line, got, err, same[0], first)
			}
		}
	}
	c, err := parsePktgen(t, "-i a --dst 10.0.0.1")
	if err != nil || c.Source != "bpf" || c.Sizes.String() != "64" || c.CPU != -1 || c.Burst != 1 || c.Wait != time.Second {
		t.Errorf("the defaults are %+v, %v", c, err)
	}
	c, err = parsePktgen(t, "-i a --replay pktgen_test.go --speed 2.5 --loop 0")
	if err != nil || c.Source != "xsk" || c.Speed != 2.5 || c.Loops != 0 || c.Sizes != nil {
		t.Errorf("a replay is %+v, %v", c, err)
	}
	if c, err = parsePktgen(t, "-i a --replay pktgen_test.go --speed max"); err != nil || c.Speed != 0 || c.Loops != 1 {
		t.Errorf("a fast replay is %+v, %v", c, err)
	}
}

func TestPktgenFlagErrors(t *testing.T) {
	for line, want := range map[string]string{
		"-i a --dst 10.0.0.1 --dst-min 10.0.0.2":       "--dst-min and --dst-max say the same as --dst",
		"-i a --dst-max 10.0.0.2":                      "give both of them",
		"-i a --dst-min 10.0.0.9 --dst-max 10.0.0.2":   "is no range of IPv4 addresses",
		"-i a --dst 10.0.0.1 -P 7 --udp-dst-min 8":     "say the same as --dport",
		"-i a --dst 10.0.0.1 --rate 1M --delay 10":     "in place of --rate",
		"-i a --dst 10.0.0.1 --pkt-size 59":            "--pkt-size is --size less 4: size 63",
		"-i a --dst 10.0.0.1 --size 20":                "frames have 64 to",
		"-i a --dst 10.0.0.1 --rate fast":              "is no rate",
		"-i a --replay pktgen_test.go --speed 0":       "write a factor of the recorded speed",
		"-i a --replay pktgen_test.go --speed 2x":      "write a factor of the recorded speed",
		"-i a --replay pktgen_test.go --loop=-1":       "it is a number of rounds",
		"-i a --dst 10.0.0.1 --source dpdk":            "must be one of",
		"-i a --replay /nonexistent.pcap":              "no such file",
		"--dst 10.0.0.1":                               "no interface given",
		"-i a":                                         "no destination given",
		"-i a --sink --echo":                           "leave one of them out",
		"-i a --dst 10.0.0.1 --verify":                 "--verify looks at what comes in",
		"-i a --dst 10.0.0.1 --echo --source kernel":   "have no stamp of ours",
		"-i a --dst 10.0.0.1 --burst 0":                "a burst has 1 to 256 packets",
		"-i a --replay pktgen_test.go --echo":          "leave --echo out",
		"-i a --replay pktgen_test.go --source kernel": "replays nothing",
		"-i a --dst 10.0.0.1 --size 3400":              "use --source xsk",
		"-i a --dst 10.0.0.1 --flows 1000001":          "may be 1 to 1000000",
		"-i a --dst 10.0.0.1 --flows 10 -p 1":          "widen --src",
		"-i a --replay pktgen_test.go":                 "no pcap and no pcapng",
		"-i a --dst 10.0.0.1 --wait=-1s":               "cannot be negative",
	} {
		c, err := parsePktgen(t, line)
		if err == nil {
			_, err = pktgen.Run(t.Context(), c, &pktgen.Live{Out: io.Discard, Every: time.Hour})
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}

// TestPktgenEcho: every number that goes to the engine's echo comes back, once.
func TestPktgenEcho(t *testing.T) {
	for _, source := range []string{"bpf", "xsk"} {
		for name, flags := range map[string]string{
			// As many as the smallest ring holds, should somebody not get the CPU: none may be lost.
			"few":  "--count 1000 --rate 20k --size 64:3,1000:1 --flows 50",
			"many": "--count 30k --rate 100k --flows 1000",
		} {
			t.Run(source+"/"+name, func(t *testing.T) {
				s := serve(t, "echo")
				c, err := parsePktgen(t, "-i "+s.PeerDev+" --dst "+s.EngineAddr.String()+" -P 7 --echo --wait 5s --source "+source+" "+flags)
				if err != nil {
					t.Fatal(err)
				}
				var r *pktgen.Report
				err = s.Peer.Do(func() (err error) {
					r, err = pktgen.Run(t.Context(), c, &pktgen.Live{Out: io.Discard, Every: time.Second})
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				got := r.Received
				if r.Sent.Packets+r.Sent.Dropped+r.Sent.Errors != uint64(c.Count) || r.Expected != r.Sent.Packets ||
					got.Frames != got.Unique || got.Unique+r.Lost != r.Expected || got.Corrupt+got.Duplicates+got.Reordered != 0 {
					t.Errorf("sent %+v\nreceived %+v, lost %d", *r.Sent, *got, r.Lost)
				}
				if r.Lost > 0 && name == "few" {
					t.Errorf("%d of %d lost", r.Lost, r.Expected)
				}
				if r.Latency == nil || r.Latency.Count != int64(got.Unique) {
					t.Errorf("the latencies are %+v", r.Latency)
				}
			})
		}
	}
}
