"""`user`: a guest made of Python gets an address, reads a web page, is reached from the host, boots by TFTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import CONTENT
from fake_machine import Bench
from guest_stack import ARP, BROADCAST, Guest, ip

from kvmpy.errors import ConfigError, HostError, MissingCapability
from kvmpy.host.net import slirp
from kvmpy.host.net.spec import open_net, parse_net

try:
    slirp.load()
except MissingCapability as missing:
    pytestmark = pytest.mark.skip(reason=str(missing))


@pytest.fixture
def make() -> Iterator[Any]:
    """make("user,...") gives a guest whose end is closed after the test, without an error left."""
    benches: list[Bench] = []

    def open_one(text: str) -> Guest:
        end, mac = open_net(parse_net(text))
        benches.append(Bench(end))
        return Guest(benches[-1], mac)

    yield open_one
    for bench in benches:
        bench.end.close()
        assert not bench.errors


def test_dhcp_gives_what_qemu_gives(make: Any) -> None:
    guest = make("user")
    options = guest.dhcp()
    assert guest.address == ip("10.0.2.15")
    assert (options[1], options[3], options[6]) == (ip("255.255.255.0"), ip("10.0.2.2"), ip("10.0.2.3"))


def test_a_page_from_the_hosts_loopback(make: Any, http_port: int) -> None:
    guest = make("user")
    guest.dhcp()
    connection = guest.connect("10.0.2.2", http_port)
    connection.send(b"GET / HTTP/1.0\r\n\r\n")
    head, _, body = connection.receive().partition(b"\r\n\r\n")
    assert b"200" in head.splitlines()[0] and body == CONTENT


def test_forwarded_ports(make: Any) -> None:
    guest = make("user,hostfwd=tcp:127.0.0.1:0-:22,hostfwd=udp::0-:53")
    guest.dhcp()
    tcp_forward, udp_forward = guest.bench.end.forwards
    heard: list[bytes] = []

    def client() -> None:
        with socket.create_connection(("127.0.0.1", tcp_forward.host_port), 5) as host:
            host.sendall(b"hello")
            heard.append(host.recv(100))

    thread = threading.Thread(target=client)
    thread.start()
    connection = guest.accept(22)
    assert connection.receive(5) == b"hello"
    connection.send(b"welcome")
    thread.join(5)
    assert heard == [b"welcome"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.sendto(b"question", ("127.0.0.1", udp_forward.host_port))
        frame = guest.bench.expect(lambda frame: (guest.arp_reply(frame), frame[12:14] == b"\x08\0" and frame[23] == 17 and frame)[1])
        assert frame[36:38] == b"\0\x35" and frame.rstrip(b"\0").endswith(b"question")


def test_tftp_boot(make: Any, tmp_path: Any) -> None:
    (tmp_path / "boot.img").write_bytes(CONTENT[:5000])
    guest = make(f"user,tftp={tmp_path},bootfile=boot.img")
    assert guest.dhcp()[67].rstrip(b"\0") == b"boot.img"
    assert guest.tftp("boot.img") == CONTENT[:5000]


def test_restricted_guests_reach_nothing(make: Any, http_port: int) -> None:
    guest = make("user,restrict=on")
    guest.dhcp()
    with pytest.raises(AssertionError):
        guest.bench.expect = lambda wanted, original=guest.bench.expect: original(wanted, 0.5)
        guest.connect("10.0.2.2", http_port)


def test_nonsense_is_survived(make: Any) -> None:
    guest = make("user")
    for size in (14, 15, 33, 60, 1514, 9000, 65000):
        guest.send(0x0800, os.urandom(size - 14), BROADCAST)
        guest.send(ARP, os.urandom(size - 14), BROADCAST)
        guest.send(0x86DD, os.urandom(size - 14), BROADCAST)
    guest.bench.send(b"short")
    assert guest.bench.end.lost_out == 1
    guest.dhcp()


def test_what_the_host_refuses_is_told(tmp_path: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=f"port {port}: Address already in use"):
            open_net(parse_net(f"user,hostfwd=tcp:127.0.0.1:{port}-:22"))
    with pytest.raises(ConfigError, match="no directory"):
        open_net(parse_net(f"user,tftp={tmp_path}/missing"))


def test_closing_leaves_nothing(tmp_path: Any) -> None:
    before = set(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        end, mac = open_net(parse_net(f"user,pcap={tmp_path / 'x.pcap'}"))
        guest = Guest(Bench(end), mac)
        guest.dhcp()
        end.close()
        end.close()
        end.send([bytes(60)])
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_an_exception_in_a_callback_is_reported(make: Any) -> None:
    guest = make("user")
    end = guest.bench.end

    def broken(*arguments: object) -> int:
        raise ValueError("broken callback")

    end._stack._send = broken
    guest.send(ARP, bytes.fromhex("0001080006040001525400123456" + "0a00020f" + "000000000000" + "0a000202"), BROADCAST)
    for _ in range(100):
        if guest.bench.errors:
            break
        threading.Event().wait(0.02)
    assert [str(error) for error in guest.bench.errors] == ["broken callback"]
    guest.bench.errors.clear()


def test_without_the_library_one_line_says_which_package() -> None:
    code = "import kvmpy.host.net.slirp as s; s.LIBRARY='libnone.so.9'; s.load()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode and "apt-get install libslirp0" in done.stderr.splitlines()[-1]
