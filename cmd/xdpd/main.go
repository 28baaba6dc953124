// Command xdpd runs the packet engine on an interface, shows it, and says what a machine can do.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/alecthomas/kong"
)

var cli struct {
	Run      runCmd      `cmd:"" help:"Run the engine on an interface, with services."`
	Demo     demoCmd     `cmd:"" help:"Make two namespaces, run the engine in one, drive it from the other."`
	Forward  forwardCmd  `cmd:"" help:"Bridge or route between interfaces, without copying a payload."`
	Pktgen   pktgenCmd   `cmd:"" help:"Send traffic, and account for every packet at the other end."`
	Doctor   doctorCmd   `cmd:"" help:"Say what this kernel, driver, privilege and memory limit allow."`
	Stats    statsCmd    `cmd:"" help:"Show the drop ledger of a running engine."`
	Ss       ssCmd       `cmd:"" name:"ss" help:"List the sockets of a running engine, as ss(8) does."`
	Clients  clientsCmd  `cmd:"" help:"List the applications that use a running engine, or throw one out."`
	Exec     execCmd     `cmd:"" help:"Run an unchanged program whose IPv4 sockets are those of a running engine."`
	Load     loadCmd     `cmd:"" help:"Make load for a TCP or UDP server, from an engine or from kernel sockets, and measure."`
	Drain    drainCmd    `cmd:"" help:"Give a backend of a running proxy no new flows."`
	Grant    grantCmd    `cmd:"" help:"Open sockets and steer frames for engines that have no privilege."`
	Restore  restoreCmd  `cmd:"" help:"Undo what engines that were killed changed on devices."`
	Mode     modeCmd     `cmd:"" help:"Say or change how frames get to a running engine: copied or not."`
	Reactors reactorsCmd `cmd:"" help:"Say or change how many reactors run the queues of a running engine."`
}

// exitError is an error with an exit status of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// Exit statuses: 0 done, 1 failed, 2 wrong usage.
const usageStatus = 2

func main() {
	parser := kong.Must(&cli, kong.Name("xdpd"),
		kong.Description("A packet engine: AF_XDP from the driver, IPv4, ICMP, UDP and TCP in user space."))
	k, err := parser.Parse(os.Args[1:])
	if err != nil { // nothing on standard output, which may be read by a program
		name := "xdpd"
		var parsing *kong.ParseError
		if errors.As(err, &parsing) && parsing.Context.Selected() != nil {
			name = parsing.Context.Selected().FullPath()
		}
		fmt.Fprintf(os.Stderr, "xdpd: %v; %s --help says more\n", err, name)
		os.Exit(usageStatus)
	}
	if err := runCommand(k); err != nil {
		code := 1
		var e *exitError
		if errors.As(err, &e) {
			code = e.code
		}
		// The library's errors begin with the name of the room they come from, and the root room has ours.
		for line := range strings.Lines(err.Error()) { // of several that were joined, each
			fmt.Fprintf(os.Stderr, "xdpd: %s\n", strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "xdpd: "))
		}
		os.Exit(code)
	}
}

// stdout is standard output. What could not be written there is no less an error for being found out late.
var stdout = &output{to: os.Stdout}

type output struct {
	to  io.Writer
	mu  sync.Mutex
	err error // the first
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.to.Write(p)
	if err != nil {
		o.mu.Lock()
		if o.err == nil {
			o.err = err
		}
		o.mu.Unlock()
	}
	return n, err
}

func (o *output) failed() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// runCommand runs the command that was chosen.
func runCommand(k *kong.Context) error {
	if err := k.Run(); err != nil {
		return err
	}
	return stdout.failed()
}

// signalContext ends on the first SIGINT or SIGTERM, or when the terminal goes away; a second one kills the process as usual. Nor is
// it killed any more when nobody reads what it writes (SIGPIPE): it would leave its socket and settings of devices behind.
func signalContext() (context.Context, context.CancelFunc) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	end := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		end = append(end, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), end...)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
