"""A virtio driver in Python, for both transports: what a guest's driver does, down to registers and rings."""

from __future__ import annotations

import struct

from kvmpy.bus import MmioBus, PortBus, place
from kvmpy.devices.pci.host import ECAM_BASE, PciHost
from kvmpy.devices.virtio.device import RING_EVENT_IDX, RING_INDIRECT_DESC
from kvmpy.devices.virtio.mmio import VirtioMmio
from kvmpy.devices.virtio.pci import VirtioPci
from kvmpy.irq import Line
from kvmpy.memory import GuestMemory

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
NEXT, WRITE, INDIRECT = 1, 2, 4
MEMORY = 4 << 20
MMIO_BASE = 0xFEB00000
MSI_ADDRESS = 0xFEE00000


class MmioTransport:
    """The register interface of virtio-mmio."""

    def __init__(self, bench, device):
        self.bench = bench
        self.line = Line(5)
        self.line.bind(lambda line, level: bench.edges.append(level))
        self.carrier = VirtioMmio(device, MMIO_BASE, self.line)
        place(self.carrier, bench.ports, bench.mmio)
        self.carrier.connect(bench.platform)

    def read(self, register, size=4):
        return self.bench.mmio.read(MMIO_BASE + register, size)

    def write(self, register, value, size=4):
        self.bench.mmio.write(MMIO_BASE + register, size, value)

    def identify(self):
        assert (self.read(0), self.read(4)) == (0x74726976, 2)
        return self.read(8)

    @property
    def status(self):
        return self.read(0x70)

    @status.setter
    def status(self, value):
        self.write(0x70, value)

    def offered(self):
        value = 0
        for half in (0, 1):
            self.write(0x14, half)
            value |= self.read(0x10) << 32 * half
        return value

    def accept(self, features):
        for half in (0, 1):
            self.write(0x24, half)
            self.write(0x20, features >> 32 * half & 0xFFFFFFFF)

    def queue(self, index, size, descriptors, available, used):
        self.write(0x30, index)
        self.write(0x38, size)
        for register, address in ((0x80, descriptors), (0x90, available), (0xA0, used)):
            self.write(register, address & 0xFFFFFFFF)
            self.write(register + 4, address >> 32)
        self.write(0x44, 1)
        return self.read(0x44) == 1

    def queue_most(self, index):
        self.write(0x30, index)
        return self.read(0x34)

    def notify(self, index):
        self.write(0x50, index)

    def config(self, offset, size):
        return self.read(0x100 + offset, size)

    def set_config(self, offset, size, value):
        self.write(0x100 + offset, value, size)

    def generation(self):
        return self.read(0xFC)

    def interrupts(self):
        """Bits of what happened since the last call: 1 used buffers, 2 configuration."""
        status = self.read(0x60)
        assert self.line.level == bool(status)
        self.write(0x64, status)
        assert not self.line.level
        return status


