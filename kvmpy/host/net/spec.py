"""`--net KIND,name=value,...`: what it says, and the end and MAC address that follow from it."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable

from kvmpy.errors import ConfigError
from kvmpy.frames import MAC_SIZE
from kvmpy.host.net.end import End
from kvmpy.host.net.pcap import Pcap
from kvmpy.record import Record

KINDS = ("user", "tap", "socket", "hub", "none")
MODELS = ("virtio", "e1000", "ne2000", "ne2000-isa")
PREFIX = b"\x52\x54\x00"
"""First half of the addresses made here: locally administered, as QEMU's guests have it."""
SMALLEST_MTU, LARGEST_MTU = 68, 65535  # RFC 791, virtio 1.2 §5.1.4.1

COMMON = {"model", "mac", "pcap", "mtu"}
OPTIONS = {
    "user": {"hostfwd", "tftp", "bootfile", "restrict"}, "tap": {"ifname"}, "socket": {"path"}, "hub": {"name"}, "none": set[str](),
}  # fmt: skip


class PortForward(Record, frozen=True):
    """hostfwd=tcp|udp:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT; the host's address is 127.0.0.1 where none is given,
    the guest's 10.0.2.15. Host port 0: any free one."""

    udp: bool
    host: str
    host_port: int
    guest: str
    guest_port: int


class NetSpec(Record, frozen=True):
    """One NIC and what it is connected to."""

    kind: str
    model: str = "virtio"
    mac: bytes | None = None
    pcap: str | None = None
    mtu: int = 0
    forwards: tuple[PortForward, ...] = ()
    tftp: str | None = None
    bootfile: str | None = None
    restrict: bool = False
    ifname: str = ""
    path: str = ""
    name: str = ""
    text: str = ""


def parse_net(text: str) -> NetSpec:
    """ConfigError says what is wrong, with the whole text."""
    kind, *parts = text.split(",")

    def wrong(why: str) -> ConfigError:
        return ConfigError(f"--net {text}: {why}")

    if kind not in KINDS:
        raise wrong(f"{kind or 'nothing'} is none of {', '.join(KINDS)}")
    values: dict[str, str] = {}
    forwards: list[PortForward] = []
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise wrong(f"{part!r} is not name=value")
        if name not in COMMON | OPTIONS[kind]:
            raise wrong(f"{name} is none of {', '.join(sorted(COMMON | OPTIONS[kind]))}")
        if name == "hostfwd":
            forwards.append(_forward(value, wrong))
        elif name in values:
            raise wrong(f"{name} is given twice")
        else:
            values[name] = value
    if kind == "socket" and "path" not in values:
        raise wrong("path=SOCKET is wanted")
    if (model := values.get("model", "virtio")) not in MODELS:
        raise wrong(f"model={model}: one of {', '.join(MODELS)}")
    if (restrict := values.get("restrict", "off")) not in ("on", "off"):
        raise wrong("restrict=on or restrict=off")
    return NetSpec(
        kind, model, _mac(values["mac"], wrong) if "mac" in values else None, values.get("pcap"),
        _mtu(values["mtu"], wrong) if "mtu" in values else 0, tuple(forwards), values.get("tftp"), values.get("bootfile"),
        restrict == "on", values.get("ifname", ""), values.get("path", ""), values.get("name", ""), text,
    )


def _mac(text: str, wrong: Callable[[str], ConfigError]) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{1,2}([:-][0-9a-fA-F]{1,2}){5}", text):
        raise wrong(f"mac={text}: six numbers as in 52:54:00:12:34:56 are wanted")
    mac = bytes(int(part, 16) for part in re.split("[:-]", text))
    assert len(mac) == MAC_SIZE
    if mac[0] & 1 or not any(mac):
        raise wrong(f"mac={text} is no address of a single station")
    return mac


def _mtu(text: str, wrong: Callable[[str], ConfigError]) -> int:
    if not text.isdecimal() or not SMALLEST_MTU <= int(text) <= LARGEST_MTU:
        raise wrong(f"mtu={text}: a number from {SMALLEST_MTU} to {LARGEST_MTU} is wanted")
    return int(text)


def _forward(text: str, wrong: Callable[[str], ConfigError]) -> PortForward:
    match = re.fullmatch(r"(?:(tcp|udp):)?([^:]*):(\d+)-([^:]*):(\d+)", text)
    if match is None:
        raise wrong(f"hostfwd={text}: tcp:127.0.0.1:2222-:22 shows the form")
    protocol, host, host_port, guest, guest_port = match.groups()
    host, guest = host or "127.0.0.1", guest or "10.0.2.15"
    for address in (host, guest):
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            raise wrong(f"hostfwd: {address} is no IPv4 address") from None
    if int(host_port) > 0xFFFF or not 0 < int(guest_port) <= 0xFFFF:
        raise wrong(f"hostfwd={text}: ports end at 65535")
    return PortForward(protocol == "udp", host, int(host_port), guest, int(guest_port))


class NoNet(End):
    """A NIC whose cable is not plugged in anywhere: frames are lost."""

    kind = "none"


def open_net(spec: NetSpec, index: int = 0, on_trouble: Callable[[str], None] | None = None) -> tuple[End, bytes]:
    """The end, and the NIC's MAC address. `index` counts the machine's NICs. Ends that cannot be had raise HostError, ConfigError
    or MissingCapability."""
    end = _open(spec)
    end.on_trouble = on_trouble
    try:
        if spec.pcap is not None:
            end.pcap = Pcap(spec.pcap, on_trouble)
    except BaseException:
        end.close()
        raise
    return end, spec.mac or make_mac(index, *_identity(spec, end))


def _open(spec: NetSpec) -> End:
    # Imported where wanted: a tap needs no cffi declarations, a socket no tun driver.
    if spec.kind == "user":
        from kvmpy.host.net.user import UserNet

        return UserNet(spec.forwards, tftp=spec.tftp, bootfile=spec.bootfile, restrict=spec.restrict, mtu=spec.mtu)
    if spec.kind == "tap":
        from kvmpy.host.net.tap import TapNet

        return TapNet(spec.ifname, mtu=spec.mtu)
    if spec.kind == "socket":
        from kvmpy.host.net.socketnet import SocketNet

        return SocketNet(spec.path)
    if spec.kind == "hub":
        from kvmpy.host.net.hub import Hub

        return Hub.named(spec.name).port()
    return NoNet()


def _identity(spec: NetSpec, end: End) -> tuple[str, ...]:
    """What tells this NIC from one of the same index in another VM on the same wire."""
    if spec.kind == "tap":
        return "tap", str(getattr(end, "ifname", ""))
    if spec.kind == "socket":
        return "socket", spec.path, "first" if getattr(end, "listening", False) else "second"
    if spec.kind == "hub":
        return "hub", spec.name, str(getattr(end, "number", 0))
    return (spec.kind,)


def make_mac(index: int, *identity: str) -> bytes:
    """An address that is the same at each start: 52:54:00 and three bytes of a digest of what the NIC is connected to."""
    digest = hashlib.sha256("\0".join((str(index), *identity)).encode()).digest()
    return PREFIX + digest[:3]
