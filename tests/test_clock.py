"""Clocks: order of timers, cancelling, the host's thread, deadlines on virtual time."""

import threading
import time

import pytest

from kvmpy.clock import NEVER, HostClock, VirtualClock
from kvmpy.errors import ConfigError
from kvmpy.machine import Machine


class CountingVm:
    name = "soft"

    def __init__(self):
        self.time = 0
        self.deadline = NEVER

    def now(self):
        return self.time

    def set_deadline(self, when):
        self.deadline = when


def test_virtual_timers_run_in_order_and_move_the_deadline():
    vm = CountingVm()
    clock = VirtualClock(vm)
    seen = []
    clock.at(200, lambda: seen.append("b"))
    first = clock.at(100, lambda: seen.append("a"))
    clock.at(200, lambda: seen.append("c"))
    assert vm.deadline == 100
    first.cancel()
    vm.time = 150
    clock.run_due()
    assert seen == [] and vm.deadline == 200
    vm.time = 250
    clock.run_due()
    assert seen == ["b", "c"] and vm.deadline == NEVER
    assert clock.wall() == 1577836800.0 + 250e-9


def test_a_timer_that_sets_itself_for_the_past_does_not_hold_up_the_round():
    vm = CountingVm()
    vm.time = 1000
    clock = VirtualClock(vm)
    count = []

    def again():
        count.append(1)
        clock.at(vm.time - 10, again)

    clock.at(0, again)
    clock.run_due()
    assert len(count) == 1 and vm.deadline == 990
    clock.run_due()
    assert len(count) == 2


def test_virtual_time_needs_a_backend_that_counts():
    class Kvm:
        name = "kvm"

    with pytest.raises(ConfigError, match="soft backend"):
        VirtualClock(Kvm())


def test_host_timers_come_through_the_door_given():
    done = threading.Event()
    threads = []
    lock = threading.RLock()

    def post(call):
        with lock:
            threads.append(threading.current_thread().name)
            call()

    clock = HostClock(post)
    try:
        with lock:
            late = clock.at(clock.now() + 3_600_000_000_000, done.set)
            clock.at(clock.now() + 20_000_000, done.set)
        start = time.monotonic()
        assert done.wait(5)
        assert time.monotonic() - start < 2
        assert threads[0] == "kvmpy-clock"
        late.cancel()
    finally:
        clock.close()


def test_the_software_cpu_and_its_machine_have_one_time() -> None:
    """So that a trace's events of the core and of Python stand in their order."""
    with Machine("2M", backend="soft") as machine:
        apart = min(abs(machine.clock.now() - machine.vm.now()) for _ in range(50))  # type: ignore[attr-defined]
    assert apart < 200_000
