"""The real-time clock, driven as a BIOS and Linux drive it."""

import pytest

from kvmpy.devices import rtc as r
from kvmpy.devices.rtc import Rtc

SECOND = 1_000_000_000


@pytest.fixture
def rtc(platform, make_line):
    rtc = Rtc(make_line(8), low=3 << 30, high=5 << 30)
    rtc.connect(platform)
    return rtc


def peek(rtc, register):
    rtc.write(0, 1, register)
    return rtc.read(1, 1)


def poke(rtc, register, value):
    rtc.write(0, 1, register)
    rtc.write(1, 1, value)


CLOCK = (r.CENTURY, r.YEAR, r.MONTH, r.DAY, r.HOURS, r.MINUTES, r.SECONDS)


def clock_of(rtc):
    return [peek(rtc, register) for register in CLOCK]


def set_clock(rtc, *values):
    for register, value in zip(CLOCK, values, strict=True):
        poke(rtc, register, value)


def test_time_in_bcd(rtc):
    assert clock_of(rtc) == [0x20, 0x23, 0x11, 0x14, 0x22, 0x13, 0x20]
    assert peek(rtc, r.WEEKDAY) == 3  # Tuesday
    assert peek(rtc, r.D) == r.D_VRT and peek(rtc, r.A) == 0x26 and peek(rtc, r.B) == 0x02


def test_time_in_binary_and_twelve_hours(rtc, clock):
    poke(rtc, r.B, r.B_BINARY)
    assert clock_of(rtc) == [20, 23, 11, 14, r.PM | 10, 13, 20]
    clock.advance((2 * 3600 - 800) * SECOND)
    assert peek(rtc, r.HOURS) == 12  # midnight
    clock.advance(12 * 3600 * SECOND)
    assert peek(rtc, r.HOURS) == r.PM | 12
    poke(rtc, r.B, 0)
    assert peek(rtc, r.HOURS) == r.PM | 0x12


def test_set_stops_the_registers(rtc, clock):
    poke(rtc, r.B, r.B_SET | r.B_24H)
    clock.advance(5 * SECOND)
    assert peek(rtc, r.SECONDS) == 0x20
    set_clock(rtc, 0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59)
    clock.advance(5 * SECOND)
    assert clock_of(rtc) == [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]
    poke(rtc, r.B, r.B_24H)
    clock.advance(SECOND)
    assert clock_of(rtc) == [0x20, 0, 1, 1, 0, 0, 0]


def test_writing_without_set(rtc, clock):
    poke(rtc, r.HOURS, 0x05)
    clock.advance(60 * SECOND)
    assert clock_of(rtc)[4:] == [0x05, 0x14, 0x20]


