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
	Dispatch  string         `toml:"dispatch"`
	Priority  int            `toml:"priority"`
	Frames    int            `toml:"frames"`
	ChunkSize int            `toml:"chunk_size"`
	HugePages bool           `toml:"huge_pages"`
	Checksum  string         `toml:"tx_checksum"`
	Metadata  string         `toml:"rx_metadata"`
	MaxSpin   duration       `toml:"max_spin"`
	NAPI      string         `toml:"napi"`
	Journal   string         `toml:"journal"`
	Reactors  int            `toml:"reactors"`
	Accept    string         `toml:"accept"`
	Spread    string         `toml:"spread"`
	CPUs      []int          `toml:"cpus"`
	RcvBuf    int            `toml:"rcvbuf"`
	RcvMax    int            `toml:"rcvmax"`
	SndBuf    int            `toml:"sndbuf"`
	Congest   string         `toml:"congestion"`
	NoECN     bool           `toml:"no_ecn"`
	Ledger    bool           `toml:"ledger"`
	From      string         `toml:"from"`
	User      *identity      `toml:"user"`
	Control   string         `toml:"control"`
	Face      string         `toml:"face"`

	ClientSocket string              `toml:"client_socket"`
	Clients      []xdpd.ClientPolicy `toml:"-"` // the file has them as [[client]]

	Services []serviceSpec `toml:"-"` // the file has them as [[service]]
}

// wholeFile is the file as it is written.
type wholeFile struct {
	fileConfig
	Service []serviceTable `toml:"service"`
	Client  []clientTable  `toml:"client"`
}

// duration is a time.Duration that is written "50us". It is a struct so that the file cannot have a number without a unit, which would
// be nanoseconds.
type duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no time: write a number with its unit, as in \"50us\"", b)
	}
	if v == 0 {
		v = 1 // who writes 0 wants no time at all, and not the default, which a zero field means
	}
	d.Duration = v
	return nil
}

// The words for modes, as flags and config have them; "" is the default.
var (
	modes    = map[string]xdpd.Mode{"": xdpd.Best, "best": xdpd.Best, "copy": xdpd.Copy, "zerocopy": xdpd.ZeroCopy}
	attaches = map[string]xdpd.Attach{
		"": xdpd.BestAttach, "best": xdpd.BestAttach, "native": xdpd.Native, "generic": xdpd.Generic,
	}
)

var dispatches = map[string]xdpd.Dispatch{
	"": xdpd.AutoDispatch, "auto": xdpd.AutoDispatch, "always": xdpd.AlwaysDispatch, "never": xdpd.NeverDispatch,
}

var metadatas = map[string]xdpd.RXMetadata{
	"": xdpd.AutoMetadata, "auto": xdpd.AutoMetadata, "on": xdpd.MetadataOn, "off": xdpd.MetadataOff,
}

var arrangements = map[string]xdpd.Arrangement{
	"": xdpd.AutoNAPI, "auto": xdpd.AutoNAPI, "softirq": xdpd.SoftirqNAPI, "drive": xdpd.DriveNAPI,
	"suspend": xdpd.SuspendNAPI, "threaded": xdpd.ThreadedNAPI,
}

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
	for i := range file.Client {
		p, err := file.Client[i].policy()
		if err != nil {
			return fileConfig{}, fmt.Errorf("config %s: [[client]] number %d: %w", path, i+1, err)
		}
		file.Clients = append(file.Clients, p)
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
			switch {
			case len(key) > 1 && key[0] == "service":
				known = keysOf(reflect.TypeFor[serviceTable]())
			case len(key) > 1 && key[0] == "client":
				known = keysOf(reflect.TypeFor[clientTable]())
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
	dispatch, ok := dispatches[f.Dispatch]
	if !ok {
		return xdpd.Config{}, fmt.Errorf("dispatch is %q; there are auto, always and never", f.Dispatch)
	}
	napi, ok := arrangements[f.NAPI]
	if !ok {
		return xdpd.Config{}, fmt.Errorf("napi is %q; there are auto, softirq, drive, suspend and threaded", f.NAPI)
	}
	if f.Checksum != "" && f.Checksum != "auto" && f.Checksum != "off" {
		return xdpd.Config{}, fmt.Errorf("tx_checksum is %q; there are auto and off", f.Checksum)
	}
	metadata, ok := metadatas[f.Metadata]
	if !ok {
		return xdpd.Config{}, fmt.Errorf("rx_metadata is %q; there are auto, on and off", f.Metadata)
	}
	if f.User != nil {
		if dispatch == xdpd.AlwaysDispatch {
			return xdpd.Config{}, errors.New("user does not go with dispatch always: to leave a dispatcher takes privilege at the end")
		}
		dispatch = xdpd.NeverDispatch
	}
	if f.User != nil && napi > xdpd.SoftirqNAPI {
		return xdpd.Config{}, fmt.Errorf("user does not go with napi %v: the settings of the device that it changes take CAP_NET_ADMIN while the engine runs", napi)
	}
	spread, err := f.spreads()
	if err != nil {
		return xdpd.Config{}, err
	}
	for _, n := range []struct {
		key   string
		value int
	}{
		{"reactors", f.Reactors}, {"priority", f.Priority}, {"frames", f.Frames}, {"chunk_size", f.ChunkSize}, {"rcvbuf", f.RcvBuf}, {"rcvmax", f.RcvMax}, {"sndbuf", f.SndBuf},
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
		MaxSpin: f.MaxSpin.Duration, CPUs: f.CPUs, RcvBuf: f.RcvBuf, RcvMax: f.RcvMax, SndBuf: f.SndBuf, Ledger: f.Ledger,
		Congestion: f.Congest, NoECN: f.NoECN, Reactors: f.Reactors, Spread: spread,
		Dispatch: dispatch, Priority: f.Priority, NAPI: napi, JournalDir: f.Journal, NoTXChecksum: f.Checksum == "off", Grant: f.From,
		RXMetadata: metadata,
	}, nil
}

// controlPath is where the engine listens for xdpd stats.
func (f fileConfig) controlPath() string {
	if f.User != nil {
		return cmp.Or(f.Control, f.User.controlPath(f.Interface))
	}
	return cmp.Or(f.Control, defaultControlPath(f.Interface))
}
