"""Ethernet frames between NICs and the network behind them: the terms both sides share."""

from __future__ import annotations

from dataclasses import dataclass

MAX_FRAME = 65550
"""Bytes of the largest frame, segmentation offload included (64 KiB payload and Ethernet header)."""

MAC_SIZE = 6

NEEDS_CSUM = 1
"""Offload.flags: the checksum field holds the pseudo header's sum, the rest is to be added."""
DATA_VALID = 2
"""Offload.flags: the checksum has been found right."""

GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4 = 0, 1, 3, 4, 5
"""Offload.gso_type."""
GSO_ECN = 0x80
"""Bit of Offload.gso_type: the TCP header has CWR set."""


@dataclass(frozen=True, slots=True)
class Offload:
    """What is left to do to a frame, in the terms of virtio 1.2 §5.1.6 (struct virtio_net_hdr)."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0


@dataclass(frozen=True, slots=True)
class Takes:
    """What a NIC takes unfinished: frames with a partial checksum, and larger ones than the MTU by kind."""

    checksum: bool = False
    tso4: bool = False
    tso6: bool = False
    ecn: bool = False
    ufo: bool = False


def format_mac(mac: bytes) -> str:
    """52:54:00:12:34:56."""
    return mac.hex(":")
