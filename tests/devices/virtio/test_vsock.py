"""virtio-vsock: connections both ways, credit, resets; the streams themselves over UNIX sockets are tested with it."""

from __future__ import annotations

import queue
import socket
import struct
import time

import pytest

from kvmpy.devices.virtio import vsock
from kvmpy.devices.virtio.vsock import HEADER, VirtioVsock
from kvmpy.host.vsock import UnixVsock
from tests.devices.virtio.driver import NEEDS_RESET

REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
SECONDS = 5


class Stream:
    def __init__(self):
        self.sent = b""
        self.closed = self.paused = self.attached = self.output_ended = False

    def attach(self, receive, sent, ended):
        self.receive, self.taken, self.ended, self.attached = receive, sent, ended, True

    def send(self, data):
        self.sent += data

    def pause(self, paused):
        self.paused = paused

    def shut(self):
        self.output_ended = True

    def close(self):
        self.closed = True


class End:
    def __init__(self):
        self.streams = {}

    def listen(self, accepted, post):
        self.accept = accepted

    def connect(self, port):
        if port != 80:
            raise ConnectionRefusedError
        self.streams[port] = Stream()
        return self.streams[port]

    def close(self):
        pass


class Guest:
    """The driver's side: packets out, packets in."""

    def __init__(self, bench):
        self.bench = bench
        for _ in range(8):
            bench.rings[0].add([], [4096])
        bench.rings[0].notify()

    def send(self, operation, guest_port, host_port, data=b"", flags=0, space=1000, taken=0, source=3, target=2, kind=1, length=None):
        header = HEADER.pack(
            source, target, guest_port, host_port, len(data) if length is None else length, kind, operation, flags, space, taken
        )
        self.bench.rings[1].request([header, data] if data else [header])

    def get(self):
        """The next packet: (operation, host port, guest port, data), or None."""
        done = self.bench.rings[0].take()
        if done is None:
            return None
        _, written, content = done
        source, target, host_port, guest_port, length, kind, operation, self.flags, _, self.taken = HEADER.unpack(content[:44])
        assert (source, target, kind) == (2, 3, 1) and written == 44 + length
        self.bench.rings[0].add([], [4096])
        self.bench.rings[0].notify()
        return operation, host_port, guest_port, content[44:written]


@pytest.fixture
def bench(make_bench, transport):
    return make_bench(VirtioVsock(End()), transport).start(size=32)


@pytest.fixture
def guest(bench):
    return Guest(bench)


def test_identity(bench) -> None:
    assert bench.bus.identify() == 19 and bench.bus.config(0, 8) == 3


def test_the_guest_connects(bench, guest) -> None:
    guest.send(REQUEST, 1024, 80)
    stream = bench.device.end.streams[80]
    assert guest.get() == (RESPONSE, 80, 1024, b"") and stream.attached
    guest.send(RW, 1024, 80, b"GET /")
    assert stream.sent == b"GET /"
    stream.receive(b"200 fine")
    assert guest.get() == (RW, 80, 1024, b"200 fine")
    guest.send(CREDIT_REQUEST, 1024, 80)
    assert guest.get()[0] == CREDIT_UPDATE and guest.taken == 0
    stream.taken(5)
    guest.send(CREDIT_REQUEST, 1024, 80)
    assert guest.get()[0] == CREDIT_UPDATE and guest.taken == 5
    guest.send(SHUTDOWN, 1024, 80, flags=3)
    assert guest.get() == (RST, 80, 1024, b"") and stream.closed and not bench.device.connections


def test_nobody_listens(guest) -> None:
    guest.send(REQUEST, 1024, 81)
    assert guest.get() == (RST, 81, 1024, b"") and guest.get() is None


def test_a_host_program_connects(bench, guest) -> None:
    stream = Stream()
    bench.device.end.accept(stream, 52)
    operation, host_port, guest_port, _ = guest.get()
    assert (operation, guest_port) == (REQUEST, 52) and not stream.attached
    guest.send(RESPONSE, 52, host_port)
    assert stream.sent == b"OK %d\n" % host_port and stream.attached
    stream.taken(len(stream.sent))
    guest.send(CREDIT_REQUEST, 52, host_port)
    assert guest.get()[0] == CREDIT_UPDATE and guest.taken == 0
    stream.receive(b"last words")
    stream.ended(True)
    assert guest.get()[3] == b"last words"
    assert guest.get()[0] == SHUTDOWN and guest.flags == 3
    guest.send(RST, 52, host_port)
    assert stream.closed and not bench.device.connections and guest.get() is None


