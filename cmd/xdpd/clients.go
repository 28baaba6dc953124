package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"xdpd"
)

// clientsCmd is xdpd clients.
type clientsCmd struct {
	Interface string `arg:"" optional:"" name:"iface" help:"Interface of the engine; may be left out where only one runs."`
	Evict     uint64 `placeholder:"ID" help:"Throw this client out: its sockets are closed."`
	JSON      bool   `short:"j" name:"json" help:"Print JSON."`
	Control   string `placeholder:"PATH" help:"Control socket to ask (default /run/xdpd/IFACE.sock)."`
}

// clientsView is the answer to GET /clients.
type clientsView struct {
	Clients []xdpd.ClientView `json:"clients"`
	Refused uint64            `json:"refused"` // processes that were not let in
}

// Run implements the command.
func (c *clientsCmd) Run() error {
	path, err := controlOf(c.Control, c.Interface)
	if err != nil {
		return err
	}
	ctx, cancel := signalContext()
	defer cancel()
	if c.Evict != 0 {
		_, err := callControl(ctx, path, http.MethodPost, fmt.Sprintf("/clients/evict?id=%d", c.Evict))
		return err
	}
	if c.JSON {
		raw, err := callControl(ctx, path, http.MethodGet, "/clients")
		if err == nil {
			_, err = stdout.Write(raw)
		}
		return err
	}
	v, err := askClients(ctx, path)
	if err != nil {
		return err
	}
	return v.write(stdout, time.Now())
}

func askClients(ctx context.Context, path string) (v clientsView, err error) {
	raw, err := callControl(ctx, path, http.MethodGet, "/clients")
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, fmt.Errorf("control socket %s: the answer is not xdpd's: %w", path, err)
	}
	return v, nil
}

func (v *clientsView) write(out io.Writer, now time.Time) error {
	tw := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "ID\tPolicy\tPID\tUID\tReactor\tMemory\tSockets\tIn flight\tReceived\tTo send\tDropped\tLends\tHeld back\tKnocks\tSubmitted\tCompleted\tRefused\tSince\t")
	for _, c := range v.Clients {
		fmt.Fprintf(tw, "%d\t%s\t%d\t%d\t%d\t%d KiB\t%d/%d\t%d/%d\t", c.ID, c.Policy, c.PID, c.UID, c.Reactor, c.Memory>>10,
			c.Sockets, c.Limits.Sockets, c.Requests, c.Limits.Requests)
		fmt.Fprintf(tw, "%d/%d\t%d/%d\t%d\t%d\t%d\t%d\t", c.Frames.RX, c.Frames.RXLimit, c.Frames.TX, c.Frames.TXLimit, c.Frames.Dropped, c.Lends, c.HeldBack, c.Knocks)
		fmt.Fprintf(tw, "%d\t%d\t%d\t%s\t\n", c.Counters.Submitted, c.Counters.Completed, c.Counters.Refused, now.Sub(c.Since).Round(time.Second))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if list := trustedClients(v.Clients); list != "" {
		fmt.Fprintln(out, list)
	}
	_, err := fmt.Fprintf(out, "%d refused\n", v.Refused)
	return err
}

// trustedClients says which clients have the packet memory; "": none.
func trustedClients(list []xdpd.ClientView) string {
	var ids []string
	for _, c := range list {
		if c.Lends > 0 {
			ids = append(ids, strconv.FormatUint(c.ID, 10))
		}
	}
	if ids == nil {
		return ""
	}
	return "clients that can read and change all packet memory (zero copy): " + strings.Join(ids, ", ")
}
