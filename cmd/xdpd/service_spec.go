package main

import (
	"errors"
	"fmt"
	"math/bits"
	"net"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// serviceSpec says to offer a service on a port.
type serviceSpec struct {
	Name     string
	Port     uint16 // in knownServices 0: there is no usual one
	TCP, UDP bool
	Face     string // see faceNames; "": nobody said
	serviceOptions
}

// serviceOptions are what single services take besides; check says which takes what. The zero value of a field is its
// default.
type serviceOptions struct {
	Dir      string        // http: the folder it serves
	Upload   bool          // http: take PUT and POST to /upload
	Size     uint64        // source: bytes to send on a connection; 0: for ever
	Backends []string      // proxy: HOST:PORT each
	Balance  string        // proxy: a key of balances
	Check    time.Duration // proxy: between two looks at a backend
	Idle     time.Duration // proxy: how long a flow may be silent
	Flows    int           // proxy: flows at a time
}

// knownServices are the services with their usual ports and all that they speak. hold has no number of its own.
var knownServices = []serviceSpec{
	{Name: "echo", Port: 7, TCP: true, UDP: true},    // RFC 862
	{Name: "discard", Port: 9, TCP: true, UDP: true}, // RFC 863
	{Name: "hold", Port: 10, TCP: true},
	{Name: "chargen", Port: 19, TCP: true, UDP: true}, // RFC 864
	{Name: "source", TCP: true},
	{Name: "http", Port: 80, TCP: true}, // RFC 9112
	{Name: "proxy", TCP: true, UDP: true},
}

func knownService(name string) (serviceSpec, error) {
	var names []string
	for _, s := range knownServices {
		if s.Name == name {
			return s, nil
		}
		port := fmt.Sprintf("port %d", s.Port)
		if s.Port == 0 {
			port = "no usual port"
		}
		names = append(names, fmt.Sprintf("%s (%s, %s)", s.Name, port, s.protocols()))
	}
	return serviceSpec{}, fmt.Errorf("there is no service %q; there are %s", name, strings.Join(names, ", "))
}

func (s *serviceSpec) protocols() string {
	switch {
	case s.TCP && s.UDP:
		return "TCP and UDP"
	case s.UDP:
		return "UDP"
	}
	return "TCP"
}

// check refuses a spec that lacks what its service needs, or has what is another's.
func (s *serviceSpec) check() error {
	if err := s.checkFace(); err != nil {
		return err
	}
	others := s.serviceOptions
	switch s.Name {
	case "http":
		others.Dir, others.Upload = "", false
		if s.Dir == "" {
			return errors.New("http needs a folder to serve: http=PORT:DIR, or dir in the config file")
		}
	case "source":
		others.Size = 0
	case "proxy":
		others.Backends, others.Balance, others.Check, others.Idle, others.Flows = nil, "", 0, 0, 0
		if err := s.checkProxy(); err != nil {
			return err
		}
	}
	if !reflect.DeepEqual(others, serviceOptions{}) {
		return fmt.Errorf("%s has an option of another service: dir and upload are http's, size is source's, "+
			"backends, balance, check, idle and flows are proxy's", s.Name)
	}
	if s.Port == 0 {
		return fmt.Errorf("%s has no usual port: say which, %s=PORT, or port in the config file", s.Name, s.Name)
	}
	return nil
}

// minCheck keeps what looks at backends from being a flood to them.
const minCheck = 10 * time.Millisecond

func (s *serviceSpec) checkProxy() error {
	if len(s.Backends) == 0 {
		return errors.New("proxy needs backends: proxy=PORT:tcp:HOST:PORT,HOST:PORT, or backends in the config file")
	}
	if err := checkBalance(s.Balance); err != nil {
		return err
	}
	if s.Check < 0 || s.Idle < 0 || s.Flows < 0 {
		return errors.New("proxy: check, idle and flows cannot be negative")
	}
	if s.Check > 0 && s.Check < minCheck {
		return fmt.Errorf("proxy has check %v: at least %v must be between two looks", s.Check, minCheck)
	}
	seen := make(map[string]bool)
	for _, b := range s.Backends {
		host, port, err := net.SplitHostPort(b)
		if err != nil || host == "" || strings.Contains(host, ":") {
			return fmt.Errorf("proxy has the backend %q: write HOST:PORT, with an IPv4 address or a name", b)
		}
		if _, err := parsePort(port); err != nil {
			return fmt.Errorf("proxy has the backend %q: %w", b, err)
		}
		if seen[b] {
			return fmt.Errorf("proxy has the backend %s twice", b)
		}
		seen[b] = true
	}
	return nil
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, errors.New("ports are 1 to 65535")
	}
	return uint16(n), nil
}

