package netlab

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// NICs are the two interfaces on which tests shall run instead of a veth pair: NETLAB_NICS=eth0,eth1 in the environment, the
// engine's first. They are the ends of one wire with nothing else on it (scripts/vmlab). nil: there are none.
func NICs() []string {
	names := strings.Split(os.Getenv("NETLAB_NICS"), ",")
	if len(names) != 2 {
		return nil
	}
	return names
}

// Patience is how long a test waits for what must come, 30 s times NETLAB_SLOW of the environment: on an emulated machine
// everything takes longer. It decides nothing, it only turns a hang into a failure.
var Patience = 30 * time.Second * Slow

// Slow is NETLAB_SLOW, a factor for times that are not measured but waited for; 1 on an ordinary machine.
var Slow = slow()

func slow() time.Duration {
	n, err := strconv.Atoi(os.Getenv("NETLAB_SLOW"))
	if err != nil || n < 1 {
		return 1
	}
	return time.Duration(n)
}

// ZeroCopy says whether the sockets of an engine on NICs must be zero copy, by NETLAB_ZEROCOPY=yes or no. known: it is set. On
// a veth pair they are what they are.
func ZeroCopy() (must, known bool) {
	word := os.Getenv("NETLAB_ZEROCOPY")
	return word == "yes", NICs() != nil && (word == "yes" || word == "no")
}
