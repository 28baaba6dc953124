package load

import "syscall"

// Side is where a load's sockets are: NewEngine or NewKernel makes one.
type Side interface {
	// Workers is how many workers there are.
	Workers() int
	// String says where the sockets are, for the report.
	String() string
	// Ports is how many connections to one target there can be at a time.
	Ports() int
	// Retransmits is how many TCP segments were sent again so far, if that is known.
	Retransmits() (n uint64, known bool)
	// Done is closed when the side has failed; Err says why. A nil channel: it does not.
	Done() <-chan struct{}
	Err() error
	// start runs a worker's loop, number i.
	start(cfg *Config, i int, w *worker) (loop, error)
}

// loop is what calls a worker.
type loop interface {
	// do has f called between two events, and waits for it; false: the loop has ended.
	do(f func()) bool
	// end ends the loop, and with it what sockets there are.
	end()
}

// errno is an error of package unix as the number that it is.
func errno(err error) syscall.Errno {
	if e, is := err.(syscall.Errno); is {
		return e
	}
	if err != nil {
		return syscall.EINVAL
	}
	return 0
}
