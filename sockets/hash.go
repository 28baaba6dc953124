package sockets

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"net/netip"

	"xdpd/proto"
)

// flowKey names a flow from our side. A listening or unconnected socket leaves Remote and RPort zero; a wildcard socket
// leaves Local zero as well.
type flowKey struct {
	Local, Remote proto.Addr
	LPort, RPort  uint16
}

func (k *flowKey) local() netip.AddrPort  { return netip.AddrPortFrom(k.Local.Netip(), k.LPort) }
func (k *flowKey) remote() netip.AddrPort { return netip.AddrPortFrom(k.Remote.Netip(), k.RPort) }

// secret keys every hash and random choice of a Host, so that a peer cannot aim at one bucket or guess an ISN. It comes
// from Config.Seed: a test that fixes the seed fixes them all.
type secret struct {
	k0, k1 uint64
	k2     uint64
	seed   [32]byte
	rng    uint64
}

func newSecret(seed [32]byte, self int) secret {
	d := sha256.Sum256(append([]byte("xdpd hash"), seed[:]...))
	return secret{
		k0:   binary.LittleEndian.Uint64(d[0:]),
		k1:   binary.LittleEndian.Uint64(d[8:]) | 1,
		seed: sha256.Sum256(append([]byte("xdpd isn"), seed[:]...)),
		k2:   binary.LittleEndian.Uint64(d[24:]),
		rng:  binary.LittleEndian.Uint64(d[16:]) + uint64(self)<<32, // Hosts of a group do not choose alike
	}
}

// mix folds a 128-bit product, the core of wyhash: two multiplications a key.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func (s *secret) flow(k flowKey) uint64 {
	a := uint64(k.Local)<<32 | uint64(k.Remote)
	b := uint64(k.LPort)<<16 | uint64(k.RPort)
	return mix(mix(a^s.k0, s.k1)^b, s.k0|1)
}

// stamp is the offset of a flow's timestamp clock. Peers see it: it must not tell what flow says.
func (s *secret) stamp(k flowKey) uint32 { return uint32(mix(s.flow(k)^s.k2, s.k1) >> 16) }

func (s *secret) addr(a proto.Addr) uint64 { return mix(uint64(a)^s.k0, s.k1) }

// next is SplitMix64 from the secret seed: for IP identifications and jitter, not for anything that must resist a peer
// who sees the outputs.
func (s *secret) next() uint64 {
	s.rng += 0x9e3779b97f4a7c15
	z := s.rng
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// isn is RFC 6528: a 4 µs clock plus a keyed hash of the connection's four-tuple.
func (s *secret) isn(k flowKey, now int64) uint32 { return s.digest(k, 0, forISN) + uint32(now/4000) }

// cookieBase and cookie are the keyed parts of a SYN cookie of a listener.
func (s *secret) cookieBase(k flowKey, listener uint32) uint32 {
	return s.digest(k, listener, forCookieBase)
}

func (s *secret) cookie(k flowKey, irs, more uint32) uint32 {
	return s.digest(k, irs, forCookie|more&(1<<24-1)) & (1<<24 - 1)
}

// dial is the offset at which the search for a source port begins (RFC 6056 3.3.3).
func (s *secret) dial(k flowKey) uint32 { return s.digest(k, 0, forPort) }

// What a digest is for.
const (
	forISN = iota << 24
	forCookieBase
	forCookie
	forPort
)

// digest is a keyed hash that resists a peer who sees as many of its outputs as he likes.
func (s *secret) digest(k flowKey, irs, more uint32) uint32 {
	var b [32 + 20]byte
	copy(b[:], s.seed[:])
	binary.BigEndian.PutUint32(b[32:], uint32(k.Local))
	binary.BigEndian.PutUint32(b[36:], uint32(k.Remote))
	binary.BigEndian.PutUint16(b[40:], k.LPort)
	binary.BigEndian.PutUint16(b[42:], k.RPort)
	binary.BigEndian.PutUint32(b[44:], irs)
	binary.BigEndian.PutUint32(b[48:], more)
	d := sha256.Sum256(b[:])
	return binary.BigEndian.Uint32(d[:])
}
