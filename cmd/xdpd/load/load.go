// Package load makes load for TCP and UDP servers and measures how they bear it.
//
//	Run ── phases: open, warm up, measure, drain, close
//	 └─ worker (one a reactor, or a thread): connections, schedule, timeouts, counts; knows no clock and no socket
//	     ├─ work: what a kind of load does on a connection (rr, connect, bulk, hold, http, udp)
//	     └─ transport: the sockets, of the engine (handlers on the reactor) or of the kernel (epoll on a locked thread)
//
// A request is what is counted: each ends as one response or as one error, or is unfinished when there was no patience to wait
// for it. In the open loop requests have times at which they are to begin, whatever the server does, and latency counts from
// there: a server that stalls cannot keep its victims from being counted ("coordinated omission").
package load

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Kind is a kind of load.
type Kind string

// The kinds.
const (
	RR      Kind = "rr"      // requests and responses of fixed sizes
	Connect Kind = "connect" // connections opened and closed
	Bulk    Kind = "bulk"    // streams as fast as they go
	Hold    Kind = "hold"    // connections opened and kept idle
	HTTP    Kind = "http"    // GET over HTTP/1.1
	UDP     Kind = "udp"     // datagrams that are answered
)

// Config says what to do. Check fills in what is not given.
type Config struct {
	Kind        Kind
	Target      netip.AddrPort
	Connections int // over all workers
	Depth       int // requests under way on one connection
	Send        int // bytes of a request; 0 for Connect: none
	Receive     int // bytes of a response
	Verify      bool

	Rate     float64 // requests a second; 0: closed loop, the next begins when one ends
	Constant bool    // at equal intervals, not as a Poisson process
	Seed     uint64  // of the Poisson process

	Duration time.Duration // of the measurement; 0: until Count, or the end of the context
	Warmup   time.Duration // before it
	Timeout  time.Duration // without an answer, or a byte for Bulk
	Count    uint64        // requests of the measurement, for Bulk bytes in each direction; 0: no limit

	Close     string // Connect: "reset", "fin" (ours first) or "peer" (the peer's first)
	Direction string // Bulk: "send", "receive" or "both"
	Host      string // HTTP: header field
	Path      string // HTTP: path and query
	Status    int    // HTTP: wanted status
	Length    int64  // HTTP: wanted bytes of a body; negative: as many as in the first response
}

const (
	maxConnections = 1 << 20
	maxInFlight    = 1 << 26 // requests, for which times are kept
	pieceSize      = 64 << 10
	maxDatagram    = 65507
	maxTimeout     = time.Hour
)

// Check fills in what is not given and says what cannot be.
func (c *Config) Check() error {
	setDefault(&c.Connections, 1)
	setDefault(&c.Depth, 1)
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
		if c.Kind == UDP {
			c.Timeout = time.Second
		}
	}
	if c.Duration == 0 && c.Count == 0 {
		c.Duration = 10 * time.Second
	}
	switch c.Kind {
	case RR, UDP:
		setDefault(&c.Send, 1)
		setDefault(&c.Receive, c.Send)
	case Connect:
		if c.Send > 0 {
			setDefault(&c.Receive, c.Send)
		}
		setDefault(&c.Close, "reset")
	case Bulk:
		setDefault(&c.Direction, "send")
	case HTTP:
		setDefault(&c.Status, 200)
		setDefault(&c.Path, "/")
	case Hold:
	default:
		return fmt.Errorf("there is no load %q; there are rr, connect, bulk, hold, http and udp", c.Kind)
	}
	return c.check()
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

func (c *Config) check() error {
	dialled := c.Kind == Connect || c.Kind == Hold
	switch {
	case !c.Target.Addr().Is4() || c.Target.Port() == 0:
		return fmt.Errorf("%v is no IPv4 address and port to send to", c.Target)
	case c.Connections < 1 || c.Connections > maxConnections:
		return fmt.Errorf("%d connections; there can be 1 to %d", c.Connections, maxConnections)
	case c.Depth < 1 || c.Depth*c.Connections > maxInFlight:
		return fmt.Errorf("%d requests under way on each of %d connections: at least 1, and %d in all", c.Depth, c.Connections, maxInFlight)
	case c.Depth > 1 && (dialled || c.Kind == Bulk):
		return fmt.Errorf("%s has no pipelining", c.Kind)
	case c.Send < 0 || c.Receive < 0:
		return errors.New("sizes cannot be negative")
	case c.Kind == Connect && c.Send == 0 && c.Receive > 0:
		return errors.New("a response needs a request")
	case c.Kind == UDP && max(c.Send, c.Receive) > maxDatagram:
		return fmt.Errorf("a datagram has at most %d bytes", maxDatagram)
	case c.Kind == UDP && c.Verify && c.Depth > 1<<(8*min(c.numberSize(), 3)-1):
		return fmt.Errorf("with %d bytes %d datagrams under way cannot be told apart", c.numberSize(), c.Depth)
	case c.Kind == UDP && !c.Verify && c.Depth > 1:
		return errors.New("answers that are not verified cannot be told apart: one datagram under way on each socket")
	case (c.Kind == RR || c.Kind == Connect) && c.Verify && c.Send != c.Receive:
		return errors.New("what can be verified is an echo: as many bytes back as were sent")
	case c.Kind == Connect && c.Close != "reset" && c.Close != "fin" && c.Close != "peer":
		return fmt.Errorf("a connection is closed by reset, fin or peer, not %q", c.Close)
	case c.Kind == Bulk && c.Direction != "send" && c.Direction != "receive" && c.Direction != "both":
		return fmt.Errorf("streams go send, receive or both, not %q", c.Direction)
	case c.Kind == Bulk && c.Rate > 0:
		return errors.New("bulk goes as fast as it can: it takes no rate")
	case c.Kind == Hold && (c.Count > 0 || c.Warmup > 0):
		return errors.New("hold takes neither a count nor a warm-up: connections and duration say it all")
	case c.Kind == HTTP && (len(c.Path)+len(c.Host) > pieceSize/2 || c.Path[0] != '/'):
		return fmt.Errorf("a path of %d bytes: it begins with / and is short", len(c.Path))
	case c.Rate < 0 || c.Rate > 1e8:
		return fmt.Errorf("a rate of %g requests a second", c.Rate)
	case c.Timeout < 10*time.Millisecond || c.Timeout > maxTimeout:
		return fmt.Errorf("a timeout of %v; there can be 10 ms to %v", c.Timeout, maxTimeout)
	case c.Duration < 0 || c.Warmup < 0:
		return errors.New("time does not run backwards")
	}
	return nil
}

// numberSize is how many bytes of a datagram say which it is.
func (c *Config) numberSize() int { return min(8, c.Send, c.Receive) }

// dials tells whether a request is a connection of its own.
func (c *Config) dials() bool { return c.Kind == Connect || c.Kind == Hold }

// share is worker i's part of n.
func share(n uint64, i, workers int) uint64 {
	part := n / uint64(workers)
	if uint64(i) < n%uint64(workers) {
		part++
	}
	return part
}
