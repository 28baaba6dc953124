package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// statsCmd is xdpd stats.
type statsCmd struct {
	Interface string        `arg:"" optional:"" name:"iface" help:"Interface of the engine; may be left out where only one runs."`
	Control   string        `placeholder:"PATH" help:"Control socket to ask (default /run/xdpd/IFACE.sock)."`
	JSON      bool          `name:"json" help:"Print the answer as it is: JSON, every counter under its name."`
	Watch     time.Duration `short:"w" placeholder:"1s" help:"Ask again this often and show rates, until Ctrl-C."`
	All       bool          `help:"Show what is zero too, and every connection."`
}

// Help is shown by xdpd stats --help.
func (*statsCmd) Help() string {
	return `The table follows packets from the XDP program's verdict to the socket, and those sent the other way. Each stage
tells what it took, what it passed on, and what it dropped for which reason; further counters of the stage stand below.

Examples:
  xdpd stats eth1 --watch 1s
  curl --unix-socket /run/xdpd/eth1.sock http://xdpd/stats`
}

// Run implements the command.
func (c *statsCmd) Run() error {
	if c.Watch < 0 {
		return &exitError{usageStatus, fmt.Errorf("--watch %v: the time between two looks cannot be negative", c.Watch)}
	}
	path, err := controlOf(c.Control, c.Interface)
	if err != nil {
		return err
	}
	ctx, cancel := signalContext()
	defer cancel()
	return c.show(ctx, path, stdout, isTerminal(os.Stdout))
}

// show prints once, or until ctx ends.
func (c *statsCmd) show(ctx context.Context, path string, out io.Writer, terminal bool) error {
	var before *statsView
	for {
		view, raw, err := askControl(ctx, path)
		if err != nil {
			if before != nil && ctx.Err() != nil {
				return nil
			}
			return err
		}
		if c.JSON {
			err = c.writeJSON(out, raw)
		} else {
			if c.Watch > 0 && terminal {
				fmt.Fprint(out, "\x1b[H\x1b[2J") // to the upper left corner, and clear
			} else if before != nil {
				fmt.Fprintln(out)
			}
			err = writeTable(out, &view, tableOptions{all: c.All, before: before})
		}
		if err != nil || c.Watch == 0 {
			return err
		}
		before = &view
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.Watch):
		}
	}
}

// writeJSON makes each answer of a watch one line, which is what tools that read a stream want.
func (c *statsCmd) writeJSON(out io.Writer, raw []byte) error {
	if c.Watch > 0 {
		var line bytes.Buffer
		if err := json.Compact(&line, raw); err != nil {
			return err
		}
		line.WriteByte('\n')
		raw = line.Bytes()
	}
	_, err := out.Write(raw)
	return err
}

// isTerminal reports whether a person looks at f.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
