package reactor

import (
	"slices"

	"xdpd/rings"
	"xdpd/sockets"
)

// ringModel is what a ring should do, said again in plain lists, in which everything is searched for from the front. It
// shares no code with Ring. One step of it is one turn.
type ringModel struct {
	now      int64
	limit    int // requests in flight
	used     int
	room     int // for messages
	peers    []*ringModel
	socks    map[int]*modelSock // numbers, and slots from 1000 on
	sq       []rings.SQE
	mail     []rings.CQE
	open     []*modelReq // the chain being read
	broken   bool
	held     []*modelReq
	drain    bool
	starting [][]*modelReq
	running  []*modelReq
	byUser   []*modelReq // the same, but whose user data was changed is the youngest
	orders   int
	counted  int
	size     int // of the CQ
	in       int // CQEs in it that were not taken
	cq       []rings.CQE
	backlog  []modelCQE
	ended    map[string]int // how often what happened
}

type modelCQE struct {
	rings.CQE
	message bool
}

type modelSock struct {
	queued int // datagrams
	event  bool
}

type modelReq struct {
	s     rings.SQE
	order int
	due   int64 // of timeouts
	need  int   // completions that a timeout waits for; 0: none
	guard *modelReq
	ward  *modelReq // what a guard guards
	rest  []*modelReq
	sock  *modelSock
}

func (r *modelReq) has(flag uint8) bool { return r.s.Flags&flag != 0 }

func (m *ringModel) post(c rings.CQE, message bool) {
	if len(m.backlog) == 0 && m.in < m.size {
		m.in++
		m.cq = append(m.cq, c)
		if message {
			m.room++
		}
		return
	}
	m.ended["overflow"]++
	m.backlog = append(m.backlog, modelCQE{c, message})
}

func (m *ringModel) say(s *rings.SQE, err sockets.Errno) {
	m.counted++
	m.ended[err.Error()]++
	m.post(rings.CQE{UserData: s.UserData, Res: -int32(err)}, false)
}

// more posts a completion that is not the last, if there is room for it.
func (m *ringModel) more(r *modelReq, res int32) bool {
	if len(m.backlog) > 0 || m.in == m.size {
		m.ended["multishot stopped"]++
		return false
	}
	m.ended["more"]++
	if r.s.Opcode != rings.OpTimeout {
		m.counted++
	}
	m.post(rings.CQE{UserData: r.s.UserData, Res: res, Flags: rings.CQEMore}, false)
	return true
}

// turn is one turn of the reactor, as far as this ring goes.
func (m *ringModel) turn(now int64) {
	m.now = now
	for len(m.backlog) > 0 && m.in < m.size {
		c := m.backlog[0]
		m.backlog = m.backlog[1:]
		m.in++
		m.cq = append(m.cq, c.CQE)
		if c.message {
			m.room++
		}
	}
	mail := m.mail
	m.mail = nil
	for _, c := range mail {
		m.counted++
		m.post(c, true)
	}
	m.settle()
	m.tellPolls()
	for len(m.sq) > 0 {
		if m.used == 0 {
			m.drain = false
		}
		if m.drain || m.held != nil || len(m.backlog) > 0 {
			break
		}
		s := m.sq[0]
		m.sq = m.sq[1:]
		m.take(s)
		m.settle()
	}
	for m.expireOne() {
		m.settle()
	}
}

func (m *ringModel) tellPolls() {
	for _, n := range []int{0, 1, 2, 1000} { // the tests let things happen in this order
		k := m.socks[n]
		if k == nil || !k.event {
			continue
		}
		k.event = false
		for _, r := range slices.Clone(m.running) {
			if r.sock == k && m.look(r) {
				m.end(r, int32(k.ready(r.s.OpFlags)))
			}
		}
		m.settle()
	}
}

// ready: a UDP socket takes data at any time, and has some when some came.
func (k *modelSock) ready(mask uint32) uint32 {
	ready := uint32(4)
	if k.queued > 0 {
		ready |= 1
	}
	return ready & mask
}

