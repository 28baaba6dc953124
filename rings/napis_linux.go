package rings

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// NAPIInfo is what netlink tells of a NAPI (NETDEV_CMD_NAPI_GET).
type NAPIInfo struct {
	ID      uint32
	Ifindex int
	IRQ     uint32 // 0: not told, or none
	PID     uint32 // of the thread that runs it, if it is Threaded
	NAPISettings
}

// Suspendable are the settings of a NAPI that had these, for an epoll_wait that busy-polls and may suspend interrupts
// (Documentation/networking/napi.rst, "IRQ suspension"): as long as each call finds events, interrupts stay off. After one that finds
// none, the kernel looks ten times more, 20 µs apart, before they are on again. The suspension ends by itself where nobody calls.
func (s NAPISettings) Suspendable() NAPISettings {
	s.DeferHardIRQs, s.GROFlushTimeoutNS, s.IRQSuspendTimeoutNS = 10, 20_000, uint64(DriveTimeout)
	return s
}

// NAPIs reads and changes the settings of NAPIs, in the network namespace of the thread that opened it, from any other.
type NAPIs struct {
	mu     sync.Mutex
	netdev netdev
}

// OpenNAPIs makes the socket to ask by.
func OpenNAPIs() (*NAPIs, error) {
	nd, err := openNetdev()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("rings: ask for the netdev family (Linux 6.13 has what is needed): %w", err), nd.close())
	}
	return &NAPIs{netdev: nd}, nil
}

// Close closes the socket. Calls after it fail.
func (n *NAPIs) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.netdev.close()
}

// Of lists the NAPIs of an interface.
func (n *NAPIs) Of(ifindex int) (list []NAPIInfo, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var bad error
	err = n.netdev.dump(netdevNAPIGet, attr32(nil, napiIfindex, uint32(ifindex)), func(msg []byte) {
		i, err := parseNAPI(msg)
		bad = errors.Join(bad, err)
		list = append(list, i)
	})
	if err = errors.Join(err, bad); err != nil {
		return nil, fmt.Errorf("rings: list the NAPIs of interface number %d: %w", ifindex, err)
	}
	return list, nil
}

// OfQueue tells which NAPI is a receive queue's, 0 where the driver does not say.
func (n *NAPIs) OfQueue(ifindex, queue int) (id uint32, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	attrs := attr32(attr32(attr32(nil, queueIfindex, uint32(ifindex)), queueType, queueRX), queueID, uint32(queue))
	answer, err := n.netdev.ask(netdevQueueGet, attrs)
	if err == nil {
		err = eachAttr(answer, func(kind uint16, value uint64) {
			if kind == queueNAPI {
				id = uint32(value)
			}
		})
	}
	if err != nil {
		return 0, fmt.Errorf("rings: ask for queue %d of interface number %d: %w", queue, ifindex, err)
	}
	return id, nil
}

// Change has a NAPI's settings be others, if they are what they are taken for. A NAPI that is not there any more is no error.
func (n *NAPIs) Change(id uint32, from, to NAPISettings) (changed bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	changed, err = n.netdev.change(id, from, to)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("rings: change the settings of NAPI %d: %w", id, err)
	}
	return changed, nil
}
