package rings

// SQE is one operation to do, laid out as struct io_uring_sqe (include/uapi/linux/io_uring.h), so that who knows one
// knows the other. Addresses are offsets in the memory that was registered with the ring, never pointers. What a field
// means is the operation's choice; fields that it does not use must be zero.
type SQE struct {
	Opcode    Op
	Flags     uint8  // SQE* below
	IOPrio    uint16 // the operation's own flags: AcceptMultishot, RecvMultishot, ...
	FD        int32  // a socket's number, with SQEFixedSocket a slot of the fixed table
	Off       uint64 // addr2
	Addr      uint64
	Len       uint32
	OpFlags   uint32 // msg_flags, poll32_events, timeout_flags, cancel_flags, ...
	UserData  uint64 // comes back in the CQE
	BufGroup  uint16 // buf_index
	Reserved  uint16 // personality
	FileIndex uint32 // file_index, addr_len
	Addr3     uint64
	_         uint64
}

// CQE says how an operation ended, laid out as struct io_uring_cqe.
type CQE struct {
	UserData uint64
	Res      int32 // the result, or -errno
	Flags    uint32
}

// Op is what an SQE asks for. Below 128 the values are io_uring's.
type Op = uint8

// The operations; docs/ring.md has a section for each.
const (
	OpNop           Op = 0
	OpPollAdd       Op = 6
	OpPollRemove    Op = 7
	OpTimeout       Op = 11
	OpTimeoutRemove Op = 12
	OpAccept        Op = 13
	OpCancel        Op = 14 // IORING_OP_ASYNC_CANCEL
	OpLinkTimeout   Op = 15
	OpConnect       Op = 16
	OpClose         Op = 19
	OpSend          Op = 26
	OpRecv          Op = 27
	OpEpollCtl      Op = 29
	OpShutdown      Op = 34
	OpMsg           Op = 40 // IORING_OP_MSG_RING
	OpSocket        Op = 45
	OpSendZC        Op = 47
	OpBind          Op = 56
	OpListen        Op = 57
	OpRecvZC        Op = 58
	OpEpollWait     Op = 59
)

// SQE.Flags: IOSQE_*.
const (
	SQEFixedSocket  = 1 << 0 // FD is a slot of the fixed table
	SQEDrain        = 1 << 1 // begin when all before is done; what follows begins when this is done
	SQELink         = 1 << 2 // the next SQE begins when this one succeeded
	SQEHardLink     = 1 << 3 // the next SQE begins when this one is done
	SQEAsync        = 1 << 4 // accepted, and of no effect
	SQEBufferSelect = 1 << 5 // take a buffer of group BufGroup
	SQESkipSuccess  = 1 << 6 // no CQE unless it fails
	SQEQuiet        = 1 << 7 // its CQE, unless it fails, wakes nobody who did not ask for that (CQWantQuiet)
)

// CQE.Flags: IORING_CQE_F_*.
const (
	CQEBuffer       = 1 << 0 // the upper 16 bits are the number of the buffer used
	CQEMore         = 1 << 1 // the request goes on: more CQEs will come
	CQESockNonempty = 1 << 2 // there is more to read
	CQENotif        = 1 << 3 // the buffer of an earlier send is free again
	CQEBufferShift  = 16
)

// POLL_ADD and POLL_REMOVE: SQE.Len.
const (
	PollMulti          = 1 << 0 // IORING_POLL_ADD_MULTI
	PollUpdateEvents   = 1 << 1
	PollUpdateUserData = 1 << 2
)

// TIMEOUT, LINK_TIMEOUT and TIMEOUT_REMOVE: SQE.OpFlags.
const (
	TimeoutAbs        = 1 << 0 // a time of the reactor's clock, not a distance from now
	TimeoutUpdate     = 1 << 1 // TIMEOUT_REMOVE: change it instead
	LinkTimeoutUpdate = 1 << 4 // TIMEOUT_REMOVE: change a LINK_TIMEOUT
	TimeoutEtimeOK    = 1 << 5 // IORING_TIMEOUT_ETIME_SUCCESS: expiring does not break a chain
	TimeoutMultishot  = 1 << 6
	MaxTimeout        = 1<<62 - 1 // ns
)

// CANCEL: SQE.OpFlags.
const (
	CancelAll      = 1 << 0 // all that match, not the oldest
	CancelFD       = 1 << 1 // match by socket
	CancelAny      = 1 << 2 // match everything
	CancelFixed    = 1 << 3 // FD is a slot of the fixed table
	CancelUserData = 1 << 4 // match by user data as well
	CancelOp       = 1 << 5 // match by the opcode in Len
)

// MSG: SQE.OpFlags.
const (
	MsgFlagsPass = 1 << 1 // IORING_MSG_RING_FLAGS_PASS: FileIndex is the CQE's Flags
)

// FileIndexAlloc in SQE.FileIndex asks for any free slot of the fixed table.
const FileIndexAlloc = ^uint32(0)
