package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"xdpd"
	"xdpd/cmd/xdpd/faces"
	"xdpd/cmd/xdpd/proxy"
	"xdpd/cmd/xdpd/web"
	"xdpd/reactor"
)

// faceNames are the faces, and usualFace the one on which a service is that has a choice and nobody made it. The others are
// handlers on the reactors, which is the poller's face.
var (
	faceNames = []string{"poller", "ring", "net"}
	usualFace = map[string]string{"echo": "poller", "http": "net", "proxy": "net"}
)

// spareConns are the connections of a proxy's loop beside those of its flows: clients that are about to be refused, which the
// proxy itself counts.
const spareConns = 64

// maxLoopFlows is how many flows a proxy on the poller or the ring can have.
const maxLoopFlows = (faces.MaxConns - spareConns) / 2

// checkFace refuses a face that a service is not on.
func (s *serviceSpec) checkFace() error {
	switch {
	case s.Face == "":
	case !slices.Contains(faceNames, s.Face):
		return fmt.Errorf("%s is wanted on the face %q; there are %s", s.Name, s.Face, strings.Join(faceNames, ", "))
	case usualFace[s.Name] == "":
		return fmt.Errorf("%s is on the poller alone: leave @%s out", s.Name, s.Face)
	case s.Face != "net" && s.Flows > maxLoopFlows:
		return fmt.Errorf("a proxy on poller or ring has up to %d flows, not %d", maxLoopFlows, s.Flows)
	case s.Upload && s.Face != "net":
		return errors.New("http takes uploads on the face net alone: http@net=PORT:DIR:upload")
	}
	return nil
}

// chooseFaces gives the services that have a choice, and made none, a face; "": the usual one.
func chooseFaces(specs []serviceSpec, face string) error {
	if face != "" && !slices.Contains(faceNames, face) {
		return fmt.Errorf("face is %q; there are %s", face, strings.Join(faceNames, ", "))
	}
	for i := range specs {
		s := &specs[i]
		if s.Face != "" || usualFace[s.Name] == "" {
			continue
		}
		if s.Face = face; face == "" {
			s.Face = usualFace[s.Name]
		}
		if err := s.checkFace(); err != nil {
			return err
		}
	}
	return nil
}

// faceServiceOf gives what starts a service beside the reactors' handlers; nil: it is one of those.
func faceServiceOf(s *serviceSpec) func(*xdpd.Stack, *serviceSpec) (faceService, error) {
	switch {
	case s.Name == "proxy":
		return startProxy
	case s.Name == "http" && (s.Face == "poller" || s.Face == "ring"):
		return startHTTPLoops
	case s.Name == "http":
		return startHTTP
	case s.Name == "echo" && s.Face == "net":
		return startEchoNet
	case s.Name == "echo" && s.Face == "ring":
		return startEchoRing
	}
	return nil
}

// loopServer serves a TCP port on the poller or the ring, by a Loop for each reactor.
type loopServer struct {
	loops []faces.Loop
	open  []map[*openStream]struct{} // by loop, whose goroutine alone uses it
}

// openStream is a Stream that takes itself out of the books.
type openStream struct {
	faces.Stream
	open   map[*openStream]struct{}
	finish func() // has it end of its own accord; nil: it ends when its peers do
}

// Splicer is that of its Stream, if it has one.
func (s *openStream) Splicer() faces.Splicer {
	if inner, ok := s.Stream.(interface{ Splicer() faces.Splicer }); ok {
		return inner.Splicer()
	}
	return nil
}

func (s *openStream) Closed(err error) {
	delete(s.open, s)
	s.Stream.Closed(err)
}

// listenLoops begins to serve. accept gives what serves a connection, or nil.
func listenLoops(st *xdpd.Stack, face string, port uint16, conns int, refused *atomic.Uint64, accept func(faces.Loop) *openStream) (*loopServer, error) {
	loops, err := faces.New(st, face, conns)
	if err != nil {
		return nil, err
	}
	s := &loopServer{loops: loops}
	for _, l := range loops {
		open := make(map[*openStream]struct{})
		s.open = append(s.open, open)
		err = l.Listen(port, func() faces.Stream {
			if l.Conns() >= conns {
				refused.Add(1)
				return nil
			}
			stream := accept(l)
			if stream == nil {
				return nil
			}
			stream.open = open
			open[stream] = struct{}{}
			return stream
		})
		if err != nil {
			break
		}
	}
	if err == nil && face == "poller" { // a ring does that by itself
		err = st.OpenPorts(port, true, false)
	}
	if err != nil {
		s.abort()
		return nil, err
	}
	return s, nil
}

func (s *loopServer) abort() {
	for _, l := range s.loops {
		l.Close()
	}
}

// finish accepts no more, and has connections end that can.
func (s *loopServer) finish() {
	for n, l := range s.loops {
		l.StopListening()
		l.Post(func() {
			for stream := range s.open[n] {
				if stream.finish != nil {
					stream.finish()
				}
			}
		})
	}
}

// Close waits for the connections to end, and resets what is left when ctx ends.
func (s *loopServer) Close(ctx context.Context) (err error) {
	s.finish()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for err == nil {
		n := 0
		for _, l := range s.loops {
			n += l.Conns()
		}
		if n == 0 {
			break
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			err = fmt.Errorf("%d connections reset: %w", n, ctx.Err())
		}
	}
	s.abort()
	return err
}