class PciTransport:
    """The structures of virtio-pci, found by their capabilities; `msix` chooses messages or INTA#."""

    def __init__(self, bench, device, msix=True):
        self.bench = bench
        self.msix = msix
        self.host = PciHost((bench.ports, bench.mmio))
        self.carrier = VirtioPci(device)
        self.host.plug(self.carrier)
        for each in (self.host, self.carrier):
            place(each, bench.ports, bench.mmio)
            each.connect(bench.platform)
        self.where = self.carrier.slot << 3
        self.start()

    def start(self):
        self.host.leave_as_firmware_does()
        self.set_cfg(4, 2, self.cfg(4, 2) | 4)
        self.structures = {}
        at = self.cfg(0x34, 1)
        while at:
            if self.cfg(at, 1) == 9:
                bar = self.cfg(0x10 + 4 * self.cfg(at + 4, 1), 4) & ~0xF
                self.structures[self.cfg(at + 3, 1)] = bar + self.cfg(at + 8, 4)
                if self.cfg(at + 3, 1) == 2:
                    self.step = self.cfg(at + 16, 4)
            elif self.cfg(at, 1) == 0x11:
                self.msix_at = at
            at = self.cfg(at + 1, 1)
        table = (self.cfg(0x14, 4) & ~0xF) + (self.cfg(self.msix_at + 4, 4) & ~7)
        if self.msix:
            for vector in range((self.cfg(self.msix_at + 2, 2) & 0x7FF) + 1):
                for word, value in enumerate((MSI_ADDRESS, 0, 0x40 + vector, 0)):
                    bench_write(self.bench, table + 16 * vector + 4 * word, value)
            self.set_cfg(self.msix_at + 2, 2, 0x8000)
        self.table = table

    def cfg(self, offset, size):
        return self.bench.mmio.read(ECAM_BASE + (self.where << 12) + offset, size)

    def set_cfg(self, offset, size, value):
        self.bench.mmio.write(ECAM_BASE + (self.where << 12) + offset, size, value)

    def common(self, offset, size, value=None):
        if value is None:
            return self.bench.mmio.read(self.structures[1] + offset, size)
        self.bench.mmio.write(self.structures[1] + offset, size, value)
        return None

    def identify(self):
        assert self.cfg(0, 2) == 0x1AF4 and self.cfg(8, 1) == 1
        return self.cfg(2, 2) - 0x1040

    @property
    def status(self):
        return self.common(0x14, 1)

    @status.setter
    def status(self, value):
        self.common(0x14, 1, value)

    def offered(self):
        value = 0
        for half in (0, 1):
            self.common(0, 4, half)
            value |= self.common(4, 4) << 32 * half
        return value

    def accept(self, features):
        if self.msix:
            self.common(0x10, 2, 0)
        for half in (0, 1):
            self.common(8, 4, half)
            self.common(0xC, 4, features >> 32 * half & 0xFFFFFFFF)

    def queue(self, index, size, descriptors, available, used):
        self.common(0x16, 2, index)
        self.common(0x18, 2, size)
        for register, address in ((0x20, descriptors), (0x28, available), (0x30, used)):
            self.common(register, 4, address & 0xFFFFFFFF)
            self.common(register + 4, 4, address >> 32)
        self.offset = self.common(0x1E, 2)
        if self.msix:
            self.common(0x1A, 2, index + 1)
            assert self.common(0x1A, 2) == index + 1
        self.common(0x1C, 2, 1)
        return self.common(0x1C, 2) == 1

    def queue_most(self, index):
        self.common(0x16, 2, index)
        return self.common(0x18, 2)

    def notify(self, index):
        self.bench.mmio.write(self.structures[2] + index * self.step, 2, index)

    def config(self, offset, size):
        return self.bench.mmio.read(self.structures[4] + offset, size)

    def set_config(self, offset, size, value):
        self.bench.mmio.write(self.structures[4] + offset, size, value)

    def generation(self):
        return self.common(0x15, 1)

    def interrupts(self):
        if self.msix:
            vectors = {data - 0x40 for _, data in self.bench.platform.messages}
            self.bench.platform.messages.clear()
            return (1 if vectors - {0} else 0) | (2 if 0 in vectors else 0)
        line = self.host.gsi_lines[(self.carrier.slot + 0) % 8]
        level = line.level
        isr = self.bench.mmio.read(self.structures[3], 1)
        assert level == bool(isr) and not line.level
        return isr


def bench_write(bench, address, value):
    bench.mmio.write(address, 4, value)


class Bench:
    """Memory, buses and one device under a driver's hands."""

    def __init__(self, platform, device, transport="mmio"):
        self.memory = GuestMemory(MEMORY)
        platform.memory = self.memory
        self.platform = platform
        self.ports, self.mmio = PortBus(), MmioBus()
        self.edges = []
        self.device = device
        self.bus = MmioTransport(self, device) if transport == "mmio" else PciTransport(self, device, transport == "pci")
        self.rings = {}

    @property
    def carrier(self):
        return self.bus.carrier

    def negotiate(self, without=0):
        """Up to FEATURES_OK; gives the features accepted."""
        self.bus.status = 0
        assert self.bus.status == 0
        self.bus.status = ACKNOWLEDGE | DRIVER
        features = self.bus.offered() & ~without
        self.bus.accept(features)
        self.bus.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
        assert self.bus.status & FEATURES_OK
        self.features = features
        return features

    def start(self, size=16, without=0):
        """The whole way to DRIVER_OK, all queues on."""
        self.negotiate(without)
        for index in range(len(self.device.queues)):
            self.rings[index] = Ring(self, index, size)
        self.bus.status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK
        return self

    def close(self):
        self.memory.close()


