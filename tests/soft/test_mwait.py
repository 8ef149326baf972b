"""MONITOR and MWAIT: what ends a wait, and that a wait costs the host nothing."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator

import pytest

from kvmpy.native import lib
from kvmpy.regs import set_protected_mode
from tests.soft.soft_guest import CODE, Guest

LINE, OTHER = 0x5040, 0x6000
STORER = 0x9000
# mov eax, LINE; xor ecx, ecx; xor edx, edx; monitor; mov ecx, HINT; mwait; out 10h, al
WAITER = "b8 40500000 31c9 31d2 0f01c8 b9 {hint:02x}000000 0f01c9 e610 f4"


def waiter(hint: int = 0) -> bytes:
    return bytes.fromhex(WAITER.format(hint=hint))


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    made: list[Guest] = []
    yield made
    for guest in made:
        guest.close()


def make(guests: list[Guest], code: bytes, *, cpus: int = 1, clock: str = "virtual") -> Guest:
    guest = Guest(code, "protected", chips=True, cpus=cpus, clock=clock)
    guests.append(guest)
    for vcpu in guest.vcpus:
        vcpu.set_cpuid(guest.backend.supported_cpuid())
    for vcpu in guest.vcpus[1:]:
        sregs = vcpu.get_sregs()
        set_protected_mode(sregs)
        vcpu.set_sregs(sregs)
        vcpu.set_mp_state(lib.KVM_MP_STATE_RUNNABLE)
        guest.set(vcpu, rip=STORER, rsp=0x7800, rflags=2)
    return guest


def deadline_passes(guest: Guest, ns: int = 1_000_000) -> None:
    """The VM runs for a time without an exit."""
    guest.vm.set_deadline(guest.vm.now() + ns)
    assert guest.vm.run().record.exit_reason == lib.KVM_EXIT_INTR


def test_without_monitor_it_does_not_wait(guests: list[Guest]) -> None:
    guest = make(guests, bytes.fromhex("31c9 0f01c9 e610 f4"))
    assert guest.vm.run().record.exit_reason == lib.KVM_EXIT_IO


@pytest.mark.parametrize("offset", [0, 63, -3])
def test_store_of_another_vcpu(guests: list[Guest], offset: int) -> None:
    guest = make(guests, waiter(), cpus=2)
    delay = "b9 00400000 e2fe"  # mov ecx, 4000h; loop $
    store = f"c705 {(LINE + offset).to_bytes(4, 'little').hex()} 00000000 ebfe"  # what stood there already; jmp $
    guest.put(STORER, bytes.fromhex(delay + store))
    speaker = guest.vm.run()
    assert speaker is guest.vcpu and speaker.record.exit_reason == lib.KVM_EXIT_IO
    assert 0x4000 < guest.vm.now() < 0x8000


def test_store_beside_the_line(guests: list[Guest]) -> None:
    guest = make(guests, waiter(), cpus=2)
    stores = b"".join(b"\xc7\x05" + (LINE + offset).to_bytes(4, "little") + bytes(4) for offset in (-4, 64))
    guest.put(STORER, stores + b"\xeb\xfe")
    deadline_passes(guest)
    assert guest.vcpu.get_regs().rip == CODE + waiter().index(b"\x0f\x01\xc9") + 3
    guest.vm.memory_written(LINE - 8, 8)
    deadline_passes(guest)
    guest.vm.memory_written(LINE - 8, 9)  # a device's DMA
    assert guest.vm.run().record.exit_reason == lib.KVM_EXIT_IO


def test_store_between_monitor_and_mwait(guests: list[Guest]) -> None:
    code = waiter()
    at = code.index(b"\xb9")
    guest = make(guests, code[:at] + b"\xc6\x05" + LINE.to_bytes(4, "little") + b"\x01" + code[at:])
    assert guest.vm.run().record.exit_reason == lib.KVM_EXIT_IO


@pytest.mark.parametrize("hint", [0, 1])
def test_pending_interrupt_with_if_clear(guests: list[Guest], hint: int) -> None:
    """It ends the wait where ECX bit 0 says so, and is not taken."""
    ipi = bytes.fromhex("c705 f000e0fe ff010000 c705 0003e0fe 41400400")  # SVR; IPI 41h to itself
    guest = make(guests, ipi + waiter(hint))
    if hint:
        assert guest.vm.run().record.exit_reason == lib.KVM_EXIT_IO
    else:
        deadline_passes(guest)


def test_idle_loop_on_host_time(guests: list[Guest]) -> None:
    """The thread sleeps, and a device's write wakes it at once."""
    guest = make(guests, waiter(), clock="host")

    def write() -> None:
        guest.vm.memory_written(LINE, 4)

    timer = threading.Timer(0.4, write)
    start, used = time.monotonic(), resource.getrusage(resource.RUSAGE_THREAD)
    timer.start()
    assert guest.vm.run().record.exit_reason == lib.KVM_EXIT_IO
    took, spent = time.monotonic() - start, resource.getrusage(resource.RUSAGE_THREAD)
    timer.join()
    assert took > 0.39
    assert spent.ru_utime - used.ru_utime + spent.ru_stime - used.ru_stime < 0.2
