package main

import (
	"fmt"
	"io"

	"xdpd"
)

// restoreCmd is xdpd restore.
type restoreCmd struct {
	Journal string `placeholder:"DIR" help:"Where the engines wrote down what they changed (default /run/xdpd)."`
	Netns   string `short:"n" placeholder:"NAME" help:"Network namespace of the interfaces: a name in /run/netns, or a path."`
}

// Help is shown by xdpd restore --help.
func (*restoreCmd) Help() string {
	return `An engine undoes at its end what it changed on a device. One that was killed could not: this command does it, and
so does the next xdpd run in the same namespace. What belongs to a running engine, and what somebody else changed since, is
left alone. Undone are the settings of NAPIs, that devices leave VLAN tags in frames, and membership in a dispatcher of XDP programs
(docs/dispatch.md).`
}

// Run implements the command.
func (c *restoreCmd) Run() error { return c.run(stdout) }

func (c *restoreCmd) run(out io.Writer) error {
	done, err := xdpd.Restore(c.Journal, c.Netns)
	for _, what := range done {
		fmt.Fprintln(out, what)
	}
	if err == nil && len(done) == 0 {
		fmt.Fprintln(out, "nothing is to be restored")
	}
	return err
}
