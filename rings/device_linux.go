package rings

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// QueueCount is how many RX queues the interface has, 0 if nobody knows.
// SIOCETHTOOL looks in the namespace of the calling thread; /sys may be
// mounted for another one, so it is only believed about an interface of the
// same name and index.
func QueueCount(name string, ifindex int) int {
	if n := ethtoolChannels(name); n > 0 {
		return n
	}
	dir := "/sys/class/net/" + name
	index, err := os.ReadFile(dir + "/ifindex")
	if err != nil || strings.TrimSpace(string(index)) != fmt.Sprint(ifindex) {
		return 0
	}
	queues, err := os.ReadDir(dir + "/queues")
	if err != nil {
		return 0
	}
	n := 0
	for _, q := range queues {
		if strings.HasPrefix(q.Name(), "rx-") {
			n++
		}
	}
	return n
}

// ethtoolChannels is how many RX queues ETHTOOL_GCHANNELS tells of, 0 if the
// driver does not say.
func ethtoolChannels(name string) int {
	return rxChannels(func(c []byte) error { return ethtool(name, c) })
}

func rxChannels(ask func([]byte) error) int {
	// struct ethtool_channels: cmd, maxRX, maxTX, maxOther, maxCombined, rx, tx,
	// other, combined
	ch := command(9, unix.ETHTOOL_GCHANNELS)
	if ask(ch) != nil {
		return 0
	}
	return int(field(ch, 5) + field(ch, 8))
}

// Channels asks how many queues interfaces have by now, of which the kernel
// tells nobody when it changes. It looks in the network namespace of the thread
// that opened it, from any other.
type Channels struct{ fd int }

// OpenChannels makes the socket to ask by.
func OpenChannels() (*Channels, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("rings: open a socket to ask for queues: %w", err)
	}
	return &Channels{fd}, nil
}

// RX gives the number of RX queues; 0 where the driver does not say, or there
// is no such interface.
func (c *Channels) RX(name string) int {
	return rxChannels(func(b []byte) error { return ethtoolBy(c.fd, name, b) })
}

// Close closes the socket.
func (c *Channels) Close() error { return unix.Close(c.fd) }

// RingSizes are the device's own descriptor rings, in packets, of each queue.
type RingSizes struct{ RX, MaxRX, TX, MaxTX int }

// ReadRingSizes asks the driver (ETHTOOL_GRINGPARAM) for an interface of the
// calling thread's namespace. Devices in software have none.
func ReadRingSizes(name string) (RingSizes, error) {
	return readRingSizes(func(c []byte) error { return ethtool(name, c) })
}

func readRingSizes(ask func([]byte) error) (RingSizes, error) {
	// struct ethtool_ringparam: cmd, the maxima of rx, rx_mini, rx_jumbo and tx,
	// then what they are
	b := command(9, unix.ETHTOOL_GRINGPARAM)
	if err := ask(b); err != nil {
		return RingSizes{}, fmt.Errorf("the driver does not tell its ring sizes: %w", err)
	}
	return RingSizes{MaxRX: int(field(b, 1)), MaxTX: int(field(b, 4)), RX: int(field(b, 5)), TX: int(field(b, 8))}, nil
}

// command is a struct of n 32-bit fields whose first are given, and field reads
// one.
func command(n int, first ...uint32) []byte {
	b := make([]byte, 4*n)
	for i, v := range first {
		binary.NativeEndian.PutUint32(b[4*i:], v)
	}
	return b
}

func field(b []byte, i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }

// RSS is how the device spreads received packets over its queues. Table holds
// the queue for each value of the hash modulo its length. TCP and UDP are the
// bytes of such packets over IPv4 that go into the Toeplitz hash with Key: 8,
// the source and the destination address; 12, the ports as well; 0, something
// else, or not known.
type RSS struct {
	Key      []byte
	Table    []uint32
	TCP, UDP int
}

// String is a few words on what is hashed.
func (r RSS) String() string {
	over := func(bytes int) string {
		return map[int]string{0: "unknown", 8: "addresses", 12: "addresses and ports"}[bytes]
	}
	return fmt.Sprintf("Toeplitz, a table of %d; TCP: %s; UDP: %s", len(r.Table), over(r.TCP), over(r.UDP))
}

