"""Coverage by the software CPU: exactly the instructions that were begun, in every mode, at every interruption of a block."""

from __future__ import annotations

import pytest

from kvmpy.native import ffi, lib
from kvmpy.soft import SoftBackend
from tests.soft.soft_guest import CODE, STACK, TABLES, Guest

HLT, DEBUG, IO = lib.KVM_EXIT_HLT, lib.KVM_EXIT_DEBUG, lib.KVM_EXIT_IO


def _bits(field: object) -> int:
    return int.from_bytes(ffi.buffer(field), "little")


def covered(guest: Guest, field: str = "start", base: int = CODE) -> list[int]:
    """Offsets from `base` of the bits of all pages."""
    found: set[int] = set()
    for page in guest.vm.read_coverage():
        bits = _bits(getattr(page, field))
        found |= {page.linear + n - base for n in range(4096) if bits >> n & 1}
    return sorted(found)


def code(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.fixture(params=[0, 1, 3], ids=["interpreter", "translated at once", "translated"])
def threshold(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def guest_of(text: str, mode: str, threshold: int = 0, **options: object) -> Guest:
    guest = Guest(code(text), mode, **options)  # type: ignore[arg-type]
    guest.vm.translate(threshold)
    return guest


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_every_instruction_of_a_loop_and_both_ways_of_its_jump(mode: str, threshold: int) -> None:
    # xor ax, ax; mov cl, 100; again: inc ax; dec cl; jnz again; hlt; nop
    guest = guest_of("31c0 b164 ffc0 fec9 75fa f4 90", mode, threshold)
    guest.vm.set_coverage(True, branches=True)
    assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 2, 4, 6, 8, 10]
    assert covered(guest, "bytes") == list(range(11))
    assert covered(guest, "taken") == covered(guest, "passed") == [8]
    assert guest.vcpu.get_regs().rax & 0xFFFF == 100
    guest.close()


# xor eax, eax; add eax, 1; jz +1; hlt; nop; hlt / cmp dword [0x20000], 7; je +1; hlt; nop; hlt (fused pairs)
@pytest.mark.parametrize(("text", "jump", "start"), [
    ("31c0 83c001 7401 f4 90 f4", 5, [0, 2, 5, 7]),
    ("31c0 83c000 7401 f4 90 f4", 5, [0, 2, 5, 8, 9]),
    ("31c0 85c0 7501 f4 90 f4", 4, [0, 2, 4, 6]),
    ("31c9 e301 f4 90 f4", 2, [0, 2, 5, 6]),
    ("31c9 e201 f4 90 f4", 2, [0, 2, 5, 6]),
])  # fmt: skip
def test_one_way_of_a_jump(text: str, jump: int, start: list[int], threshold: int) -> None:
    guest = guest_of(text, "long", threshold)
    guest.vm.set_coverage(True, branches=True)
    for _ in range(5):
        guest.set(rip=CODE)
        assert guest.vcpu.run() == HLT
    gone = start[-1] == len(code(text)) - 1
    assert covered(guest) == start
    assert covered(guest, "taken") == ([jump] if gone else [])
    assert covered(guest, "passed") == ([] if gone else [jump])
    guest.close()


def test_the_other_way_comes_later(threshold: int) -> None:
    guest = guest_of("85c0 7402 ffc3 f4", "long", threshold)  # test eax, eax; jz +2; inc ebx; hlt
    guest.vm.set_coverage(True, branches=True)
    for _ in range(20):
        guest.set(rip=CODE, rax=0)
        assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 2, 6] and covered(guest, "passed") == []
    guest.set(rip=CODE, rax=1)
    assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 2, 4, 6] and covered(guest, "taken") == covered(guest, "passed") == [2]
    guest.close()


