# Run by xdpd exec: descriptors of the kernel and of the engine side by side. The arguments are address and port of an echo by TCP and UDP
# that only the engine reaches. Any failure is an exception.
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading

ECHO = (sys.argv[1], int(sys.argv[2]))


def exactly(s, n):
    got = b""
    while len(got) < n:
        part = s.recv(n - len(got))
        assert part, "the stream ended after %d of %d bytes" % (len(got), n)
        got += part
    return got


def echoes(s, what):
    s.sendall(what)
    got = exactly(s, len(what))
    assert got == what, "%r came back as %r" % (what, got)


def one_epoll_set():
    ep = select.epoll()  # before the first socket
    a, b = socket.socketpair()
    r, w = os.pipe()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    near = socket.create_connection(listener.getsockname())
    other, _ = listener.accept()
    far = socket.create_connection(ECHO)
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    for fd in (a.fileno(), r, near.fileno(), far.fileno(), six.fileno()):
        ep.register(fd, select.EPOLLIN)
    assert ep.poll(0) == []
    for fd, wake in (
        (a.fileno(), lambda: b.send(b"x")), (far.fileno(), lambda: far.send(b"x")), (r, lambda: os.write(w, b"x")),
        (near.fileno(), lambda: other.send(b"x")),
    ):
        wake()
        assert ep.poll(20) == [(fd, select.EPOLLIN)], "epoll did not tell of it"
        assert select.select([fd], [], [], 20)[0] == [fd]
        p = select.poll()
        for each in (a.fileno(), r, near.fileno(), far.fileno()):
            p.register(each, select.POLLIN)
        assert p.poll(20000) == [(fd, select.POLLIN)]
        assert os.read(fd, 10) == b"x"
        assert ep.poll(0) == []
    waker = threading.Timer(0.05, lambda: far.send(b"later"))
    waker.start()
    assert ep.poll(20) == [(far.fileno(), select.EPOLLIN)], "epoll slept on"
    waker.join()
    exactly(far, 5)
    far.close()
    assert ep.poll(0) == []


def nonblocking():
    ep = select.epoll()
    s = socket.socket()
    s.setblocking(False)
    ep.register(s, select.EPOLLOUT)  # while it is the kernel's still
    assert s.connect_ex(ECHO) in (0, 115), "connect"
    while not any(e & select.EPOLLOUT and not e & select.EPOLLHUP for _, e in ep.poll(20)):
        pass
    assert s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    try:
        s.recv(1)
        assert False, "nothing was sent, and something received"
    except BlockingIOError:
        pass
    sent = back = 0
    total = 3 << 20
    while back < total:
        if sent < total:
            try:
                sent += s.send(b"z" * min(70000, total - sent))
            except BlockingIOError:
                pass
        ep.modify(s, select.EPOLLIN | (select.EPOLLOUT if sent < total else 0))
        for _, events in ep.poll(20):
            if events & select.EPOLLIN:
                back += len(s.recv(100000))
    assert s.getpeername() == ECHO
    s.shutdown(socket.SHUT_WR)
    s.setblocking(True)
    assert s.recv(1) == b""


def threads():
    failed = []

    def one(i):
        try:
            with socket.create_connection(ECHO) as s:
                for n in range(20):
                    echoes(s, bytes([i]) * (1000 * n + 1))
        except BaseException as e:  # a thread's is not the program's
            failed.append(e)

    all = [threading.Thread(target=one, args=(i,)) for i in range(6)]
    for t in all:
        t.start()
    for t in all:
        t.join()
    assert not failed, failed


def forks():
    s = socket.create_connection(ECHO)
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.connect(ECHO)
    child = os.fork()
    if child == 0:
        try:
            echoes(s, b"child")
            with socket.create_connection(ECHO) as own:
                echoes(own, b"own")
            u.send(b"from the child")
            s.send(b"left")
            s.close()
            os._exit(0)
        except BaseException as e:
            print("child:", repr(e), file=sys.stderr)
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "the child failed"
    assert exactly(s, 4) == b"left"
    assert u.recv(100) == b"from the child"
    echoes(s, b"parent")
    held = socket.create_connection(ECHO)  # by the child alone
    child = os.fork()
    if child == 0:
        held.sendall(b"unread" * 10000)
        os._exit(0)
    held.close()
    os.waitpid(child, 0)
    child = os.fork()
    if child == 0:
        signal.pause()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    echoes(s, b"after the child was killed")


def descriptors():
    s = socket.create_connection(ECHO)
    os.dup2(s.fileno(), 77)
    again = s.dup()
    s.close()
    os.write(77, b"seventy-seven")
    assert exactly(again, 13) == b"seventy-seven"
    os.close(77)
    echoes(again, b"still")
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    for name in ("fputs", "fflush", "fclose", "fileno"):
        getattr(libc, name).argtypes = [ctypes.c_char_p, ctypes.c_void_p] if name == "fputs" else [ctypes.c_void_p]
    fd = os.dup(again.fileno())
    stream = libc.fdopen(fd, b"r+")
    assert libc.fileno(stream) == fd
    libc.fputs(b"stream\n", stream)
    libc.fflush(stream)
    assert exactly(again, 7) == b"stream\n"
    libc.fclose(stream)
    with open(__file__, "rb") as f:
        text = f.read()
        f.seek(0)
        again.sendfile(f)
    assert exactly(again, len(text)) == text
    os.closerange(again.fileno() + 1, 1 << 16)  # as daemons do
    echoes(again, b"after the range was closed")
    with socket.create_connection(ECHO) as new:
        echoes(new, b"and a new one")


