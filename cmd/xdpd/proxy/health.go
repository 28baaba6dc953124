package proxy

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"time"
)

// health is what checks and traffic told about a backend. Used with Proxy.mu held.
type health struct {
	down      bool
	known     bool // the first verdict counts at once
	good, bad int  // in a row
	reason    string
	silent    bool          // down because it does not answer, which a check without an answer cannot disprove
	since     time.Duration // of the last change, since Proxy.start
}

// verdict is what one look at a backend says.
type verdict uint8

const (
	answers verdict = iota
	silence         // UDP: no answer, and nobody said that there is no one
	fails
)

const (
	// A UDP backend that used to answer is down when so many datagrams in a row were not answered over so many checks'
	// time. One that never answered may be one that never does (syslog), and is left alone.
	silentDatagrams = 32
	silentChecks    = 3
	// A backend that is down for its silence is tried again after so many checks.
	silentHold = 15
)

// watch looks at a backend again and again. Backends are not looked at in step.
func (p *Proxy) watch(b *backend) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-t.C:
		}
		p.check(p.ctx, b)
		t.Reset(p.cfg.Check - p.cfg.Check/8 + rand.N(p.cfg.Check/4+1))
	}
}

// check looks at a backend once.
func (p *Proxy) check(ctx context.Context, b *backend) {
	var v verdict
	var err error
	if p.cfg.Network == "tcp" {
		v, err = p.checkTCP(ctx, b)
	} else {
		v, err = p.checkUDP(ctx, b)
	}
	if ctx.Err() != nil {
		return // not the backend's fault
	}
	b.n.checks.Add(1)
	if v == fails {
		b.n.badChecks.Add(1)
	}
	p.judge(b, v, err)
}

// checkTCP connects.
func (p *Proxy) checkTCP(ctx context.Context, b *backend) (verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	c, err := p.cfg.Dialer.DialContext(ctx, "tcp4", b.text)
	if err != nil {
		return fails, err
	}
	reset(c) // nothing was said: there is nothing to wait for in TIME-WAIT
	return answers, nil
}

// checkUDP sends an empty datagram: a port that nobody has open is told by ICMP, a host that is gone by its neighbours.
// Silence says nothing by itself; that of real traffic does.
func (p *Proxy) checkUDP(ctx context.Context, b *backend) (verdict, error) {
	if first := time.Duration(b.unansweredAt.Load()); b.answered.Load() && b.unanswered.Load() >= silentDatagrams &&
		p.since()-first >= silentChecks*p.cfg.Check {
		b.unanswered.Store(0)
		p.takeDown(b, health{reason: "does not answer any more", silent: true})
		return silence, nil
	}
	c, err := p.cfg.Dialer.DialContext(ctx, "udp4", b.text)
	if err != nil {
		return fails, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(p.cfg.Timeout)); err != nil {
		return fails, err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if _, err := c.Write(nil); err != nil {
		return fails, err
	}
	switch _, err := c.Read(make([]byte, 1)); {
	case err == nil:
		return answers, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return silence, nil
	default:
		return fails, err
	}
}

// ours knows the errors that a want of our own ports, descriptors or memory has: they say nothing about the backend, and a
// crowd of clients must not take all backends down with them.
func ours(err error) bool {
	return isErrno(err, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM, syscall.EMFILE,
		syscall.ENFILE)
}

// isErrno reports whether err is, or wraps, one of these.
func isErrno(err error, errnos ...syscall.Errno) bool {
	return slices.ContainsFunc(errnos, func(e syscall.Errno) bool { return errors.Is(err, e) })
}

// judge counts a verdict, and takes the backend up or down at the thresholds. err is why it fails.
func (p *Proxy) judge(b *backend, v verdict, err error) {
	if ours(err) {
		return
	}
	p.mu.Lock()
	h := &b.health
	switch {
	case v == fails:
		h.good = 0
		h.bad++
	case v == silence && h.silent && p.since()-h.since < silentHold*p.cfg.Check:
		h.good = 0
	default:
		h.bad = 0
		h.good++
	}
	down := !h.down && (h.bad >= p.cfg.Fall || h.bad > 0 && !h.known)
	up := h.down && h.good >= p.cfg.Rise
	h.known = true
	if up {
		*h = health{known: true, since: p.since()}
	}
	p.mu.Unlock()
	if down {
		p.takeDown(b, health{reason: reason(err)})
	}
}

// takeDown makes h a backend's health, unless it is down.
func (p *Proxy) takeDown(b *backend, h health) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b.health.down {
		return
	}
	h.down, h.known, h.since = true, true, p.since()
	b.health = h
	b.n.downs.Add(1)
}

// failed says that a backend did not take a real flow, which counts like a bad check.
func (p *Proxy) failed(b *backend, err error) {
	b.n.failed.Add(1)
	p.judge(b, fails, err)
}

// reason is the errno's text where there is one: addresses and operations are known from where it is shown.
func reason(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return ""
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "no answer"
	}
	return err.Error()
}