@pytest.mark.parametrize("condition", [0, 1])
def test_a_jump_that_leads_behind_itself(condition: int, threshold: int) -> None:
    guest = guest_of("85c0 7400 ffc3 f4", "long", threshold)  # test eax, eax; jz +0; inc ebx; hlt
    guest.vm.set_coverage(True, branches=True)
    for _ in range(9):
        guest.set(rip=CODE, rax=condition)
        assert guest.vcpu.run() == HLT
    ways = covered(guest, "taken"), covered(guest, "passed")
    assert ways == (([], [2]) if condition else ([2], []))
    guest.close()


def test_a_jump_between_pages_goes_the_other_way_later(threshold: int) -> None:
    # test eax, eax; jz another page; inc ebx; hlt
    guest = guest_of("85c0 0f84f80f0000 ffc3 f4", "long", threshold)
    guest.put(CODE + 0x1000, code("f4"))
    guest.vm.set_coverage(True, branches=True)
    for value in [1] * 10 + [0] * 10:
        guest.set(rip=CODE, rax=value)
        assert guest.vcpu.run() == HLT
        assert covered(guest, "taken") == ([] if value else [2]) and covered(guest, "passed") == [2]
    guest.close()


def test_a_jump_that_goes_one_way_only_is_translated() -> None:
    # mov ecx, 100000; again: test ecx, ecx; js +4 (never); dec ecx; jnz again; hlt
    guest = guest_of("b9a0860100 85c9 7804 ffc9 75f8 f4", "long", 24)
    guest.vm.set_coverage(True, branches=True)
    assert guest.vcpu.run() == HLT
    found = guest.vcpu.statistics()
    assert found["instructions_translated"] > 0.9 * found["instructions"] and found["exits_unlinked"] < 100
    assert covered(guest, "taken") == [11] and covered(guest, "passed") == [7, 11]
    guest.close()


def faulting(guest: Guest, vector: int, handler: bytes) -> None:
    """An IDT of one 64-bit gate, to a handler at 0x9000."""
    sregs = guest.vcpu.get_sregs()
    guest.put(0xA000, b"\0" * 0x1000)
    gate = 0x9000 | sregs.cs.selector << 16 | 0x8E00 << 32
    guest.put(0xA000 + 16 * vector, gate.to_bytes(16, "little"))
    guest.put(0xB000, bytes(8) + bytes.fromhex("ffff0000009baf00") * 7)
    sregs.gdt.base, sregs.gdt.limit = 0xB000, 63
    sregs.idt.base, sregs.idt.limit = 0xA000, 0xFFF
    guest.vcpu.set_sregs(sregs)
    guest.put(0x9000, handler)


def test_a_fault_in_the_middle_of_a_block(threshold: int) -> None:
    # mov ecx, [rbx]; inc edx; hlt - RBX is not mapped; the handler halts
    guest = guest_of("90 8b0b ffc2 f4", "long", threshold)
    faulting(guest, 14, code("f4"))
    guest.vm.set_coverage(True, branches=True)
    for _ in range(10):
        guest.set(rip=CODE, rbx=1 << 40, rsp=STACK)
        assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 1, 0x1000], "what faults was begun, what stands behind was not"
    guest.set(rip=CODE, rbx=0x20000)
    assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 1, 3, 5, 0x1000]
    guest.close()


def test_a_fault_in_the_first_of_a_fused_pair(threshold: int) -> None:
    guest = guest_of("833b00 7401 f4 90 f4", "long", threshold)  # cmp dword [rbx], 0; jz +1; hlt; nop; hlt
    faulting(guest, 14, code("f4"))
    guest.vm.set_coverage(True, branches=True)
    guest.set(rbx=1 << 40)
    assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 0x1000] and covered(guest, "taken") == covered(guest, "passed") == []
    guest.close()


def test_an_undefined_instruction(threshold: int) -> None:
    guest = guest_of("90 0f0b 90", "long", threshold)
    faulting(guest, 6, code("f4"))
    guest.vm.set_coverage(True)
    assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 1, 0x1000] and covered(guest, "bytes") == [0, 1, 2, 0x1000]
    guest.close()


