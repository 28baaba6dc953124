package main

import (
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"xdpd/libxdpd"
)

// preloadLibrary is the path of the library, built from the sources in this program unless the user's cache has it already.
func preloadLibrary() (string, error) {
	const otherwise = "set XDG_CACHE_HOME, or name a library that is built already with --library"
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place to keep the library: %w; %s", err, otherwise)
	}
	dir := filepath.Join(cache, "xdpd")
	err = os.MkdirAll(dir, 0o700)
	if err == nil {
		err = ours(dir)
	}
	if err != nil {
		return "", fmt.Errorf("no place to keep the library: %w; %s", err, otherwise)
	}
	return buildLibrary(libxdpd.Sources, dir, "cc")
}

// ours tells whether only this user writes to a folder: what lies there is loaded into programs. HOME may be another user's (sudo -E).
func ours(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Getuid() {
		return fmt.Errorf("%s belongs to user %d", dir, s.Uid)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to %s", dir)
	}
	return nil
}

// checkLibrary refuses what the loader would refuse with a line of its own, and then run the program over the kernel's sockets.
func checkLibrary(path string) error {
	f, err := elf.Open(path)
	if pathErr := (*fs.PathError)(nil); errors.As(err, &pathErr) {
		return err
	}
	if err != nil {
		return fmt.Errorf("%s is no library: %w", path, err)
	}
	defer f.Close()
	self, err := elf.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	symbols, err := f.DynamicSymbols()
	isConnect := func(s elf.Symbol) bool { return s.Name == "connect" && s.Section != elf.SHN_UNDEF }
	if f.Class != self.Class || f.Machine != self.Machine || err != nil || !slices.ContainsFunc(symbols, isConnect) {
		return fmt.Errorf("%s is not a library that xdpd exec built on a machine as this: it has no connect for this processor", path)
	}
	return nil
}

// buildLibrary compiles all C files of sources, with the flags of libxdpd.PreloadFlags, to a library in dir whose name has a hash of
// what goes into it.
func buildLibrary(sources fs.FS, dir, compiler string) (string, error) {
	tmp, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	hash := sha256.New()
	args := []string{"@" + libxdpd.PreloadFlags, "-o", "preload.so"}
	err = fs.WalkDir(sources, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		file := filepath.Join(tmp, name)
		if d.IsDir() {
			return os.MkdirAll(file, 0o700)
		}
		text, err := fs.ReadFile(sources, name)
		if err != nil {
			return err
		}
		fmt.Fprintln(hash, name, len(text))
		hash.Write(text)
		if path.Ext(name) == ".c" {
			args = append(args, name)
		}
		return os.WriteFile(file, text, 0o600)
	})
	if err != nil {
		return "", err
	}
	library := filepath.Join(dir, fmt.Sprintf("preload-%s-%x.so", runtime.GOARCH, hash.Sum(nil)[:12]))
	if _, err := os.Stat(library); err == nil {
		return library, nil
	}
	cmd := exec.Command(compiler, append(args, "-ldl")...)
	cmd.Dir = tmp
	said, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("the library is built once, with %s, which is not on this machine: install gcc and libc6-dev, or bring %s "+
			"from a machine that has them, and name it with --library or XDPD_LIBRARY", compiler, filepath.Base(library))
	case err != nil:
		return "", fmt.Errorf("%s does not build the library: %w\n%s", compiler, err, strings.TrimSpace(string(said)))
	}
	// In one step: another that builds it at the same time makes the same.
	return library, os.Rename(filepath.Join(tmp, "preload.so"), library)
}