def test_divider_release_gives_half_a_second(rtc, clock):
    clock.advance(SECOND // 4)
    poke(rtc, r.A, 0x76)
    clock.advance(3 * SECOND)
    assert peek(rtc, r.SECONDS) == 0x20
    poke(rtc, r.A, 0x26)
    clock.advance(SECOND // 2 - 1000)
    assert peek(rtc, r.SECONDS) == 0x20
    clock.advance(2000)
    assert peek(rtc, r.SECONDS) == 0x21


def test_update_in_progress(rtc, clock):
    assert not peek(rtc, r.A) & r.A_UIP
    clock.advance(SECOND - 2_000_000)
    assert peek(rtc, r.A) & r.A_UIP and peek(rtc, r.SECONDS) == 0x20
    clock.advance(2_000_000)
    assert not peek(rtc, r.A) & r.A_UIP and peek(rtc, r.SECONDS) == 0x21
    poke(rtc, r.B, r.B_SET)
    clock.advance(SECOND - 2_000_000)
    assert not peek(rtc, r.A) & r.A_UIP


def test_update_interrupt(rtc, clock):
    poke(rtc, r.B, r.B_24H | r.B_UIE)
    peek(rtc, r.C)
    assert rtc.line.level == 0
    clock.advance(SECOND)
    assert rtc.line.level == 1
    assert peek(rtc, r.C) == r.C_IRQF | r.C_UF | r.C_PF
    assert rtc.line.level == 0 and peek(rtc, r.C) == 0
    clock.advance(3 * SECOND)
    assert rtc.line.level == 1 and rtc.line.edges == 2  # not read: no further edge
    poke(rtc, r.B, r.B_24H | r.B_SET | r.B_UIE)
    assert not peek(rtc, r.B) & r.B_UIE and rtc.line.level == 0


def test_update_flag_polled(rtc, clock):
    peek(rtc, r.C)
    assert not peek(rtc, r.C) & r.C_UF
    clock.advance(SECOND)
    assert peek(rtc, r.C) & (r.C_UF | r.C_IRQF) == r.C_UF


@pytest.mark.parametrize(("select", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_periodic_interrupt(rtc, clock, select, hertz):
    poke(rtc, r.A, r.DIVIDER_32768 | select)
    poke(rtc, r.B, r.B_24H | r.B_PIE)
    peek(rtc, r.C)
    seen = 0
    for _ in range(4 * hertz):
        clock.advance(SECOND // hertz // 2 if hertz < 100 else SECOND // hertz)
        if rtc.line.level:
            seen += 1
            assert peek(rtc, r.C) & (r.C_IRQF | r.C_PF) == r.C_IRQF | r.C_PF
    assert seen in ((4, 3) if hertz < 100 else (4 * hertz, 4 * hertz - 1))


def test_alarm(rtc, clock):
    poke(rtc, r.HOURS_ALARM, 0x22)
    poke(rtc, r.MINUTES_ALARM, 0x15)
    poke(rtc, r.SECONDS_ALARM, 0x00)
    poke(rtc, r.B, r.B_24H | r.B_AIE)
    clock.advance(99 * SECOND)
    assert rtc.line.level == 0
    clock.advance(SECOND)
    assert rtc.line.level == 1 and peek(rtc, r.C) & r.C_AF
    clock.advance(86399 * SECOND)
    assert rtc.line.level == 0
    clock.advance(SECOND)
    assert rtc.line.level == 1


def test_alarm_wildcards_and_polling(rtc, clock):
    for register in (r.HOURS_ALARM, r.MINUTES_ALARM):
        poke(rtc, register, 0xC0)
    poke(rtc, r.SECONDS_ALARM, 0x25)
    peek(rtc, r.C)
    for _ in range(3):
        clock.advance(6 * SECOND)
        assert peek(rtc, r.C) & r.C_AF
        clock.advance(54 * SECOND)
        assert not peek(rtc, r.C) & r.C_AF
    poke(rtc, r.SECONDS_ALARM, 0x61)  # never
    clock.advance(100_000 * SECOND)
    assert not peek(rtc, r.C) & r.C_AF


def test_alarm_in_twelve_hours(rtc, clock):
    poke(rtc, r.B, r.B_AIE)
    poke(rtc, r.HOURS_ALARM, r.PM | 0x10)
    poke(rtc, r.MINUTES_ALARM, 0x13)
    poke(rtc, r.SECONDS_ALARM, 0x30)
    clock.advance(10 * SECOND)
    assert rtc.line.level == 1


def test_memory_sizes(rtc):
    word = lambda at, size=2: sum(peek(rtc, at + i) << 8 * i for i in range(size))  # noqa: E731
    assert word(0x15) == 640
    assert word(0x17) == word(0x30) == 0xFFFF
    assert word(0x34) == ((3 << 30) - (16 << 20)) >> 16
    assert word(0x5B, 3) == (5 << 30) >> 16
    assert peek(rtc, 0x2E) << 8 | peek(rtc, 0x2F) == sum(peek(rtc, i) for i in range(0x10, 0x2E)) & 0xFFFF


def test_small_memory(make_line, platform):
    rtc = Rtc(make_line(8), low=8 << 20, cmos={0x3D: 2})
    rtc.connect(platform)
    assert peek(rtc, 0x17) | peek(rtc, 0x18) << 8 == 7 * 1024
    assert peek(rtc, 0x34) == 0 and peek(rtc, 0x3D) == 2


def test_index_port(rtc):
    poke(rtc, 0x80 | 0x0F, 0x0A)
    assert rtc.nmi_masked and peek(rtc, 0x0F) == 0x0A and not rtc.nmi_masked
    assert rtc.read(0, 1) == 0xFF
    rtc.write(0, 2, 0x550F)  # outw to 0x70: index, then data
    assert peek(rtc, 0x0F) == 0x55
    rtc.reset()
    assert peek(rtc, 0x0F) == 0x55


def test_nonsense_is_brought_into_range(rtc, clock):
    poke(rtc, r.B, r.B_SET | r.B_24H | r.B_BINARY)
    set_clock(rtc, *[0xFF] * 7)
    poke(rtc, r.B, r.B_24H | r.B_BINARY)
    assert clock_of(rtc) == [99, 99, 12, 31, 23, 59, 59]
    clock.advance(2 * SECOND)
    assert clock_of(rtc)[0] == 99
    for register in (r.CENTURY, r.YEAR, r.MONTH, r.DAY):
        poke(rtc, register, 0)
    assert clock_of(rtc)[:4] == [0, 1, 1, 1]


def test_state_keeps_the_guests_setting(rtc, make_platform, make_line, clock):
    poke(rtc, r.YEAR, 0x30)
    poke(rtc, r.B, r.B_24H | r.B_UIE)
    clock.advance(SECOND // 3)
    twin = Rtc(make_line(8))
    other = make_platform()
    other.clock.start += 3600
    other.clock.time = SECOND // 3
    twin.connect(other)
    twin.restore(rtc.state())
    assert clock_of(twin)[:6] == [0x20, 0x30, 0x11, 0x14, 0x23, 0x13]
    assert twin.line.level == 0
    other.clock.advance(SECOND)
    assert twin.line.level == 1


def test_state_while_set(rtc, make_platform, make_line):
    poke(rtc, r.B, r.B_SET | r.B_24H)
    poke(rtc, r.MINUTES, 0x44)
    twin = Rtc(make_line(8))
    twin.connect(make_platform())
    twin.restore(rtc.state())
    assert peek(twin, r.MINUTES) == 0x44
    poke(twin, r.B, r.B_24H)
    assert clock_of(twin) == [0x20, 0x23, 0x11, 0x14, 0x22, 0x44, 0x20]