def test_code_that_changes_itself(threshold: int) -> None:
    # mov byte [rip+1], 0xf4 makes the second nop a hlt, before it is reached
    guest = guest_of("c605 01000000 f4 90 90 90 f4", "long", threshold)
    guest.vm.set_coverage(True)
    assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 7, 8]
    guest.close()


def test_a_repeated_instruction_and_what_stands_behind(threshold: int) -> None:
    guest = guest_of("b900000100 bf00000200 f3aa 90 f4", "long", threshold)
    guest.vm.set_coverage(True)
    assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 5, 10, 12, 13]
    guest.close()


def test_an_instruction_that_a_device_answers() -> None:
    guest = guest_of("90 e410 90 f4", "long")
    guest.vm.set_coverage(True)
    assert guest.vcpu.run() == IO
    assert covered(guest) == [0, 1]
    assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 1, 3, 4]
    guest.close()


def test_single_steps_and_breakpoints_count_what_begins() -> None:
    guest = guest_of("90 85c0 7401 90 90 f4", "long")
    guest.vm.set_coverage(True, branches=True)
    guest.vm.set_debug_points([(CODE + 6, 1, lib.KP_POINT_EXECUTE)])
    guest.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP)
    assert guest.vcpu.run() == guest.vcpu.run() == guest.vcpu.run() == DEBUG
    assert covered(guest) == [0, 1, 3] and covered(guest, "taken") == [3]
    guest.vcpu.set_guest_debug(0)
    assert guest.vcpu.run() == DEBUG
    assert covered(guest) == [0, 1, 3], "the point is before the instruction"
    assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 1, 3, 6, 7]
    guest.close()


def test_traced_code_is_counted_too() -> None:
    guest = guest_of("90 90 85c0 7401 90 f4", "long")
    every = (0, (1 << 64) - 1)
    guest.vm.set_trace(0, [(lib.KP_TRACE_INSTRUCTION, 0, 0, (CODE, CODE + 1), every, every, every, every, every)], host=False)
    guest.vm.set_coverage(True, branches=True)
    assert guest.vcpu.run() == HLT
    assert covered(guest) == [0, 1, 2, 4, 7] and covered(guest, "taken") == [4]
    assert len(guest.vm.trace_take(0)) == 2 * ffi.sizeof("struct kp_trace_record")
    guest.close()


def test_an_instruction_over_two_pages(threshold: int) -> None:
    guest = guest_of("f4", "long", threshold)
    guest.put(0x8FFE, code("b801000000 f4"))  # mov eax, 1; hlt
    guest.set(rip=0x8FFE)
    guest.vm.set_coverage(True)
    assert guest.vcpu.run() == HLT
    assert covered(guest, base=0) == [0x8FFE, 0x9003] and covered(guest, "bytes", base=0) == list(range(0x8FFE, 0x9004))
    guest.close()


def test_on_off_on_and_clear(threshold: int) -> None:
    guest = guest_of("90 f4 90 90 f4", "long", threshold)
    assert guest.vcpu.run() == HLT and covered(guest) == []
    guest.vm.set_coverage(True)
    guest.set(rip=CODE)
    assert guest.vcpu.run() == HLT and covered(guest) == [0, 1]
    guest.vm.set_coverage(False)
    guest.set(rip=CODE + 2)
    assert guest.vcpu.run() == HLT and covered(guest) == [0, 1]
    guest.vm.set_coverage(True)
    guest.set(rip=CODE + 3)
    assert guest.vcpu.run() == HLT and covered(guest) == [0, 1, 3, 4]
    guest.vm.clear_coverage()
    assert covered(guest) == []
    guest.set(rip=CODE + 3)
    assert guest.vcpu.run() == HLT and covered(guest) == [3, 4], "what is decoded already is recorded anew"
    guest.close()


