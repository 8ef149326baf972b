"""Character ends: where a guest's serial output goes and its input comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Receive = Callable[[bytes], None]


class CharEnd:
    """Base of all ends, and the null end: output vanishes, input never comes.

    `write` is called under the machine's lock; `receive` given to `attach` may be called from any thread.
    Closing twice is harmless; writing after closing is ignored.
    """

    def write(self, data: bytes) -> None:
        pass

    def attach(self, receive: Receive) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class Null(CharEnd):
    """Swallows everything."""


class Tee(CharEnd):
    """Output goes to all ends, input comes from any of them."""

    def __init__(self, *ends: CharEnd) -> None:
        self.ends: Sequence[CharEnd] = ends

    def write(self, data: bytes) -> None:
        for end in self.ends:
            end.write(data)

    def attach(self, receive: Receive) -> None:
        for end in self.ends:
            end.attach(receive)

    def flush(self) -> None:
        for end in self.ends:
            end.flush()

    def close(self) -> None:
        for end in self.ends:
            end.close()
