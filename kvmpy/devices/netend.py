"""What a NIC wants of the network behind it. Ends live in `kvmpy.host`; a NIC gets one as a constructor argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_FRAME = 65550
"""Bytes of the largest frame, segmentation offload included (64 KiB payload and Ethernet header)."""


@dataclass(frozen=True, slots=True)
class Offload:
    """What is left to do to a frame, in the terms of virtio 1.2 §5.1.6 (struct virtio_net_hdr)."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0


class NetEnd(Protocol):
    """A network back end: Ethernet frames without FCS."""

    offloads: bool
    """The end takes and gives frames with Offload (a tap with IFF_VNET_HDR); else it gets only finished frames."""

    def attach(self, receive: Callable[[bytes | memoryview, Offload | None], None], post: Callable[[Callable[[], None]], None]) -> None:
        """`receive` is called with every frame for the guest, always from inside `post` (under the machine's lock).
        Starts the end."""

    def send(self, frame: Sequence[bytes | memoryview], offload: Offload | None = None) -> None:
        """A frame of the guest, in pieces that may lie in guest memory and are not kept after the call. Never blocks, never
        raises: what the host cannot take is dropped and counted."""

    def set_receiving(self, ready: bool) -> None:
        """The NIC has (no) room: an end may hold frames back while it is not ready."""

    def close(self) -> None: ...