// look reports whether a poll is over.
func (m *ringModel) look(r *modelReq) bool {
	ready := r.sock.ready(r.s.OpFlags)
	return ready != 0 && (r.s.Len&1 == 0 || !m.more(r, int32(ready)))
}

func (m *ringModel) take(s rings.SQE) {
	linked := s.Flags&(4|8) != 0
	if m.broken {
		m.broken = linked
		m.say(&s, sockets.ECANCELED)
		return
	}
	err := m.check(&s)
	if err == 0 && m.used >= m.limit && (!instant(s.Opcode) || linked || len(m.open) > 0) {
		err = sockets.ENOMEM
	}
	if err != 0 {
		for _, r := range m.open {
			m.say(&r.s, sockets.ECANCELED)
		}
		m.used -= len(m.open)
		m.say(&s, err)
		m.open, m.broken = nil, linked
		return
	}
	m.used++
	m.open = append(m.open, &modelReq{s: s})
	if linked {
		return
	}
	if slices.ContainsFunc(m.open, func(r *modelReq) bool { return r.has(2) }) {
		m.held = m.open
	} else {
		m.starting = append(m.starting, m.open)
	}
	m.open = nil
}

func instant(op rings.Op) bool {
	return op == rings.OpNop || op == rings.OpPollRemove || op == rings.OpTimeoutRemove || op == rings.OpCancel || op == rings.OpMsg
}

// check says what is wrong with an SQE in itself.
func (m *ringModel) check(s *rings.SQE) sockets.Errno {
	bad := s.IOPrio != 0 || s.Reserved != 0
	selects := s.Flags&32 != 0
	rest := s.BufGroup != 0 || s.FileIndex != 0 || s.Addr3 != 0
	switch s.Opcode {
	case rings.OpNop:
		rest = false
	case rings.OpPollAdd:
		rest = rest || s.Len > 1 || s.Off != 0 || s.Addr != 0 || s.Len == 1 && s.Flags&64 != 0
	case rings.OpPollRemove:
		rest = rest || s.Len > 7 || s.Len == 1 || s.Len&4 == 0 && s.Off != 0 || s.Len&2 == 0 && s.OpFlags != 0
	case rings.OpTimeout, rings.OpLinkTimeout:
		known := uint32(1 | 32 | 64)
		if s.Opcode == rings.OpLinkTimeout {
			known = 1
			rest = rest || s.Off != 0 || len(m.open) == 0 || m.open[len(m.open)-1].s.Opcode == rings.OpLinkTimeout
		}
		rest = rest || s.Len != 0 || s.OpFlags&^known != 0 || s.Addr >= 1<<62 || s.Off >= 1<<32 || s.OpFlags&65 == 65
	case rings.OpTimeoutRemove:
		rest = rest || s.Flags&1 != 0 || s.Len != 0 || s.Off >= 1<<62 || s.OpFlags&^(1|2|16) != 0 || s.OpFlags&18 == 0 && (s.OpFlags != 0 || s.Off != 0)
	case rings.OpCancel:
		rest = rest || s.Off != 0 || s.OpFlags >= 64 || s.OpFlags&4 != 0 && s.OpFlags&(2|32) != 0
	case rings.OpMsg:
		rest = s.BufGroup != 0 || s.Addr != 0 || s.Addr3 != 0 || s.OpFlags&^2 != 0 || s.OpFlags == 0 && s.FileIndex != 0
	default:
		bad = true
	}
	switch {
	case bad:
		return sockets.EINVAL
	case selects:
		return sockets.EOPNOTSUPP
	case rest:
		return sockets.EINVAL
	}
	return 0
}

// settle starts what may start, one after the other.
func (m *ringModel) settle() {
	for {
		var satisfied *modelReq
		for _, r := range m.running {
			if r.need > 0 && r.need <= m.counted && (satisfied == nil || r.need < satisfied.need) {
				satisfied = r
			}
		}
		switch {
		case len(m.starting) > 0:
			list := m.starting[0]
			m.starting = m.starting[1:]
			m.start(list)
		case m.held != nil && m.used == len(m.held)+len(m.open):
			list := m.held
			m.held, m.drain = nil, true
			m.ended["drained"]++
			m.start(list)
		case satisfied != nil:
			m.ended["count"]++
			m.end(satisfied, 0)
		default:
			return
		}
	}
}

