"""What stands beside the 82540EM's MAC: the serial EEPROM (93C46, Microwire) and the PHY (Marvell 88E1011S)."""

from __future__ import annotations

from typing import Any

WORDS = 64
CHECKSUM_AT, CHECKSUM = 0x3F, 0xBABA
"""All words add up to this (SDM 5.6.35)."""

# EECD.
SK, CS, DI, DO = 1, 2, 4, 8
EE_REQ, EE_GNT, EE_PRES = 1 << 6, 1 << 7, 1 << 8
EECD_KEPT = SK | CS | DI | 0x30 | EE_REQ

# EERD.
START, DONE = 1 << 0, 1 << 4

COMMAND_BITS = 9  # start bit, 2 of operation, 6 of address
WRITE, READ, ERASE = 0b101, 0b110, 0b111
EXTENDED = 0b100  # the top address bits say which: 00 disables writing, 11 enables it


class Eeprom:
    """64 words; `lines` is what EECD holds."""

    def __init__(self, mac: bytes, device_id: int, vendor_id: int) -> None:
        words = [0] * WORDS
        words[0:3] = [int.from_bytes(mac[at : at + 2], "little") for at in (0, 2, 4)]
        words[0x04] = 0xFFFF  # LED behaviour: the default
        words[0x0A] = 0x4003  # valid; device and subsystem identities are taken from here
        words[0x0B], words[0x0C] = device_id, vendor_id  # subsystem
        words[0x0D], words[0x0E] = device_id, vendor_id
        words[CHECKSUM_AT] = (CHECKSUM - sum(words)) & 0xFFFF
        self.words = words
        self.reset()

    def reset(self) -> None:
        self.lines = 0
        self._output = 1
        self._shift = self._count = 0
        self._address = -1
        self._writing = False
        self._enabled = False

    @property
    def eecd(self) -> int:
        """The register as the guest reads it: access is granted as soon as it is asked for."""
        granted = EE_GNT if self.lines & EE_REQ else 0
        return self.lines | granted | EE_PRES | (DO if self._output else 0)

    def set_lines(self, value: int) -> None:
        """A write of EECD."""
        before, self.lines = self.lines, value & EECD_KEPT
        if not self.lines & CS:
            if before & CS:
                self._deselect()
        elif not before & CS:
            self._shift = self._count = 0
            self._address = -1
            self._output = 1  # ready
        elif self.lines & SK and not before & SK:
            self._clock(bool(self.lines & DI))

    def _deselect(self) -> None:
        """The end of a command starts a write."""
        if self._writing and self._count == 16 and self._enabled:
            self.words[self._address] = self._shift & 0xFFFF
        self._writing = False

    def _clock(self, bit: bool) -> None:
        if self._address < 0:
            if not self._count and not bit:
                return  # no start bit yet
            self._shift, self._count = self._shift << 1 | bit, self._count + 1
            if self._count == COMMAND_BITS:
                self._command(self._shift >> 6, self._shift & 0x3F)
        elif self._writing:
            if self._count < 16:
                self._shift, self._count = self._shift << 1 | bit, self._count + 1
        else:
            # A read goes on with the following words.
            word = self.words[(self._address + self._count // 16) % WORDS]
            self._output = word >> (15 - self._count % 16) & 1
            self._count = (self._count + 1) % (16 * WORDS)

    def _command(self, operation: int, address: int) -> None:
        self._address = address
        self._shift = self._count = 0
        if operation == READ:
            self._output = 0  # the bit before the data
        elif operation == WRITE:
            self._writing = True
        elif operation == ERASE:
            if self._enabled:
                self.words[address] = 0xFFFF
        elif address >> 4 in (0b00, 0b11):
            self._enabled = address >> 4 == 0b11

    def read_word(self, eerd: int) -> int:
        """EERD after a write of START and an address (SDM 13.4.4); addresses past the end read as 0xFFFF."""
        address = eerd >> 8 & 0xFF
        word = self.words[address] if address < WORDS else 0xFFFF
        return word << 16 | address << 8 | DONE

    def state(self) -> dict[str, Any]:
        return {
            "words": list(self.words), "lines": self.lines, "output": self._output, "shift": self._shift, "count": self._count,
            "address": self._address, "writing": self._writing, "enabled": self._enabled,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.words = list(state["words"])
        self.lines, self._output, self._shift, self._count = state["lines"], state["output"], state["shift"], state["count"]
        self._address, self._writing, self._enabled = state["address"], state["writing"], state["enabled"]


# MDIC (SDM 13.4.8).
MDI_WRITE, MDI_READ = 1, 2
MDI_READY, MDI_INTERRUPT, MDI_ERROR = 1 << 28, 1 << 29, 1 << 30
PHY_ADDRESS = 1

# PHY registers (IEEE 802.3 clause 22, Marvell's from 16 on).
CONTROL, PHY_STATUS, ID1, ID2, ADVERTISE, PARTNER, EXPANSION = 0, 1, 2, 3, 4, 5, 6
GIGABIT_CONTROL, GIGABIT_STATUS, EXTENDED_STATUS, SPECIFIC_CONTROL, SPECIFIC_STATUS, EXTENDED_CONTROL = 9, 10, 15, 16, 17, 20
CONTROL_RESET, CONTROL_LOOPBACK, CONTROL_RESTART = 1 << 15, 1 << 14, 1 << 9
LINK = 1 << 2
SPECIFIC_LINK = 1 << 10

PHY_START = {
    CONTROL: 0x1140,  # auto-negotiation, full duplex, 1000 Mb/s
    PHY_STATUS: 0x796D,  # can everything to 100 Mb/s, extended status; negotiation complete, link
    ID1: 0x0141, ID2: 0x0C20,
    ADVERTISE: 0x0DE1, PARTNER: 0xCDE1, EXPANSION: 0x000F,
    GIGABIT_CONTROL: 0x0300, GIGABIT_STATUS: 0x3C00, EXTENDED_STATUS: 0x3000,
    SPECIFIC_CONTROL: 0x0360,
    SPECIFIC_STATUS: 0xAC00,  # 1000 Mb/s, full duplex, resolved, link
    EXTENDED_CONTROL: 0x0D60,
}  # fmt: skip
PHY_WRITABLE = frozenset({CONTROL, ADVERTISE, 7, GIGABIT_CONTROL, SPECIFIC_CONTROL, 18, EXTENDED_CONTROL, 24, 29, 30})


class Phy:
    """Negotiation is over as soon as it is begun: the partner can everything."""

    def __init__(self) -> None:
        self.link = True
        self.reset()

    def reset(self) -> None:
        self.registers = [PHY_START.get(number, 0) for number in range(32)]

    @property
    def loopback(self) -> bool:
        return bool(self.registers[CONTROL] & CONTROL_LOOPBACK)

    def mdic(self, value: int) -> int:
        """What MDIC holds after a write: the operation is finished at once."""
        operation, register = value >> 26 & 3, value >> 16 & 0x1F
        value = value & ~(MDI_READY | MDI_ERROR)
        if value >> 21 & 0x1F != PHY_ADDRESS or operation not in (MDI_READ, MDI_WRITE):
            return value | MDI_ERROR | MDI_READY
        if operation == MDI_READ:
            return value & ~0xFFFF | self._read(register) | MDI_READY
        self._write(register, value & 0xFFFF)
        return value | MDI_READY

    def _read(self, register: int) -> int:
        value = self.registers[register]
        if not self.link:
            value &= ~{PHY_STATUS: LINK, SPECIFIC_STATUS: SPECIFIC_LINK}.get(register, 0)
        return value

    def _write(self, register: int, value: int) -> None:
        if register == CONTROL and value & CONTROL_RESET:
            self.reset()
        elif register == CONTROL:
            self.registers[CONTROL] = value & ~CONTROL_RESTART
        elif register in PHY_WRITABLE:
            self.registers[register] = value
