package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"xdpd"
)

// TestModeCommand tells and changes the mode, over the control socket, and passes refusals on.
func TestModeCommand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	mode := xdpd.Best
	a := answers{
		stats: func() (xdpd.Stats, error) {
			return xdpd.Stats{Interface: "eth1", ZeroCopy: mode != xdpd.Copy, NeedWakeup: true, TXBudget: 256}, nil
		},
		services: func() []serviceView { return nil },
		setMode: func(m xdpd.Mode) error {
			if m == xdpd.ZeroCopy {
				return errors.New("the driver has no zero copy")
			}
			mode = m
			return nil
		},
	}
	end, err := serveAnswers(t.Context(), path, a)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	for _, c := range []struct{ mode, iface, want string }{
		{"", "", "zero copy, need_wakeup"}, {"copy", "", ""}, {"", "", "copy, 256 frames a kick, need_wakeup"},
		{"zerocopy", "", "error: the driver has no zero copy"}, {"eth1", "", "copy, 256 frames a kick, need_wakeup"},
		{"best", "eth1", ""}, {"", "", "zero copy, need_wakeup"}, {"eth1", "copy", "error: xdpd mode copy eth1"},
		{"zero-copy", "", "error: not on zero-copy (the mode comes first, and is best, copy or zerocopy"},
	} {
		var out bytes.Buffer
		err := (&modeCmd{Mode: c.mode, Interface: c.iface, Control: path}).run(t.Context(), &out)
		if want, fails := strings.CutPrefix(c.want, "error: "); fails {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v", c, err)
			}
		} else if err != nil || strings.TrimSpace(out.String()) != c.want {
			t.Errorf("%+v: %v, %q", c, err, &out)
		}
	}
	if _, err := callControl(t.Context(), path, "POST", "/mode?m=fast"); err == nil || !strings.Contains(err.Error(), "best, copy and zerocopy") {
		t.Errorf("a word that is no mode: %v", err)
	}
}
