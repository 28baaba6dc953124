package xdpprog

import "fmt"

// Counter is how often the program came to one verdict. Bytes are of whole frames from the Ethernet header on.
type Counter struct {
	Name    string
	Packets uint64
	Bytes   uint64
}

// verdictNames are in the order of enum verdict in bpf/steer.c. Names say who got the frame: own_ and share_ ours,
// pass_ the kernel, drop_ nobody.
var verdictNames = [...]string{
	"own_arp",          // ARP for one of our addresses
	"own_ipv4",         // IPv4 to one of our addresses, sound or not
	"share_port",       // TCP or UDP to an opened port
	"share_icmp_error", // ICMP error that quotes a packet from an opened port
	"share_fragment",   // later fragment of a datagram whose first fragment was ours
	"pass_not_ours",    //
	"pass_fragment",    // later fragment whose first fragment was not ours, or has not come yet
	"pass_no_socket",   // ours, but no socket is behind that queue
	"pass_malformed",   // too short or too odd to tell whose it is
	"pass_probe",       // answer to an ARP probe, made into a datagram for a socket that asked for one (Probe)
	"drop_no_room",     // ours, but there was no room in front of it for a tag or a stamp (Config.Metadata)
}

// Counters reads the verdict counters, one per verdict in a fixed order, summed over the CPUs. They count from Load
// on. CPUs go on counting while they are read, so the sums of a busy device are not of one instant.
func (p *Program) Counters() ([]Counter, error) {
	out := make([]Counter, len(verdictNames))
	var perCPU []steerCounter
	for i, name := range verdictNames {
		if err := p.objs.Counters.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("xdpprog: read counter %s of %s: %w", name, p.iface, err)
		}
		out[i].Name = name
		for _, c := range perCPU {
			out[i].Packets += c.Packets
			out[i].Bytes += c.Bytes
		}
	}
	return out, nil
}
