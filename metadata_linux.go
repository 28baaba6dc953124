package xdpd

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netlink"

	"xdpd/internal/journal"
	"xdpd/rings"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// RXMetadata says what is asked of the driver about received frames.
type RXMetadata uint8

// A driver may take a VLAN tag out of a frame and tell it beside, and then the frame looks like one without. With
// AutoMetadata it never is taken for one: where the driver tells XDP programs of the tag (xdp-rx-metadata-features), the
// steering program puts it back; else the device is told to leave tags where they are, as by ethtool -K DEVICE rxvlan
// off, until the engine ends, or, if it is killed, until Restore. MetadataOn in addition stamps frames (Stamp), or fails.
// MetadataOff asks nothing and changes nothing.
const (
	AutoMetadata RXMetadata = iota
	MetadataOn
	MetadataOff
)

// Stamp is when a datagram was received.
type Stamp = umem.Stamp

// MetadataStats says what is asked of the driver.
type MetadataStats struct {
	Stamps bool
	Tags   string // what becomes of VLAN tags that the driver would take out
}

// program is the attached steering program, with what goes with it on the device.
type program struct {
	*xdpprog.Program
	what    MetadataStats
	restore func() error // nil: the device was not told anything
}

// tagChange is what the journal holds: a device took VLAN tags out, and is told not to.
type tagChange struct {
	NetNS     uint64 `json:"netns"` // inode of the network namespace
	Interface string `json:"interface"`
	Ifindex   int    `json:"ifindex"`
}

// tagJournal is a folder of its own, as dispatchJournal.
func tagJournal(dir string) string { return filepath.Join(dir, "tags") }

// loadProgram attaches the steering program, with the metadata that is wanted and possible.
func loadProgram(c xdpprog.Config, want RXMetadata, driver, journalDir string) (*program, error) {
	features, ferr := rings.ReadFeatures(c.Ifindex)
	switch {
	case want == MetadataOn && ferr != nil:
		return nil, fmt.Errorf("xdpd: metadata of frames: %w (Linux 6.8 is needed)", ferr)
	case want == MetadataOn && features.RXMetadata&rings.RXTimestamp == 0:
		return nil, fmt.Errorf("xdpd: the driver of %s tells no XDP program when it received a frame (xdp-rx-metadata-features)", c.Interface)
	case want == MetadataOn:
		c.Metadata = xdpprog.Stamps
	case want == AutoMetadata && features.RXMetadata&rings.RXTag != 0:
		c.Metadata = xdpprog.Tags
	}
	loaded, err := xdpprog.Load(c)
	if err != nil {
		return nil, err
	}
	p := &program{Program: loaded}
	p.what.Stamps = want == MetadataOn
	why := loaded.NoMetadata()
	if want == MetadataOn && why != nil {
		return nil, errors.Join(fmt.Errorf("xdpd: %w", why), p.Close())
	}
	if c.Metadata != xdpprog.NoMetadata && why == nil && features.RXMetadata&rings.RXTag != 0 {
		p.what.Tags = "the steering program puts back those that the driver takes out"
		return p, nil
	}
	if err := p.keepTags(c, want, driver, journalDir); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// keepTags has VLAN tags stay in frames where the steering program cannot put them back.
func (p *program) keepTags(c xdpprog.Config, want RXMetadata, driver, journalDir string) (err error) {
	if driver == "veth" { // whose own switch says nothing: the sender leaves them out
		p.what.Tags = "a kernel on the other end may hide them: ethtool -K PEER txvlan off"
		if why := p.NoMetadata(); why != nil {
			p.what.Tags += "; " + why.Error()
		}
		return nil
	}
	if want != MetadataOff {
		if p.restore, err = LeaveTags(journalDir, c.Interface, c.Ifindex); err != nil {
			return fmt.Errorf("%w: or RX metadata off", err)
		}
	}
	tags, err := rings.OpenTags()
	if err != nil {
		return fmt.Errorf("xdpd: %w", err)
	}
	defer tags.Close()
	p.what.Tags = "the driver takes none out"
	if taken, err := tags.Taken(c.Interface); err == nil && taken {
		p.what.Tags = "the driver takes them out, and such frames look untagged: ethtool -K " + c.Interface + " rxvlan off"
	} else if p.restore != nil {
		p.what.Tags = "the driver takes none out as long as the engine runs (rxvlan off)"
	}
	return nil
}

// Close detaches the program, and undoes what was changed on the device.
func (p *program) Close() error {
	err := p.Program.Close()
	if p.restore != nil {
		err = errors.Join(err, p.restore())
		p.restore = nil
	}
	return err
}

// Metadata implements steerer.
func (p *program) Metadata() MetadataStats { return p.what }

// LeaveTags has a device of the calling thread's network namespace leave VLAN tags in what it receives (ethtool -K DEVICE
// rxvlan off). restore, which may be called from any thread, undoes that; nil: the device leaves them anyway. If the
// process is killed, Restore does, or the next call: so says the journal (journalDir; "": DefaultJournalDir).
func LeaveTags(journalDir, iface string, ifindex int) (restore func() error, err error) {
	if journalDir == "" {
		journalDir = DefaultJournalDir
	}
	tags, err := rings.OpenTags()
	if err != nil {
		return nil, fmt.Errorf("xdpd: %w", err)
	}
	defer func() {
		if restore == nil {
			err = errors.Join(err, tags.Close())
		}
	}()
	if _, err := restoreTags(journalDir); err != nil {
		return nil, fmt.Errorf("xdpd: %w", err)
	}
	if taken, err := tags.Taken(iface); err != nil || !taken {
		return nil, nil // a driver that says nothing has nothing of the kind
	}
	change := tagChange{Interface: iface, Ifindex: ifindex}
	if change.NetNS, err = ownNetNS(); err != nil {
		return nil, err
	}
	entry, err := journal.Write(tagJournal(journalDir), fmt.Sprintf("tags-%d-%d", change.NetNS, ifindex), change)
	if err != nil {
		return nil, fmt.Errorf("xdpd: have VLAN tags left in frames of %s: %w", iface, err)
	}
	if err := tags.Take(iface, false); err != nil {
		return nil, errors.Join(fmt.Errorf("xdpd: have VLAN tags left in frames: %w", err), entry.Remove())
	}
	return func() error {
		err := tags.Take(iface, true)
		switch {
		case err == nil:
			err = entry.Remove()
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENODEV):
			// The privilege was given up, or the device has another name by now: the entry stays for who has it, or finds it.
			err = nil
		}
		return errors.Join(err, tags.Close())
	}, nil
}

// restoreTags has devices of the thread's network namespace take VLAN tags out again, after engines that were killed.
func restoreTags(dir string) (done []string, err error) {
	here, err := ownNetNS()
	if err != nil {
		return nil, err
	}
	tags, err := rings.OpenTags()
	if err != nil {
		return nil, err
	}
	defer tags.Close()
	err = journal.Replay(tagJournal(dir), func(c tagChange) (bool, error) {
		if c.NetNS != here {
			return false, nil
		}
		link, err := netlink.LinkByIndex(c.Ifindex)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return true, nil
		}
		if err == nil {
			err = tags.Take(link.Attrs().Name, true)
		}
		if err == nil {
			done = append(done, fmt.Sprintf("%s: takes VLAN tags out of frames again (rxvlan on)", link.Attrs().Name))
		}
		return err == nil, err
	})
	return done, err
}
