package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"xdpd"
)

// fileConfig is what xdpd run needs to know: the config file with the flags laid over it. docs/xdpd.toml says what each
// key means. The zero value of a field is its default.
type fileConfig struct {
	Interface string         `toml:"interface"`
	NetNS     string         `toml:"netns"`
	Addresses []netip.Prefix `toml:"addresses"`
	Gateway   netip.Addr     `toml:"gateway"`
	Share     bool           `toml:"share"`
	VLANs     []uint16       `toml:"vlans"`
	Queues    []int          `toml:"queues"`
	Mode      string         `toml:"mode"`
	Attach    string         `toml:"attach"`
	Frames    int            `toml:"frames"`
	ChunkSize int            `toml:"chunk_size"`
	HugePages bool           `toml:"huge_pages"`
	MaxSpin   duration       `toml:"max_spin"`
	CPUs      []int          `toml:"cpus"`
	RcvBuf    int            `toml:"rcvbuf"`
	SndBuf    int            `toml:"sndbuf"`
	Ledger    bool           `toml:"ledger"`
	Control   string         `toml:"control"`

	Services []serviceSpec `toml:"-"` // the file has them as [[service]]
}

// serviceTable is one [[service]] of the file; what is left out is as the service itself has it.
type serviceTable struct {
	Name string `toml:"name"`
	Port *int   `toml:"port"`
	TCP  *bool  `toml:"tcp"`
	UDP  *bool  `toml:"udp"`
}

// wholeFile is the file as it is written.
type wholeFile struct {
	fileConfig
	Service []serviceTable `toml:"service"`
}

// duration is a time.Duration that is written "50us" in the file.
type duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no time: write a number with its unit, as in \"50us\"", b)
	}
	if v == 0 {
		v = 1 // who writes 0 wants no time at all, and not the default, which a zero field means
	}
	*d = duration(v)
	return nil
}

// The words for modes, as flags and config have them; "" is the default.
var (
	modes    = map[string]xdpd.Mode{"": xdpd.Best, "best": xdpd.Best, "copy": xdpd.Copy, "zerocopy": xdpd.ZeroCopy}
	attaches = map[string]xdpd.Attach{
		"": xdpd.BestAttach, "best": xdpd.BestAttach, "native": xdpd.Native, "generic": xdpd.Generic,
	}
)

// loadConfig reads a TOML file. What it does not know is an error: a misspelt key must not be a silent default. Errors
// name the file, the line and the key.
func loadConfig(path string) (fileConfig, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return fileConfig{}, fmt.Errorf("config: %w", err)
	}
	var file wholeFile
	if err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&file); err != nil {
		return fileConfig{}, explainTOML(path, err)
	}
	for i, t := range file.Service {
		spec, err := t.spec()
		if err == nil {
			err = addService(&file.Services, spec)
		}
		if err != nil {
			return fileConfig{}, fmt.Errorf("config %s: [[service]] number %d: %w", path, i+1, err)
		}
	}
	if _, err := file.stackConfig(); err != nil {
		return fileConfig{}, fmt.Errorf("config %s: %w", path, err)
	}
	return file.fileConfig, nil
}

// explainTOML names line and key.
func explainTOML(path string, err error) error {
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var errs []error
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			key := e.Key()
			known := keysOf(reflect.TypeFor[wholeFile]())
			if len(key) > 1 && key[0] == "service" {
				known = keysOf(reflect.TypeFor[serviceTable]())
			}
			errs = append(errs, fmt.Errorf("config %s: line %d: unknown key %s; there are %s",
				path, line, strings.Join(key, "."), strings.Join(known, ", ")))
		}
		return errors.Join(errs...)
	case errors.As(err, &bad):
		line, _ := bad.Position()
		key := ""
		if k := bad.Key(); len(k) > 0 {
			key = strings.Join(k, ".") + ": "
		}
		return fmt.Errorf("config %s: line %d: %s%s", path, line, key, strings.TrimPrefix(bad.Error(), "toml: "))
	}
	return fmt.Errorf("config %s: %w", path, err)
}

// keysOf lists the keys of a table.
func keysOf(t reflect.Type) (keys []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		switch tag := f.Tag.Get("toml"); {
		case f.Anonymous:
			keys = append(keys, keysOf(f.Type)...)
		case tag != "-":
			keys = append(keys, tag)
		}
	}
	return keys
}