def connected(bench, guest):
    stream = Stream()
    bench.device.end.accept(stream, 52)
    host_port = guest.get()[1]
    guest.send(RESPONSE, 52, host_port)
    return stream, host_port


def test_the_host_program_ends_its_half(bench, guest) -> None:
    stream, host_port = connected(bench, guest)
    stream.receive(b"question")
    stream.ended(False)
    assert guest.get()[3] == b"question" and guest.get()[0] == SHUTDOWN and guest.flags == 2
    guest.send(RW, 52, host_port, b"answer")
    assert stream.sent.endswith(b"answer") and not stream.closed and guest.get() is None
    stream.ended(True)
    assert guest.get()[0] == SHUTDOWN and guest.flags == 3
    guest.send(RST, 52, host_port)
    assert stream.closed and not bench.device.connections


def test_the_guest_ends_its_half(bench, guest) -> None:
    stream, host_port = connected(bench, guest)
    guest.send(SHUTDOWN, 52, host_port, flags=2)
    assert stream.output_ended and not stream.closed and guest.get() is None
    stream.receive(b"answer")
    assert guest.get()[3] == b"answer"
    guest.send(SHUTDOWN, 52, host_port, flags=1)
    assert stream.closed and guest.get()[0] == RST and not bench.device.connections


def test_a_guest_that_sends_after_its_end_is_reset(bench, guest) -> None:
    stream, host_port = connected(bench, guest)
    guest.send(SHUTDOWN, 52, host_port, flags=2)
    guest.send(RW, 52, host_port, b"more")
    assert stream.closed and not stream.sent.endswith(b"more") and guest.get()[0] == RST


def test_a_guest_that_does_not_read_any_more_gets_nothing(bench, guest) -> None:
    stream, host_port = connected(bench, guest)
    guest.send(SHUTDOWN, 52, host_port, flags=1)
    stream.receive(b"unread")
    assert guest.get() is None and not stream.closed
    guest.send(RW, 52, host_port, b"heard")
    assert stream.sent.endswith(b"heard")


def test_the_guest_refuses(bench, guest) -> None:
    stream = Stream()
    bench.device.end.accept(stream, 52)
    _, host_port, _, _ = guest.get()
    guest.send(RST, 52, host_port)
    assert stream.closed and not stream.attached


def test_no_more_than_the_guest_has_room_for(bench, guest) -> None:
    guest.send(REQUEST, 1024, 80, space=10)
    guest.get()
    stream = bench.device.end.streams[80]
    stream.receive(b"0123456789abcdef")
    assert guest.get()[3] == b"0123456789" and guest.get() is None
    guest.send(CREDIT_UPDATE, 1024, 80, space=10, taken=4)
    assert guest.get()[3] == b"abcd" and guest.get() is None
    guest.send(CREDIT_UPDATE, 1024, 80, space=10, taken=14)
    assert guest.get()[3] == b"ef"
    stream.receive(b"x" * (vsock.MOST_INPUT + 100))
    assert stream.paused
    for turn in range(80):
        guest.send(CREDIT_UPDATE, 1024, 80, space=4000, taken=16 + 4000 * turn)
        while guest.get():
            pass
    assert not stream.paused and not bench.device.connections[80, 1024].input


def test_a_guest_that_sends_beyond_its_credit_is_cut_off(bench, guest) -> None:
    guest.send(REQUEST, 1024, 80)
    guest.get()
    stream = bench.device.end.streams[80]
    for _ in range(8):
        guest.send(RW, 1024, 80, b"y" * 32768)
    assert not stream.closed
    guest.send(RW, 1024, 80, b"y")
    assert stream.closed and guest.get()[0] == RST


