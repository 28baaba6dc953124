# Run by xdpd exec: the daemon ends while calls wait. The arguments are address and port of an echo, and an address of the engine's.
import errno
import select
import socket
import sys
import threading

ECHO = (sys.argv[1], int(sys.argv[2]))
ENGINE = sys.argv[3]


def fails(want, call):
    try:
        got = call()
    except OSError as e:
        return None if e.errno == want else "%s, want %s" % (errno.errorcode[e.errno], errno.errorcode[want])
    return "%r, want %s" % (got, errno.errorcode[want])


def stream():
    return socket.create_connection(ECHO)


def datagrams(connected=True):
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.bind((ENGINE, 0))
    if connected:
        u.connect(ECHO)
    return u


def listener():
    s = socket.socket()
    s.bind((ENGINE, 0))
    s.listen()
    return s


def polled(s):
    p = select.poll()
    p.register(s, select.POLLIN)
    return None if p.poll()[0][1] & select.POLLERR else "poll does not tell of it"


def epolled(s):
    ep = select.epoll()
    ep.register(s, select.EPOLLIN)
    return None if ep.poll()[0][1] & select.EPOLLERR else "epoll does not tell of it"


def nobody():
    s = socket.socket()
    s.connect((ENGINE[: ENGINE.rindex(".")] + ".250", 7))



waiting = {
    "recv": lambda s=stream(): fails(errno.ECONNRESET, lambda: s.recv(1)),
    "accept": lambda s=listener(): fails(errno.ENETDOWN, s.accept),
    "recvfrom": lambda s=datagrams(): fails(errno.ENETDOWN, lambda: s.recvfrom(1)),
    "connect": lambda: fails(errno.ENETDOWN, nobody),
    "poll": lambda s=stream(): polled(s),
    "epoll": lambda s=listener(): epolled(s),
    "select": lambda s=stream(): None if select.select([s], [], [])[0] == [s] else "select",
}
faults = {}


def wait(name):
    try:
        faults[name] = waiting[name]()
    except BaseException as e:
        faults[name] = repr(e)


threads = {name: threading.Thread(target=wait, args=(name,), daemon=True) for name in waiting}
quiet, noisy = datagrams(), stream()
for t in threads.values():
    t.start()
print("ready", flush=True)
for name, t in threads.items():
    t.join(10)
    assert not t.is_alive(), name + " waits on"
    assert not faults[name], name + ": " + faults[name]
for i in range(3):
    fault = fails(errno.ENETDOWN, lambda: quiet.send(b"x"))
    assert not fault, "datagram %d: %s" % (i, fault)
assert not fails(errno.ECONNRESET, lambda: noisy.send(b"x"))
assert not fails(errno.EPIPE, lambda: noisy.send(b"x"))
assert not fails(errno.ENETDOWN, lambda: datagrams())
print("ok")