// httpLoops is the service http on the poller or the ring: the same folder, the same files, without uploads.
type httpLoops struct {
	fileServer // its root and its counters; its srv is not used
	cfg        web.Config
	loops      *loopServer
}

// newHTTPLoops opens the folder.
func newHTTPLoops(spec *serviceSpec) (*httpLoops, error) {
	root, err := os.OpenRoot(spec.Dir)
	if err != nil {
		return nil, fmt.Errorf("service http: %w", err)
	}
	s := &httpLoops{}
	s.port, s.root = spec.Port, root
	s.cfg = web.Config{
		Files: rootFiles{root}, HeaderTime: httpHeaderTime, IdleTime: httpIdleTime, StallTime: httpStallTime,
		Requests: &s.n.requests, Sent: &s.n.sent, Received: &s.n.received,
	}
	return s, nil
}

func startHTTPLoops(st *xdpd.Stack, spec *serviceSpec) (faceService, error) {
	s, err := newHTTPLoops(spec)
	if err != nil {
		return nil, err
	}
	s.loops, err = listenLoops(st, spec.Face, spec.Port, httpConns, &s.n.refused, func(faces.Loop) *openStream {
		s.n.connections.Add(1)
		stream := web.New(&s.cfg)
		return &openStream{Stream: stream, finish: stream.Finish}
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("service http: %w", err), s.root.Close())
	}
	return s, nil
}

// Close lets requests end that are being answered, until ctx ends.
func (s *httpLoops) Close(ctx context.Context) error {
	err := s.loops.Close(ctx)
	if err != nil {
		err = fmt.Errorf("service http: %w", err)
	}
	return errors.Join(err, s.root.Close())
}

// joinLoops is a proxy's data path. Refused connections are in the proxy's own counters.
func joinLoops(st *xdpd.Stack, face string, port uint16, p *proxy.Proxy) (*loopServer, error) {
	var refused atomic.Uint64
	return listenLoops(st, face, port, 2*p.Flows()+spareConns, &refused, func(l faces.Loop) *openStream {
		if client := joinFlow(l, p); client != nil {
			return &openStream{Stream: client}
		}
		return nil
	})
}

// echoService is the service echo on the ring or on the net face.
type echoService struct {
	port    uint16
	n       serviceCount
	loops   *loopServer
	udp     []*reactor.Ring
	ports   []io.Closer // of the net face
	serving sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // of the net face
}

func startEchoRing(st *xdpd.Stack, spec *serviceSpec) (_ faceService, err error) {
	s := &echoService{port: spec.Port}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("service echo: %w", err), s.Close(context.Background()))
		}
	}()
	for n := range st.Reactors() {
		if !spec.UDP {
			break
		}
		q, err := faces.EchoUDP(st, n, spec.Port)
		if err != nil {
			return nil, err
		}
		s.udp = append(s.udp, q)
	}
	if spec.TCP {
		s.loops, err = listenLoops(st, "ring", spec.Port, httpConns, &s.n.refused, func(faces.Loop) *openStream {
			s.n.connections.Add(1)
			stream := &echoStream{}
			return &openStream{Stream: stream, finish: stream.finish}
		})
	}
	return s, err
}

func startEchoNet(st *xdpd.Stack, spec *serviceSpec) (_ faceService, err error) {
	s := &echoService{port: spec.Port, conns: make(map[net.Conn]struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("service echo: %w", err), s.Close(context.Background()))
		}
	}()
	address := fmt.Sprintf(":%d", spec.Port)
	if spec.UDP {
		c, err := st.ListenPacket("udp", address)
		if err != nil {
			return nil, err
		}
		s.ports = append(s.ports, c)
		s.serving.Go(func() { echoPackets(c) })
	}
	if spec.TCP {
		l, err := st.Listen("tcp", address)
		if err != nil {
			return nil, err
		}
		s.ports = append(s.ports, l)
		s.serving.Go(func() { s.accept(l) })
	}
	return s, nil
}

// echoPackets ends when c is closed. What cannot be sent is lost, as datagrams are.
func echoPackets(c net.PacketConn) {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteTo(buf[:n], from)
		}
	}
}

func (s *echoService) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if !s.admit(c) {
			s.n.refused.Add(1)
			c.Close()
			continue
		}
		s.n.connections.Add(1)
		s.serving.Go(func() {
			_, err := io.Copy(c, c)
			if h, ok := c.(*xdpd.TCPConn); ok && errors.Is(err, os.ErrDeadlineExceeded) { // Close's: the peer is told, and not reset
				_ = errors.Join(h.CloseWrite(), h.SetReadDeadline(time.Time{}))
				_, _ = io.Copy(io.Discard, h)
			}
			c.Close()
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

func (s *echoService) admit(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxConns {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

// Close sends what was received, and ends the connections, by force when ctx ends.
func (s *echoService) Close(ctx context.Context) (err error) {
	for _, q := range s.udp {
		q.Close()
	}
	for _, p := range s.ports {
		_ = p.Close() // by nobody else before
	}
	if s.loops != nil {
		err = s.loops.Close(ctx)
	}
	s.mu.Lock()
	for c := range s.conns {
		_ = c.SetReadDeadline(time.Now()) // what was read is written before
	}
	s.mu.Unlock()
	force := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.Close()
		}
	})
	s.serving.Wait()
	force()
	return err
}

func (s *echoService) views() []serviceView {
	return []serviceView{{Name: "echo", Port: s.port, Protocol: "tcp", Counters: map[string]uint64{
		"connections": s.n.connections.Load(), "refused": s.n.refused.Load(),
	}}}
}