class Ring:
    """The driver's side of a split virtqueue of `size` descriptors."""

    def __init__(self, bench, index, size):
        self.bench, self.index, self.size = bench, index, size
        self.memory = bench.memory
        base = 0x10000 + index * 0x10000
        self.descriptors, self.available, self.used = base, base + 0x4000, base + 0x6000
        self.buffers = 0x100000 + index * 0x40000
        self.free = list(range(size))
        self.next_available = self.seen = 0
        self.event_index = bool(bench.features & RING_EVENT_IDX)
        self.indirect = bool(bench.features & RING_INDIRECT_DESC)
        self.chains = {}
        self.memory.fill(base, 0x8000)
        assert bench.bus.queue(index, size, self.descriptors, self.available, self.used)

    def describe(self, slot, address, length, flags=0, following=0):
        self.memory.write(self.descriptors + 16 * slot, struct.pack("<QIHH", address, length, flags, following))

    def offer(self, head):
        """Puts a head into the available ring without looking at it."""
        self.memory.write_u16(self.available + 4 + 2 * (self.next_available % self.size), head)
        self.next_available = (self.next_available + 1) & 0xFFFF
        self.memory.write_u16(self.available + 2, self.next_available)

    def add(self, out=(), into=(), *, indirect=False):
        """A chain of buffers: `out` are bytes for the device, `into` are lengths that it fills. Gives the head."""
        parts, at = [], self.buffers
        for data in out:
            self.memory.write(at, data)
            parts.append((at, len(data), 0))
            at += -(-len(data) // 16) * 16 + 16
        places = []
        for length in into:
            places.append((at, length))
            parts.append((at, length, WRITE))
            at += -(-length // 16) * 16 + 16
        self.buffers = at if at < 0x100000 + self.index * 0x40000 + 0x30000 else 0x100000 + self.index * 0x40000
        if indirect:
            table = at
            self.buffers = at + 16 * len(parts)
            for number, (address, length, flags) in enumerate(parts):
                last = number == len(parts) - 1
                self.memory.write(table + 16 * number, struct.pack("<QIHH", address, length, flags | (0 if last else NEXT), number + 1))
            slots = [self.free.pop(0)]
            self.describe(slots[0], table, 16 * len(parts), INDIRECT)
        else:
            slots = [self.free.pop(0) for _ in parts]
            for number, (address, length, flags) in enumerate(parts):
                last = number == len(parts) - 1
                self.describe(slots[number], address, length, flags | (0 if last else NEXT), 0 if last else slots[number + 1])
        self.chains[slots[0]] = (slots, places)
        self.offer(slots[0])
        return slots[0]

    def wants_notification(self):
        if self.event_index:
            event = self.memory.read_u16(self.used + 4 + 8 * self.size)
            return (self.next_available - event - 1) & 0xFFFF < 1
        return not self.memory.read_u16(self.used) & 1

    def want_interrupt(self, wanted=True):
        if self.event_index:
            self.memory.write_u16(self.available + 4 + 2 * self.size, self.seen if wanted else (self.seen - 1) & 0xFFFF)
        else:
            self.memory.write_u16(self.available, 0 if wanted else 1)

    def notify(self):
        self.bench.bus.notify(self.index)

    def take(self):
        """The next used chain: (head, written, content of the writable buffers), or None."""
        if self.memory.read_u16(self.used + 2) == self.seen:
            return None
        head, written = struct.unpack("<II", self.memory.read(self.used + 4 + 8 * (self.seen % self.size), 8))
        self.seen = (self.seen + 1) & 0xFFFF
        slots, places = self.chains.pop(head)
        self.free += slots
        return head, written, b"".join(self.memory.read(at, length) for at, length in places)

    def request(self, out=(), into=(), *, indirect=False):
        """One chain there and back."""
        head = self.add(out, into, indirect=indirect)
        self.notify()
        done = self.take()
        assert done is not None and done[0] == head, self.bench.platform.events
        self.want_interrupt()
        return done[1], done[2]
