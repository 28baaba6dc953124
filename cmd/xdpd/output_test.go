package main

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

// TestNobodyReads takes away who reads what an engine writes, and then ends it, once as an init system does and once as a terminal that
// is closed: it goes on until then, undoes what it did, and says that something was not written.
func TestNobodyReads(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	defer lab.Close()
	ends := []syscall.Signal{unix.SIGTERM}
	if !signal.Ignored(unix.SIGHUP) { // nohup, which is inherited
		ends = append(ends, unix.SIGHUP)
	}
	for _, end := range ends {
		t.Run(unix.SignalName(end), func(t *testing.T) {
			control := filepath.Join(t.TempDir(), "xa0.sock")
			cmd := childCommand(t, "run -i xa0 -a 10.77.0.2/24 --every 1ms --control "+control)
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var errOut bytes.Buffer
			cmd.Stdout, cmd.Stderr = w, &errOut
			if err := lab.Engine.Start(cmd); err != nil {
				t.Fatal(err)
			}
			w.Close()
			for lines := bufio.NewScanner(r); lines.Scan() && !strings.Contains(lines.Text(), "ready"); {
			}
			r.Close()
			for asked := 0; asked < 20; asked++ { // it goes on, and writes meanwhile
				if _, _, err := askControl(t.Context(), control); err != nil {
					t.Fatalf("%v\n%s", err, errOut.String())
				}
			}
			if err := cmd.Process.Signal(end); err != nil {
				t.Fatal(err)
			}
			if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("it ends with %v, not with status 1", cmd.ProcessState)
			}
			if text := errOut.String(); !strings.Contains(text, "broken pipe") || strings.Count(text, "\n") != 1 {
				t.Errorf("it says %q", text)
			}
			if _, err := os.Lstat(control); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the control socket is left: %v", err)
			}
			(&daemon{served: &served{Lab: lab}}).detached(t)
		})
	}
}

// TestFullDisk has commands write to a file that takes nothing: they say so, and do not succeed.
func TestFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	cmd := childCommand(t, "restore --journal "+t.TempDir())
	var errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = full, &errOut
	if err := cmd.Run(); err == nil || !strings.Contains(errOut.String(), "no space left") {
		t.Errorf("it ends with %v and says %q", err, errOut.String())
	}
}
