// Package reactor decides when: the NAPI-like turn over one device queue, timers, sleeping and waking, and readiness.
//
// One goroutine runs a Reactor. A turn takes completions, refills, receives, runs timers and handlers, sends, and tells
// whoever waits, each step bounded. When turns find nothing, the reactor spins for a while that adapts to the load and
// then sleeps in ppoll(2) until a frame, a deadline or a call from outside.
//
// Other goroutines use the reactor's Host between Enter and Leave, which is a lock that the reactor holds only during a
// turn. The goroutine is not locked to its thread, and after a turn that made somebody runnable it yields: the woken
// goroutine runs on the same P, calls Enter without contention, and what it sends goes out with the next turn in one
// batch. Waking it on another P would cost a hundred times as much (BenchmarkHandoff). A reactor pinned to a CPU is
// locked to its thread and pays that price; it suits handlers that run on the reactor (Poller.Serve).
package reactor
