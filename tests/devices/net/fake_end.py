"""A network end in memory, and a PCI bus with one NIC on it."""

from __future__ import annotations

from kvmpy.bus import MmioBus, PortBus, place
from kvmpy.devices.pci.host import ECAM_BASE, PciHost
from kvmpy.memory import GuestMemory

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400abcdef")


class FakeEnd:
    """Keeps what was sent; `give` is a frame from the wire."""

    def __init__(self, offloads=False):
        self.offloads = offloads
        self.sent = []
        self.takes = None
        self.ready = True
        self.closed = False
        self.waiting = []

    def attach(self, receive, post):
        self.receive = receive

    def send(self, frame, offload=None):
        self.sent.append((b"".join(frame), offload))

    def set_offloads(self, takes):
        self.takes = takes

    def set_receiving(self, ready):
        self.ready = ready

    def close(self):
        self.closed = True

    def give(self, frame, offload=None):
        """As an end does: held back while the NIC is not ready."""
        self.waiting.append((frame, offload))
        self.flush()

    def flush(self):
        while self.ready and self.waiting:
            self.receive(*self.waiting.pop(0))

    def frames(self):
        frames = [frame for frame, _ in self.sent]
        self.sent.clear()
        return frames


class PciBench:
    """A NIC in slot 0 of a PCI bus, set up as firmware does, bus mastering on."""

    def __init__(self, platform, nic, memory=2 << 20):
        self.platform, self.nic = platform, nic
        self.memory = platform.memory = GuestMemory(memory)
        self.ports, self.mmio = PortBus(), MmioBus()
        self.host = PciHost((self.ports, self.mmio))
        self.host.plug(nic)
        for each in (self.host, nic):
            place(each, self.ports, self.mmio)
            each.connect(platform)
        self.host.leave_as_firmware_does()
        self.set_cfg(4, 2, self.cfg(4, 2) | 4)

    def cfg(self, offset, size):
        return self.mmio.read(ECAM_BASE + (self.nic.slot << 15) + offset, size)

    def set_cfg(self, offset, size, value):
        self.mmio.write(ECAM_BASE + (self.nic.slot << 15) + offset, size, value)

    @property
    def interrupt(self):
        return self.host.gsi_lines[(self.nic.slot + self.nic.interrupt_pin - 1) % 8].level

    def close(self):
        self.memory.close()
