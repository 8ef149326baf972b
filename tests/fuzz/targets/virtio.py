"""virtio devices on both transports: registers as they come, and a driver's rings with any descriptors in them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from kvmpy.devices.net.virtio_net import VirtioNet
from kvmpy.devices.netend import MAX_FRAME
from kvmpy.devices.virtio.balloon import VirtioBalloon
from kvmpy.devices.virtio.blk import VirtioBlk
from kvmpy.devices.virtio.console import VirtioConsole
from kvmpy.devices.virtio.device import VirtioDevice
from kvmpy.devices.virtio.mmio import VirtioMmio
from kvmpy.devices.virtio.pci import VirtioPci
from kvmpy.devices.virtio.rng import VirtioRng
from kvmpy.devices.virtio.vsock import VirtioVsock
from tests.devices.conftest import CountingLine
from tests.devices.net.fake_end import MAC, FakeEnd
from tests.fuzz.ops import Input
from tests.fuzz.targets.small import Out
from tests.fuzz.world import Disk, World, drive

MMIO_BASE = 0xFEB00000
SIZE = 8  # descriptors of a queue that `start` makes
RINGS, BUFFERS, BUFFER = 0x1000, 0x10000, 0x800


class VirtioWorld(World):
    """One virtio device and its driver."""

    pci = False

    def device(self) -> VirtioDevice:
        raise AssertionError

    def build(self) -> None:
        self.virtio = self.device()
        if self.pci:
            self.carrier: Any = VirtioPci(self.virtio)
            self.plug(self.carrier)
            self.bar = self.carrier.bars[0].mapped
        else:
            self.lines = [CountingLine(5)]
            self.carrier = VirtioMmio(self.virtio, MMIO_BASE, self.lines[0])
            self.place(self.carrier)

    def special(self, source: Input) -> tuple[Any, ...]:
        what = source.byte()
        queue = (what >> 4) % len(self.virtio.queues)
        if what & 7 == 0:
            return "start", source.byte()
        if what & 7 == 1:
            return "describe", queue, source.byte() % SIZE, source.value(8), source.value(4), source.byte(), source.byte()
        if what & 7 == 2:
            return "offer", queue, source.number(2)
        if what & 7 == 3:
            return "notify", queue
        parts = [(source.byte(), source.byte()) for _ in range(1 + (what & 3))]
        return "request", queue, parts, source.bytes(96)

    def registers(self, offsets: tuple[int, int], size: int, value: int) -> None:
        """A register of the driver's: its place on each transport."""
        if self.pci:
            self.mmio.write(self.bar + offsets[1], size, value)
        else:
            self.mmio.write(MMIO_BASE + offsets[0], 4, value)

    def start(self, options: int) -> None:
        """As a driver does, up to DRIVER_OK."""
        self.registers((0x70, 0x14), 1, 0)
        self.registers((0x70, 0x14), 1, 3)
        features = self.virtio.offered & ~(options << 24 & 3 << 28) & ~(0xFFFF if options & 1 else 0)
        for half in (0, 1):
            self.registers((0x24, 0x08), 4, half)
            self.registers((0x20, 0x0C), 4, features >> 32 * half & 0xFFFFFFFF)
        self.registers((0x70, 0x14), 1, 11)
        for queue in range(len(self.virtio.queues)):
            self.registers((0x30, 0x16), 2, queue)
            self.registers((0x38, 0x18), 2, SIZE)
            at = RINGS + queue * 0x1000
            self.memory.write(at, bytes(0x1000))
            for number, address in enumerate((at, at + 0x400, at + 0x800)):
                self.registers((0x80 + 16 * number, 0x20 + 8 * number), 4, address)
                self.registers((0x84 + 16 * number, 0x24 + 8 * number), 4, 0)
            if options & 2 and self.pci:
                self.registers((0, 0x1A), 2, queue + 1)
            self.registers((0x44, 0x1C), 2, 1)
        self.registers((0x70, 0x14), 1, 15)

    def describe(self, queue: int, slot: int, address: int, length: int, flags: int, following: int) -> None:
        address = address if flags & 0x80 else BUFFERS + address % (self.memory_size - BUFFERS)
        length = length if flags & 0x40 else length & 0xFFF
        self.memory.write(RINGS + queue * 0x1000 + 16 * slot, struct.pack("<QIHH", address, length, flags & 7, following % (SIZE + 1)))

    def offer(self, queue: int, head: int) -> None:
        available = RINGS + queue * 0x1000 + 0x400
        index = self.memory.read_u16(available + 2)
        self.memory.write_u16(available + 4 + 2 * (index % SIZE), head if head > 0xFF00 else head % SIZE)
        self.memory.write_u16(available + 2, index + 1)

    def notify(self, queue: int) -> None:
        self.registers((0x50, 0x3000 + 4 * queue), 2, queue)

    def request(self, queue: int, parts: list[tuple[int, int]], data: bytes) -> None:
        """A chain of buffers in their order, the first bytes of what is read given; offered and notified."""
        at = BUFFERS + queue * 0x4000
        self.memory.write(at, data)
        for slot, (kind, size) in enumerate(parts):
            length = (size & 0x7F) << 4 if size & 0x80 else size
            last = slot == len(parts) - 1
            self.describe(queue, slot, at - BUFFERS, length, (0 if last else 1) | (kind & 2), slot + 1)
            at += length if slot == 0 and kind & 4 else BUFFER
        self.offer(queue, 0)
        self.notify(queue)


class Blk(VirtioWorld):
    def device(self) -> VirtioDevice:
        self.disks = [Disk(256)]
        return VirtioBlk(self.disks[0], queues=2)

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        return "fail", source.byte()


