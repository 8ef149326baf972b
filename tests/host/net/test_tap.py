"""`tap` in a network namespace of its own: both directions, offloads, an interface that is made and one that is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmpy.errors import ConfigError, HostError
from kvmpy.host.net.tap import TapNet

ROOT = Path(__file__).resolve().parents[3]


def in_namespace(program: str) -> str:
    """Output of a Python program that runs in a new network namespace."""
    if os.geteuid() or not shutil.which("ip") or not os.path.exists("/dev/net/tun"):
        pytest.skip("a tap in a network namespace takes root, iproute2 and /dev/net/tun")
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", head + program], capture_output=True, text=True, timeout=40, check=False, cwd=ROOT
    )
    if "unshare" in done.stderr and "failed" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout


SETUP = """
import os, socket, subprocess, struct
from fake_machine import Bench
from guest_stack import Guest, ip, ip4, udp, tcp, parse_ip, UDP, ICMP
from kvmpy.devices.net.checksum import checksum
from kvmpy.frames import Offload, Takes
from kvmpy.host.net.spec import open_net, parse_net
end, mac = open_net(parse_net("tap,ifname=ktap5,mtu=1400"))
run = lambda *words: subprocess.run(words, check=True, capture_output=True, text=True).stdout
run("sysctl", "-q", "net.ipv6.conf.ktap5.disable_ipv6=1") if os.path.exists("/proc/sys/net/ipv6") else None
run("ip", "addr", "add", "10.7.0.1/24", "dev", "ktap5")
guest = Guest(Bench(end), mac)
guest.address = ip("10.7.0.2")
guest.gateway_mac = guest.resolve(ip("10.7.0.1"))
"""


def test_ping_and_udp() -> None:
    program = SETUP + """
assert "mtu 1400" in run("ip", "link", "show", "ktap5") and "UP" in run("ip", "link", "show", "ktap5")
echo = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + b"ping"
echo = echo[:2] + checksum(echo).to_bytes(2, "big") + echo[4:]
guest.send(0x0800, ip4(guest.address, ip("10.7.0.1"), ICMP, echo))
reply = guest.bench.expect(lambda frame: (guest.arp_reply(frame), parse_ip(frame, ICMP))[1])
assert reply[2][0] == 0 and reply[2][8:] == b"ping"
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.7.0.1", 900))
guest.send(0x0800, udp(guest.address, ip("10.7.0.1"), 5, 900, b"hello"))
assert server.recvfrom(100) == (b"hello", ("10.7.0.2", 5))
server.sendto(b"welcome", ("10.7.0.2", 5))
assert guest.bench.expect(lambda frame: (guest.arp_reply(frame), parse_ip(frame, UDP))[1])[2][8:] == b"welcome"
end.close()
assert "ktap5" not in dict(map(reversed, socket.if_nameindex()))
print("done")
"""
    assert in_namespace(program) == "done\n"


def test_offloads() -> None:
    program = SETUP + """
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.7.0.1", 900))
# A checksum that the host is to finish.
packet = bytearray(udp(guest.address, ip("10.7.0.1"), 5, 900, b"unfinished"))
pseudo = checksum(bytes(packet[12:20]) + struct.pack("!HH", 17, len(packet) - 20)) ^ 0xFFFF
packet[26:28] = pseudo.to_bytes(2, "big")
frame = guest.gateway_mac + guest.mac + b"\\x08\\0" + bytes(packet)
guest.bench.send(frame, offload=Offload(1, 0, 0, 0, 34, 6))
assert server.recv(100) == b"unfinished"
end.set_offloads(Takes(checksum=True, tso4=True, tso6=True))
server.sendto(b"left to us", ("10.7.0.2", 5))
while True:
    with guest.bench.lock:
        found = [(frame, offload) for frame, offload in guest.bench.frames if parse_ip(frame, UDP)]
        for frame, _ in guest.bench.frames:
            guest.arp_reply(frame)
        if found:
            break
        guest.bench.frames.clear()
        guest.bench._came.wait(5)
assert found[0][1] is not None and found[0][1].flags == 1 and found[0][1].csum_start == 34
lost = end.lost_out
guest.bench.send(frame, offload=Offload(1, 99, 0, 0, 65535, 65535))  # nonsense is the kernel's to refuse
assert end.lost_out == lost + 1
print("done")
end.close()
"""
    assert in_namespace(program) == "done\n"


def test_an_existing_interface_stays() -> None:
    program = """
import socket, subprocess
from kvmpy.errors import HostError
from kvmpy.host.net.tap import TapNet
subprocess.run(["ip", "tuntap", "add", "dev", "mine0", "mode", "tap"], check=True)
end = TapNet("mine0")
try:
    TapNet("mine0")
except HostError as error:
    print(error)
end.attach(lambda frame, offload: None, lambda call: call())
end.send([bytes(60)])  # it is down
assert end.lost_out == 1
end.close()
assert "mine0" in dict(map(reversed, socket.if_nameindex()))
new = TapNet()
print(new.ifname)
new.close()
"""
    first, second = in_namespace(program).splitlines()
    assert "busy" in first and second == "tap0"


def test_names_that_cannot_be() -> None:
    for name in ("x" * 16, "a/b", "a b"):
        with pytest.raises(ConfigError, match="no name"):
            TapNet(name)


def test_without_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmpy.host.net.tap.DEVICE", "/dev/missing")
    with pytest.raises(HostError, match="modprobe tun"):
        TapNet()
