"""ACPI fixed hardware (ACPI 6.5 §4.8): PM1a event and control blocks, PM timer, and one general-purpose event block.

ACPI mode is always on (the FADT has no SMI command): SCI_EN reads 1. The SCI is a level, high while an enabled event is pending.
"""

from __future__ import annotations

from typing import Any

from kvmpy.devices.base import Timer
from kvmpy.devices.bytewise import ByteDevice
from kvmpy.irq import Line
from kvmpy.verdicts import PowerOff

BASE = 0x600
PM1_STS, PM1_EN, PM1_CNT, PM_TMR, GPE0_STS, GPE0_EN = 0x0, 0x2, 0x4, 0x8, 0xC, 0xE
LENGTH = 0x10

TMR = 0x0001  # the PM timer's top bit changed
GBL = 0x0020
PWRBTN = 0x0100
SLPBTN = 0x0200
RTC = 0x0400
WAK = 0x8000  # status only: the machine has woken
STATUS_BITS = TMR | GBL | PWRBTN | SLPBTN | RTC | WAK
ENABLE_BITS = TMR | GBL | PWRBTN | SLPBTN | RTC

SCI_EN = 0x0001
SLP_TYP = 0x1C00
SLP_TYP_SHIFT = 10
SLP_EN = 0x2000  # write only

PM_TIMER_HZ = 3_579_545
TIMER_HALF = 1 << 31  # ticks between two changes of the top bit of a 32-bit timer (TMR_VAL_EXT)

S5 = 5
"""SLP_TYP of soft-off: the value that the DSDT's \\_S5 package must name."""


class AcpiPm(ByteDevice):
    """Ports 0x600-0x60F: PM1a_EVT 0x600, PM1a_CNT 0x604, PM_TMR 0x608, GPE0 0x60C (two bytes of status, two of enable).

    `s5` is the sleep type that switches the machine off; other sleep types are ignored, with an event.
    """

    name = "ACPI PM"
    size = LENGTH

    def __init__(self, sci: Line, base: int = BASE, s5: int = S5) -> None:
        self.ports = base, LENGTH
        self.sci = sci
        self.s5 = s5
        self._status = self._enable = self._control = 0
        self._gpe_status = self._gpe_enable = 0
        self._halves = 0  # changes of the timer's top bit that TMR status has accounted for
        self._timer: Timer | None = None

    def reset(self) -> None:
        self._status = self._enable = self._control = 0
        self._gpe_status = self._gpe_enable = 0
        self._halves = self._ticks() // TIMER_HALF
        self._update()

    def press_power_button(self) -> None:
        """The user presses the power button; call it under the machine's lock."""
        self._status |= PWRBTN
        self._update()

    def raise_gpe(self, number: int) -> None:
        """General-purpose event 0 to 15 happens."""
        self._gpe_status |= 1 << number & 0xFFFF
        self._update()

    def read(self, offset: int, size: int) -> int:
        if offset == PM_TMR and size == 4:
            return self._ticks() & 0xFFFF_FFFF
        return super().read(offset, size)

    def read_byte(self, offset: int) -> int:
        if PM_TMR <= offset < GPE0_STS:
            return self._ticks() >> 8 * (offset - PM_TMR) & 0xFF
        self._account()
        word = {
            PM1_STS: self._status, PM1_EN: self._enable, PM1_CNT: self._control | SCI_EN,
            GPE0_STS: self._gpe_status, GPE0_EN: self._gpe_enable,
        }.get(offset & ~1, 0)
        return word >> 8 * (offset & 1) & 0xFF

    def write_byte(self, offset: int, value: int) -> None:
        shift = 8 * (offset & 1)
        bits = value << shift
        kept = 0xFF00 >> shift
        register = offset & ~1
        self._account()
        if register == PM1_STS:
            self._status &= ~bits
        elif register == PM1_EN:
            self._enable = (self._enable & kept | bits) & ENABLE_BITS
        elif register == PM1_CNT:
            self._control = (self._control & kept | bits) & (SLP_TYP | 0x0006)
            if bits & SLP_EN:
                self._sleep(self._control >> SLP_TYP_SHIFT & 7)
        elif register == GPE0_STS:
            self._gpe_status &= ~bits
        elif register == GPE0_EN:
            self._gpe_enable = self._gpe_enable & kept | bits
        self._update()

    def _sleep(self, kind: int) -> None:
        if kind == self.s5:
            self.platform.stop(PowerOff())
        else:
            self.platform.event(self, "sleep type ignored", type=kind)

    # The PM timer

    def _ticks(self) -> int:
        return self.platform.clock.now() * PM_TIMER_HZ // 1_000_000_000

    def _account(self) -> None:
        """TMR status is set when the timer's top bit changes, either way."""
        halves = self._ticks() // TIMER_HALF
        if halves != self._halves:
            self._halves = halves
            self._status |= TMR

    def _timer_fired(self) -> None:
        self._timer = None
        self._account()
        self._update()

    def _update(self) -> None:
        self.sci.set(bool(self._status & self._enable or self._gpe_status & self._gpe_enable))
        if self._enable & TMR and not self._status & TMR and self._timer is None:
            ticks = (self._ticks() // TIMER_HALF + 1) * TIMER_HALF
            self._timer = self.platform.clock.at(-(-ticks * 1_000_000_000 // PM_TIMER_HZ), self._timer_fired)

    # State

    def state(self) -> dict[str, Any]:
        self._account()
        return {
            "status": self._status, "enable": self._enable, "control": self._control,
            "gpe_status": self._gpe_status, "gpe_enable": self._gpe_enable, "halves": self._halves,
        }

    def restore(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, f"_{key}", value)
        self._update()
