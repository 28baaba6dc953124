package load

import "syscall"

// Fault is a kind of error.
type Fault uint8

// Faults. A request that fails counts as one of them; of several on a connection each counts as what ended it.
const (
	ok Fault = iota
	Refused
	Reset
	TimedOut
	Unreachable
	NoPort    // no local port is free
	NoRoom    // files, memory or buffers of this machine
	Closed    // the peer ended the connection early
	WrongData // other bytes, or more, than were to come
	BadStatus
	BadLength
	BadHTTP // no HTTP response
	Other
	nFaults
)

var faultNames = [nFaults]string{
	Refused: "refused", Reset: "reset", TimedOut: "timeout", Unreachable: "unreachable", NoPort: "no_port", NoRoom: "no_room",
	Closed: "closed_early", WrongData: "wrong_data", BadStatus: "http_status", BadLength: "http_length", BadHTTP: "http_malformed",
	Other: "other",
}

// String is the fault's name in the report.
func (f Fault) String() string { return faultNames[f] }

// faultOf is the fault behind an errno of a socket.
func faultOf(e syscall.Errno) Fault {
	switch e {
	case syscall.ECONNREFUSED:
		return Refused
	case syscall.ECONNRESET, syscall.EPIPE:
		return Reset
	case syscall.ETIMEDOUT:
		return TimedOut
	case syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN, syscall.EHOSTDOWN:
		return Unreachable
	case syscall.EADDRNOTAVAIL, syscall.EADDRINUSE:
		return NoPort
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EAGAIN:
		return NoRoom
	}
	return Other
}
