package reactor

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
)

// BenchmarkHandoff is what the package comment is based on: how long it takes from a reactor to a goroutine that waits
// for it and back, when the reactor signals, unlocks and yields. On one P, and on two whose second one is idle, the woken
// goroutine runs in the reactor's place at once. A reactor that is locked to its thread cannot give its P away like that:
// the goroutine has to be woken on another thread, which costs as much as a hundred packets.
func BenchmarkHandoff(b *testing.B) {
	for _, procs := range []int{1, 2} {
		for _, locked := range []bool{false, true} {
			for _, way := range []struct {
				name string
				run  func(n int)
			}{{"Cond", handoffCond}, {"channel", handoffChannel}} {
				b.Run(fmt.Sprintf("procs=%d/locked=%v/%s", procs, locked, way.name), func(b *testing.B) {
					defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
					if locked {
						runtime.LockOSThread()
						defer runtime.UnlockOSThread()
					}
					b.ReportAllocs()
					b.ResetTimer()
					way.run(b.N)
				})
			}
		}
	}
}

// handoffCond is the reactor's way: Poller.Ready signals with the lock held, and the turn's end yields.
func handoffCond(n int) {
	var mu sync.Mutex
	waiting := sync.NewCond(&mu)
	asked, answered := 0, 0
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		mu.Lock()
		defer mu.Unlock()
		for answered < n {
			for asked == answered {
				waiting.Wait()
			}
			answered = asked
		}
	}()
	for i := range n {
		mu.Lock()
		asked = i + 1
		waiting.Signal()
		for answered != asked {
			mu.Unlock()
			runtime.Gosched()
			mu.Lock()
		}
		mu.Unlock()
	}
	<-ended
}

// handoffChannel does the same with a token in a channel.
func handoffChannel(n int) {
	ask, answer := make(chan struct{}, 1), make(chan struct{}, 1)
	go func() {
		for range ask {
			answer <- struct{}{}
		}
	}()
	for range n {
		ask <- struct{}{}
		for answered := false; !answered; {
			runtime.Gosched()
			select {
			case <-answer:
				answered = true
			default:
			}
		}
	}
	close(ask)
}
