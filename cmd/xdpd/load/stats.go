package load

// Stats is what a worker counts. Requests = responses + errors + those under way.
type Stats struct {
	Requests, Responses uint64
	Errors              [nFaults]uint64 // of requests

	Dialled, Opened uint64          // connections
	ConnErrors      [nFaults]uint64 // of connections with no request under way: not opened, or bytes that nobody asked for
	Lost            uint64          // connections that the peer ended while no request was under way on them
	Open            int64           // now

	SentBytes, ReceivedBytes uint64
	Unmatched                uint64 // datagrams that came twice, or too late

	NotBegun   uint64 // open loop: due, and not begun at the end
	NotBegunNS int64  // for so long the oldest of them
	MaxBacklog uint64
	Unfinished uint64 // requests that were not waited for

	window window
}

// window is what was counted in the time of the measurement, without what came when no more requests began.
type window struct {
	Responses, SentBytes, ReceivedBytes uint64
}

// Failed is how many errors there are.
func (s *Stats) Failed() (n uint64) {
	for f := range nFaults {
		n += s.Errors[f] + s.ConnErrors[f]
	}
	return n
}

func (s *Stats) add(o *Stats) {
	s.Requests += o.Requests
	s.Responses += o.Responses
	for f := range nFaults {
		s.Errors[f] += o.Errors[f]
		s.ConnErrors[f] += o.ConnErrors[f]
	}
	s.Dialled += o.Dialled
	s.Opened += o.Opened
	s.Lost += o.Lost
	s.Open += o.Open
	s.SentBytes += o.SentBytes
	s.ReceivedBytes += o.ReceivedBytes
	s.Unmatched += o.Unmatched
	s.NotBegun += o.NotBegun
	s.NotBegunNS = max(s.NotBegunNS, o.NotBegunNS)
	s.MaxBacklog += o.MaxBacklog
	s.Unfinished += o.Unfinished
	s.window.Responses += o.window.Responses
	s.window.SentBytes += o.window.SentBytes
	s.window.ReceivedBytes += o.window.ReceivedBytes
}
