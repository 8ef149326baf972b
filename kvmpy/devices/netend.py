"""What a NIC wants of the network behind it. Ends live in `kvmpy.host`; a NIC gets one as a constructor argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvmpy.frames import MAX_FRAME, Offload, Takes

__all__ = ["MAX_FRAME", "NetEnd", "Offload", "Takes"]


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

    def set_offloads(self, takes: Takes) -> None:
        """What the NIC takes unfinished from now on; nothing at the start. An end without offloads ignores it."""

    def set_receiving(self, ready: bool) -> None:
        """The NIC has (no) room: an end may hold frames back while it is not ready."""

    def close(self) -> None: ...
