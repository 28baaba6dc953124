package scripts

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// units copies the units to a folder, with a program in place of xdpd that is there, and gives the paths of their instances.
func units(t *testing.T) (paths []string) {
	t.Helper()
	dir := t.TempDir()
	files, err := filepath.Glob("systemd/*.service")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("/usr/local/bin/xdpd"), []byte("/bin/true"))
		// The user need not be on this machine, nor the manual.
		text = regexp.MustCompile(`(?m)^(User|Group|Documentation)=.*\n`).ReplaceAll(text, nil)
		path := filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, strings.Replace(path, "@.", "@eth1.", 1))
	}
	return paths
}

// TestUnits has systemd read the units: it knows every key and value in them, and finds them well confined (0 is best, 10 worst).
func TestUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Fatalf("%v: scripts/deps installs it", err)
	}
	for _, path := range units(t) {
		name := filepath.Base(path)
		out, err := exec.Command("systemd-analyze", "verify", "--recursive-errors=no", "--man=no", path).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte(name)) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestUnitsConfine holds the units against what systemd thinks of them.
func TestUnitsConfine(t *testing.T) {
	for _, path := range units(t) {
		template := strings.Replace(path, "@eth1.", "@.", 1)
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=40", "--no-pager", template).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", filepath.Base(path), err, out)
			continue
		}
		t.Logf("%s: %s", filepath.Base(path), regexp.MustCompile(`Overall exposure level.*`).Find(out))
	}
}