def test_two_cpus_execute_their_own(threshold: int) -> None:
    guest = guest_of("90 f4 90 90 f4 90", "long", threshold, cpus=2)
    guest.vcpus[1].set_sregs(guest.vcpu.get_sregs())
    guest.set(guest.vcpus[1], rip=CODE + 3, rflags=2)
    guest.vm.set_coverage(True)
    assert [vcpu.run() for vcpu in guest.vcpus] == [HLT, HLT]
    assert covered(guest) == [0, 1, 3, 4]
    guest.close()


def test_user_and_kernel_and_address_spaces() -> None:
    """One piece of code at CPL 0 and 3, then under another CR3 with the same memory behind it."""
    guest = guest_of("90 0f05", "long")  # nop; syscall
    guest.put(0x9000, code("f4"))
    table = guest.get(TABLES, 0x3000)
    guest.put(0x40000, b"".join(
        (int.from_bytes(table[n : n + 8], "little") + (0x40000 - TABLES if n < 0x2000 and table[n] & 1 else 0)).to_bytes(8, "little")
        for n in range(0, len(table), 8)
    ))  # fmt: skip
    guest.vm.set_coverage(True, spaces=True)
    sregs = guest.vcpu.get_sregs()
    sregs.efer |= 1
    guest.vcpu.set_msrs({0xC0000081: 0x8 << 32, 0xC0000082: 0x9000})
    for cr3 in (TABLES, 0x40000, TABLES):
        user = guest.vcpu.get_sregs()
        user.efer |= 1
        user.cr3 = cr3
        user.cs.dpl = user.ss.dpl = 3
        user.cs.selector |= 3
        user.ss.selector |= 3
        guest.vcpu.set_sregs(user)
        guest.set(rip=CODE, rsp=STACK)
        assert guest.vcpu.run() == HLT
    sregs.cr3 = 0x40000
    guest.vcpu.set_sregs(sregs)
    guest.put(CODE + 1, b"\xf4")
    guest.set(rip=CODE)
    assert guest.vcpu.run() == HLT
    pages = [(page.linear, page.user, page.space, _bits(page.start)) for page in guest.vm.read_coverage()]
    assert sorted(pages) == [(0x8000, 0, 0, 3), (0x8000, 1, TABLES, 3), (0x8000, 1, 0x40000, 3), (0x9000, 0, 0, 1)]
    guest.close()


def test_more_pages_than_there_is_room_for() -> None:
    """A guest that maps one page of code at every address fills no more of the host's memory."""
    # dec ecx; jz +8; add rbx, 0x1000; jmp rbx (over 2 bytes of nop); hlt
    guest = guest_of("ffc9 740a 4881c300100000 ffe3 90 f4", "long")
    top, table, leaf = 0x40000, 0x41000, 0x42000
    guest.put(leaf, (CODE | 7).to_bytes(8, "little") * 512)
    guest.put(table, (leaf | 7).to_bytes(8, "little") * 512)
    guest.put(top, (table | 7).to_bytes(8, "little") * 512)
    guest.put(TABLES + 8, (top | 7).to_bytes(8, "little"))
    guest.vm.set_coverage(True)
    first = 1 << 39
    guest.set(rip=first, rbx=first, rcx=65536)
    assert guest.vcpu.run() == HLT
    assert sum(1 for _ in guest.vm.read_coverage()) == 65536 and guest.vm.coverage_lost() == 0
    guest.set(rip=first, rbx=first, rcx=65536 + 10)
    assert guest.vcpu.run() == HLT
    assert sum(1 for _ in guest.vm.read_coverage()) == 65536 and guest.vm.coverage_lost() > 0
    guest.close()


def test_wrong_flags_are_refused() -> None:
    vm = SoftBackend().create_vm()
    assert lib.kp_vm_set_coverage(vm._pointer(), 64) < 0
    assert list(vm.read_coverage()) == []
    vm.close()
