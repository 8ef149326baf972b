"""MC146818 real-time clock and CMOS memory at ports 0x70 and 0x71, as in the PC/AT.

Time is the machine's wall clock (UTC) plus what the guest has changed it by. Nothing ticks unless an enabled interrupt needs it:
time and flags are worked out when the guest looks. The day of the week follows from the date; daylight saving (DSE) is kept, not obeyed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvmpy.devices.base import Platform, Timer
from kvmpy.devices.bytewise import ByteDevice
from kvmpy.irq import Line

INDEX, DATA = 0, 1
NMI_MASK = 0x80  # bit 7 of the index port

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR, A, B, C, D = range(14)
CENTURY = 0x32  # named by the FADT
TIME_REGISTERS = frozenset((SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY))
PM = 0x80  # in the hours, in 12-hour mode
DONT_CARE = 0xC0  # an alarm byte with both top bits set matches anything

A_UIP = 0x80  # an update begins within 244 us or is under way
A_DIVIDER = 0x70
DIVIDER_32768 = 0x20  # the only setting with which a PC's clock runs
DIVIDER_RESET = 0x60  # and 0x70
A_RATE = 0x0F

B_SET = 0x80
B_PIE, B_AIE, B_UIE = 0x40, 0x20, 0x10  # at the places of their flags in C
B_SQWE = 0x08
B_BINARY = 0x04
B_24H = 0x02

C_IRQF = 0x80
C_PF, C_AF, C_UF = 0x40, 0x20, 0x10
FLAGS = C_PF | C_AF | C_UF

D_VRT = 0x80  # the battery is good

SECOND = 1_000_000_000
UPDATE = 2_228_000  # ns that UIP stands before the time changes: 244 us of warning and 1984 us of update
RELEASE = SECOND // 2  # the first update comes half a second after the divider's release
EPOCH = 719163  # date(1970, 1, 1).toordinal()
DAY_SECONDS = 86400

BOOT_A = DIVIDER_32768 | 0x06  # 1024 Hz, what a BIOS sets
BOOT_B = B_24H

BASE_KB, EXTENDED_KB, ABOVE_16M, EXTENDED_KB_FOUND, ABOVE_4G = 0x15, 0x17, 0x34, 0x30, 0x5B
EQUIPMENT, CHECKSUM = 0x14, 0x2E
EQUIPMENT_PC = 0x06  # FPU, pointing device; no diskette drive, display by its own BIOS


class Rtc(ByteDevice):
    """`low` and `high` are the bytes of RAM below and above 4 GiB, told in the CMOS memory; `cmos` sets further bytes.

    `nmi_masked` is bit 7 of port 0x70.
    """

    name = "RTC"
    ports = 0x70, 2
    size = 2

    def __init__(self, line: Line, low: int = 0, high: int = 0, cmos: Mapping[int, int] | None = None) -> None:
        self.line = line
        self.nmi_masked = False
        self._index = D
        self._c = 0
        self._base = 0  # guest time minus clock.now(), ns
        self._wall = 0  # what _base would be had the guest never set the time
        self._phase = 0  # (clock.now() + _phase) % SECOND is the state of the divider
        self._second = 0  # the last second, and the last periodic tick, that flags account for
        self._tick = 0
        self._shown: int | None = None  # the second that the time registers show
        self._timer: Timer | None = None
        self._cmos = bytearray(128)
        self._cmos[A], self._cmos[B], self._cmos[D] = BOOT_A, BOOT_B, D_VRT
        self._tell_memory(low, high)
        for register, value in (cmos or {}).items():
            self._cmos[register] = value
        self._cmos[CHECKSUM : CHECKSUM + 2] = (sum(self._cmos[0x10:CHECKSUM]) & 0xFFFF).to_bytes(2, "big")

    def _tell_memory(self, low: int, high: int) -> None:
        def put(register: int, amount: int, size: int = 2) -> None:
            self._cmos[register : register + size] = min(max(amount, 0), (1 << 8 * size) - 1).to_bytes(size, "little")

        put(BASE_KB, 640)
        put(EXTENDED_KB, (low - (1 << 20)) >> 10)
        put(EXTENDED_KB_FOUND, (low - (1 << 20)) >> 10)
        put(ABOVE_16M, (low - (16 << 20)) >> 16)
        put(ABOVE_4G, high >> 16, 3)
        self._cmos[EQUIPMENT] = EQUIPMENT_PC

    def connect(self, platform: Platform) -> None:
        super().connect(platform)
        self._wall = self._wall_base()
        self._base = self._phase = self._wall
        self._catch_up()

    def _wall_base(self) -> int:
        """Wall time at now() == 0 in whole milliseconds: the same at every call, where a float's last bits would not be."""
        clock = self.platform.clock
        return round((clock.wall() - clock.now() / SECOND) * 1000) * (SECOND // 1000)

    def reset(self) -> None:
        """The RESET pin clears interrupt enables and flags; time and memory live on the battery."""
        self._advance()
        self._c = 0
        self._cmos[B] &= ~(B_PIE | B_AIE | B_UIE | B_SQWE)
        self.nmi_masked = False
        self._update()

    # Registers

    def read_byte(self, offset: int) -> int:
        if offset == INDEX:
            return 0xFF  # write only
        register = self._index
        if register in TIME_REGISTERS:
            self._show()
        elif register == A:
            return self._cmos[A] | (A_UIP if self._updating() else 0)
        elif register == C:
            return self._read_c()
        return self._cmos[register]

    def _read_c(self) -> int:
        self._advance()
        value = self._c | (C_IRQF if self._c & self._cmos[B] & FLAGS else 0)
        self._c = 0
        self._update()
        return value

    def write_byte(self, offset: int, value: int) -> None:
        register = self._index
        if offset == INDEX:
            self._index = value & 0x7F
            self.nmi_masked = bool(value & NMI_MASK)
        elif register in TIME_REGISTERS:
            self._show()
            self._cmos[register] = value
            if self._running():
                self._take_time()
        elif register == A:
            self._set_control(value & ~A_UIP, self._cmos[B])
        elif register == B:
            self._set_control(self._cmos[A], value & ~B_UIE if value & B_SET else value)
        elif register not in (C, D):
            self._cmos[register] = value
            if register in (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM):
                self._update()

    def _set_control(self, a: int, b: int) -> None:
        self._advance()
        was_running = self._running()
        self._show()
        released = self._cmos[A] & A_DIVIDER != DIVIDER_32768 and a & A_DIVIDER == DIVIDER_32768
        self._cmos[A], self._cmos[B] = a, b
        if released:
            self._phase = RELEASE - self.platform.clock.now()
        if self._running() and not was_running:
            self._take_time()
        self._shown = None  # the format may have changed
        self._catch_up()
        self._update()

    # Time

    def _divided(self) -> bool:
        return self._cmos[A] & A_DIVIDER == DIVIDER_32768

    def _running(self) -> bool:
        return self._divided() and not self._cmos[B] & B_SET

    def _time(self) -> int:
        return self.platform.clock.now() + self._base

    def _updating(self) -> bool:
        return self._running() and self._time() % SECOND >= SECOND - UPDATE

    def _show(self) -> None:
        """Brings the time registers up to date; while the clock is stopped they hold what was written."""
        second = self._time() // SECOND
        if not self._running() or second == self._shown:
            return
        self._shown = second
        from datetime import date  # a guest that never looks at the clock needs no calendar

        days, of_day = divmod(second, DAY_SECONDS)
        day = date.fromordinal(min(max(days + EPOCH, 1), date.max.toordinal()))
        hours = of_day // 3600
        values = {
            SECONDS: of_day % 60, MINUTES: of_day // 60 % 60, HOURS: hours, WEEKDAY: day.isoweekday() % 7 + 1,
            DAY: day.day, MONTH: day.month, YEAR: day.year % 100, CENTURY: day.year // 100,
        }
        if not self._cmos[B] & B_24H:
            values[HOURS] = hours % 12 or 12
        for register, value in values.items():
            self._cmos[register] = value if self._cmos[B] & B_BINARY else value // 10 << 4 | value % 10
        if hours >= 12 and not self._cmos[B] & B_24H:
            self._cmos[HOURS] |= PM

    def _take_time(self) -> None:
        """The time registers become the time; values out of range count as the nearest valid ones."""
        from datetime import date

        year = min(max(self._number(CENTURY) * 100 + min(self._number(YEAR), 99), 1), 9999)
        month = min(max(self._number(MONTH), 1), 12)
        following = date(year, month + 1, 1).toordinal() if month < 12 else date(year, 12, 31).toordinal() + 1
        ordinal = min(date(year, month, 1).toordinal() + max(self._number(DAY), 1), following) - 1
        of_day = min(self._hour(HOURS), 23) * 3600 + min(self._number(MINUTES), 59) * 60 + min(self._number(SECONDS), 59)
        now = self.platform.clock.now()
        self._base = ((ordinal - EPOCH) * DAY_SECONDS + of_day) * SECOND + (now + self._phase) % SECOND - now
        self._shown = None
        self._catch_up()
        self._update()

    def _number(self, register: int) -> int:
        value = self._cmos[register]
        return value if self._cmos[B] & B_BINARY else (value >> 4) * 10 + (value & 0x0F)

    def _hour(self, register: int) -> int:
        if self._cmos[B] & B_24H:
            return self._number(register)
        value = self._cmos[register] & ~PM
        hour = value if self._cmos[B] & B_BINARY else (value >> 4) * 10 + (value & 0x0F)
        return (hour % 12 if hour <= 12 else 24) + (12 if self._cmos[register] & PM else 0)

    # Flags and interrupts

    def _rate(self) -> int:
        """Frequency of the periodic interrupt in Hz; 0: none."""
        select = self._cmos[A] & A_RATE
        if not select or not self._divided():
            return 0
        return 32768 >> (select + 6 if select < 3 else select - 1)

    def _ticks(self) -> int:
        return (self.platform.clock.now() + self._phase) * self._rate() // SECOND

    def _catch_up(self) -> None:
        """Forgets events until now: after the time or the rate has changed."""
        self._second = self._time() // SECOND
        self._tick = self._ticks()

    def _advance(self) -> None:
        """Sets the flags of everything that has happened since the last look."""
        tick = self._ticks()
        if tick != self._tick:
            self._tick = tick
            self._c |= C_PF
        second = self._time() // SECOND
        if self._running() and second > self._second:
            self._c |= C_UF
            due = self._next_alarm(self._second)
            if due is not None and due <= second:
                self._c |= C_AF
        self._second = second

    def _next_alarm(self, after: int) -> int | None:
        """The first second later than `after` that matches the alarm registers."""
        hours = self._matches(HOURS_ALARM, 24, self._hour)
        minutes = self._matches(MINUTES_ALARM, 60, self._number)
        seconds = self._matches(SECONDS_ALARM, 60, self._number)
        midnight = (after + 1) // DAY_SECONDS * DAY_SECONDS
        earliest = after + 1 - midnight
        for start in (midnight, midnight + DAY_SECONDS):
            for hour in hours:
                if hour * 3600 + 3599 < earliest:
                    continue
                for minute in minutes:
                    if hour * 3600 + minute * 60 + 59 < earliest:
                        continue
                    for second in seconds:
                        if hour * 3600 + minute * 60 + second >= earliest:
                            return start + hour * 3600 + minute * 60 + second
            earliest = 0
        return None

    def _matches(self, register: int, count: int, decode: Callable[[int], int]) -> range:
        if self._cmos[register] & DONT_CARE == DONT_CARE:
            return range(count)
        value = decode(register)
        return range(value, value + 1) if value < count else range(0)

    def _update(self) -> None:
        """Drives IRQ 8 and arms the timer for the next enabled event; none is needed while C waits to be read."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        enabled = self._cmos[B] & FLAGS
        pending = self._c & enabled
        self.line.set(bool(pending))
        if pending or not enabled:
            return
        times = []
        rate = self._rate()
        if enabled & B_PIE and rate:
            times.append(-(-(self._tick + 1) * SECOND // rate) - self._phase)
        if self._running():
            if enabled & B_UIE:
                times.append((self._second + 1) * SECOND - self._base)
            if enabled & B_AIE:
                alarm = self._next_alarm(self._second)
                if alarm is not None:
                    times.append(alarm * SECOND - self._base)
        if times:
            self._timer = self.platform.clock.at(min(times), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._advance()
        self._update()

    # State

    def state(self) -> dict[str, Any]:
        self._advance()
        self._show()
        fraction = (self.platform.clock.now() + self._phase) % SECOND
        return {
            "index": self._index, "nmi_masked": self.nmi_masked, "c": self._c, "cmos": bytes(self._cmos),
            "offset": self._base - self._wall, "fraction": fraction,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The clock goes on from the wall time of the restoring machine, off by what the guest had set."""
        self._index, self.nmi_masked, self._c = state["index"], state["nmi_masked"], state["c"]
        self._cmos[:] = state["cmos"]
        self._wall = self._wall_base()
        self._base = self._wall + state["offset"]
        self._phase = self._base if self._running() else state["fraction"] - self.platform.clock.now()
        self._shown = None
        self._catch_up()
        self._update()
