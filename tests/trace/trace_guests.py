"""Small guests for the tests of tracing: real mode code at 0:7C00 on a machine without an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvmpy import Device, Machine
from kvmpy.kvm.probe import unavailable

BACKENDS = [
    pytest.param("kvm", marks=pytest.mark.skipif(bool(unavailable()), reason=f"no KVM: {unavailable()}")),
    "soft",
]
PORT, MMIO = 0x99, 0xD0000


class Box(Device):
    """A port and a word of device memory that count reads up and keep writes."""

    name = "box"
    ports = PORT, 2
    mmio = MMIO, 0x1000

    def __init__(self) -> None:
        self.log: list[tuple[int, int, int]] = []
        self.reads = 0

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        return self.reads

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append((offset, size, value))


def start(machine: Machine, code: bytes, at: int = 0x7C00) -> Machine:
    """Real mode at 0:at with a stack below."""
    machine.memory.write(at, code)
    registers = machine.cpu[0].registers
    registers.cs = {"selector": 0, "base": 0}
    registers.rip, registers.rsp, registers.rflags = at, 0x7000, 2
    return machine


def leave(code: int | None = None) -> bytes:
    """mov al, code; out 0f4h, al: the run ends with GuestExit(code), without one of AL."""
    return (b"" if code is None else bytes([0xB0, code])) + b"\xe6\xf4"


def vector(machine: Machine, number: int, code: int) -> None:
    """An interrupt vector whose handler leaves with `code`."""
    at = 0x5000 + number * 16
    machine.memory.write(at, leave(code))
    machine.memory.write_u32(number * 4, at)


Maker = Callable[..., Machine]


def makers(backend: str) -> Iterator[Maker]:
    """A function that makes machines and closes them in the end; each has a Box as `machine.box`."""
    made: list[Machine] = []

    def make(code: bytes, **options: Any) -> Machine:
        box = Box()
        machine = Machine(options.pop("memory", "640K"), backend=backend, devices=[box], **options)
        machine.box = box  # type: ignore[attr-defined]
        made.append(machine)
        return start(machine, code)

    yield make
    for machine in made:
        machine.close()
