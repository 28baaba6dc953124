package xdpd

import (
	"fmt"
	"path/filepath"

	"xdpd/internal/journal"
	"xdpd/xdpprog"
)

// Dispatch says whether the steering program shares the interface with other programs.
type Dispatch = xdpprog.Dispatch

// The ways to share an interface. The default, AutoDispatch, joins a dispatcher of libxdp (xdp-loader, xdp-filter) that is
// there, and otherwise has the interface alone; AlwaysDispatch makes one where there is none, which others can join;
// NeverDispatch has the interface alone or fails. Programs that are in no dispatcher are never touched.
const (
	AutoDispatch   = xdpprog.AutoDispatch
	AlwaysDispatch = xdpprog.AlwaysDispatch
	NeverDispatch  = xdpprog.NeverDispatch
)

// dispatchChange is what the journal holds of a program in a dispatcher, which outlives its process.
type dispatchChange struct {
	NetNS     uint64 `json:"netns"` // inode of the network namespace
	Interface string `json:"interface"`
	xdpprog.Membership
}

// dispatchJournal is a folder of its own: Replay reads all entries of one as one kind.
func dispatchJournal(dir string) string { return filepath.Join(dir, "dispatch") }

// journalJoin is told before the steering program joins a dispatcher, and again if that takes another try.
func (s *Stack) journalJoin(m xdpprog.Membership) error {
	if err := s.forgetJoin(); err != nil {
		return err
	}
	here, err := ownNetNS()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("dispatch-%d-%d-%d", here, m.Ifindex, m.Program)
	s.joined, err = journal.Write(dispatchJournal(s.cfg.JournalDir), name, dispatchChange{here, s.cfg.Interface, m})
	return err
}

// forgetJoin ends the entry after the program left the dispatcher.
func (s *Stack) forgetJoin() error {
	if s.joined == nil {
		return nil
	}
	err := s.joined.Remove()
	s.joined = nil
	return err
}

// restoreDispatch takes the programs of engines that were killed out of the dispatchers of the thread's network namespace.
func restoreDispatch(dir string) (done []string, err error) {
	here, err := ownNetNS()
	if err != nil {
		return nil, err
	}
	err = journal.Replay(dispatchJournal(dir), func(c dispatchChange) (bool, error) {
		if c.NetNS != here {
			return false, nil
		}
		left, err := xdpprog.Leave(c.Membership)
		if left {
			done = append(done, fmt.Sprintf("%s: program id %d of a dead engine is out of the dispatcher", c.Interface, c.Program))
		}
		return err == nil, err
	})
	return done, err
}
