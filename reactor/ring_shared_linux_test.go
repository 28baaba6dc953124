package reactor

import (
	"cmp"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/rings"
)

// sharedRings has the tests' rings lie in memory that is shared with their application as with another process: a memfd that is mapped twice, of
// which the application knows the second mapping alone, and a client that joined it.
var sharedRings bool

// TestRingShared runs the tests of rings over shared memory. It leaves out what is for rings of the same process: lending, handlers, eventfds,
// messages to other rings.
func TestRingShared(t *testing.T) {
	sharedRings = true
	defer func() { sharedRings = false }()
	for name, test := range map[string]func(*testing.T){
		"RecvStream": TestRingRecvStream, "RecvErrors": TestRingRecvErrors, "Reset": TestRingReset, "RecvCancel": TestRingRecvCancel,
		"BufRing": TestRingBufRing, "Multishot": TestRingMultishot, "BufHostile": TestRingBufHostile, "Bundle": TestRingBundle,
		"BundleHostile": TestRingBundleHostile, "SelectWaitAll": TestRingSelectWaitAll, "Send": TestRingSend, "SendSelect": TestRingSendSelect,
		"SlotReused": TestRingSlotReused, "UDP": TestRingUDP, "Ports": TestRingPorts, "EpollWait": TestRingEpollWait,
		"EpollRefuses": TestRingEpollRefuses, "ConnectDontWait": TestRingConnectDontWait, "WorkBounded": TestRingWorkBounded,
		"SmallBuffersBounded": TestRingSmallBuffersBounded, "PortSearchBounded": TestRingPortSearchBounded,
		"Timeout": TestRingTimeout, "TimeoutCount": TestRingTimeoutCount, "TimeoutMultishot": TestRingTimeoutMultishot,
		"TimeoutUpdate": TestRingTimeoutUpdate, "Malformed": TestRingMalformed, "Link": TestRingLink, "Drain": TestRingDrain,
		"LinkTimeout": TestRingLinkTimeout, "Cancel": TestRingCancel, "Full": TestRingFull, "Overflow": TestRingOverflow,
		"MultishotFull": TestRingMultishotFull, "Poll": TestRingPoll, "SockTable": TestRingSockTable, "SendRate": TestRingSendRate,
		"ConnectRate": TestRingConnectRate, "Socket": TestRingSocket, "BindListen": TestRingBindListen, "Connect": TestRingConnect,
		"ConnectTwice": TestRingConnectTwice, "ConnectCancel": TestRingConnectCancel, "ConnectUnreachable": TestRingConnectUnreachable,
		"ConnectTimeout": TestRingConnectTimeout, "ConnectWaiters": TestRingConnectWaiters, "Accept": TestRingAccept,
		"AcceptPlaces": TestRingAcceptPlaces, "AcceptItself": TestRingAcceptItself, "Shutdown": TestRingShutdown, "SockOpt": TestRingSockOpt,
		"SockOptBefore": TestRingSockOptBefore, "Linger": TestRingLinger, "Chain": TestRingChain, "Wait": TestRingWait,
	} {
		t.Run(name, test)
	}
}

// shareRing puts a ring's memory where another process would have it, and gives what makes the application's end and its view of the data.
func shareRing(t testing.TB, r *Reactor, cfg *RingConfig) (join func(*Ring) (*RingClient, []byte)) {
	t.Helper()
	sq := cmp.Or(cfg.SQEntries, defaultSQ)
	engine, err := rings.NewShare(&rings.ShareHello{SQEntries: sq, CQEntries: cmp.Or(cfg.CQEntries, 2*sq), Data: uint64(len(cfg.Data))})
	if err != nil {
		t.Fatal(err)
	}
	copy(engine.Data, cfg.Data)
	woken := make(chan struct{}, 1)
	cfg.Area, cfg.Data = engine.Ring, engine.Data
	cfg.Bell = func() {
		select {
		case woken <- struct{}{}:
		default:
		}
	}
	return func(q *Ring) (*RingClient, []byte) {
		fd, err := unix.Dup(engine.FD())
		if err != nil {
			t.Fatal(err)
		}
		w := engine.Welcome()
		app, err := rings.JoinShare(fd, &w)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { // when the ring is closed
			q.Close()
			if engine.Close() != nil || app.Close() != nil {
				t.Error("the memory cannot be unmapped")
			}
		})
		c, err := JoinRing(app.Ring, func() { r.Enter(); r.Leave() }, AwaitToken(woken, q.done))
		if err != nil {
			t.Fatal(err)
		}
		return c, app.Data
	}
}
