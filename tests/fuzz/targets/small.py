"""Devices at fixed ports and addresses."""

from __future__ import annotations

from functools import partial
from typing import Any

from kvmpy.devices.acpi_pm import AcpiPm
from kvmpy.devices.biosdisk import BiosDisk
from kvmpy.devices.debug_console import DebugConsole
from kvmpy.devices.debug_exit import DebugExit
from kvmpy.devices.hpet import Hpet
from kvmpy.devices.i8042 import I8042
from kvmpy.devices.port92 import A20Gate, Port92
from kvmpy.devices.post import Post
from kvmpy.devices.reset_port import ResetPort
from kvmpy.devices.rtc import Rtc
from kvmpy.devices.serial import Serial
from tests.devices.conftest import CountingLine
from tests.fuzz.ops import Input
from tests.fuzz.world import Disk, World, drive


class Out:
    """A character end that keeps the output."""

    def __init__(self, outside: list[Any]) -> None:
        self.outside = outside

    def write(self, data: bytes) -> None:
        self.outside.append(bytes(data))

    def attach(self, receive: Any) -> None:
        pass

    def close(self) -> None:
        pass


class SerialWorld(World):
    def build(self) -> None:
        self.lines = [CountingLine(4), CountingLine(3)]
        self.place(Serial(0x3F8, self.lines[0], Out(self.outside)), Serial(0x2F8, self.lines[1], Out(self.outside)))

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        return "give", source.byte(), source.bytes(40), source.byte()

    def give(self, which: int, data: bytes, errors: int) -> None:
        port = self.devices[which & 1]
        if which & 2:
            port.set_modem(errors)
        else:
            port.receive(data, errors & 0x1C if which & 4 else 0)


class RtcWorld(World):
    def build(self) -> None:
        self.lines = [CountingLine(8)]
        self.place(Rtc(self.lines[0], low=64 << 20))


class I8042World(World):
    def build(self) -> None:
        self.lines = [CountingLine(1), CountingLine(12)]
        gate = A20Gate()
        self.place(I8042(*self.lines, gate), Port92(gate))

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        return "give", source.byte(), source.byte(), source.byte()

    def give(self, what: int, a: int, b: int) -> None:
        controller = self.devices[0]
        if what & 3 == 0:
            controller.type("Kv")
        elif what & 3 == 1:  # a held key's repetition is not part of the state
            key = ("a", "up", "pause", "f7")[a % 4]
            controller.keyboard.down(key)
            controller.keyboard.up(key)
        elif what & 3 == 2:
            controller.mouse.move(a - 128, b - 128, what >> 4)
        else:
            controller.mouse.buttons(a)


class HpetWorld(World):
    def build(self) -> None:
        hpet = Hpet()
        self.lines = list(hpet.lines)
        self.place(hpet)


class AcpiWorld(World):
    def build(self) -> None:
        self.lines = [CountingLine(9)]
        self.place(AcpiPm(self.lines[0]))

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        return "give", source.byte()

    def give(self, what: int) -> None:
        if what & 1:
            self.devices[0].press_power_button()
        else:
            self.devices[0].raise_gpe(what >> 1 & 15)


class DebugWorld(World):
    def build(self) -> None:
        self.place(DebugConsole(Out(self.outside)), DebugExit(), Post(), ResetPort())


class BiosDiskWorld(World):
    def build(self) -> None:
        self.disks = [Disk(2880), Disk(300), Disk(64, readonly=True)]
        self.place(BiosDisk(self.disks))

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        return "fail", source.byte()

    def special(self, source: Input) -> tuple[Any, ...]:
        """A whole request: drive, count, block, address, command."""
        return "request", source.byte(), source.byte(), source.value(8), source.value(4), source.byte()

    def request(self, drive: int, count: int, block: int, address: int, command: int) -> int:
        from kvmpy.devices import biosdisk as b

        for at, size, value in ((b.DRIVE, 1, drive & 0x83), (b.COUNT, 2, count), (b.COUNT + 2, 8, block), (b.COUNT + 10, 4, address)):
            self.write(True, b.BASE + at, size, value)
        self.write(True, b.BASE + b.COMMAND, 1, command & 7)
        return self.read(True, b.BASE + b.COMMAND, 1)


RUN = {
    "serial": partial(drive, SerialWorld),
    "rtc": partial(drive, RtcWorld),
    "i8042": partial(drive, I8042World),
    "hpet": partial(drive, HpetWorld),
    "acpi_pm": partial(drive, AcpiWorld),
    "debug_ports": partial(drive, DebugWorld),
    "biosdisk": partial(drive, BiosDiskWorld),
}
