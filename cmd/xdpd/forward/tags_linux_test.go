package forward

import (
	"strings"
	"testing"
	"time"

	"xdpd/internal/netlab"
	"xdpd/xdpprog"
)

// TestHiddenTags: a frame whose VLAN tag a driver took out leaves a bridge with it, and is none of a router's.
func TestHiddenTags(t *testing.T) {
	for _, router := range []bool{false, true} {
		l := newLab(t, router, netlab.Options{})
		l.open(Config{Router: router})
		l.ping(l.Engine, l.PeerAddr, "")
		stop, err := netlab.HideTags(l.Engine, l.EngineDev, 7)
		must(t, err)
		seen, err := netlab.CountTags(l.Peer, l.PeerDev)
		must(t, err)
		defer seen.Close()
		before := l.stats()
		out, err := l.run(l.Engine, "ping -n -c 3 -i 0.01 -W 0.1 "+l.PeerAddr.String())
		if err == nil {
			t.Errorf("router %v: a host answers who is in a VLAN:\n%s", router, out)
		}
		want := func(what string, ok func(st *Stats) bool) {
			t.Helper()
			for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
				st := l.stats()
				if ok(&st) {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("router %v: never: %s; port %+v, before %+v", router, what, st.Ports[0], before.Ports[0])
				}
			}
		}
		untagged, tagged := uint64(0), uint64(0)
		if router {
			want("the kernel gets them", func(st *Stats) bool {
				return verdict(st, "pass_protocol") >= verdict(&before, "pass_protocol")+3 &&
					st.Ports[0].Counters.RxFrames == before.Ports[0].Counters.RxFrames
			})
		} else {
			want("they leave with their tags", func(st *Stats) bool {
				untagged, tagged, err = seen.Counts()
				must(t, err)
				return tagged >= 3
			})
			if st := l.stats(); st.Ports[0].Counters.Drops != before.Ports[0].Counters.Drops {
				t.Errorf("dropped: %v", st.Ports[0].Counters.Drops)
			}
		}
		must(t, stop())
		if untagged > 0 {
			t.Errorf("router %v: %d frames lost their tags", router, untagged)
		}
	}
}

// TestLostTags: where nothing tells of a tag that a sender hides, the forwarder says so.
func TestLostTags(t *testing.T) {
	for attach, says := range map[xdpprog.Attach]string{xdpprog.Native: "", xdpprog.Generic: "ethtool -K PEER txvlan off"} {
		l := newLab(t, false, netlab.Options{})
		l.open(Config{Attach: attach})
		if tags := l.stats().Ports[0].Tags; !strings.Contains(tags, says) || (tags == "") != (says == "") {
			t.Errorf("attach %v: %q", attach, tags)
		}
	}
}

func verdict(st *Stats, name string) uint64 {
	for _, v := range st.Ports[0].Verdicts {
		if v.Name == name {
			return v.Packets
		}
	}
	return 0
}
