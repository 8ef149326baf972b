"""High precision event timers (IA-PC HPET 1.0a): a 64-bit counter of 10 ns, three comparators.

There is no legacy replacement: IRQ 0 and IRQ 8 stay with 8254 and clock. Comparators interrupt by I/O APIC inputs 20-23 or by messages.
"""

from __future__ import annotations

from typing import Any

from kvmpy.devices.base import Device, Timer
from kvmpy.irq import Line

BASE = 0xFED00000
SIZE = 0x400

CAPABILITIES, CONFIG, STATUS, COUNTER = 0x000, 0x010, 0x020, 0x0F0
TIMERS, STEP = 0x100, 0x20
T_CONFIG, T_COMPARATOR, T_MESSAGE = 0x00, 0x08, 0x10

COUNT = 3
TICK = 10  # ns
PERIOD_FS = TICK * 1_000_000
GSIS = (20, 21, 22, 23)

CAPABILITY_BITS = 1 | COUNT - 1 << 8 | 1 << 13 | 0x8086 << 16 | PERIOD_FS << 32  # revision, timers, 64 bits, vendor, period

ENABLE = 1  # general configuration

# Timer configuration.
LEVEL = 1 << 1
INTERRUPT = 1 << 2
PERIODIC = 1 << 3
PERIODIC_CAPABLE = 1 << 4
WIDE_CAPABLE = 1 << 5
SET_VALUE = 1 << 6
NARROW = 1 << 8
ROUTE_SHIFT, ROUTE = 9, 0x1F << 9
MESSAGE = 1 << 14
MESSAGE_CAPABLE = 1 << 15
WRITABLE = LEVEL | INTERRUPT | PERIODIC | SET_VALUE | NARROW | ROUTE | MESSAGE
FIXED = PERIODIC_CAPABLE | WIDE_CAPABLE | MESSAGE_CAPABLE | sum(1 << gsi for gsi in GSIS) << 32

MASK64 = (1 << 64) - 1
FASTEST = 100_000  # ns between two interrupts of a comparator: shorter periods lose some


class Comparator:
    """One timer's registers."""

    def __init__(self) -> None:
        self.config = 0
        self.value = MASK64
        self.period = 0
        self.message = 0
        self.timer: Timer | None = None
        self.due = 0  # when it matches, by the clock, while `timer` waits for that

    @property
    def mask(self) -> int:
        return 0xFFFFFFFF if self.config & NARROW else MASK64


