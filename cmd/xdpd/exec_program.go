package main

import (
	"bufio"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxInterpreters is how many scripts may interpret each other; the kernel has 5 (fs/exec.c, exec_binprm).
const maxInterpreters = 5

// checkProgram says why the sockets of a program cannot be had, as far as its file shows it; warning is about a part of them.
func checkProgram(path string) (warning string, err error) {
	for range maxInterpreters {
		next, err := interpreter(path)
		if err != nil {
			return "", err
		}
		if next == "" {
			if err := ignoresPreload(path); err != nil {
				return "", err
			}
			return checkELF(path)
		}
		path = next
	}
	return "", fmt.Errorf("%s: interpreters without end", path)
}

// interpreter is the program that runs a script, or "" if the file is none. What env looks for is looked for here.
func interpreter(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n') // BINPRM_BUF_SIZE
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	rest, isScript := strings.CutPrefix(line, "#!")
	words := strings.Fields(rest)
	if !isScript || len(words) == 0 {
		return "", nil
	}
	if filepath.Base(words[0]) == "env" {
		i := slices.IndexFunc(words[1:], func(w string) bool { return !strings.HasPrefix(w, "-") && !strings.Contains(w, "=") })
		if i >= 0 {
			return exec.LookPath(words[1+i])
		}
	}
	return words[0], nil
}

// ignoresPreload tells whether the loader would run the program in secure mode (ld.so(8)): with ids or capabilities that its starter
// does not have.
func ignoresPreload(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		setuid := info.Mode()&os.ModeSetuid != 0 && int(s.Uid) != os.Getuid()
		setgid := info.Mode()&os.ModeSetgid != 0 && int(s.Gid) != os.Getgid()
		if setuid || setgid {
			return fmt.Errorf("%s is set-user-ID or set-group-ID: the loader ignores preloaded libraries there. Run it as its owner", path)
		}
	}
	if n, err := unix.Getxattr(path, "security.capability", nil); err == nil && n > 0 && os.Getuid() != 0 {
		return fmt.Errorf("%s has file capabilities: the loader ignores preloaded libraries there. Run it as root, or a copy without them", path)
	}
	return nil
}

// checkELF looks for what a preloaded library needs: a loader of this machine, and socket calls that go through libc.
func checkELF(path string) (warning string, err error) {
	f, err := elf.Open(path)
	var format *elf.FormatError
	if errors.As(err, &format) || errors.Is(err, io.EOF) {
		return "", fmt.Errorf("%s is neither an ELF file nor a script with an interpreter", path)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	self, err := elf.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer self.Close()
	if f.Class != self.Class || f.Machine != self.Machine {
		return "", fmt.Errorf("%s is for another machine (%s, %s): the library is for %s, %s", path, f.Class, f.Machine, self.Class, self.Machine)
	}
	_, notGo := buildinfo.ReadFile(path)
	isGo := notGo == nil || f.Section(".note.go.buildid") != nil
	loader, err := loaderOf(f)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case isGo && !slices.ContainsFunc(libraries, isLibc):
		return "", fmt.Errorf("%s is a Go program without cgo: it makes its system calls itself, and no library is asked", path)
	case loader == "":
		return "", fmt.Errorf("%s is static: there is no loader that would preload a library", path)
	case strings.Contains(loader, "musl"):
		return "", fmt.Errorf("%s is linked with musl (%s): the library is for the GNU libc", path, loader)
	case isGo:
		return path + " is a Go program: only sockets of its C parts are the engine's; package net makes its system calls itself", nil
	case slices.ContainsFunc(libraries, func(l string) bool { return strings.HasPrefix(l, "liburing.so") }):
		return path + " uses io_uring: operations on sockets that it submits there are not the engine's", nil
	}
	return "", nil
}

func isLibc(library string) bool { return strings.HasPrefix(library, "libc.so") }

// loaderOf is PT_INTERP, or "".
func loaderOf(f *elf.File) (string, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, min(p.Filesz, unix.PathMax))
		if _, err := p.ReadAt(name, 0); err != nil {
			return "", err
		}
		return strings.TrimRight(string(name), "\x00"), nil
	}
	return "", nil
}