// ReadRSS asks the driver (ETHTOOL_GRSSH, ETHTOOL_GRXFH) for an interface of
// the calling thread's namespace. The error says what is not known, and is no
// failure: many devices have nothing of the kind, or do not tell.
func ReadRSS(name string) (RSS, error) {
	return readRSS(func(c []byte) error { return ethtool(name, c) })
}

func readRSS(ask func([]byte) error) (RSS, error) {
	head := command(rssHead/4, unix.ETHTOOL_GRSSH)
	if err := ask(head); err != nil {
		return RSS{}, fmt.Errorf("the driver does not tell its hash: %w", err)
	}
	size, err := rssSize(head)
	if err != nil {
		return RSS{}, err
	}
	answer := command(rssHead/4, unix.ETHTOOL_GRSSH, 0, field(head, 2), field(head, 3))
	answer = append(answer, make([]byte, size-rssHead)...)
	if err := ask(answer); err != nil { // EINVAL: the sizes are no longer those
		return RSS{}, fmt.Errorf("the driver does not tell its hash key: %w", err)
	}
	r, err := parseRSS(answer)
	if err != nil {
		return RSS{}, err
	}
	r.TCP, r.UDP = hashedBytes(ask, unix.TCP_V4_FLOW), hashedBytes(ask, unix.UDP_V4_FLOW)
	if r.TCP == 0 && r.UDP == 0 {
		return RSS{}, fmt.Errorf("the driver does not tell what it hashes, or it is neither the addresses nor addresses and ports")
	}
	return r, nil
}

// rssHead is the size of struct ethtool_rxfh without what follows: cmd,
// rss_context, indir_size, key_size; a byte each of hfunc, input_xfrm and two
// reserved; a reserved word. Behind it stand the table and the key.
const rssHead = 24

const (
	rssMaxTable = 1 << 16 // entries; drivers have at most 4096
	rssMaxKey   = 1 << 10 // bytes; drivers have at most 52
)

// rssSize is how long an answer is whose head says so.
func rssSize(head []byte) (int, error) {
	table, key := field(head, 2), field(head, 3)
	if table == 0 || key == 0 {
		return 0, fmt.Errorf("the device has no indirection table or no hash key")
	}
	if table > rssMaxTable || key > rssMaxKey {
		return 0, fmt.Errorf("the driver tells of an indirection table of %d entries and a key of %d bytes", table, key)
	}
	return rssHead + 4*int(table) + int(key), nil
}

// parseRSS reads an answer to ETHTOOL_GRSSH.
func parseRSS(b []byte) (RSS, error) {
	if len(b) < rssHead {
		return RSS{}, fmt.Errorf("the driver's answer has %d bytes", len(b))
	}
	size, err := rssSize(b)
	if err != nil {
		return RSS{}, err
	}
	if len(b) < size {
		return RSS{}, fmt.Errorf("the driver's answer has %d bytes of %d", len(b), size)
	}
	const toeplitz = 1 << 0 // ETH_RSS_HASH_TOP
	if hash, transform := b[16], b[17]; hash != toeplitz || transform != 0 {
		return RSS{}, fmt.Errorf("the device's hash is not Toeplitz (function %#x, input transformation %#x)", hash, transform)
	}
	var r RSS
	for i := range int(field(b, 2)) {
		r.Table = append(r.Table, field(b[rssHead:], i))
	}
	r.Key = append(r.Key, b[rssHead+4*len(r.Table):size]...)
	return r, nil
}

// hashedBytes asks what is hashed of a kind of flow.
func hashedBytes(ask func([]byte) error, flow uint32) int {
	// struct ethtool_rxnfc: cmd, flow_type, 64 bits of data, and what is for
	// other commands
	rxnfc := command(48, unix.ETHTOOL_GRXFH, flow)
	if ask(rxnfc) != nil {
		return 0
	}
	return hashFields(binary.NativeEndian.Uint64(rxnfc[8:]))
}

// hashFields are the bytes that a set of RXH_ flags names.
func hashFields(flags uint64) int {
	const (
		addrs = 1<<4 | 1<<5         // RXH_IP_SRC, RXH_IP_DST
		ports = addrs | 1<<6 | 1<<7 // RXH_L4_B_0_1, RXH_L4_B_2_3
	)
	switch flags {
	case addrs:
		return 8
	case ports:
		return 12
	}
	return 0
}
