package main

import (
	"context"
	"fmt"
	"io"
)

// modeCmd is xdpd mode.
type modeCmd struct {
	Mode      string `arg:"" optional:"" name:"mode" help:"best, copy or zerocopy; left out: says which it is."`
	Interface string `arg:"" optional:"" name:"iface" help:"Interface of the engine; may be left out where only one runs."`
	Control   string `placeholder:"PATH" help:"Control socket to ask (default /run/xdpd/IFACE.sock)."`
}

// Help is shown by xdpd mode --help.
func (*modeCmd) Help() string {
	return `The queues' AF_XDP sockets are opened anew, one after the other. Connections and services stay as they are; what arrives on
a queue in that moment is lost, as on a wire. A mode that the driver refuses is an error, and everything is as before. An
engine that gave its privileges up cannot, and says so.

Examples:
  xdpd mode
  xdpd mode copy
  xdpd mode zerocopy eth1`
}

// Run implements the command.
func (c *modeCmd) Run() error {
	ctx, cancel := signalContext()
	defer cancel()
	return c.run(ctx, stdout)
}

func (c *modeCmd) run(ctx context.Context, out io.Writer) error {
	return tuning{
		value: c.Mode, iface: c.Interface, control: c.Control,
		takes:  func(v string) bool { _, ok := modes[v]; return ok },
		order:  "the mode comes first, and is best, copy or zerocopy: xdpd mode copy",
		change: "/mode?m=", show: (*statsView).copies,
	}.run(ctx, out)
}

// copies says how frames get to the engine, and what that asks of it.
func (v *statsView) copies() string {
	text := "zero copy"
	if !v.ZeroCopy {
		text = "copy"
		if v.TXBudget > 0 { // an older engine says nothing
			text += fmt.Sprintf(", %d frames a kick", v.TXBudget)
		}
	}
	if v.SG {
		text += ", multi-buffer"
	}
	if v.NeedWakeup {
		text += ", need_wakeup"
	}
	return text
}
