package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestRestoreCommand: what it undoes is tested where engines are killed (TestDriveKilled); here, what it says.
func TestRestoreCommand(t *testing.T) {
	needRoot(t)
	var out bytes.Buffer
	if err := (&restoreCmd{Journal: t.TempDir()}).run(&out); err != nil || out.String() != "nothing is to be restored\n" {
		t.Errorf("%v, %q", err, &out)
	}
	err := (&restoreCmd{Netns: "nowhere-77"}).run(&out)
	if err == nil || !strings.Contains(err.Error(), "nowhere-77") {
		t.Errorf("a namespace that is not there: %v", err)
	}
	said, status := runChild(t, asNobody(childCommand(t, "restore --journal "+t.TempDir())))
	if status != 1 || strings.Count(said, "\n") != 1 || !strings.Contains(said, "takes CAP_NET_ADMIN") {
		t.Errorf("without the right to: %q, %d", said, status)
	}
}