// parseSize reads a number of bytes: 1000, 64K, 10M, 1G, 2T, with powers of 1024.
func parseSize(text string) (uint64, error) {
	digits, shift := text, 0
	if n := len(text); n > 0 {
		if i := strings.IndexByte("KMGT", text[n-1]); i >= 0 {
			digits, shift = text[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n == 0 || bits.Len64(n)+shift > 63 {
		return 0, fmt.Errorf("size is %q: write a number of bytes above 0, with K, M, G or T behind it if you like", text)
	}
	return n << shift, nil
}

// parseServices reads the list that flags have, items separated by commas: NAME, NAME=PORT, NAME@FACE=PORT,
// http=PORT:DIR[:upload], source=PORT[:SIZE], proxy=PORT:tcp|udp|tcp+udp:HOST:PORT. A HOST:PORT without a name is one more backend of the proxy
// before it.
func parseServices(list string) ([]serviceSpec, error) {
	var specs []serviceSpec
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		name, value, given := strings.Cut(item, "=")
		if n := len(specs); !given && strings.Contains(item, ":") && n > 0 && specs[n-1].Name == "proxy" {
			specs[n-1].Backends = append(specs[n-1].Backends, item)
			continue
		}
		name, face, faced := strings.Cut(name, "@")
		spec, err := knownService(name)
		if spec.Face = face; faced && face == "" {
			err = fmt.Errorf("%s@ says no face: there are %s", name, strings.Join(faceNames, ", "))
		}
		if err == nil && given {
			err = spec.parseValue(value)
		}
		if err == nil {
			err = addService(&specs, spec)
		}
		if err != nil {
			return nil, fmt.Errorf("services %q: %w", list, err)
		}
	}
	for i := range specs {
		if err := specs[i].check(); err != nil {
			return nil, fmt.Errorf("services %q: %w", list, err)
		}
	}
	return specs, nil
}

// parseValue reads what stands behind NAME=.
func (s *serviceSpec) parseValue(value string) (err error) {
	port, rest := value, ""
	if s.Name == "http" || s.Name == "source" || s.Name == "proxy" {
		port, rest, _ = strings.Cut(value, ":")
	}
	if s.Port, err = parsePort(port); err != nil {
		return fmt.Errorf("%s has port %q: %w", s.Name, port, err)
	}
	switch {
	case s.Name == "http":
		s.Dir, s.Upload = strings.CutSuffix(rest, ":upload")
	case s.Name == "source" && rest != "":
		s.Size, err = parseSize(rest)
	case s.Name == "proxy":
		protocol, backend, _ := strings.Cut(rest, ":")
		switch protocol {
		case "tcp":
			s.UDP = false
		case "udp":
			s.TCP = false
		case "tcp+udp":
		default:
			return fmt.Errorf("proxy has the protocol %q: write proxy=PORT:tcp:HOST:PORT, or udp, or tcp+udp", protocol)
		}
		if backend != "" {
			s.Backends = []string{backend}
		}
	}
	return err
}

// serviceTable is one [[service]] of the file; what is left out is as the service itself has it.
type serviceTable struct {
	Name     string   `toml:"name"`
	Face     string   `toml:"face"`
	Port     *int     `toml:"port"`
	TCP      *bool    `toml:"tcp"`
	UDP      *bool    `toml:"udp"`
	Dir      string   `toml:"dir"`
	Upload   bool     `toml:"upload"`
	Size     string   `toml:"size"`
	Backends []string `toml:"backends"`
	Balance  string   `toml:"balance"`
	Check    duration `toml:"check"`
	Idle     duration `toml:"idle"`
	Flows    int      `toml:"flows"`
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
	spec.Face = t.Face
	spec.serviceOptions = serviceOptions{
		Dir: t.Dir, Upload: t.Upload, Backends: t.Backends, Balance: t.Balance,
		Check: t.Check.Duration, Idle: t.Idle.Duration, Flows: t.Flows,
	}
	if t.Size != "" {
		if spec.Size, err = parseSize(t.Size); err != nil {
			return spec, fmt.Errorf("%s: %w", t.Name, err)
		}
	}
	return spec, spec.check()
}

// addService adds s unless its port is taken.
func addService(list *[]serviceSpec, s serviceSpec) error {
	for _, o := range *list {
		if o.Port == s.Port && s.Port != 0 && (o.TCP && s.TCP || o.UDP && s.UDP) {
			return fmt.Errorf("%s and %s both want port %d: give one of them another port", o.Name, s.Name, s.Port)
		}
	}
	*list = append(*list, s)
	return nil
}
