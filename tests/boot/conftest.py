"""Fixtures of the boot tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmpy.boot import firmware
from kvmpy.memory import GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    guest = GuestMemory("64M")
    yield guest
    guest.close()


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes bytes to a file and gives its path."""

    def write(data: bytes, name: str = "kernel") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def rom(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A stand-in for the BIOS image, so that these tests do not need it built."""
    image = bytes(firmware.ROM_SIZE - 16) + b"\xea" + bytes(15)
    monkeypatch.setattr(firmware, "read_rom", lambda: image)
    return image
