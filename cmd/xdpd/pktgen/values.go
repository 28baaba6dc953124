package pktgen

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"xdpd/proto"
	"xdpd/xdpprog"
)

// Rate is how fast to send: packets a second, or bits of frames a second, with FCS and without preamble and gap. At most one
// of them is not 0; the zero Rate is as fast as it goes.
type Rate struct {
	Packets float64 `json:"packets_per_second,omitempty"`
	Bits    float64 `json:"bits_per_second,omitempty"`
}

// scales are the suffixes of rates and counts.
var scales = map[byte]float64{'k': 1e3, 'm': 1e6, 'g': 1e9}

// scaled splits "1.5M" into 1.5e6 and what follows the suffix.
func scaled(s string) (value float64, rest string, ok bool) {
	end := 0
	for end < len(s) && (s[end] >= '0' && s[end] <= '9' || s[end] == '.') {
		end++
	}
	value, err := strconv.ParseFloat(s[:end], 64)
	rest = strings.ToLower(s[end:])
	if rest != "" && scales[rest[0]] != 0 {
		value, rest = value*scales[rest[0]], rest[1:]
	}
	return value, rest, err == nil && !math.IsInf(value, 0)
}

// UnmarshalText reads "200k", "1.5Mpps", "900Mbit" or "0", which is no limit.
func (r *Rate) UnmarshalText(b []byte) error {
	value, unit, ok := scaled(string(b))
	switch {
	case !ok:
	case unit == "" || unit == "pps":
		*r = Rate{Packets: value}
		return nil
	case unit == "bit" || unit == "bit/s":
		*r = Rate{Bits: value}
		return nil
	}
	return fmt.Errorf("%q is no rate: packets a second as in 200k or 1.5M, or bits a second as in 900Mbit", b)
}

// String implements fmt.Stringer.
func (r Rate) String() string {
	switch {
	case r.Bits > 0:
		return short(r.Bits) + "bit/s"
	case r.Packets > 0:
		return short(r.Packets) + "pps"
	}
	return "no limit"
}

// perSecond is the rate in packets of a mean size in bytes; 0: no limit.
func (r Rate) perSecond(size float64) float64 {
	if r.Bits > 0 {
		return r.Bits / (8 * size)
	}
	return r.Packets
}

// short writes a number with three or four digits and a suffix.
func short(v float64) string {
	for _, s := range []struct {
		scale  float64
		suffix string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if v >= s.scale {
			return strconv.FormatFloat(v/s.scale, 'f', 2, 64) + " " + s.suffix
		}
	}
	return strconv.FormatFloat(v, 'f', 0, 64) + " "
}

// Count is a number of packets that may be written with a suffix: 10M.
type Count uint64

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Count) UnmarshalText(b []byte) error {
	value, rest, ok := scaled(string(b))
	if !ok || rest != "" || value != math.Trunc(value) || value >= 1<<63 {
		return fmt.Errorf("%q is no number of packets: write 5000, 200k or 10M", b)
	}
	*c = Count(value)
	return nil
}

// Sizes are the lengths of frames in bytes, each with its weight, as on a wire, with the four bytes of the FCS: the smallest
// frame, 64, is 60 bytes in memory. Packet n has the size of pattern()[n % len].
type Sizes []Weighted

// Weighted is a size and how often it comes among the weights of all.
type Weighted struct {
	Size   int `json:"size"`
	Weight int `json:"weight"`
}

// imix is the simple Internet mix.
var imix = Sizes{{64, 7}, {594, 4}, {1518, 1}}

// maxSize is the largest frame: what a frame of packet memory holds, with its FCS.
const maxSize = 4096 + fcs

// UnmarshalText reads "64", "imix", or sizes with weights: "64:7,594:4,1518:1".
func (s *Sizes) UnmarshalText(b []byte) error {
	text := string(b)
	if text == "imix" {
		*s = imix
		return nil
	}
	var out Sizes
	total := 0
	for part := range strings.SplitSeq(text, ",") {
		size, weight, weighted := strings.Cut(part, ":")
		if !weighted {
			weight = "1"
		}
		n, err := strconv.Atoi(size)
		w, werr := strconv.Atoi(weight)
		if err != nil || werr != nil || w < 1 || w > xdpprog.MaxSizes {
			return fmt.Errorf("%q is no size: write 64, imix, or sizes with weights as 64:7,594:4,1518:1", text)
		}
		if n < xdpprog.MinSize || n > maxSize {
			return fmt.Errorf("size %d: frames have %d to %d bytes, with FCS", n, xdpprog.MinSize, maxSize)
		}
		out, total = append(out, Weighted{n, w}), total+w
	}
	if total > xdpprog.MaxSizes {
		return fmt.Errorf("%q: the weights sum up to %d, and may to %d", text, total, xdpprog.MaxSizes)
	}
	*s = out
	return nil
}