class Rng(VirtioWorld):
    def device(self) -> VirtioDevice:
        return VirtioRng(lambda size: bytes(range(256)) * (size // 256) + bytes(size % 256))


class Console(VirtioWorld):
    def device(self) -> VirtioDevice:
        return VirtioConsole(Out(self.outside))

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        return "give", source.bytes(300)

    def give(self, data: bytes) -> None:
        self.virtio.receive(data)  # type: ignore[attr-defined]


class Balloon(VirtioWorld):
    def device(self) -> VirtioDevice:
        return VirtioBalloon(16)

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        return "give", source.byte(), source.number(2)

    def give(self, what: int, pages: int) -> None:
        if what & 1:
            self.virtio.ask_statistics()  # type: ignore[attr-defined]
        else:
            self.virtio.set_target(pages)  # type: ignore[attr-defined]


class Wire(FakeEnd):
    """A network end: what is sent is outside, what comes waits for room."""

    def __init__(self, outside: list[Any], offloads: bool = False) -> None:
        super().__init__(offloads)
        self.outside = outside

    def send(self, frame: Any, offload: Any = None) -> None:
        data = b"".join(frame)
        assert self.offloads or len(data) <= MAX_FRAME + 4, len(data)
        self.outside.append((data, offload))

    def set_receiving(self, ready: bool) -> None:
        self.ready = ready
        self.flush()


class NicWorld(World):
    """Frames from outside; those that wait for room wait for both worlds."""

    end: Wire

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        kind, size = source.byte(), source.number(2) % 1600
        head = (MAC, b"\xff" * 6, b"\x01\x00\x5e\x00\x00\x01", b"")[kind & 3]
        return "give", (head + source.bytes(60)).ljust(size, b"\xa5")

    def give(self, frame: bytes) -> None:
        if len(frame) >= 14 and len(self.end.waiting) < 16:
            self.end.give(frame)

    def hand_over(self, other: World) -> None:
        assert isinstance(other, NicWorld)
        other.end.waiting = list(self.end.waiting)
        other.end.ready = self.end.ready


class Net(NicWorld, VirtioWorld):
    def device(self) -> VirtioDevice:
        self.end = Wire(self.outside, offloads=True)
        return VirtioNet(self.end, MAC)


class Stream:
    """A connection of the host's side that answers with what it gets."""

    def __init__(self, outside: list[Any]) -> None:
        self.outside = outside
        self.closed = False
        self.attached = False

    def attach(self, receive: Callable[[bytes], None], sent: Callable[[int], None], ended: Callable[[bool], None]) -> None:
        self.receive, self.sent, self.ended = receive, sent, ended
        self.attached = True

    def send(self, data: bytes) -> None:
        assert not self.closed
        self.outside.append(bytes(data))
        self.sent(len(data))

    def pause(self, paused: bool) -> None:
        self.outside.append(paused)

    def shut(self) -> None:
        self.outside.append("shut")

    def close(self) -> None:
        self.closed = True


class VsockSide:
    """The host of a vsock device: odd ports listen."""

    def __init__(self, outside: list[Any]) -> None:
        self.outside = outside
        self.streams: list[Stream] = []

    def listen(self, accepted: Any, post: Any) -> None:
        self.accepted = accepted

    def connect(self, port: int) -> Stream:
        if not port & 1:
            raise ConnectionRefusedError(111, "Connection refused")
        self.streams.append(Stream(self.outside))
        return self.streams[-1]

    def close(self) -> None:
        pass


class Vsock(VirtioWorld):
    """Connections do not survive a restored state, so that the two worlds are not compared behind it (`twin`)."""

    def device(self) -> VirtioDevice:
        self.end = VsockSide(self.outside)
        return VirtioVsock(self.end)

    def special(self, source: Input) -> tuple[Any, ...]:
        what = source.byte()
        if what & 1:
            return super().special(source)
        fields = source.byte() | 1, source.byte() | 1, source.byte() % 9, source.byte(), source.value(4), source.value(4)
        return "packet", what, fields, source.bytes(80)

    def packet(self, what: int, fields: tuple[int, ...], data: bytes) -> None:
        source_port, port, op, flags, allowed, forwarded = fields
        length = len(data) if what & 2 else flags << 8
        head = struct.pack("<QQIIIHHIII", 3 if what & 4 else what, 2 if what & 8 else what, source_port, port, length,
                           1 if what & 16 else what, op, flags, allowed, forwarded)  # fmt: skip
        self.request(1, [(4, len(head)), (0, min(len(data), 127))], head + data)

    def decode_input(self, source: Input) -> tuple[Any, ...]:
        return "give", source.byte(), source.bytes(200)

    def give(self, what: int, data: bytes) -> None:
        open_ = [stream for stream in self.end.streams if stream.attached and not stream.closed]
        if what & 1 or not open_:
            self.end.streams.append(Stream(self.outside))
            self.end.accepted(self.end.streams[-1], what)
        elif what & 2:
            open_[what >> 2 & 7 if what >> 2 & 7 < len(open_) else 0].receive(data)
        else:
            open_[0].ended(bool(what & 4))

    def twin(self) -> World:
        """This one goes back to its own state, as a restored machine does."""
        for device, saved in zip(self.devices, self.state(), strict=True):
            device.restore(saved)
        return self


def _both(kind: type[VirtioWorld]) -> dict[str, Any]:
    name = f"virtio_{kind.__name__.lower()}"
    on_pci = type(kind.__name__ + "Pci", (kind,), {"pci": True})
    return {f"{name}_mmio": partial(drive, kind), f"{name}_pci": partial(drive, on_pci)}


RUN = {name: run for kind in (Blk, Net, Rng, Console, Balloon, Vsock) for name, run in _both(kind).items()}