def stdio():
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    for name in ("fflush", "fgetc", "fclose"):
        getattr(libc, name).argtypes = [ctypes.c_void_p]
    libc.fputs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    s = socket.create_connection(ECHO)
    assert libc.dprintf(s.fileno(), b"%d %s", 42, b"words") == 8
    assert exactly(s, 8) == b"42 words"
    s.sendall(b"two\n")
    stream = libc.fdopen(os.dup(s.fileno()), b"r+")
    assert libc.fgetc(stream) == ord("t")
    assert libc.fflush(stream) == 0, "fflush with something unread"
    libc.fclose(stream)


def system_calls():
    libc = ctypes.CDLL(None)
    close, dup3 = (57, 24) if os.uname().machine == "aarch64" else (3, 292)  # as libuv does
    s = socket.create_connection(ECHO)
    other = socket.create_connection(ECHO)
    assert libc.syscall(dup3, s.fileno(), other.fileno(), 0) == other.fileno()
    echoes(other, b"the same connection")
    fd = s.detach()
    assert libc.syscall(close, fd) == 0
    assert libc.syscall(close, other.detach()) == 0
    new = socket.socket()
    assert new.fileno() == fd
    new.connect(ECHO)
    echoes(new, b"another connection")


def clones():
    libc = ctypes.CDLL(None)
    s = socket.create_connection(ECHO)
    other = socket.create_connection(ECHO)
    child = libc._Fork()  # without what pthread_atfork has told of
    if child == 0:
        s.close()
        os._exit(0)
    os.waitpid(child, 0)
    echoes(s, b"the child closed it")
    echoes(other, b"the child ended with it")


def receives_first():
    far = socket.create_connection(ECHO)
    for wait in (lambda u: None, lambda u: select.select([u], [], []), lambda u: select.select([u, far], [], [])):
        u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        u.bind(("0.0.0.0", 0))
        got = []
        t = threading.Thread(target=lambda: (wait(u), got.append(u.recvfrom(100))), daemon=True)
        t.start()
        t.join(0.05)  # it sleeps in the kernel
        u.sendto(b"answer", ECHO)
        t.join(20)
        assert got == [(b"answer", ECHO)], "who waited for the first datagram did not get it"


def datagrams():
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    u.bind(("0.0.0.0", 0))
    for n in (0, 1, 1472, 9000):
        u.sendto(b"d" * n, ECHO)
        assert select.select([u], [], [], 20)[0]
        got, source = u.recvfrom(65536)
        assert len(got) == n and source == ECHO
    named = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    named.bind(("0.0.0.0", 0))
    port = named.getsockname()[1]
    assert port, "a free port is none"
    named.sendto(b"named", ECHO)
    assert named.recv(10) == b"named"
    assert named.getsockname()[1] == port, "it has another port"
    near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    near.bind(("127.0.0.1", 0))
    near.sendto(b"near", near.getsockname())
    assert near.recv(10) == b"near"


def children():
    code = "import socket,sys; s=socket.create_connection((sys.argv[1],int(sys.argv[2]))); s.sendall(b'c'); assert s.recv(1)==b'c'"
    for close_fds in (True, False):
        subprocess.run([sys.executable, "-S", "-c", code, *sys.argv[1:]], check=True, close_fds=close_fds, timeout=30)
    with socket.create_connection(ECHO) as s:  # as inetd starts servers
        subprocess.run(["printf", "by stdio"], stdout=s, check=True, timeout=30)
        s.shutdown(socket.SHUT_WR)
        got = subprocess.run(["cat"], stdin=s, stdout=subprocess.PIPE, check=True, timeout=30).stdout
        assert got == b"by stdio", got
    with socket.create_connection(ECHO) as s:
        said = subprocess.run(["/bin/cat"], env={}, stdin=s, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=30).stderr
    assert b"not the library" in said and b"not connected" in said, said


def options():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    s.connect(ECHO)
    assert s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1, "an option of before"
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 1
    try:
        s.setsockopt(socket.SOL_SOCKET, 60, 1)  # SO_ZEROCOPY
        assert False, "what is not there was set"
    except OSError:
        pass
    free = socket.socket()
    free.bind(("", 0))
    port = free.getsockname()[1]
    assert port, "a free port is none"
    free.listen()
    echo = socket.create_connection(("127.0.0.1", port))
    echo.close()


def errors():
    s = socket.socket()
    try:
        s.connect((ECHO[0], 1))
        assert False, "connected to nobody"
    except ConnectionRefusedError:
        pass
    s = socket.socket()
    s.settimeout(0.05)
    s.connect(ECHO)
    try:
        s.recv(1)
        assert False, "received nothing"
    except socket.timeout:
        pass


for f in (one_epoll_set, nonblocking, threads, forks, descriptors, stdio, system_calls, clones, receives_first, datagrams, children, options, errors):
    f()
    print("ok", f.__name__, flush=True)