// pattern is the order of the sizes: each is spread as evenly as its weight allows.
func (s Sizes) pattern() (out []int) {
	total := 0
	for _, w := range s {
		total += w.Weight
	}
	credit := make([]int, len(s))
	for range total {
		best := 0
		for i, w := range s {
			credit[i] += w.Weight
			if credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= total
		out = append(out, s[best].Size)
	}
	return out
}

// mean is the mean size in bytes.
func (s Sizes) mean() float64 {
	sum, n := 0, 0
	for _, w := range s {
		sum, n = sum+w.Size*w.Weight, n+w.Weight
	}
	return float64(sum) / float64(n)
}

// max is the largest size.
func (s Sizes) max() (n int) {
	for _, w := range s {
		n = max(n, w.Size)
	}
	return n
}

// String is what UnmarshalText reads.
func (s Sizes) String() string {
	var parts []string
	for _, w := range s {
		if len(s) == 1 {
			return strconv.Itoa(w.Size)
		}
		parts = append(parts, fmt.Sprintf("%d:%d", w.Size, w.Weight))
	}
	return strings.Join(parts, ",")
}

// Addrs is a range of IPv4 addresses, both ends in it. The zero Addrs is none.
type Addrs struct{ First, Last proto.Addr }

// UnmarshalText reads "10.0.0.1", "10.0.0.1-10.0.0.9", or the hosts of a prefix, "10.0.0.0/24".
func (a *Addrs) UnmarshalText(b []byte) error {
	text := string(b)
	if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is4() {
		first, _ := proto.AddrFrom(p.Masked().Addr())
		last := first + proto.Addr(uint64(1)<<(32-p.Bits())-1)
		if p.Bits() < 31 { // without the network's and the broadcast address (RFC 3021)
			first, last = first+1, last-1
		}
		*a = Addrs{first, last}
		return nil
	}
	from, to, ranged := strings.Cut(text, "-")
	if !ranged {
		to = from
	}
	first, err := netip.ParseAddr(from)
	last, lerr := netip.ParseAddr(to)
	if err != nil || lerr != nil || !first.Is4() || !last.Is4() || last.Less(first) {
		return fmt.Errorf("%q is no range of IPv4 addresses: write 10.0.0.1, 10.0.0.1-10.0.0.9 or 10.0.0.0/24", text)
	}
	a.First, _ = proto.AddrFrom(first)
	a.Last, _ = proto.AddrFrom(last)
	return nil
}

// n is how many addresses there are.
func (a Addrs) n() int { return int(a.Last-a.First) + 1 }

// MarshalText writes the range; the zero Addrs is "".
func (a Addrs) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// String implements fmt.Stringer.
func (a Addrs) String() string {
	switch {
	case a == Addrs{}:
		return ""
	case a.First == a.Last:
		return a.First.String()
	}
	return a.First.String() + "-" + a.Last.String()
}

// Ports is a range of UDP ports, both ends in it. The zero Ports is none.
type Ports struct{ First, Last uint16 }

// UnmarshalText reads "7" or "1024-2047".
func (p *Ports) UnmarshalText(b []byte) error {
	from, to, ranged := strings.Cut(string(b), "-")
	if !ranged {
		to = from
	}
	first, err := strconv.ParseUint(from, 10, 16)
	last, lerr := strconv.ParseUint(to, 10, 16)
	if err != nil || lerr != nil || first < 1 || last < first {
		return fmt.Errorf("%q is no range of ports: write 7 or 1024-2047", b)
	}
	*p = Ports{uint16(first), uint16(last)}
	return nil
}

// n is how many ports there are.
func (p Ports) n() int { return int(p.Last-p.First) + 1 }

// MarshalText writes the range; the zero Ports is "".
func (p Ports) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// String implements fmt.Stringer.
func (p Ports) String() string {
	switch {
	case p == Ports{}:
		return ""
	case p.First == p.Last:
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}