func (m *ringModel) start(list []*modelReq) {
	r := list[0]
	r.rest = list[1:]
	m.orders++
	r.order = m.orders
	res, done := m.issue(r)
	if done {
		m.end(r, res)
		return
	}
	m.running, m.byUser = append(m.running, r), append(m.byUser, r)
	if len(r.rest) > 0 && r.rest[0].s.Opcode == rings.OpLinkTimeout {
		g := r.rest[0]
		r.guard, g.ward, r.rest = g, r, r.rest[1:]
		m.orders++
		g.order, g.due = m.orders, m.due(g.s.Addr, g.s.OpFlags)
	}
}

func (m *ringModel) due(ns uint64, flags uint32) int64 {
	if flags&1 != 0 {
		return int64(ns)
	}
	return min(m.now+int64(ns), 1<<62-1)
}

func (m *ringModel) issue(r *modelReq) (res int32, done bool) {
	switch r.s.Opcode {
	case rings.OpTimeout:
		r.due = m.due(r.s.Addr, r.s.OpFlags)
		if r.s.OpFlags&64 == 0 && r.s.Off > 0 {
			r.need = m.counted + int(r.s.Off)
		}
		return 0, false
	case rings.OpPollAdd:
		if r.sock = m.socket(&r.s, r.has(1)); r.sock == nil {
			return -int32(sockets.EBADF), true
		}
		if !m.look(r) {
			return 0, false
		}
		return int32(r.sock.ready(r.s.OpFlags)), true
	case rings.OpPollRemove:
		return m.pollRemove(&r.s), true
	case rings.OpTimeoutRemove:
		return m.timeoutRemove(&r.s), true
	case rings.OpCancel:
		return m.cancel(r), true
	case rings.OpMsg:
		return m.msg(&r.s), true
	}
	return 0, true
}

func (m *ringModel) socket(s *rings.SQE, fixed bool) *modelSock {
	if s.FD < 0 || s.FD >= 1000 {
		return nil
	}
	if fixed {
		return m.socks[1000+int(s.FD)]
	}
	return m.socks[int(s.FD)]
}

func without(list []*modelReq, r *modelReq) []*modelReq {
	return slices.DeleteFunc(list, func(o *modelReq) bool { return o == r })
}

// end ends a request that was started: its completion, its guard, what follows it.
func (m *ringModel) end(r *modelReq, res int32) {
	m.running, m.byUser = without(m.running, r), without(m.byUser, r)
	m.used--
	timeout := r.s.Opcode == rings.OpTimeout
	failed := res < 0 && !(timeout && res == -int32(sockets.ETIME) && r.s.OpFlags&32 != 0)
	if failed || !r.has(64) {
		if !timeout || res == -int32(sockets.ECANCELED) {
			m.counted++
		}
		m.post(rings.CQE{UserData: r.s.UserData, Res: res}, false)
	}
	g := r.guard
	if g == nil && len(r.rest) > 0 && r.rest[0].s.Opcode == rings.OpLinkTimeout {
		g, r.rest = r.rest[0], r.rest[1:]
	}
	if g != nil {
		m.endGuard(g, sockets.ECANCELED)
	}
	if failed && !r.has(8) {
		m.used -= len(r.rest)
		for _, o := range r.rest {
			if r.has(64) {
				m.ended["silent"]++
			} else {
				m.say(&o.s, sockets.ECANCELED)
			}
		}
	} else if len(r.rest) > 0 {
		m.ended["link"]++
		m.starting = append(m.starting, r.rest)
	}
}

func (m *ringModel) endGuard(g *modelReq, err sockets.Errno) {
	m.used--
	g.ward.release()
	if !g.has(64) {
		m.ended["guard"]++
		m.say(&g.s, err)
	}
}

func (r *modelReq) release() {
	if r != nil {
		r.guard = nil
	}
}

