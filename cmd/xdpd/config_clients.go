package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"xdpd"
	"xdpd/reactor"
)

// clientTable is [[client]] of the config file: what the processes of some users may do.
type clientTable struct {
	Name     string         `toml:"name"`
	Users    []string       `toml:"users"`
	Groups   []string       `toml:"groups"`
	Bind     []string       `toml:"bind"`
	Reach    []netip.Prefix `toml:"reach"`
	Clients  int            `toml:"clients"`
	Memory   uint64         `toml:"memory"`
	Sockets  int            `toml:"sockets"`
	Requests int            `toml:"requests"`
	CPU      int            `toml:"cpu"`
	Frames   int            `toml:"frames"`
	Connects int64          `toml:"connects"`
	Packets  int64          `toml:"packets"`
	Bytes    int64          `toml:"bytes"`
	Lends    int            `toml:"lends"`
}

func (t *clientTable) policy() (p xdpd.ClientPolicy, err error) {
	p = xdpd.ClientPolicy{
		Name: t.Name, Reach: t.Reach, Clients: t.Clients, Memory: t.Memory, Sockets: t.Sockets, Requests: t.Requests, CPU: t.CPU,
		Lends: t.Lends, Frames: t.Frames, Rates: reactor.Rates{Connects: t.Connects, Packets: t.Packets, Bytes: t.Bytes},
	}
	if t.Reach != nil && len(t.Reach) == 0 { // which would be everywhere
		return p, errors.New("reach names no network: without reach all may be reached, and [\"0.0.0.0/32\"] is none")
	}
	for _, name := range t.Users {
		id, err := lookupID(name, func() (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		})
		if err != nil {
			return p, err
		}
		p.Users = append(p.Users, id)
	}
	for _, name := range t.Groups {
		id, err := lookupID(name, func() (string, error) {
			g, err := user.LookupGroup(name)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		})
		if err != nil {
			return p, err
		}
		p.Groups = append(p.Groups, id)
	}
	for _, s := range t.Bind {
		ports, err := xdpd.ParsePortRange(s)
		if err != nil {
			return p, fmt.Errorf("bind: %w", err)
		}
		p.Bind = append(p.Bind, ports)
	}
	return p, p.Check()
}

// lookupID is a number, or what a name stands for.
func lookupID(name string, look func() (string, error)) (uint32, error) {
	id, err := strconv.ParseUint(name, 10, 32)
	if err == nil {
		return uint32(id), nil
	}
	text, err := look()
	if err == nil {
		id, err = strconv.ParseUint(text, 10, 32)
	}
	return uint32(id), err
}

// clientsDir has the sockets for applications. Everybody may look into it: who may come in is decided by who asks.
const clientsDir = "/run/xdpd-clients"

func defaultClientsPath(iface string) string { return filepath.Join(clientsDir, iface) }

func (f *fileConfig) clientsPath() string {
	if f.User != nil && f.User.uid != os.Getuid() {
		return cmp.Or(f.ClientSocket, filepath.Join(clientsDir+"-"+f.User.name, f.Interface))
	}
	return cmp.Or(f.ClientSocket, defaultClientsPath(f.Interface))
}

// serveClients serves applications in processes of their own, if the config names any.
func serveClients(ctx context.Context, st *xdpd.Stack, f *fileConfig) (*xdpd.ClientServer, error) {
	if len(f.Clients) == 0 {
		return nil, nil
	}
	path := f.clientsPath()
	if err := checkLength(path, "client_socket"); err != nil {
		return nil, fmt.Errorf("socket for clients %s: %w", path, err)
	}
	if _, err := makeFolder(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("socket for clients: %w", explainUnwritable(err, "client_socket"))
	}
	if err := removeStale("unixpacket", path, "client_socket"); err != nil {
		return nil, fmt.Errorf("socket for clients %s: %w", path, err)
	}
	l, err := xdpd.ListenClients(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("socket for clients: %w", explainUnwritable(err, "client_socket"))
	}
	s, err := st.ServeClients(l, f.Clients)
	if err != nil {
		l.Close()
	}
	return s, err
}
