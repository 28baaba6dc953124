package xdpd_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"xdpd/internal/netlab"
)

// answerDNS knows the A record of every name, and of long.test. a TXT record of 4000 bytes.
func answerDNS(w dns.ResponseWriter, question *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(question)
	name := question.Question[0].Name
	header := dns.RR_Header{Name: name, Class: dns.ClassINET, Ttl: 60, Rrtype: question.Question[0].Qtype}
	switch question.Question[0].Qtype {
	case dns.TypeA:
		m.Answer = append(m.Answer, &dns.A{Hdr: header, A: []byte{192, 0, 2, byte(len(name))}})
	case dns.TypeTXT:
		text := &dns.TXT{Hdr: header}
		for range 20 {
			text.Txt = append(text.Txt, strings.Repeat("x", 200))
		}
		m.Answer = append(m.Answer, text)
	default:
		m.Rcode = dns.RcodeNameError
	}
	_ = w.WriteMsg(m) // a client that is gone asks again
}

// serveDNS runs the library's server, unmodified, on a socket of the engine.
func serveDNS(t *testing.T, lab *netlab.Lab) netip.AddrPort {
	t.Helper()
	stack := openStack(t, lab, engineConfig(lab))
	conn := listen(t, stack, ":53")
	started, ended := make(chan struct{}), make(chan error, 1)
	server := &dns.Server{
		PacketConn: conn, Handler: dns.HandlerFunc(answerDNS), NotifyStartedFunc: func() { close(started) },
	}
	go func() { ended <- server.ActivateAndServe() }()
	t.Cleanup(func() {
		// Shutdown sets a read deadline in the past, waits for the handlers, and closes the socket.
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-started:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	return netip.AddrPortFrom(lab.EngineAddr, 53)
}

func TestDNSLibrary(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	server := serveDNS(t, lab)
	client := &dns.Client{Timeout: patience, UDPSize: 8192}
	exchange := func(conn *dns.Conn, name string, qtype uint16) (*dns.Msg, error) {
		m := new(dns.Msg)
		m.SetQuestion(name, qtype)
		m.SetEdns0(8192, false)
		conn.SetDeadline(time.Now().Add(patience))
		reply, _, err := client.ExchangeWithConn(m, conn)
		return reply, err
	}
	results := make(chan error)
	const clients, questions = 8, 100
	for k := range clients {
		conn := &dns.Conn{Conn: kernelUDP(t, lab.Peer, netip.AddrPort{}, server)}
		go func() {
			for i := range questions {
				name := strings.Repeat("n", 1+i%60) + fmt.Sprintf("%d.test.", k)
				reply, err := exchange(conn, name, dns.TypeA)
				if err == nil && (len(reply.Answer) != 1 || reply.Answer[0].(*dns.A).A[3] != byte(len(name))) {
					err = fmt.Errorf("%s: answered %v", name, reply)
				}
				if err != nil {
					results <- err
					return
				}
			}
			results <- nil
		}()
	}
	for range clients {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	conn := &dns.Conn{Conn: kernelUDP(t, lab.Peer, netip.AddrPort{}, server)}
	reply, err := exchange(conn, "long.test.", dns.TypeTXT) // an answer in three fragments
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(reply.Answer[0].(*dns.TXT).Txt, ""); len(text) != 4000 {
		t.Errorf("the long text has %d bytes", len(text))
	}
	if reply, err = exchange(conn, "none.test.", dns.TypeMX); err != nil || reply.Rcode != dns.RcodeNameError {
		t.Errorf("a name that is not there: %v, %v", reply, err)
	}
}

func TestDNSByDig(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	server := serveDNS(t, lab)
	dig := func(args ...string) string {
		args = append([]string{"@" + server.Addr().String(), "+short", "+time=20", "+tries=1", "+bufsize=8192", "+notcp"}, args...)
		return strings.TrimSpace(run(t, lab.Peer, "dig", args...))
	}
	if got := dig("example.test", "A"); got != "192.0.2.13" {
		t.Errorf("dig example.test A says %q", got)
	}
	if got := dig("long.test", "TXT"); strings.Count(got, "x") != 4000 {
		t.Errorf("dig long.test TXT says %d characters", len(got))
	}
}