// stackConfig converts to what the library takes, and refuses what it would take without a word.
func (f fileConfig) stackConfig() (xdpd.Config, error) {
	mode, ok := modes[f.Mode]
	if !ok {
		return xdpd.Config{}, fmt.Errorf("mode is %q; there are best, copy and zerocopy", f.Mode)
	}
	attach, ok := attaches[f.Attach]
	if !ok {
		return xdpd.Config{}, fmt.Errorf("attach is %q; there are best, native and generic", f.Attach)
	}
	for _, n := range []struct {
		key   string
		value int
	}{
		{"frames", f.Frames}, {"chunk_size", f.ChunkSize}, {"rcvbuf", f.RcvBuf}, {"sndbuf", f.SndBuf},
		{"queues", slices.Min(append([]int{0}, f.Queues...))}, {"cpus", slices.Min(append([]int{0}, f.CPUs...))},
	} {
		if n.value < 0 {
			return xdpd.Config{}, fmt.Errorf("%s has %d: it cannot be negative", n.key, n.value)
		}
	}
	for i, q := range f.Queues {
		if slices.Contains(f.Queues[:i], q) {
			return xdpd.Config{}, fmt.Errorf("queues has %d twice", q)
		}
	}
	for _, id := range f.VLANs {
		if id < 1 || id > 4094 {
			return xdpd.Config{}, fmt.Errorf("vlans has %d: VLAN IDs are 1 to 4094", id)
		}
	}
	if len(f.VLANs) > 2 {
		return xdpd.Config{}, fmt.Errorf("vlans has %d tags: a frame takes two at most", len(f.VLANs))
	}
	return xdpd.Config{
		Interface: f.Interface, NetNS: f.NetNS, Addrs: f.Addresses, Gateway: f.Gateway, Share: f.Share, VLANs: f.VLANs,
		Queues: f.Queues, Mode: mode, Attach: attach, Frames: f.Frames, ChunkSize: f.ChunkSize, HugePages: f.HugePages,
		MaxSpin: time.Duration(f.MaxSpin), CPUs: f.CPUs, RcvBuf: f.RcvBuf, SndBuf: f.SndBuf, Ledger: f.Ledger,
	}, nil
}

// controlPath is where the engine listens for xdpd stats.
func (f fileConfig) controlPath() string {
	return cmp.Or(f.Control, defaultControlPath(f.Interface))
}

// serviceSpec says to offer a service on a port.
type serviceSpec struct {
	Name     string
	Port     uint16
	TCP, UDP bool
}

// knownServices are the services with their usual ports and all that they speak. hold has no number of its own.
var knownServices = []serviceSpec{
	{"echo", 7, true, true},    // RFC 862
	{"discard", 9, true, true}, // RFC 863
	{"hold", 10, true, false},
	{"chargen", 19, true, true}, // RFC 864
}

func knownService(name string) (serviceSpec, error) {
	var names []string
	for _, s := range knownServices {
		if s.Name == name {
			return s, nil
		}
		names = append(names, fmt.Sprintf("%s (port %d, %s)", s.Name, s.Port, s.protocols()))
	}
	return serviceSpec{}, fmt.Errorf("there is no service %q; there are %s", name, strings.Join(names, ", "))
}

func (s serviceSpec) protocols() string {
	switch {
	case s.TCP && s.UDP:
		return "TCP and UDP"
	case s.UDP:
		return "UDP"
	}
	return "TCP"
}

// parseServices reads the list that flags have: NAME or NAME=PORT, separated by commas.
func parseServices(list string) ([]serviceSpec, error) {
	var specs []serviceSpec
	for item := range strings.SplitSeq(list, ",") {
		name, port, given := strings.Cut(strings.TrimSpace(item), "=")
		spec, err := knownService(name)
		if err != nil {
			return nil, fmt.Errorf("services %q: %w", list, err)
		}
		if given {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil || n == 0 {
				return nil, fmt.Errorf("services %q: %s has port %q: ports are 1 to 65535", list, name, port)
			}
			spec.Port = uint16(n)
		}
		if err := addService(&specs, spec); err != nil {
			return nil, fmt.Errorf("services %q: %w", list, err)
		}
	}
	return specs, nil
}

// spec fills in what the table leaves to the service.
func (t *serviceTable) spec() (serviceSpec, error) {
	spec, err := knownService(t.Name)
	if err != nil {
		return spec, err
	}
	if t.Port != nil {
		if *t.Port < 1 || *t.Port > 65535 {
			return spec, fmt.Errorf("%s has port %d: ports are 1 to 65535", t.Name, *t.Port)
		}
		spec.Port = uint16(*t.Port)
	}
	if t.UDP != nil && *t.UDP && !spec.UDP {
		return spec, fmt.Errorf("%s does not speak UDP", t.Name)
	}
	if t.TCP != nil {
		spec.TCP = *t.TCP
	}
	if t.UDP != nil {
		spec.UDP = *t.UDP
	}
	if !spec.TCP && !spec.UDP {
		return spec, fmt.Errorf("%s has both tcp and udp off: leave the table out", t.Name)
	}
	return spec, nil
}

// addService adds s unless its port is taken.
func addService(list *[]serviceSpec, s serviceSpec) error {
	for _, o := range *list {
		if o.Port == s.Port && (o.TCP && s.TCP || o.UDP && s.UDP) {
			return fmt.Errorf("%s and %s both want port %d: give one of them another port", o.Name, s.Name, s.Port)
		}
	}
	*list = append(*list, s)
	return nil
}
