"""Doorbells of both backends, rung by guests."""

from __future__ import annotations

import struct
import time
from functools import partial

import pytest

from kvmpy import Device, Machine
from kvmpy.doorbells import CoreDoorbells
from kvmpy.kvm.probe import unavailable
from kvmpy.native import ffi, lib
from kvmpy.soft.vm import SoftVm
from kvmpy.verdicts import GuestExit, Stopped

BASE = 0xD0000000
BELL, VALUE_BELL, COUNT = BASE, BASE + 0x10, BASE + 0x20


class Bells(Device):
    """A doorbell for every value, one for the value 7; reads at COUNT give how often both have rung, writes come to `written`."""

    name = "bells"
    mmio = BASE, 0x1000

    def __init__(self):
        self.rung = 0
        self.written = []
        self.bells = []

    def connect(self, platform):
        super().connect(platform)
        self.register()

    def register(self):
        self.bells = [self.platform.doorbell(BELL, 4, None, self.ring), self.platform.doorbell(VALUE_BELL, 4, 7, self.ring)]

    def ring(self):
        assert self.platform.loop.lock.locked()
        self.rung += 1

    def read(self, offset, size):
        return self.rung

    def write(self, offset, size, value):
        self.written.append((offset, size, value))


def store(address, value, size=4):
    """mov [address], value"""
    width = {1: b"\xc6\x05", 2: b"\x66\xc7\x05", 4: b"\xc7\x05"}[size]
    return width + struct.pack("<I", address) + value.to_bytes(size, "little")


WAIT = b"\xa1" + struct.pack("<I", COUNT) + b"\x85\xc0\x74\xf7"  # again: mov eax, [COUNT]; test eax, eax; jz again
END = b"\x31\xc0\xe6\xf4\xf4"  # exit with status 0


@pytest.fixture(params=["soft", "kvm"])
def backend(request):
    if request.param == "kvm" and unavailable():
        pytest.skip(unavailable())
    return request.param


@pytest.fixture
def run(backend, tmp_path):
    machines = []

    def run(code, device, **options):
        image = tmp_path / "guest.bin"
        image.write_bytes(code)
        machine = Machine("2M", backend=backend, devices=[device], **options)
        machines.append(machine)
        machine.load(image, boot="flat32")
        return machine, machine.run(30)

    yield run
    for machine in machines:
        machine.close()


def test_the_guest_rings_and_goes_on(run) -> None:
    device = Bells()
    machine, verdict = run(store(BELL, 1) + WAIT + END, device)
    assert verdict == GuestExit(0) and device.rung == 1 and not device.written
    assert machine.statistics["doorbells"] == 1


def test_other_sizes_and_values_are_accesses(run) -> None:
    device = Bells()
    _, verdict = run(store(BELL, 1, 2) + store(BELL + 4, 2) + store(VALUE_BELL, 8) + store(VALUE_BELL, 7) + WAIT + END, device)
    assert verdict == GuestExit(0) and device.rung == 1
    assert device.written == [(0, 2, 1), (4, 4, 2), (0x10, 4, 8)]


def test_what_has_rung_is_done_when_the_machine_stands_still(run) -> None:
    device = Bells()
    _, verdict = run(store(BELL, 1) + END, device)
    assert verdict == GuestExit(0) and device.rung == 1


def test_a_doorbell_that_is_gone(run) -> None:
    device = Bells()
    device.ring = lambda: device.bells.pop(0).remove() or Bells.ring(device)
    _, verdict = run(store(BELL, 1) + WAIT + store(BELL, 2) + END, device)
    assert verdict == GuestExit(0) and device.rung == 1 and device.written == [(0, 4, 2)]


def test_a_trace_shows_every_access(backend, tmp_path) -> None:
    image = tmp_path / "guest.bin"
    image.write_bytes(store(BELL, 5) + END)
    device, seen = Bells(), []
    with Machine("2M", backend=backend, devices=[device]) as machine:
        machine.load(image, boot="flat32")
        end = machine.trace(seen.append)
        assert machine.run(30) == GuestExit(0)
        assert device.written == [(0, 4, 5)] and not device.rung
        assert any(event.what == "mmio" and event.data["address"] == BELL for event in seen)
        end()
        machine.load(image, boot="flat32")
        assert machine.run(30) == GuestExit(0) and device.rung == 1


def test_virtual_time_has_no_doorbells(tmp_path) -> None:
    image = tmp_path / "guest.bin"
    image.write_bytes(store(BELL, 5) + END)
    device = Bells()
    with Machine("2M", backend="soft", clock="virtual", devices=[device]) as machine:
        assert not machine.asynchronous and device.bells == [None, None]
        machine.load(image, boot="flat32")
        assert machine.run(30) == GuestExit(0) and device.written == [(0, 4, 5)] and not device.rung


def test_a_guest_that_only_rings_can_be_stopped(backend, tmp_path) -> None:
    image = tmp_path / "guest.bin"
    image.write_bytes(store(BELL, 1) + b"\xeb\xf4")  # jmp to the store
    device = Bells()
    with Machine("2M", backend=backend, devices=[device]) as machine:
        machine.load(image, boot="flat32")
        start = time.monotonic()
        assert machine.run(0.3) == Stopped("timeout")
        assert time.monotonic() - start < 10 and device.rung > 1


def test_more_doorbells_than_the_core_has() -> None:
    with SoftVm() as vm:
        bells, calls = CoreDoorbells(vm), []
        ring = partial(calls.append, 1)
        all_bells = [bells.add(4096 * number, 4, None, ring) for number in range(lib.KP_DOORBELLS + 1)]
        all_bells[0].remove()
        all_bells[-1].remove()
        bells.serve()
        assert not calls
        table = ffi.new("struct kp_doorbell[]", lib.KP_DOORBELLS + 1)
        assert lib.kp_vm_set_doorbells(vm._pointer(), table, lib.KP_DOORBELLS + 1) < 0
