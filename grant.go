package xdpd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/xdpprog"
)

// An engine with Config.Grant asks a Granter, which has the privilege, for two things: AF_XDP sockets, which come as descriptors,
// and the steering program, which stays with the Granter and is changed by messages. Both talk over a unix socket of type
// SOCK_SEQPACKET, one message in JSON for each request and one for its answer. The end of the connection ends the grant.

// steerer is the steering program: our own, or that of a Granter.
type steerer interface {
	SetSocket(queue, fd int) error
	SetAddrs(addrs []netip.Addr) error
	OpenPort(proto uint8, addr netip.Addr, port uint16) error
	ClosePort(proto uint8, addr netip.Addr, port uint16) error
	Counters() ([]xdpprog.Counter, error)
	Probe(port uint16) error
	Native() bool
	NativeRefused() error
	Dispatched() bool
	Unloaded() bool
	Attached() bool
	Metadata() MetadataStats
	Close() error
}

// grantRequest is a message to a Granter. Op says which of the fields count.
type grantRequest struct {
	Op        string         `json:"op"`
	Interface string         `json:"interface,omitempty"` // socket
	Queue     int            `json:"queue,omitempty"`     // socket, put
	SendBytes int            `json:"send_bytes,omitempty"`
	Steer     xdpprog.Steer  `json:"steer,omitempty"` // attach, as in xdpprog.Config
	Attach    xdpprog.Attach `json:"attach,omitempty"`
	Metadata  RXMetadata     `json:"metadata,omitempty"`
	Queues    int            `json:"queues,omitempty"`
	Addrs     []netip.Addr   `json:"addrs,omitempty"` // attach, addrs
	Proto     uint8          `json:"proto,omitempty"` // open, close
	Addr      netip.Addr     `json:"addr,omitzero"`
	Port      uint16         `json:"port,omitempty"`
}

// The requests.
const (
	grantSocket   = "socket"   // a socket for a queue; its descriptor comes with the answer
	grantAttach   = "attach"   // load and attach the steering program
	grantPut      = "put"      // put the queue's last socket into the program
	grantAddrs    = "addrs"    // Program.SetAddrs
	grantOpen     = "open"     // Program.OpenPort
	grantClose    = "close"    // Program.ClosePort
	grantCounters = "counters" // Program.Counters
	grantAttached = "attached" // Program.Attached
	grantDetach   = "detach"   // Program.Close
)

// grantAnswer is a message from a Granter.
type grantAnswer struct {
	Error    string            `json:"error,omitempty"`
	Errno    int               `json:"errno,omitempty"`
	Busy     bool              `json:"busy,omitempty"` // the error is xdpprog.ErrBusy
	Native   bool              `json:"native,omitempty"`
	Attached bool              `json:"attached,omitempty"`
	Refused  string            `json:"refused,omitempty"`
	Metadata MetadataStats     `json:"metadata,omitzero"`
	Counters []xdpprog.Counter `json:"counters,omitempty"`
}

const (
	maxGrantMessage = 64 << 10
	grantPatience   = 10 * time.Second // attaching may have a driver build its rings anew
)

// grantError is an error of a Granter's.
type grantError struct {
	text string
	is   []error
}

func (e *grantError) Error() string   { return e.text }
func (e *grantError) Unwrap() []error { return e.is }

// grantee is the engine's end. It is the steering program as well, once attached.
type grantee struct {
	path    string
	conn    *net.UnixConn
	answers chan grantPacket // closed when the connection has ended
	lost    error            // why it has, if nobody wanted that; to be read when gone is closed
	gone    chan struct{}

	mu      sync.Mutex
	native  bool
	refused error
	what    MetadataStats
	pending bool // a request got no answer in time: the next answer would be to that
	closing atomic.Bool
}

type grantPacket struct {
	answer grantAnswer
	fd     int // -1: none
	err    error
}

// dialGrant connects to a Granter.
func dialGrant(path string) (*grantee, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("xdpd: grant: %w: is xdpd grant running, with this socket?", err)
	}
	g := &grantee{path: path, conn: conn, answers: make(chan grantPacket, 1), gone: make(chan struct{})}
	go g.listen()
	return g, nil
}

func (g *grantee) listen() {
	defer close(g.gone)
	defer close(g.answers)
	for {
		p := g.receive()
		if p.err != nil {
			if !g.closing.Load() {
				g.lost = fmt.Errorf("xdpd: grant %s: the helper went away, and with it the steering program: %w", g.path, p.err)
			}
			return
		}
		select {
		case g.answers <- p:
		default: // to a question that nobody asked, or whose answer nobody waits for any more
			if p.fd >= 0 {
				unix.Close(p.fd)
			}
		}
	}
}

func (g *grantee) receive() grantPacket {
	text, oob := make([]byte, maxGrantMessage), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := g.conn.ReadMsgUnix(text, oob)
	if err == nil && n == 0 {
		err = os.ErrClosed // how SOCK_SEQPACKET tells the end
	}
	if err != nil {
		return grantPacket{fd: -1, err: err}
	}
	p := grantPacket{fd: oneDescriptor(oob[:oobn])}
	p.err = json.Unmarshal(text[:n], &p.answer)
	return p
}

