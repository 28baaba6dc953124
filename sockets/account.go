package sockets

import (
	"math"
	"slices"

	"xdpd/umem"
)

// Account is what some sockets together may hold of the packet memory: those of an application that is not trusted. A frame that one of
// them takes, to receive or to send, is charged to it until it is free. An account gets no frame beyond its limits, nor one that would
// leave all others together less than itself has: so whatever those hold who hold all that they may, one more finds as much as the largest of
// them. Where there is no account a frame costs a comparison or two. 0 is none.
type Account uint16

// AccountUse is what an account holds and may hold, in frames.
type AccountUse struct {
	RX      int    `json:"rx"` // of received data
	RXLimit int    `json:"rx_limit"`
	TX      int    `json:"tx"` // of data to send
	TXLimit int    `json:"tx_limit"`
	Dropped uint64 `json:"dropped"` // packets that were not taken because of it
}

type account struct {
	AccountUse
	serial  uint64 // no two accounts have the same
	used    bool
	closed  bool
	socks   int      // that it is charged for, connections without an owner among them
	most    int      // of them; 0: any number
	waiting []Handle // sockets that found no frame to send with
}

type accounts struct {
	list    []account // of which 0 is nobody's
	of      []Account // by frame; nil until there was an account
	conns   []Account // by connection, as long as it must be
	waiting []Account // those with sockets that wait
	serial  uint64    // the last account's
	payer   Account   // for the frames that the call in progress takes
}

// NewAccount opens an account of so many frames for received data and for data to send, and of so many sockets, connections that nobody
// accepted and those that their owner closed among them (0: any number); false: there are 65535.
func (h *Host) NewAccount(rx, tx, socks int) (a Account, ok bool) {
	t := &h.accounts
	if t.of == nil {
		t.of, t.list = make([]Account, h.pool.Region().Frames()), make([]account, 1)
	}
	i := 1 + slices.IndexFunc(t.list[1:], func(c account) bool { return !c.used })
	if i == 0 {
		if i = len(t.list); i > math.MaxUint16 {
			return 0, false
		}
		t.list = append(t.list, account{})
	}
	t.serial++
	t.list[i] = account{used: true, serial: t.serial, most: socks, AccountUse: AccountUse{RXLimit: rx, TXLimit: tx}}
	h.accountsChanged()
	return Account(i), true
}

// CloseAccount ends an account: it is gone when its last socket is closed and its last frame is back.
func (h *Host) CloseAccount(a Account) {
	h.accounts.list[a].closed = true
	h.accountGone(a)
}

func (h *Host) accountGone(a Account) {
	if c := &h.accounts.list[a]; c.closed && c.socks == 0 && c.RX+c.TX == 0 {
		*c = account{}
		h.accounts.waiting = slices.DeleteFunc(h.accounts.waiting, func(w Account) bool { return w == a })
		h.accountsChanged()
	}
}

// accountsChanged notes from how many received frames on windows are to be smaller for somebody.
func (h *Host) accountsChanged() {
	h.rxTight = h.rxLimit / 2
	for i := range h.accounts.list {
		if c := &h.accounts.list[i]; c.used {
			h.rxTight = min(h.rxTight, c.RXLimit/2)
		}
	}
}

// AccountUse tells of an account, and its serial number, by which one that was closed is known from another that has its number.
func (h *Host) AccountUse(a Account) (AccountUse, uint64) {
	c := &h.accounts.list[a]
	return c.AccountUse, c.serial
}

// Charge has a account pay for what a socket takes from now on, and for the connections that a listener takes. Once for a socket.
func (h *Host) Charge(s Handle, a Account) {
	switch s.kind() {
	case kindUDP:
		if u := h.udp.get(s); u != nil {
			u.account = a
			h.accounts.list[a].socks++
		}
	case kindListener:
		if l := h.tcp.listener(s); l != nil {
			l.account = a
			h.accounts.list[a].socks++
		}
	case kindTCP:
		if h.tcp.get(s) != nil && h.connAccount(s.index()) == 0 { // else its listener's
			h.chargeConn(s.index(), a)
		}
	}
}

func (h *Host) chargeConn(i uint32, a Account) {
	t := &h.accounts
	if int(i) >= len(t.conns) {
		t.conns = append(t.conns, make([]Account, len(h.tcp.chunks)*tcbChunk-len(t.conns))...)
	}
	t.conns[i] = a
	t.list[a].socks++
}

// connAccount is who pays for a connection.
func (h *Host) connAccount(i uint32) Account {
	if int(i) < len(h.accounts.conns) {
		return h.accounts.conns[i]
	}
	return 0
}

// crowded reports whether an account has as many sockets as it may.
func (h *Host) crowded(a Account) bool {
	if a == 0 {
		return false
	}
	c := &h.accounts.list[a]
	return c.most > 0 && c.socks >= c.most
}

// uncharge is for a socket that is no more.
func (h *Host) uncharge(a Account) {
	if a != 0 {
		h.accounts.list[a].socks--
		h.accountGone(a)
	}
}

func (h *Host) unchargeConn(i uint32) {
	if a := h.connAccount(i); a != 0 {
		h.accounts.conns[i] = 0
		h.uncharge(a)
	}
}

