package xdpd_test

import (
	"bytes"
	"errors"
	"fmt"
	"go/format"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"xdpd/internal/netlab"
	"xdpd/internal/seeds"
)

// listings are the programs in a page of the manual, by the heading that they stand under.
func listings(t *testing.T, page string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]string)
	section := ""
	for _, m := range regexp.MustCompile("(?ms)^## ([^\n]*)$|^```go\n(package main\n.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		if m[1] != "" {
			section = m[1]
		} else if found[section] != "" {
			t.Fatalf("%s: two programs under %q", page, section)
		} else {
			found[section] = m[2]
		}
	}
	return found
}

// buildListing compiles a program with this module's packages.
func buildListing(t *testing.T, name, source string) (program string) {
	t.Helper()
	if pretty, err := format.Source([]byte(source)); err != nil || string(pretty) != source {
		t.Errorf("the listing %s is not as gofmt writes it: %v", name, err)
	}
	dir := t.TempDir()
	file, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
	if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"build", "-o", program, file}, {"vet", file}} {
		if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
			t.Fatalf("go %s on the listing %s: %v\n%s", args[0], name, err, out)
		}
	}
	return program
}

// runListing starts it on the engine's interface, and kills it when the test ends: it has no end of its own.
func runListing(t *testing.T, lab *netlab.Lab, program string) {
	t.Helper()
	runProgram(t, lab, exec.Command(program, lab.EngineDev, netip.PrefixFrom(lab.EngineAddr, 24).String()))
}

func runProgram(t *testing.T, lab *netlab.Lab, cmd *exec.Cmd) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := lab.Engine.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		select {
		case err := <-ended:
			t.Errorf("the program ended by itself, %v:\n%s", err, &out)
		default:
			_ = cmd.Process.Kill()
			<-ended
		}
	})
}

// firstConn is a connection to a server that is about to listen. Before it does, SYNs are answered with resets, or nobody
// answers them.
func firstConn(t *testing.T, lab *netlab.Lab, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		var c net.Conn
		err := lab.Peer.Do(func() (err error) {
			c, err = net.DialTimeout("tcp4", to.String(), time.Second)
			return err
		})
		if err == nil {
			c.SetDeadline(time.Now().Add(patience))
			return c.(*net.TCPConn)
		}
		if time.Now().After(end) {
			t.Fatalf("the program never listens: %v", err)
		}
	}
}

// TestFaces compiles the three servers of docs/faces.md and has each echo, byte for byte, for a hundred kernel clients at a
// time.
func TestFaces(t *testing.T) {
	if netlab.NICs() != nil {
		t.Skipf("%s: %v: the guest has no Go to compile the programs with", t.Name(), netlab.ErrNICs)
	}
	found := listings(t, "docs/faces.md")
	if len(found) != 3 {
		t.Errorf("docs/faces.md has programs under %d headings", len(found))
	}
	seed := seeds.One(t)
	for _, face := range []string{"net", "Poller", "Ring"} {
		t.Run(face, func(t *testing.T) {
			if found[face] == "" {
				t.Fatal("there is no program")
			}
			if n := strings.Count(found[face], "\n"); n > 100 {
				t.Errorf("the listing has %d lines", n)
			}
			lab := newLab(t, netlab.Options{})
			runListing(t, lab, buildListing(t, face, found[face]))
			testEchoFace(t, lab, seed)
		})
	}
}

// testEchoFace has a hundred kernel clients at a time, and rude ones, ask an echo server.
func testEchoFace(t *testing.T, lab *netlab.Lab, seed uint64) {
	t.Helper()
	to := netip.AddrPortFrom(lab.EngineAddr, 7)
	clients := make([]*net.TCPConn, 100)
	clients[0] = firstConn(t, lab, to)
	for i := range clients[1:] {
		c, err := kernelTCP(t, lab.Peer, to)
		if err != nil {
			t.Fatal(err)
		}
		clients[i+1] = c
	}
	var work sync.WaitGroup
	faults := make([]error, len(clients))
	for i, c := range clients {
		work.Go(func() {
			defer c.Close()
			size := int64(50_000 + i)
			if i == 0 {
				size = 4 << 20
			}
			if err := echoBulk(c, size, seed+uint64(i)); err != nil {
				faults[i] = fmt.Errorf("client %d: %w", i, err)
			}
		})
	}
	work.Wait()
	if err := errors.Join(faults...); err != nil {
		t.Error(err)
	}
	// Who resets, or does not read what it is sent, harms nobody else.
	rude, err := kernelTCP(t, lab.Peer, to)
	if err != nil {
		t.Fatal(err)
	}
	rude.SetDeadline(time.Now().Add(200 * time.Millisecond))
	for err == nil { // until both windows are full
		_, err = rude.Write(make([]byte, 1<<16))
	}
	polite, err := kernelTCP(t, lab.Peer, to)
	if err != nil {
		t.Fatal(err)
	}
	if err := echoBulk(polite, 1<<20, seed); err != nil {
		t.Errorf("beside one that does not read: %v", err)
	}
	rude.SetLinger(0)
	rude.Close()
	if polite, err = kernelTCP(t, lab.Peer, to); err != nil {
		t.Fatal(err)
	}
	if err := echoBulk(polite, 1<<20, seed); err != nil {
		t.Errorf("after one that was reset: %v", err)
	}
}

// TestFacesClient is TestFaces for programs that differ in one line, by which they are clients of a daemon. The ring's is not among them: it
// sends the frames that it receives, and to other processes none are lent.
func TestFacesClient(t *testing.T) {
	if netlab.NICs() != nil {
		t.Skip(t.Name(), ": ", netlab.ErrNICs, ": the guest has no Go to compile the programs with")
	}
	found := listings(t, "docs/faces.md")
	seed := seeds.One(t)
	open := regexp.MustCompile("(?m)^\tprefix := .*\n\tstack, err := xdpd.Open.*$")
	for _, face := range []string{"net", "Poller"} {
		t.Run(face, func(t *testing.T) {
			source := strings.Replace(found[face], "import (\n", "import (\n\t\"context\"\n", 1)
			source = strings.Replace(source, "\t\"net/netip\"\n", "", 1)
			if !open.MatchString(source) {
				t.Fatal("the line that opens the engine is not there")
			}
			source = open.ReplaceAllString(source, "\tstack, err := xdpd.Connect(context.Background(), os.Args[1])")
			program := buildListing(t, face, source)
			lab, stack := engine(t, netlab.Options{Queues: 2})
			_, path := daemon(t, stack, nil)
			runProgram(t, lab, exec.Command(program, path))
			testEchoFace(t, lab, seed)
		})
	}
}