class Hpet(Device):
    """1 KiB at 0xFED00000; registers are 64 bits wide, accessed whole or by halves."""

    name = "HPET"
    mmio = BASE, SIZE

    def __init__(self) -> None:
        self.lines = [Line(gsi) for gsi in GSIS]
        self._timers = [Comparator() for _ in range(COUNT)]
        self._config = self._status = 0
        self._halted_at = 0  # the counter while it stands
        self._started = 0  # clock.now() at which a running counter was 0

    # The counter.

    def _count(self) -> int:
        if not self._config & ENABLE:
            return self._halted_at
        return (self.platform.clock.now() - self._started) // TICK & MASK64

    # Registers.

    def read(self, offset: int, size: int) -> int:
        if size not in (4, 8) or offset % size:
            return 0
        value = self._register(offset & ~7) >> 8 * (offset & 4)
        return value & (1 << 8 * size) - 1

    def _register(self, offset: int) -> int:
        if offset == COUNTER:
            return self._count()
        if offset == CAPABILITIES:
            return CAPABILITY_BITS
        if offset == CONFIG:
            return self._config
        if offset == STATUS:
            return self._status
        number, register = divmod(offset - TIMERS, STEP)
        if not 0 <= number < COUNT:
            return 0
        timer = self._timers[number]
        if register == T_CONFIG:
            return timer.config | FIXED
        if register == T_COMPARATOR:
            return timer.value & timer.mask
        return timer.message if register == T_MESSAGE else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size not in (4, 8) or offset % size:
            return
        register, shift = offset & ~7, 8 * (offset & 4)
        mask = (1 << 8 * size) - 1 << shift
        if register == STATUS:
            self._acknowledge(value << shift)
            return
        whole = self._register(register) & ~mask | value << shift
        if register == CONFIG:
            self._configure(whole & ENABLE)
        elif register == COUNTER:
            if not self._config & ENABLE:  # a running counter is not to be written (§2.3.7)
                self._halted_at = whole
        elif register >= TIMERS and (register - TIMERS) // STEP < COUNT:
            number, part = divmod(register - TIMERS, STEP)
            self._write_timer(number, part, whole, mask)

    def _configure(self, config: int) -> None:
        count = self._count()
        if config & ENABLE and not self._config & ENABLE:
            self._started = self.platform.clock.now() - count * TICK
        self._halted_at = count
        self._config = config
        for number in range(COUNT):
            self._arm(number)
        self._drive()

    def _write_timer(self, number: int, part: int, value: int, mask: int) -> None:
        timer = self._timers[number]
        if part == T_CONFIG:
            timer.config = value & WRITABLE
            if timer.config & NARROW:
                timer.value &= 0xFFFFFFFF
                timer.period &= 0xFFFFFFFF
            if not timer.config & LEVEL or not timer.config & INTERRUPT:
                self._status &= ~(1 << number)
        elif part == T_COMPARATOR:
            if timer.config & PERIODIC:
                # With SET_VALUE a write reaches the comparator, else only the period behind it (§2.3.9.2.2).
                timer.period = (timer.period & ~mask | value & mask) & timer.mask
            if not timer.config & PERIODIC or timer.config & SET_VALUE:
                timer.value = value & timer.mask
            timer.config &= ~SET_VALUE
        elif part == T_MESSAGE:
            timer.message = value
        self._arm(number)
        self._drive()

    def _acknowledge(self, bits: int) -> None:
        self._status &= ~bits
        self._drive()

    # Time.

    def _arm(self, number: int) -> None:
        """Waits for the next match, if its interrupt is wanted."""
        timer = self._timers[number]
        if timer.timer is not None:
            timer.timer.cancel()
            timer.timer = None
        if not self._config & ENABLE or not timer.config & INTERRUPT:
            return
        count = self._count()
        ahead = (timer.value - count) & timer.mask or timer.mask + 1
        self._wait(number, self._started + (count + ahead) * TICK)

    def _wait(self, number: int, when: int) -> None:
        timer = self._timers[number]
        timer.due = when
        timer.timer = self.platform.clock.at(when, lambda: self._match(number))

    def _match(self, number: int) -> None:
        timer = self._timers[number]
        timer.timer = None
        if timer.config & PERIODIC and timer.period:
            # The comparator is ahead of the counter at all times: what may be saved, or armed anew, is this alone.
            until = self._count() + (FASTEST // TICK if timer.period * TICK < FASTEST else 0)
            passed = (until - timer.value) & timer.mask
            timer.value = timer.value + (passed // timer.period + 1) * timer.period & timer.mask
        self._interrupt(number)
        self._arm(number)

    # Interrupts.

    def _interrupt(self, number: int) -> None:
        timer = self._timers[number]
        if timer.config & LEVEL and not timer.config & MESSAGE:
            self._status |= 1 << number
            self._drive()
        elif timer.config & MESSAGE:
            self.platform.signal_msi(timer.message >> 32, timer.message & 0xFFFFFFFF)
        else:
            line = self._line(timer)
            if line is not None and not line.level:
                line.pulse()

    def _line(self, timer: Comparator) -> Line | None:
        route = (timer.config & ROUTE) >> ROUTE_SHIFT
        return self.lines[GSIS.index(route)] if route in GSIS else None

    def _drive(self) -> None:
        """Holds the lines of level-triggered timers whose status is set."""
        high = {
            (timer.config & ROUTE) >> ROUTE_SHIFT
            for number, timer in enumerate(self._timers)
            if self._status >> number & 1 and self._config & ENABLE and timer.config & INTERRUPT
        }
        for line in self.lines:
            line.set(line.gsi in high)

    # State.

    def reset(self) -> None:
        for timer in self._timers:
            if timer.timer is not None:
                timer.timer.cancel()
        self._timers = [Comparator() for _ in range(COUNT)]
        self._config = self._status = self._halted_at = 0
        self._drive()

    def state(self) -> dict[str, Any]:
        now = self.platform.clock.now()
        due = [timer.due - now if timer.timer else None for timer in self._timers]  # 0 or less: the match is about to be told
        phase = (now - self._started) % TICK if self._config & ENABLE else 0
        return {
            "config": self._config, "status": self._status, "counter": self._count(), "phase": phase,
            "timers": [[timer.config, timer.value, timer.period, timer.message] for timer in self._timers], "due": due,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.reset()
        self._config, self._status, self._halted_at = state["config"], state["status"], state["counter"]
        now = self.platform.clock.now()
        self._started = now - state["counter"] * TICK - state["phase"]
        for number, (timer, saved, due) in enumerate(zip(self._timers, state["timers"], state["due"], strict=True)):
            timer.config, timer.value, timer.period, timer.message = saved
            if due is not None:
                self._wait(number, now + due)
        self._drive()