@pytest.mark.parametrize("options", [{"source": 4}, {"target": 5}, {"kind": 2}, {"length": 1}, {"length": 0xFFFFFFFF}])
def test_packets_that_are_wrong_are_reset(bench, guest, options) -> None:
    guest.send(REQUEST, 1024, 80, **options)
    answer = bench.rings[0].take()
    assert answer is not None and HEADER.unpack(answer[2][:44])[6] == RST and not bench.device.connections
    guest.send(RST, 1024, 80, **options)
    assert bench.rings[0].take() is None
    bench.rings[1].request([b"short"])
    assert not bench.bus.status & NEEDS_RESET


def test_operations_out_of_place_are_reset(guest) -> None:
    for operation in (RESPONSE, RW, SHUTDOWN, CREDIT_UPDATE, CREDIT_REQUEST, 0, 99):
        guest.send(operation, 7, 80)
        assert guest.get() == (RST, 80, 7, b"")


def test_answers_wait_for_buffers(make_bench) -> None:
    bench = make_bench(VirtioVsock(End())).start()
    bench.rings[1].request([HEADER.pack(3, 2, 9, 81, 0, 1, REQUEST, 0, 0, 0)])
    state = bench.carrier.state()
    bench.carrier.restore(state)
    bench.rings[0].add([], [100])
    bench.rings[0].notify()
    assert HEADER.unpack(bench.rings[0].take()[2][:44])[6] == RST


def test_connections_end_with_a_restored_state(bench, guest) -> None:
    guest.send(REQUEST, 1024, 80)
    stream = bench.device.end.streams[80]
    state = bench.carrier.state()
    bench.carrier.restore(state)
    assert stream.closed and not bench.device.connections
    bench.rings[2].add([], [4])
    bench.rings[2].notify()
    assert bench.rings[2].take()[2] == struct.pack("<I", 0)


def test_reset_closes_all(bench, guest) -> None:
    guest.send(REQUEST, 1024, 80)
    bench.bus.status = 0
    assert bench.device.end.streams[80].closed and not bench.device.connections


@pytest.fixture
def host(make_bench, tmp_path):
    """A device on real sockets; `turn` runs what the host's thread posts."""
    posted: queue.Queue = queue.Queue()
    end = UnixVsock(str(tmp_path / "v.sock"))
    device = VirtioVsock(end)
    bench = make_bench(device)
    device.end.post = posted.put
    bench.start(size=32)
    guest = Guest(bench)

    def turn(until):
        limit = time.monotonic() + SECONDS
        while not (answer := until()):
            assert time.monotonic() < limit
            try:
                posted.get(timeout=0.05)()
            except queue.Empty:
                pass
        return answer

    yield guest, turn, tmp_path
    device.close()
    device.close()


def test_unix_sockets_guest_to_host(host) -> None:
    guest, turn, path = host
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "v.sock_80"))
        server.listen()
        guest.send(REQUEST, 1024, 80, space=1 << 20)
        assert guest.get()[0] == RESPONSE
        program, _ = server.accept()
        with program:
            program.settimeout(SECONDS)
            guest.send(RW, 1024, 80, b"hello host")
            assert program.recv(100) == b"hello host"
            program.sendall(b"hello guest")
            assert turn(guest.get)[3] == b"hello guest"
        assert turn(guest.get)[0] == SHUTDOWN
        guest.send(RST, 1024, 80)


def test_unix_sockets_host_to_guest(host) -> None:
    guest, turn, path = host
    with socket.socket(socket.AF_UNIX) as program:
        program.settimeout(SECONDS)
        program.connect(str(path / "v.sock"))
        program.sendall(b"CONNECT 52\nright behind")
        operation, host_port, guest_port, _ = turn(guest.get)
        assert (operation, guest_port) == (REQUEST, 52)
        guest.send(RESPONSE, 52, host_port, space=1 << 20)
        assert program.recv(100) == b"OK %d\n" % host_port
        assert turn(guest.get)[3] == b"right behind"
        guest.send(SHUTDOWN, 52, host_port, flags=3)
        assert program.recv(100) == b""


@pytest.mark.parametrize("greeting", [b"HELLO\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT 99999999999\n", b"C" * 40])
def test_greetings_that_are_wrong(host, greeting) -> None:
    _, _, path = host
    with socket.socket(socket.AF_UNIX) as program:
        program.settimeout(SECONDS)
        program.connect(str(path / "v.sock"))
        program.sendall(greeting)
        try:
            assert program.recv(100) == b""
        except ConnectionResetError:
            pass
