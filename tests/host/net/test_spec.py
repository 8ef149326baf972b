"""What --net takes, and the addresses that follow from it."""

from __future__ import annotations

import pytest

from kvmpy.errors import ConfigError
from kvmpy.host.net.spec import PortForward, make_mac, open_net, parse_net


def test_everything_is_taken() -> None:
    spec = parse_net("user,model=e1000,mac=52:54:0:a:b:C,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::0-10.0.2.16:53,pcap=x.pcap,mtu=9000")
    assert (spec.kind, spec.model, spec.mac, spec.pcap, spec.mtu) == ("user", "e1000", bytes.fromhex("5254000a0b0c"), "x.pcap", 9000)
    assert spec.forwards == (
        PortForward(False, "127.0.0.1", 2222, "10.0.2.15", 22), PortForward(True, "127.0.0.1", 0, "10.0.2.16", 53),
    )  # fmt: skip
    assert parse_net("tap,ifname=tap0").ifname == "tap0"
    assert parse_net("socket,path=/tmp/s").path == "/tmp/s"
    assert parse_net("hub,name=lan,model=ne2000").model == "ne2000"


@pytest.mark.parametrize("text", [
    "", "bridge", "user,", "user,ifname=x", "user,mac=1", "user,mac=01:00:00:00:00:00", "user,mac=0:0:0:0:0:0", "user,mtu=3", "user,mtu=x",
    "user,hostfwd=22", "user,hostfwd=tcp::1-:0", "user,hostfwd=tcp::70000-:1", "user,hostfwd=tcp:name:1-:1", "user,model=rtl8139", "socket",
    "user,model", "user,pcap=", "user,mtu=1500,mtu=1500", "user,restrict=yes",
])  # fmt: skip
def test_what_is_wrong_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="--net"):
        parse_net(text)


def test_addresses_are_stable_and_differ() -> None:
    macs = [make_mac(0, "user"), make_mac(1, "user"), make_mac(0, "tap", "tap0"), make_mac(0, "socket", "/s", "first"),
            make_mac(0, "socket", "/s", "second")]  # fmt: skip
    assert len(set(macs)) == len(macs) and all(mac[:3] == b"\x52\x54\x00" for mac in macs)
    assert make_mac(0, "user").hex(":") == make_mac(0, "user").hex(":")
    ends = [open_net(parse_net("hub,name=macs")) for _ in range(2)]
    assert ends[0][1] != ends[1][1]
    for end, _ in ends:
        end.close()
    again, mac = open_net(parse_net("hub,name=macs"))
    again.close()
    assert mac == ends[0][1]