// oneDescriptor is the descriptor in a control message, or -1. Go's net package has made it close on exec.
func oneDescriptor(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1
	}
	return fds[0]
}

// call sends a request and waits for the answer.
func (g *grantee) call(r grantRequest) (grantPacket, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return grantPacket{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pending {
		return grantPacket{}, g.fail(r, os.ErrDeadlineExceeded)
	}
	if _, err := g.conn.Write(text); err != nil {
		return grantPacket{}, g.fail(r, err)
	}
	late := time.NewTimer(grantPatience)
	defer late.Stop()
	select {
	case p, ok := <-g.answers:
		if !ok {
			return p, g.fail(r, net.ErrClosed)
		}
		if p.answer.Error == "" {
			return p, nil
		}
		e := &grantError{text: p.answer.Error}
		if p.answer.Errno != 0 {
			e.is = append(e.is, unix.Errno(p.answer.Errno))
		}
		if p.answer.Busy {
			e.is = append(e.is, xdpprog.ErrBusy)
		}
		return p, e
	case <-late.C:
		g.pending = true
		return grantPacket{}, g.fail(r, os.ErrDeadlineExceeded)
	}
}

func (g *grantee) fail(r grantRequest, err error) error {
	return fmt.Errorf("xdpd: grant %s: %s: %w", g.path, r.Op, err)
}

// do is a call whose answer says nothing.
func (g *grantee) do(r grantRequest) error {
	_, err := g.call(r)
	return err
}

// socket gives a bare AF_XDP socket for a queue, of the caller's network namespace.
func (g *grantee) socket(iface string, queue, sendBytes int) (int, error) {
	r := grantRequest{Op: grantSocket, Interface: iface, Queue: queue, SendBytes: sendBytes}
	p, err := g.call(r)
	if err != nil {
		return -1, err
	}
	if p.fd < 0 {
		return -1, g.fail(r, errors.New("no descriptor came"))
	}
	if err := sameNamespace(p.fd); err != nil {
		unix.Close(p.fd)
		return -1, g.fail(r, err)
	}
	return p.fd, nil
}

// sameNamespace holds a socket's network namespace against the calling thread's.
func sameNamespace(fd int) error {
	own, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	here, err := unix.GetsockoptUint64(own, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return err
	}
	there, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err == nil && here != there {
		return errors.New("the helper works in another network namespace: start xdpd grant with --netns, or the engine in the helper's")
	}
	return err
}

// attach has the program loaded and attached.
func (g *grantee) attach(c xdpprog.Config, metadata RXMetadata) error {
	p, err := g.call(grantRequest{Op: grantAttach, Steer: c.Steer, Attach: c.Attach, Metadata: metadata, Queues: c.Queues, Addrs: c.Addrs})
	if err != nil {
		return err
	}
	g.native, g.what = p.answer.Native, p.answer.Metadata
	if p.answer.Refused != "" {
		g.refused = errors.New(p.answer.Refused)
	}
	return nil
}

// SetSocket implements steerer. The Granter has the descriptor itself.
func (g *grantee) SetSocket(queue, _ int) error {
	return g.do(grantRequest{Op: grantPut, Queue: queue})
}

func (g *grantee) SetAddrs(addrs []netip.Addr) error {
	return g.do(grantRequest{Op: grantAddrs, Addrs: addrs})
}

func (g *grantee) OpenPort(proto uint8, addr netip.Addr, port uint16) error {
	return g.do(grantRequest{Op: grantOpen, Proto: proto, Addr: addr, Port: port})
}

func (g *grantee) ClosePort(proto uint8, addr netip.Addr, port uint16) error {
	return g.do(grantRequest{Op: grantClose, Proto: proto, Addr: addr, Port: port})
}

func (g *grantee) Counters() ([]xdpprog.Counter, error) {
	p, err := g.call(grantRequest{Op: grantCounters})
	return p.answer.Counters, err
}

// Probe is for driving the NAPI, which a grant does not go with.
func (g *grantee) Probe(uint16) error { return errors.ErrUnsupported }

func (g *grantee) Native() bool { return g.native }

func (g *grantee) NativeRefused() error { return g.refused }

// Metadata is what the Granter could have.
func (g *grantee) Metadata() MetadataStats { return g.what }

// Dispatched and Unloaded: a Granter's program is alone.
func (g *grantee) Dispatched() bool { return false }

func (g *grantee) Unloaded() bool { return false }

// Attached asks the Granter. One that does not answer is a loss of another kind, which ends the engine by itself.
func (g *grantee) Attached() bool {
	p, err := g.call(grantRequest{Op: grantAttached})
	return err != nil || p.answer.Attached
}

// Close ends the grant: the Granter detaches the program before it answers.
func (g *grantee) Close() error {
	g.closing.Store(true)
	err := g.do(grantRequest{Op: grantDetach})
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		err = nil // the helper is gone, which detached the program, and has been told
	}
	return errors.Join(err, g.conn.Close())
}
