"""HPET: the counter, one-shot and periodic comparators, edges, levels and messages."""

from __future__ import annotations

import pytest

from kvmpy.devices.hpet import Hpet

T0 = 0x100
EDGE, LEVEL, PERIODIC, SET_VALUE, NARROW, MESSAGE = 4, 6, 8, 0x40, 0x100, 0x4000


@pytest.fixture
def device(platform):
    device = Hpet()
    device.connect(platform)
    device.edges = [0] * 4
    for number, line in enumerate(device.lines):

        def count(line, level, number=number):
            device.edges[number] += level

        line.bind(count)
    return device


def route(gsi):
    return gsi << 9


def test_capabilities(device) -> None:
    assert not device.read(0, 4) & 0x8000, "no legacy replacement"
    assert device.read(4, 4) == 10_000_000
    assert device.read(0, 8) == 10_000_000 << 32 | 0x80862201


def test_the_counter_runs_stops_and_is_set(device, clock) -> None:
    clock.advance(1000)
    assert device.read(0xF0, 8) == 0
    device.write(0xF0, 8, 100)
    device.write(0x10, 4, 1)
    clock.advance(1000)
    assert device.read(0xF0, 8) == 200 and device.read(0xF4, 4) == 0
    device.write(0xF0, 4, 5)
    assert device.read(0xF0, 4) == 200, "a running counter is not written"
    device.write(0x10, 4, 0)
    clock.advance(1000)
    assert device.read(0xF0, 4) == 200
    device.write(0xF4, 4, 1)
    assert device.read(0xF0, 8) == 1 << 32 | 200


def test_one_shot_edge(device, clock) -> None:
    device.write(T0 + 8, 8, 50_000)
    device.write(T0, 4, EDGE | route(21))
    device.write(0x10, 4, 1)
    clock.advance(499_999)
    assert device.edges == [0, 0, 0, 0]
    clock.advance(1)
    assert device.edges == [0, 1, 0, 0]
    clock.advance(10_000_000)
    assert device.edges == [0, 1, 0, 0]


def test_a_32_bit_comparator_matches_again_after_the_wrap(device, clock) -> None:
    device.write(T0 + 8, 8, 1000)
    device.write(T0, 4, EDGE | NARROW | route(20))
    device.write(0x10, 4, 1)
    clock.advance(10_000)
    clock.advance((1 << 32) * 10)
    assert device.edges[0] == 2


def test_periodic_as_linux_sets_it(device, clock) -> None:
    device.write(0x10, 4, 1)
    clock.advance(12_340)
    device.write(T0, 4, EDGE | PERIODIC | SET_VALUE | NARROW | route(22))
    device.write(T0 + 8, 4, 1234 + 100_000)
    device.write(T0 + 8, 4, 100_000)
    clock.advance(1_000_000)
    assert device.edges[2] == 1
    clock.advance(9_000_000)
    assert device.edges[2] == 10
    assert device.read(T0 + 8, 4) == 1234 + 1_100_000


def test_a_period_that_is_too_short_loses_ticks_but_ends(device, clock) -> None:
    device.write(T0, 4, EDGE | PERIODIC | SET_VALUE | NARROW | route(20))
    device.write(T0 + 8, 4, 1)
    device.write(T0 + 8, 4, 1)
    device.write(0x10, 4, 1)
    clock.advance(10_000_000)
    assert 50 < device.edges[0] <= 101


def test_level_until_acknowledged(device, clock) -> None:
    device.write(T0 + 0x28, 8, 100)
    device.write(T0 + 0x20, 4, LEVEL | route(23))
    device.write(0x10, 4, 1)
    clock.advance(1000)
    assert device.lines[3].level == 1 and device.read(0x20, 4) == 2
    device.write(0x20, 4, 1)
    assert device.lines[3].level == 1
    device.write(0x20, 4, 2)
    assert device.lines[3].level == 0 and device.read(0x20, 4) == 0


def test_messages(device, clock, platform) -> None:
    device.write(T0 + 0x10, 8, 0xFEE00000 << 32 | 0x4041)
    device.write(T0 + 8, 8, 100)
    device.write(T0, 4, EDGE | MESSAGE)
    device.write(0x10, 4, 1)
    clock.advance(1000)
    assert platform.messages == [(0xFEE00000, 0x4041)]


def test_a_route_that_is_not_offered(device, clock) -> None:
    device.write(T0 + 8, 8, 100)
    device.write(T0, 4, EDGE | route(2))
    device.write(0x10, 4, 1)
    clock.advance(1000)
    assert device.edges == [0, 0, 0, 0]
    assert device.read(T0 + 4, 4) == 0x00F00000 and device.read(T0, 4) & 0x8030 == 0x8030


def test_state_in_the_middle_of_a_period(device, clock, make_platform) -> None:
    device.write(T0, 4, EDGE | PERIODIC | SET_VALUE | NARROW | route(20))
    device.write(T0 + 8, 4, 100_000)
    device.write(T0 + 8, 4, 100_000)
    device.write(0x10, 4, 1)
    clock.advance(1_600_000)
    other, platform = Hpet(), make_platform()
    platform.clock.advance(77_000_000)
    other.connect(platform)
    other.restore(device.state())
    assert other.state() == device.state()
    edges = []
    other.lines[0].bind(lambda line, level: edges.append(level) if level else None)
    platform.clock.advance(399_999)
    assert not edges
    platform.clock.advance(1)
    assert len(edges) == 1


def test_odd_accesses_are_nothing(device) -> None:
    assert device.read(1, 4) == 0 and device.read(0, 1) == 0 and device.read(0x3F8, 8) == 0
    device.write(0x10, 1, 1)
    device.write(0x3F8, 8, 1)
    assert device.state()["config"] == 0


def test_reset(device, clock) -> None:
    device.write(T0 + 8, 8, 100)
    device.write(T0, 4, LEVEL | route(20))
    device.write(0x10, 4, 1)
    clock.advance(1000)
    device.reset()
    assert device.lines[0].level == 0 and clock.pending() == 0 and device.read(0xF0, 8) == 0
