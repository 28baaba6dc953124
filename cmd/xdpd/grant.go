package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"xdpd"
)

// grantCmd is xdpd grant.
type grantCmd struct {
	Socket    string         `arg:"" help:"Path of the unix socket to answer on."`
	Interface []string       `short:"i" required:"" placeholder:"IFACE" help:"Interface that may be asked for; repeat for more."`
	User      []string       `placeholder:"NAME" help:"User that may ask, by name or number; repeat for more. The user of this command always may."`
	Group     []string       `placeholder:"NAME" help:"Group whose members by primary group may ask; repeat for more."`
	Queues    []int          `short:"q" placeholder:"N" help:"Receive queues that may be asked for (default all)."`
	Address   []netip.Prefix `short:"a" placeholder:"ADDR/LEN" help:"What an engine's addresses must lie in; repeat for more (default all, but not the kernel's own)."`
	Netns     string         `short:"n" placeholder:"NAME" help:"Network namespace of the interfaces: a name in /run/netns, or a path."`
}

// Help is shown by xdpd grant --help.
func (*grantCmd) Help() string {
	return `For engines that never have privilege: xdpd run --from SOCKET gets its AF_XDP sockets from here as descriptors, and has the
steering program attached and changed here. What is granted ends with the engine's connection, so that an engine that crashes
leaves nothing. When this command ends, so do its engines.

A granted socket can send on any free queue of any interface in its network namespace (docs/privileges.md says why): who is not
trusted with that gets the interface in a namespace of its own.

Needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF, with --netns also CAP_SYS_ADMIN.

Example (the engine locks its packet memory, 32 MiB for each queue):
  xdpd grant -i eth1 -a 10.0.0.2/32 --user www-data /run/xdpd.grant
  ulimit -l unlimited
  setpriv --reuid www-data --regid www-data --clear-groups xdpd run --from /run/xdpd.grant -i eth1 -a 10.0.0.2/24 \
    --control /tmp/xdpd.sock -s echo`
}

// Run implements the command.
func (c *grantCmd) Run() error {
	ctx, cancel := signalContext()
	defer cancel()
	return c.serve(ctx, stdout)
}

func (c *grantCmd) serve(ctx context.Context, out io.Writer) error {
	g := xdpd.Granter{
		Interfaces: c.Interface, NetNS: c.Netns, Queues: c.Queues, Addrs: c.Address,
		Log: func(text string) { fmt.Fprintf(out, "xdpd: %s\n", text) },
	}
	for _, name := range c.User {
		uid, _, err := lookUpUser(name)
		if err != nil {
			return &exitError{usageStatus, err}
		}
		g.Users = append(g.Users, uint32(uid))
	}
	for _, name := range c.Group {
		gid, err := lookUpGroup(name)
		if err != nil {
			return &exitError{usageStatus, err}
		}
		g.Groups = append(g.Groups, uint32(gid))
	}
	err := checkLength(c.Socket, "SOCKET")
	if err == nil {
		err = removeStale("unixpacket", c.Socket, "SOCKET")
	}
	if err != nil {
		return fmt.Errorf("grant socket %s: %w", c.Socket, err)
	}
	l, err := xdpd.ListenClients(ctx, c.Socket) // anybody may connect: who may ask is decided by whom the kernel says it is
	if err == nil {
		if err = os.Chmod(c.Socket, 0o666); err != nil { // the umask may have taken some of it
			l.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("grant socket %s: %w", c.Socket, explainUnwritable(err, "SOCKET"))
	}
	fmt.Fprintf(out, "xdpd: ready to grant %v on %s\n", c.Interface, c.Socket)
	if err := notifyReady(); err != nil {
		return errors.Join(fmt.Errorf("tell systemd: %w", err), l.Close())
	}
	return g.Serve(ctx, l)
}
