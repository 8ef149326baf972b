"""What a vsock device wants of the host behind it: byte streams by port. The end lives in `kvmpy.host`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Stream(Protocol):
    """One connection. Callbacks come under the machine's lock; none comes after `close`."""

    def attach(self, receive: Callable[[bytes], None], sent: Callable[[int], None], ended: Callable[[bool], None]) -> None:
        """`receive` gets input, `sent` how many more bytes of output the other side has taken. `ended(False)` says that there is no
        more input, `ended(True)` that output is not taken either: the one, the other, or one after the other. Starts the stream."""

    def send(self, data: bytes) -> None:
        """Output, kept until the other side takes it. The caller bounds how much that is by what `sent` tells."""

    def pause(self, paused: bool) -> None:
        """Whether to hold input back."""

    def shut(self) -> None:
        """There is no more output: the other side sees the end after what was given. Input goes on."""

    def close(self) -> None:
        """Output already given still goes out."""


class VsockEnd(Protocol):
    """The host as the guest's peer."""

    def listen(self, accepted: Callable[[Stream, int], None], post: Callable[[Callable[[], None]], None]) -> None:
        """`accepted` is called, inside `post`, with a stream and the guest's port that a host program wants to reach. Starts the end."""

    def connect(self, port: int) -> Stream:
        """A connection of the guest to a port of the host. OSError where nobody listens."""

    def close(self) -> None: ...
