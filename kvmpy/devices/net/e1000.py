"""Intel 82540EM gigabit Ethernet controller ("e1000") on PCI.

BAR 0 has the registers, BAR 2 a window onto them by ports (IOADDR, IODATA). Interrupts are INTA#, moderated by ITR; the delay timers
(RDTR, RADV, TIDV, TADV) hold what is written and delay nothing. Checksums and segmentation are done here, so any end will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvmpy.devices.base import Platform, Timer
from kvmpy.devices.net import e1000_regs as r
from kvmpy.devices.net.e1000_chips import MDI_INTERRUPT, START, Eeprom, Phy
from kvmpy.devices.net.e1000_receive import Receiver
from kvmpy.devices.net.e1000_transmit import Transmitter
from kvmpy.devices.netend import NetEnd
from kvmpy.devices.pci.device import PciDevice
from kvmpy.errors import MemoryAccessError
from kvmpy.frames import Offload

VENDOR, DEVICE = 0x8086, 0x100E
REGISTER_BAR, PORT_BAR = 0, 2
PORTS = 64
IOADDR, IODATA = 0, 4

PCI_STATUS = 0x06
MASTER_ABORT = 0x2000  # received master abort

SIZE_LIMITS = (64, 127, 255, 511, 1023)
"""Longest frames, FCS included, of the size statistics but the last."""
FCS = 4
BROADCAST = b"\xff" * 6


class E1000(PciDevice):
    """`end` takes its frames; `mac` is in the EEPROM."""

    name = "e1000"
    vendor_id = VENDOR
    device_id = DEVICE
    revision = 2
    class_code = 0x020000
    subsystem_vendor_id = VENDOR
    subsystem_id = DEVICE

    def __init__(self, end: NetEnd, mac: bytes, slot: int | None = None, function: int = 0) -> None:
        super().__init__(slot, function)
        self.end = end
        self.eeprom = Eeprom(mac, DEVICE, VENDOR)
        self.phy = Phy()
        self.add_bar(REGISTER_BAR, r.REGISTERS_SIZE, self._read, self._write)
        self.add_bar(PORT_BAR, PORTS, self._read_port, self._write_port, io=True)
        self._timer: Timer | None = None
        self.transmitter = Transmitter(self)
        self.receiver = Receiver(self)
        self._power_on_state()

    def _power_on_state(self) -> None:
        self.registers = dict.fromkeys(r.MASKS, 0) | r.START
        self.statistics = [0] * ((r.STATISTICS_END - r.STATISTICS) // 4)
        self.multicast = [0] * ((r.MTA_END - r.MTA) // 4)
        self.vlans = [0] * ((r.VFTA_END - r.VFTA) // 4)
        self.addresses = [0] * ((r.RA_END - r.RA) // 4)
        mac = b"".join(word.to_bytes(2, "little") for word in self.eeprom.words[:3])
        self.addresses[0:2] = [int.from_bytes(mac[:4], "little"), int.from_bytes(mac[4:], "little") | r.RAH_AV]
        self.causes = self.mask = 0
        self._eerd = self._mdic = self._io_address = 0
        self._interrupted_at = -(1 << 62)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.transmitter.reset()
        self.receiver.reset()

    def connect(self, platform: Platform) -> None:
        super().connect(platform)
        self.end.attach(self._receive, platform.call)

    def close(self) -> None:
        self.end.close()

    def _receive(self, frame: bytes | memoryview, offload: Offload | None) -> None:
        self.receiver.receive(frame)

    def set_link(self, up: bool) -> None:
        """Plugs the cable in or out; under the machine's lock."""
        if up != self.phy.link:
            self.phy.link = up
            self.cause(r.LSC)

    # Memory: what is not RAM answers no one, and the status register of PCI says so.

    def dma_read(self, address: int, size: int) -> bytes | None:
        try:
            return self.platform.memory.read(address, size)
        except MemoryAccessError:
            self._aborted(address)
            return None

    def dma_views(self, address: int, size: int) -> list[memoryview] | None:
        """Pieces of guest memory to read from."""
        try:
            return self.platform.memory.views(address, size)
        except MemoryAccessError:
            self._aborted(address)
            return None

    def dma_write(self, address: int, data: bytes) -> None:
        try:
            self.platform.memory.write(address, data)
        except MemoryAccessError:
            self._aborted(address)

    def _aborted(self, address: int) -> None:
        self.config.set(PCI_STATUS, 2, self.config.get(PCI_STATUS, 2) | MASTER_ABORT)
        self.event("master abort", address=address)

    def event(self, what: str, **payload: Any) -> None:
        """A trace event."""
        self.platform.event(self, what, **payload)

    # Frames out.

    def out(self, pieces: Sequence[bytes | memoryview], size: int) -> None:
        """A finished frame of the transmitter's."""
        self._count_sent(b"".join(pieces[:1])[:6], size + FCS)
        if self.phy.loopback or self.registers[r.RCTL] & r.RCTL_LBM:
            self.receiver.receive(b"".join(pieces))
        elif self.phy.link:
            self.end.send(pieces)

    # Statistics.

    def count(self, which: int, amount: int = 1) -> None:
        """Adds to a counter, which stays at its end."""
        at = which // 4
        if which in r.WIDE_STATISTICS:
            total = min((self.statistics[at] | self.statistics[at + 1] << 32) + amount, (1 << 64) - 1)
            self.statistics[at], self.statistics[at + 1] = total & 0xFFFFFFFF, total >> 32
        else:
            self.statistics[at] = min(self.statistics[at] + amount, 0xFFFFFFFF)

    def _count_sent(self, target: bytes, size: int) -> None:
        for which in (r.GPTC, r.TPT, r.PTC64 + 4 * sum(size > limit for limit in SIZE_LIMITS)):
            self.count(which)
        self.count(r.GOTC, size)
        self.count(r.TOT, size)
        if target[:1] and target[0] & 1:
            self.count(r.BPTC if target == BROADCAST else r.MPTC)

    def count_received(self, frame: bytes | memoryview, size: int) -> None:
        """A good frame; `size` has the FCS."""
        for which in (r.GPRC, r.TPR, r.PRC64 + 4 * sum(size > limit for limit in SIZE_LIMITS)):
            self.count(which)
        self.count(r.GORC, size)
        self.count(r.TOR, size)
        if frame[0] & 1:
            self.count(r.BPRC if bytes(frame[:6]) == BROADCAST else r.MPRC)

    def _read_statistic(self, at: int) -> int:
        """A read clears; of a wide counter the high half clears both, and is read last (SDM 13.7)."""
        which, index = at - r.STATISTICS, (at - r.STATISTICS) // 4
        value = self.statistics[index]
        if which in r.WIDE_STATISTICS:
            return value
        self.statistics[index] = 0
        if which - 4 in r.WIDE_STATISTICS:
            self.statistics[index - 1] = 0
        return value

    # Interrupts.

    def cause(self, bits: int) -> None:
        """Sets interrupt causes."""
        if bits:
            self.causes |= bits & r.CAUSES
            self._update()

    def _update(self) -> None:
        """INTA# follows the causes that are not masked, rising no more often than ITR allows (SDM 13.4.18)."""
        if not self.causes & self.mask:
            self.set_interrupt(0)
            return
        if self._timer is not None:
            return
        now = self.platform.clock.now()
        due = self._interrupted_at + self.registers[r.ITR] * r.ITR_UNIT
        if now < due and not self._interrupt:
            self._timer = self.platform.clock.at(due, self._moderated)
            return
        if not self._interrupt:
            self._interrupted_at = now
        self.set_interrupt(1)

    def _moderated(self) -> None:
        self._timer = None
        self._update()

    # Registers.

    def _read(self, offset: int, size: int) -> int:
        if size == 8:
            return self._read_register(offset & ~3) | self._read_register((offset & ~3) + 4) << 32
        return self._read_register(offset & ~3) >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def _read_register(self, at: int) -> int:
        if at == r.ICR:
            causes, self.causes = self.causes, 0
            self._update()
            return causes
        value = self.registers.get(at)
        if value is not None:
            return value
        if r.STATISTICS <= at < r.STATISTICS_END:
            return self._read_statistic(at)
        for table, first, end in self._tables():
            if first <= at < end:
                return table[(at - first) // 4]
        if at == r.STATUS:
            link = r.STATUS_LU if self.phy.link else 0
            return r.STATUS_FD | link | r.STATUS_1000 | r.STATUS_ASD_1000
        return {r.EECD: self.eeprom.eecd, r.EERD: self._eerd, r.MDIC: self._mdic, r.ICS: 0, r.IMS: self.mask}.get(at, 0)

    def _tables(self) -> tuple[tuple[list[int], int, int], ...]:
        return (self.multicast, r.MTA, r.MTA_END), (self.addresses, r.RA, r.RA_END), (self.vlans, r.VFTA, r.VFTA_END)

    def _write(self, offset: int, size: int, value: int) -> None:
        """Registers are written in double words; narrower writes have no effect (SDM 13.2)."""
        if offset & 3:
            return
        if size >= 4:
            self._write_register(offset, value & 0xFFFFFFFF)
        if size == 8:
            self._write_register(offset + 4, value >> 32)

    def _write_register(self, at: int, value: int) -> None:
        mask = r.MASKS.get(at)
        if mask is not None:
            self.registers[at] = value & mask & 0xFFFFFFFF
            self._written(at, value)
        elif at == r.ICR:
            self.causes &= ~value
            self._update()
        elif at == r.ICS:
            self.cause(value)
        elif at == r.IMS:
            self.mask |= value & r.CAUSES
            self._update()
        elif at == r.IMC:
            self.mask &= ~value
            self._update()
        elif at == r.EECD:
            self.eeprom.set_lines(value)
        elif at == r.EERD:
            self._eerd = self.eeprom.read_word(value) if value & START else value & 0xFF00
        elif at == r.MDIC:
            self._mdic = self.phy.mdic(value)
            if value & MDI_INTERRUPT:
                self.cause(r.MDAC)
        else:
            for table, first, end in self._tables():
                if first <= at < end:
                    table[(at - first) // 4] = value

    def _written(self, at: int, value: int) -> None:
        """What follows from a write of a plain register."""
        if at == r.TDT:
            self.transmitter.run()
        elif at == r.RDT:
            self.receiver.room()
        elif at == r.RCTL:
            if not self.registers[r.RCTL] & r.RCTL_EN:
                self.receiver.reset()
            self.end.set_receiving(self.receiver.waiting is None)
            self.receiver.room()
        elif at == r.TCTL:
            self.transmitter.run()
        elif at == r.ITR:
            if self._timer is not None:
                self._timer.cancel()
                self._moderated()
        elif at == r.CTRL:
            if value & r.CTRL_RST:
                self._software_reset()
            elif value & r.CTRL_PHY_RST:
                self.phy.reset()

    def _software_reset(self) -> None:
        """CTRL.RST: everything but PCI and the EEPROM's content."""
        self._power_on_state()
        self.phy.reset()
        self.set_interrupt(0)
        self.end.set_receiving(True)

    # The window by ports.

    def _read_port(self, offset: int, size: int) -> int:
        if offset == IOADDR:
            return self._io_address
        if offset == IODATA and size == 4 and self._io_address < r.REGISTERS_SIZE:
            return self._read_register(self._io_address & ~3)
        return 0

    def _write_port(self, offset: int, size: int, value: int) -> None:
        if size != 4:
            return
        if offset == IOADDR:
            self._io_address = value
        elif offset == IODATA and self._io_address < r.REGISTERS_SIZE:
            self._write_register(self._io_address & ~3, value)

    # State.

    def reset(self) -> None:
        super().reset()
        self.eeprom.reset()
        self._software_reset()

    def state(self) -> dict[str, Any]:
        return {
            **super().state(), "registers": [[at, self.registers[at]] for at in sorted(self.registers)],
            "statistics": list(self.statistics), "multicast": list(self.multicast),
            "vlans": list(self.vlans), "addresses": list(self.addresses), "causes": self.causes, "mask": self.mask, "eerd": self._eerd,
            "mdic": self._mdic, "io_address": self._io_address, "eeprom": self.eeprom.state(), "phy": list(self.phy.registers),
            "link": self.phy.link, "transmitter": self.transmitter.state(), "receiver": self.receiver.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.registers = dict(state["registers"])
        self.statistics, self.multicast = list(state["statistics"]), list(state["multicast"])
        self.vlans, self.addresses = list(state["vlans"]), list(state["addresses"])
        self.causes, self.mask = state["causes"], state["mask"]
        self._eerd, self._mdic, self._io_address = state["eerd"], state["mdic"], state["io_address"]
        self.eeprom.restore(state["eeprom"])
        self.phy.registers, self.phy.link = list(state["phy"]), state["link"]
        self.transmitter.restore(state["transmitter"])
        self.receiver.restore(state["receiver"])
        self._interrupted_at = -(1 << 62)  # the new machine's clock is another one
        self._update()
