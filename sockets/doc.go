// Package sockets is the protocol room: one Host per reactor, holding the neighbour table, the demultiplexing tables,
// the UDP and TCP machines and their bounded queues.
//
// A Host is a machine without a clock, a goroutine or a lock. Frames and the current time go in (Input, Tick), frames
// come out (PopTX), and NextDeadline says when it next wants to be called. Everything that it remembers about a flow
// lives in slabs without Go pointers, named by Handle (kind, generation, index), and payload stays in UMEM frames that
// are linked through umem.Buf. One goroutine at a time may call a Host; the reactor sees to that.
//
// Every frame that enters leaves by exactly one door: freed with a counted Drop reason, held in a socket's queue, or
// sent. What comes from the network never causes an error or a panic, only a count.
//
// Bridge and Router are machines of the same kind over several ports: they send frames on instead of keeping them.
package sockets
