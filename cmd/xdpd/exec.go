package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// execCmd is xdpd exec.
type execCmd struct {
	Socket  string   `placeholder:"PATH" help:"Where the daemon serves applications (default /run/xdpd-clients/IFACE, if there is one)."`
	Only    []string `placeholder:"[CIDR][:PORT[-PORT]]" help:"Addresses that are the engine's; repeat for more (default all but 127.0.0.0/8)."`
	Library string   `env:"XDPD_LIBRARY" placeholder:"PATH" help:"The library to preload, where it was built before (default: built with cc, once)."`
	Command []string `arg:"" passthrough:"" name:"command" help:"Program and its arguments."`
}

// Help is shown by xdpd exec --help.
func (*execCmd) Help() string {
	return `Runs a program that was never changed over a running engine: xdpd run with a [[client]] that admits its user (docs/xdpd.toml).
A library is loaded before libc; its IPv4 stream and datagram sockets that bind, connect or send to an address of --only are the
engine's, and everything else stays the kernel's. docs/exec.md says which programs work, and what cannot.

A program that makes its system calls itself, without libc, is not seen. Where that shows in its file (static ones, Go's),
or the loader would ignore the library (set-user-ID), xdpd exec says so and does not start it.

Examples:
  xdpd exec -- curl -O http://10.0.0.1/file
  xdpd exec --only 10.0.0.0/24,:8000-8999 -- nginx -g 'daemon off;'`
}

// What the preloaded library reads (libxdpd/src/preload).
const (
	execSocketEnv = "XDPD_SOCKET"
	execOnlyEnv   = "XDPD_ONLY"
	preloadEnv    = "LD_PRELOAD"
)

// Run implements the command.
func (c *execCmd) Run() error {
	command := c.program()
	if len(command) == 0 {
		return &exitError{usageStatus, errors.New("exec: which program?")}
	}
	only, err := parseOnly(c.Only)
	if err != nil {
		return &exitError{usageStatus, err}
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return &exitError{127, err} // as a shell has it
	}
	warning, err := checkProgram(path)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	if warning != "" {
		fmt.Fprintf(os.Stderr, "xdpd: exec: %s\n", warning)
	}
	socket, err := clientSocketOf(c.Socket)
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	library := c.Library
	if library == "" {
		library, err = preloadLibrary()
	} else {
		library, err = filepath.Abs(library)
	}
	switch {
	case err != nil:
	case strings.ContainsAny(library, ": "): // the loader would run the program without it
		err = fmt.Errorf("the loader takes no library with a blank or colon in its path: %q; name one elsewhere with --library, or set XDG_CACHE_HOME", library)
	case c.Library != "":
		err = checkLibrary(library)
	}
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	return fmt.Errorf("exec %s: %w", path, unix.Exec(path, command, execEnviron(os.Environ(), library, socket, only)))
}

// program is the command line, without the -- that kong leaves before a passthrough.
func (c *execCmd) program() []string {
	if len(c.Command) > 0 && c.Command[0] == "--" {
		return c.Command[1:]
	}
	return c.Command
}

// execEnviron is env with what the library needs; programs that are preloaded already stay so.
func execEnviron(env []string, library, socket, only string) []string {
	preload := library
	env = slices.DeleteFunc(slices.Clone(env), func(s string) bool {
		name, value, _ := strings.Cut(s, "=")
		if name == preloadEnv && value != "" && value != library {
			preload += ":" + strings.TrimPrefix(value, library+":")
		}
		return name == preloadEnv || name == execSocketEnv || name == execOnlyEnv
	})
	return append(env, preloadEnv+"="+preload, execSocketEnv+"="+socket, execOnlyEnv+"="+only)
}

// clientSocketOf is the socket to ask: the one named, or the only one there is.
func clientSocketOf(path string) (string, error) {
	if path == "" {
		var err error
		if path, err = findClientSocket(clientsDir); err != nil {
			return "", err
		}
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("no daemon serves applications at %s: xdpd run with a [[client]] does", path)
	case err != nil:
		return "", err
	case info.Mode().Type() != fs.ModeSocket:
		return "", fmt.Errorf("%s is not a socket", path)
	}
	return filepath.Abs(path)
}

func findClientSocket(dir string) (string, error) {
	var found []string
	for _, pattern := range []string{dir + "/*", dir + "-*/*"} {
		some, err := filepath.Glob(pattern)
		if err != nil {
			return "", err
		}
		found = append(found, some...)
	}
	found = listening("unixpacket", found)
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no daemon serves applications in %s: xdpd run with a [[client]] does", dir)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("several daemons serve applications; say which: --socket %s", strings.Join(found, "|"))
}

// parseOnly reads --only into what the library reads: ADDR/LEN:FIRST-LAST, with commas between.
func parseOnly(rules []string) (string, error) {
	var out []string
	for _, rule := range rules {
		network, ports, hasPorts := strings.Cut(rule, ":")
		prefix, err := parseNetwork(cmp.Or(network, "0.0.0.0/0"))
		first, last := uint64(0), uint64(65535)
		if err == nil && hasPorts {
			first, last, err = parsePorts(ports)
		}
		if err != nil || rule == "" {
			return "", fmt.Errorf("--only %q: it is written 10.0.0.0/8, 10.0.0.1:80, 10.0.0.0/24:8000-8999 or :80", rule)
		}
		out = append(out, fmt.Sprintf("%s:%d-%d", prefix, first, last))
	}
	return strings.Join(out, ","), nil
}

func parseNetwork(s string) (p netip.Prefix, err error) {
	if !strings.Contains(s, "/") {
		s += "/32"
	}
	if p, err = netip.ParsePrefix(s); err == nil && !p.Addr().Is4() {
		err = errors.New("not IPv4")
	}
	return p.Masked(), err
}

func parsePorts(s string) (first, last uint64, err error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	first, err = strconv.ParseUint(from, 10, 16)
	if err == nil {
		last, err = strconv.ParseUint(to, 10, 16)
	}
	if err == nil && (first == 0 || last < first) {
		err = errors.New("no such ports")
	}
	return first, last, err
}
