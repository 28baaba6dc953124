package rings

import (
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestShareContract compares the tables of docs/clients.md with the code: each field's offset and size.
func TestShareContract(t *testing.T) {
	text, err := os.ReadFile("../docs/clients.md")
	if err != nil {
		t.Fatal(err)
	}
	// Offsets without padding, which the messages do not have.
	fields := func(typ reflect.Type) (out map[string][2]int) {
		out = map[string][2]int{}
		at := 0
		for f := range typ.Fields() {
			out[f.Name] = [2]int{at, int(f.Type.Size())}
			at += int(f.Type.Size())
		}
		return out
	}
	want := map[string]map[string][2]int{
		"hello": fields(reflect.TypeFor[ShareHello]()), "welcome": fields(reflect.TypeFor[ShareWelcome]()),
		"frames": fields(reflect.TypeFor[ShareFrames]()),
		"word": {
			"magic": {0, 8}, "version": {8, 4}, "SQ entries": {12, 4}, "CQ entries": {16, 4}, "SQEs": {20, 4}, "CQEs": {24, 4}, "size": {28, 4},
			"SQ head": {offSQHead, 4}, "SQ tail": {offSQTail, 4}, "SQ flags": {offSQFlags, 4}, "CQ head": {offCQHead, 4}, "CQ tail": {offCQTail, 4},
			"CQ flags": {offCQFlags, 4}, "wanted tail": {offCQFlags + 4, 4}, "counters": {offCounters, 8 * ringStats},
		},
	}
	delete(want["welcome"], "_")
	table := ""
	row := regexp.MustCompile(`^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|`)
	for line := range strings.Lines(string(text)) {
		m := row.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if m[2] == "offset" {
			table = m[1]
			continue
		}
		off, err1 := strconv.Atoi(m[2])
		size, err2 := strconv.Atoi(m[3])
		if err1 != nil || err2 != nil {
			continue
		}
		if got, ok := want[table][m[1]]; !ok || got != [2]int{off, size} {
			t.Errorf("%s: %s is at %d with %d bytes; the code has %v", table, m[1], off, size, got)
		}
		delete(want[table], m[1])
	}
	for table, rest := range want {
		for name := range rest {
			t.Errorf("%s: %s is missing", table, name)
		}
	}
	for _, number := range []string{strconv.FormatUint(ShareMagic, 16), strconv.FormatUint(ringMagic, 16)} {
		if !strings.Contains(string(text), "0x"+number) {
			t.Errorf("0x%s is missing", number)
		}
	}
	if l, err := LayoutRing(64, 128); err != nil || l.SQEs != offEntries || l.CQEs != offEntries+64*sqeSize {
		t.Errorf("the entries lie at %+v, %v", l, err)
	}
}
