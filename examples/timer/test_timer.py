"""Grades the timer."""

import pytest

from kvmpy import Crashed


def finish(machine, hint):
    verdict = machine.run(timeout=2)
    if isinstance(verdict, Crashed):
        with hint("an interrupt did not arrive: is gate 0x20 present, with the code selector, type 0x8E and all parts of the address?"):
            raise AssertionError(str(verdict))
    times = [one.name for one in machine.timestamps]
    if "first tick" not in times:
        with hint("no tick came: is the gate set, the 8254 programmed (0x34 to port 0x43, then two bytes to 0x40), does on_timer count?"):
            raise AssertionError("the kernel waits for its first tick")
    if "last tick" not in times:
        with hint("there was one tick and no more: end each interrupt with 0x20 to port 0x20"):
            raise AssertionError("the kernel waits for further ticks")
    assert machine.exit_code == 0


@pytest.mark.guest(clock="virtual")
def test_a_hundred_hertz(soft_machine, boot, hint):
    """On virtual time, where a millisecond is a millisecond however busy the host is."""
    finish(boot(soft_machine), hint)
    with hint("ten periods must take 100 ms: the divisor is 1193182 / 100, low byte first"):
        took = soft_machine.elapsed("first tick", "last tick")
        assert 99_000_000 < took < 101_000_000, f"ten periods took {took / 1e6:.1f} ms"


def test_on_every_backend(machine, boot, hint):
    finish(boot(machine), hint)