// rxRoom is how many frames of received data an account may hold by now.
func (h *Host) rxRoom(a Account) int { return min(h.accounts.list[a].RXLimit, h.rxLimit-h.rxUsed) }

// rxShort reports whether an account has no room for another packet.
func (h *Host) rxShort(a Account) bool {
	return h.accounts.list[a].RX+h.cfg.PacketFrames > h.rxRoom(a)
}

// holdFor is hold for a socket of an account.
func (h *Host) holdFor(a Account, p *packet) bool {
	if a == 0 {
		return h.hold(p)
	}
	c, n := &h.accounts.list[a], h.chainFrames(p.f)
	if c.RX+n > c.RXLimit || c.RX+2*n > h.rxLimit-h.rxUsed {
		c.Dropped++
		h.drop(p, RxAccountLimit)
		return false
	}
	if !h.hold(p) {
		return false
	}
	c.RX += n
	for f := p.f; f != umem.None; f = h.pool.Buf(f).Next {
		h.accounts.of[f] = a
	}
	return true
}

// rxBack and txBack are for frames that are free again.
func (h *Host) rxBack(f umem.Frame) {
	if a := h.accounts.of[f]; a != 0 {
		h.accounts.of[f] = 0
		h.accounts.list[a].RX--
		h.accountGone(a)
	}
}

func (h *Host) txBack(f umem.Frame) {
	if a := h.accounts.of[f]; a != 0 {
		h.accounts.of[f] = 0
		h.accounts.list[a].TX--
		h.accountGone(a)
	}
}

// txRoomOf is how many frames more an account may take to send.
func (h *Host) txRoomOf(a Account) int {
	c := &h.accounts.list[a]
	return min(c.TXLimit-c.TX, (h.txLimit-h.txUsed-c.TX+1)/2)
}

// pay charges a frame to send to who pays in this call. false: he has no more.
func (h *Host) pay(f umem.Frame) bool {
	a := h.accounts.payer
	if h.txRoomOf(a) <= 0 {
		return false
	}
	h.chargeTX(f, a)
	return true
}

func (h *Host) chargeTX(f umem.Frame, a Account) {
	h.accounts.of[f] = a
	h.accounts.list[a].TX++
}

// allocFor is allocTX for an account.
func (h *Host) allocFor(a Account) umem.Frame {
	h.accounts.payer = a
	f := h.allocTX()
	h.accounts.payer = 0
	return f
}

// allocLike is allocTX for who pays for f, also beyond the limit: else what holds all of it could not be cut, and never be sent.
func (h *Host) allocLike(f umem.Frame) umem.Frame {
	g := h.allocTX()
	if h.accounts.of != nil && g != umem.None && h.accounts.of[f] != 0 {
		h.chargeTX(g, h.accounts.of[f])
	}
	return g
}

// wakeShare is how many frames an account must have again before its sockets that wait hear of it.
func (c *account) wakeShare() int { return max(1, min(64, c.TXLimit/16)) }

// keep is how many of its frames a connection's data leaves to its datagrams and to other connections, as txDataLimit does for all: who has next to
// nothing to send takes half of them.
func (c *account) keep(conn *tcb) int {
	if conn.sndFrames < 2 {
		return c.TXLimit / 16
	}
	return c.TXLimit / 8
}

// sendsReceived moves the charge of a frame from received data to data to send. false: there is no room for it.
func (h *Host) sendsReceived(f umem.Frame) bool {
	a := h.accounts.of[f]
	switch {
	case a == 0:
		return true
	case h.txRoomOf(a) <= 0:
		return false
	}
	h.accounts.list[a].RX--
	h.accounts.list[a].TX++
	return true
}

// payerFull reports whether who pays in this call has no frame for a connection's data.
func (h *Host) payerFull(c *tcb) bool {
	a := h.accounts.payer
	return a != 0 && h.txRoomOf(a) <= h.accounts.list[a].keep(c)
}

// accountAwait notes that s must hear when its account has frames again; false: it has, and what is missing is missing to all.
func (h *Host) accountAwait(s Handle, a Account, need int) bool {
	if a == 0 || h.txRoomOf(a) >= need {
		return false
	}
	c := &h.accounts.list[a]
	if len(c.waiting) == 0 {
		h.accounts.waiting = append(h.accounts.waiting, a)
	}
	c.waiting = h.await(c.waiting, s)
	return true
}

// wakeAccounts tells the sockets of accounts that have frames again.
func (h *Host) wakeAccounts() {
	h.accounts.waiting = slices.DeleteFunc(h.accounts.waiting, func(a Account) bool {
		c := &h.accounts.list[a]
		room := min(h.txRoomOf(a), h.txFree())
		if room < c.wakeShare() {
			return false
		}
		c.waiting = slices.DeleteFunc(c.waiting, func(s Handle) bool {
			switch {
			case s.kind() != kindTCP:
				return h.wakeFrame(s, room)
			case h.exists(s) && room < c.wakeShare()+c.keep(h.tcp.at(s.index())):
				return false
			}
			h.wakeData(s)
			return true
		})
		return len(c.waiting) == 0
	})
}
