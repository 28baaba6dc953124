package main

import (
	"time"

	"xdpd/cmd/xdpd/faces"
	"xdpd/cmd/xdpd/proxy"
)

// echoStream is RFC 862 on any face.
type echoStream struct {
	conn  faces.Conn
	q     faces.Queue
	ended bool
}

func (e *echoStream) Open(c faces.Conn)           { e.conn = c }
func (e *echoStream) Room() int                   { return e.q.Room() }
func (e *echoStream) End()                        { e.ended = true }
func (e *echoStream) Next() (b []byte, fin bool)  { return e.q.Bytes(), e.ended }
func (e *echoStream) Sent(n int)                  { e.q.Drop(n) }
func (e *echoStream) Deadline() (never time.Time) { return never }
func (e *echoStream) Closed(error)                { e.q.Drop(len(e.q.Bytes())) }

// Splicer has a ring send the frames back that came.
func (e *echoStream) Splicer() faces.Splicer { return e }
func (e *echoStream) Onto() faces.Conn       { return e.conn }
func (e *echoStream) Passed(int)             {}

// Take queues what came; behind the end it is thrown away.
func (e *echoStream) Take(b []byte) {
	if !e.ended {
		e.q.Put(b)
	}
}

// finish sends what came, and then FIN.
func (e *echoStream) finish() {
	e.ended = true
	e.conn.Wake()
}

// joined is a client's connection and the one to its backend: what comes in on one goes out on the other. Each has a queue
// of what came in, and reads no more while that is full.
type joined struct {
	loop            faces.Loop
	flow            *proxy.Flow
	timeout         time.Duration
	client, backend *side
	broken, over    bool
}

// side is one of the two connections.
type side struct {
	j       *joined
	conn    faces.Conn // nil: not yet
	q       faces.Queue
	open    bool
	ended   bool // the peer's FIN came
	closed  bool
	timeout time.Time // of the handshake
}

// joinFlow accepts a connection for a proxy; nil: it is refused.
func joinFlow(l faces.Loop, p *proxy.Proxy) faces.Stream {
	j := &joined{loop: l, timeout: p.Timeout()}
	j.client = &side{j: j}
	if j.flow = p.NewFlow(func() { l.Post(j.abort) }); j.flow == nil {
		return nil
	}
	return j.client
}

// connect dials the next backend, or gives up.
func (j *joined) connect() {
	addr, ok := j.flow.Backend()
	if !ok {
		j.abort()
		return
	}
	j.backend = &side{j: j, timeout: time.Now().Add(j.timeout)}
	j.backend.conn = j.loop.Dial(addr, j.backend)
}

// abort resets both sides.
func (j *joined) abort() {
	j.broken = true
	for _, s := range []*side{j.client, j.backend} {
		if s != nil && s.conn != nil && !s.closed {
			s.conn.Abort()
		}
	}
}

// other is the connection that takes what comes in on s; nil while a backend is looked for.
func (s *side) other() *side {
	if s == s.j.client {
		return s.j.backend
	}
	return s.j.client
}

func (s *side) wakeOther() {
	if o := s.other(); o != nil && o.open {
		o.conn.Wake()
	}
}

func (s *side) Open(c faces.Conn) {
	s.conn, s.open = c, true
	if s == s.j.client {
		s.j.connect()
	} else {
		s.wakeOther() // it has somewhere to go
	}
}

// Splicer has a ring pass frames from one side to the other.
func (s *side) Splicer() faces.Splicer { return s }

// Onto is the other side's connection.
func (s *side) Onto() faces.Conn {
	if o := s.other(); o != nil && o.open {
		return o.conn
	}
	return nil
}

// Passed counts what went from this side to the other.
func (s *side) Passed(n int) {
	if s == s.j.client {
		s.j.flow.Sent(n)
	} else {
		s.j.flow.Received(n)
	}
}

func (s *side) Room() int { return s.q.Room() }

func (s *side) Take(b []byte) {
	if s.q.Put(b); s == s.j.backend {
		s.j.flow.Received(len(b))
	}
	s.wakeOther()
}

func (s *side) End() {
	s.ended = true
	s.wakeOther()
}

func (s *side) Next() (b []byte, fin bool) {
	o := s.other()
	if o == nil {
		return nil, false
	}
	return o.q.Bytes(), o.ended
}

func (s *side) Sent(n int) {
	if s.other().q.Drop(n); s == s.j.backend {
		s.j.flow.Sent(n)
	}
	s.wakeOther() // it has room again
}

func (s *side) Deadline() (d time.Time) {
	if !s.open {
		d = s.timeout
	}
	return d
}

func (s *side) Closed(err error) {
	j := s.j
	s.closed = true
	if s == j.backend && !s.open && !j.broken { // the next one may take it
		j.flow.Refused(err)
		j.backend = nil
		j.connect()
		return
	}
	if err != nil && !j.broken {
		j.abort()
	}
	if !j.over && j.client.closed && (j.backend == nil || j.backend.closed) {
		j.over = true // abort has been here already
		j.flow.End(j.broken)
		for _, s := range []*side{j.client, j.backend} {
			if s != nil {
				s.q.Drop(len(s.q.Bytes()))
			}
		}
	}
}