func (m *ringModel) expireOne() bool {
	var first *modelReq
	for _, r := range m.running {
		for _, t := range []*modelReq{r, r.guard} {
			if t == nil || t == r && r.s.Opcode != rings.OpTimeout || t.due > m.now {
				continue
			}
			if first == nil || t.due < first.due || t.due == first.due && t.order < first.order {
				first = t
			}
		}
	}
	switch {
	case first == nil:
		return false
	case first.ward != nil:
		w := first.ward
		m.endGuard(first, sockets.ETIME)
		m.end(w, -int32(sockets.ECANCELED))
	case first.s.OpFlags&64 != 0 && first.s.Off != 1 && m.more(first, -int32(sockets.ETIME)):
		if first.s.Off > 0 {
			first.s.Off--
		}
		first.due = min(m.now+int64(max(first.s.Addr, 1)), 1<<62-1)
	default:
		m.ended["expired"]++
		m.end(first, -int32(sockets.ETIME))
	}
	return true
}

func (m *ringModel) find(op rings.Op, user uint64) *modelReq {
	for _, r := range m.byUser {
		if r.s.Opcode == op && r.s.UserData == user {
			return r
		}
	}
	return nil
}

func (m *ringModel) pollRemove(s *rings.SQE) int32 {
	r := m.find(rings.OpPollAdd, s.Addr)
	if r == nil {
		return -int32(sockets.ENOENT)
	}
	if s.Len == 0 {
		m.end(r, -int32(sockets.ECANCELED))
		return 0
	}
	if s.Len&2 != 0 {
		r.s.OpFlags = s.OpFlags
	}
	if s.Len&4 != 0 {
		r.s.UserData = s.Off
		m.byUser = append(without(m.byUser, r), r)
	}
	m.ended["poll update"]++
	if m.look(r) {
		m.end(r, int32(r.sock.ready(r.s.OpFlags)))
	}
	return 0
}

func (m *ringModel) timeoutRemove(s *rings.SQE) int32 {
	if s.OpFlags&16 != 0 {
		for _, r := range m.running {
			if r.guard != nil && r.guard.s.UserData == s.Addr {
				r.guard.due = m.due(s.Off, s.OpFlags)
				m.ended["guard update"]++
				return 0
			}
		}
		return -int32(sockets.ENOENT)
	}
	r := m.find(rings.OpTimeout, s.Addr)
	switch {
	case r == nil:
		return -int32(sockets.ENOENT)
	case s.OpFlags == 0:
		m.end(r, -int32(sockets.ECANCELED))
	default:
		m.ended["timeout update"]++
		r.need, r.s.Off, r.s.Addr = 0, 0, s.Off
		r.due = m.due(s.Off, s.OpFlags)
	}
	return 0
}

func (m *ringModel) cancel(c *modelReq) int32 {
	f := c.s.OpFlags
	var k *modelSock
	if f&2 != 0 {
		if k = m.socket(&c.s, f&8 != 0 || c.has(1)); k == nil {
			return -int32(sockets.EBADF)
		}
	}
	byUser := f&4 == 0 && (f&(2|32) == 0 || f&16 != 0)
	list := m.running
	if byUser {
		list = m.byUser
	}
	n := int32(0)
	for _, r := range slices.Clone(list) {
		switch {
		case f&4 != 0:
		case f&2 != 0 && r.sock != k, f&32 != 0 && uint32(r.s.Opcode) != c.s.Len, byUser && r.s.UserData != c.s.Addr:
			continue
		}
		m.ended["cancelled"]++
		m.end(r, -int32(sockets.ECANCELED))
		if n++; f&(1|4) == 0 {
			return 0
		}
	}
	if f&(1|4) == 0 {
		return -int32(sockets.ENOENT)
	}
	return n
}

func (m *ringModel) msg(s *rings.SQE) int32 {
	if s.FD < 0 || int(s.FD) >= len(m.peers) {
		return -int32(sockets.EBADF)
	}
	to := m.peers[s.FD]
	if to.room == 0 {
		m.ended["no room"]++
		return -int32(sockets.EOVERFLOW)
	}
	to.room--
	to.mail = append(to.mail, rings.CQE{UserData: s.Off, Res: int32(s.Len), Flags: s.FileIndex})
	return 0
}
