"""A debugger's points on the software CPU: any number, on linear addresses, unseen by the guest."""

from __future__ import annotations

import pytest

from kvmpy.errors import HostError
from kvmpy.native import lib
from tests.soft.soft_guest import CODE, Guest

X, R, W = lib.KP_POINT_EXECUTE, lib.KP_POINT_READ, lib.KP_POINT_WRITE
DEBUG, HLT, IO = lib.KVM_EXIT_DEBUG, lib.KVM_EXIT_HLT, lib.KVM_EXIT_IO
# xor eax, eax; xor ecx, ecx; mov cl, 100; again: inc eax; dec ecx; jnz again; hlt
LOOP = bytes.fromhex("31c0 31c9 b164" "ffc0 ffc9 75fa f4")
AGAIN = CODE + 6


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_an_execution_point_stops_before_its_instruction_each_time(mode: str) -> None:
    guest = Guest(LOOP, mode)
    guest.vm.set_debug_points([(AGAIN, 1, X)])
    for turn in range(5):
        assert guest.vcpu.run() == DEBUG
        assert guest.vcpu.record.debug.arch.exception == 3 and guest.vcpu.record.debug.arch.pc == AGAIN
        assert guest.vcpu.debug_hit() == (AGAIN, 1, X)
        assert (guest.vcpu.get_regs().rip, guest.vcpu.get_regs().rax) == (AGAIN, turn)
    guest.vm.set_debug_points([])
    assert guest.vcpu.run() == HLT
    assert guest.vcpu.get_regs().rax == 100
    assert guest.vcpu.debug_hit() is None
    guest.close()


def test_a_point_at_the_first_instruction_and_after_rip_was_set_again() -> None:
    guest = Guest(LOOP, "long")
    guest.vm.set_debug_points([(CODE, 1, X)])
    assert guest.vcpu.run() == DEBUG
    guest.set(rip=AGAIN)
    guest.set(rip=CODE)
    assert guest.vcpu.run() == DEBUG, "RIP has moved since the point was met"
    assert guest.vcpu.run() == HLT
    guest.close()


def test_points_inside_a_block_that_was_decoded_before() -> None:
    guest = Guest(LOOP, "long")
    assert guest.vcpu.run() == HLT
    guest.vm.set_debug_points([(CODE + offset, 1, X) for offset in (0, 2, 4, 6, 8, 10, 12)])
    guest.set(rip=CODE)
    met = []
    for _ in range(6):
        assert guest.vcpu.run() == DEBUG
        met.append(guest.vcpu.get_regs().rip - CODE)
    assert met == [0, 2, 4, 6, 8, 10]
    guest.close()


def test_thousands_of_points_elsewhere() -> None:
    guest = Guest(LOOP, "long")
    guest.vm.set_debug_points([(0x40000 + 8 * n, 4, X | R | W) for n in range(5000)])
    assert guest.vcpu.run() == HLT
    assert guest.vcpu.get_regs().rax == 100
    guest.close()


def test_data_points_stop_behind_the_access() -> None:
    # mov [0x20000], eax; mov edx, [0x20000]; mov [0x20008], eax; add [0x20010], eax; hlt
    code = bytes.fromhex("890425 00000200 8b1425 00000200 890425 08000200 010425 10000200 f4")
    guest = Guest(code, "long")
    guest.vm.set_debug_points([(0x20002, 1, W), (0x20003, 1, R), (0x20010, 8, R | W)])
    stops = []
    while guest.vcpu.run() == DEBUG:
        assert guest.vcpu.record.debug.arch.exception == 1
        stops.append((guest.vcpu.get_regs().rip - CODE, guest.vcpu.debug_hit()))
    assert guest.vcpu.record.exit_reason == HLT
    assert stops == [(7, (0x20002, 4, W)), (14, (0x20003, 4, R)), (28, (0x20010, 4, W))]
    guest.close()


def test_a_data_point_over_two_pages() -> None:
    guest = Guest(bytes.fromhex("890425 fe0f0200 f4"), "long")  # mov [0x20ffe], eax
    guest.vm.set_debug_points([(0x21001, 1, W)])
    assert guest.vcpu.run() == DEBUG
    assert guest.vcpu.debug_hit() == (0x21001, 2, W)
    assert guest.vcpu.run() == HLT
    guest.close()


def test_a_point_at_an_instruction_that_a_device_answers() -> None:
    guest = Guest(bytes.fromhex("e410 89c3 f4"), "long")  # in al, 0x10; mov ebx, eax; hlt
    guest.vm.set_debug_points([(CODE, 1, X)])
    assert guest.vcpu.run() == DEBUG
    assert guest.vcpu.run() == IO
    guest.vcpu.io_data()[0:1] = b"\x5a"
    assert guest.vcpu.run() == HLT
    assert guest.vcpu.get_regs().rbx & 0xFF == 0x5A
    guest.close()


def test_a_point_under_another_code_base() -> None:
    guest = Guest(bytes.fromhex("90 90 f4"), "real")
    sregs = guest.vcpu.get_sregs()
    sregs.cs.base, sregs.cs.selector = CODE, CODE >> 4
    guest.vcpu.set_sregs(sregs)
    guest.set(rip=0)
    guest.vm.set_debug_points([(CODE + 1, 1, X), (1, 1, X)])
    assert guest.vcpu.run() == DEBUG
    assert guest.vcpu.record.debug.arch.pc == CODE + 1 and guest.vcpu.get_regs().rip == 1
    assert guest.vcpu.run() == HLT
    guest.close()


def test_single_steps_are_whole_under_points() -> None:
    guest = Guest(LOOP, "long")
    guest.vm.set_debug_points([(AGAIN, 1, X)])
    assert guest.vcpu.run() == DEBUG
    guest.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
    assert guest.vcpu.run() == DEBUG
    assert guest.vcpu.debug_hit() is None and guest.vcpu.record.debug.arch.dr6 & 1 << 14
    assert guest.vcpu.get_regs().rip == AGAIN + 2
    guest.close()


@pytest.mark.parametrize("blocked", [False, True])
def test_a_step_with_an_interrupt_waiting(blocked: bool) -> None:
    guest = Guest(bytes.fromhex("90 90 f4"), "real")
    guest.put(0x20 * 4, (0x9000).to_bytes(4, "little"))
    guest.put(0x9000, b"\x90\xcf")
    guest.set(rflags=0x202)
    guest.vcpu.interrupt(0x20)
    block = lib.KVM_GUESTDBG_BLOCKIRQ if blocked else 0
    guest.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP | block)
    assert guest.vcpu.run() == DEBUG
    assert guest.vcpu.get_regs().rip == (CODE + 1 if blocked else 0x9001)
    guest.close()


@pytest.mark.parametrize("point", [(0, 0, X), (2**64 - 1, 2, W), (0, 1, 0), (0, 1, 8)])
def test_points_that_make_no_sense(point: tuple[int, int, int]) -> None:
    guest = Guest()
    with pytest.raises(HostError):
        guest.vm.set_debug_points([point])
    guest.vm.set_debug_points([(2**64 - 1, 1, W)])
    guest.close()
