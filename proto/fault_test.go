package proto

import (
	"regexp"
	"testing"
)

func TestFaultNames(t *testing.T) {
	seen := map[string]Fault{}
	for f := range NFaults {
		name := f.String()
		if !regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`).MatchString(name) {
			t.Errorf("fault %d is called %q", f, name)
		}
		if other, twice := seen[name]; twice {
			t.Errorf("faults %d and %d are both %s", other, f, name)
		}
		seen[name] = f
	}
	if IPChecksum.String() != "ip_checksum" || TCPDataOff.String() != "tcp_data_off" || Fault(250).String() != "fault(250)" {
		t.Error(IPChecksum, TCPDataOff, Fault(250))
	}
}
