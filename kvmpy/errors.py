"""Exceptions of kvmpy. Guest faults are never exceptions; these are the host's and the caller's errors."""

from __future__ import annotations

import os


class KvmpyError(Exception):
    """Base of every exception that kvmpy raises on purpose; its text is one line fit for a user."""


class HostError(KvmpyError):
    """The host refused something: names the call, the errno and, where one is known, the remedy."""

    def __init__(self, call: str, errno: int, remedy: str = "") -> None:
        self.call = call
        self.errno = errno
        self.remedy = remedy
        text = f"{call}: {os.strerror(errno)}"
        super().__init__(f"{text}: {remedy}" if remedy else text)


class MissingCapability(KvmpyError):
    """The host lacks something that was asked for by name (exit status 69)."""


class ConfigError(KvmpyError):
    """A machine cannot be built as asked: overlapping devices, impossible sizes, unknown names (exit status 64)."""


class MemoryAccessError(KvmpyError):
    """An access through GuestMemory fell outside guest RAM."""

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
        super().__init__(f"guest physical {address:#x}..{address + max(size, 1) - 1:#x} is not RAM")


class NotMappedError(MemoryAccessError):
    """An access by linear address met one that is not mapped, or has no RAM behind it."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(address, size)
        self.args = (f"linear {address:#x}..{address + max(size, 1) - 1:#x} is not mapped to RAM",)


class TranslatorError(KvmpyError):
    """Translated code has done something else than the interpreter (exit status 76): the software CPU under `verify_translator`.

    `differences` are (what, guest physical address or None, bytes as the interpreter leaves them, bytes as translated code does);
    `rip` is the block in which the two part, or they do in the beginning of the one at `behind`; where `again` is false, they part
    somewhere behind `start`, and the block at `rip` is the last one. `report` has the lines with code
    and values, where the machine could tell them.
    """

    def __init__(
        self, start: int, rip: int, behind: int | None, again: bool, retired: tuple[int, int],
        differences: list[tuple[str, int | None, bytes, bytes]],
    ) -> None:
        self.start = start
        self.rip = rip
        self.behind = behind
        self.again = again
        self.retired = retired
        self.differences = differences
        self.report: list[str] = []
        names = ", ".join(dict.fromkeys(name for name, _, _, _ in differences))
        super().__init__(f"the translator is wrong about the block at {rip:#x}: {names} differ from what the interpreter does")


class ImageError(KvmpyError):
    """A guest image (kernel, initrd, disk, ROM) cannot be used: names the file and what is wrong with it (exit status 65)."""


class FilterError(ConfigError):
    """A filter of events cannot be understood: names the clause and what was expected (exit status 64)."""


class TraceError(KvmpyError):
    """A file is no trace, or a broken one: names the file and what is wrong with it (exit status 65)."""
