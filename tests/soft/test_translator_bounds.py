"""Translated code where a guest could make it reach too far, or go on where its code no longer is."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from kvmpy import x86
from kvmpy.native import ffi, lib
from kvmpy.regs import identity_map, set_long_mode
from kvmpy.soft import SoftBackend
from tests.soft.insn_lines import Line, decode, table
from tests.soft.soft_guest import CODE, STACK, TABLES, Guest

HLT = lib.KVM_EXIT_HLT
BLOCK, MOST_CODE = 48, 32768  # instructions of a block; bytes that the code cache keeps free for one
A_END, A_NOTEST = 0x2, 0x100
LEAVES, PAGE, SIZE = 0x20000, 4096, 1 << 20


def forbidden() -> bool:
    with SoftBackend(translate=1).create_vm() as vm:
        return not vm.translating


pytestmark = pytest.mark.skipif(forbidden(), reason="this host lets no program make code")


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """In long mode with pages of 4 KiB; code is translated at its first run."""
    monkeypatch.setenv("KVMPY_TRANSLATE", "1")
    guest = Guest(mode="long")
    guest.put(LEAVES, b"".join((n << 12 | 7).to_bytes(8, "little") for n in range(512)))
    guest.put(TABLES + 0x2000, (LEAVES | 7).to_bytes(8, "little"))
    yield guest
    guest.close()


def test_an_instruction_over_the_pages_end_follows_the_next_pages_translation(guest: Guest) -> None:
    guest.put(0x8FE0, b"\xff\xc1\xeb\x1b")  # inc ecx; jmp 8fff
    guest.put(0x8FFF, b"\xb0")  # mov al, the next page's first byte
    for page, value in ((0x9000, 1), (0xA000, 2)):
        guest.put(page, bytes([value]) + bytes.fromhex(
            "83f906 740a"  # cmp ecx, 6; je 9010
            "83f90c 741e"  # cmp ecx, 12; je 9029
            "e9d0ffffff"  # jmp 8fe0
            "48c704254800020007a00000"  # 9010: mov qword [LEAVES + 9 * 8], a007
            "0f013c2500900000"  # invlpg [9000]
            "e9b7ffffff f4"  # jmp 8fe0; 9029: hlt
        ))  # fmt: skip
    guest.set(rip=0x8FE0, rcx=0)
    assert guest.vcpu.run() == HLT
    regs = guest.vcpu.get_regs()
    assert (regs.rcx, regs.rax & 0xFF) == (12, 2)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (0x9000000000000000, 0x1000000040000000), (0x8000000000001000, 0x7000000000000000), (0x7FFFFFFFFFFFFFFF, 0x8000000000000000),
        (0x7FFFFFFFFFFFFFFF, 0x7FFFFFFFFFFFFFFF), (0xFFFFFFFFFFFFFFFF, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("opcode", [0xA0, 0xA2], ids=["load", "store"])
def test_absolute_addresses_far_apart_share_no_check(guest: Guest, opcode: int, first: int, second: int) -> None:
    """Their distance overflows 63 bits. Each is #GP or #PF, which without an IDT ends the run, wherever the host's memory is."""
    access = bytes([opcode]) + first.to_bytes(8, "little") + bytes([opcode]) + second.to_bytes(8, "little")
    guest.put(CODE, access * 2 + b"\xf4")
    guest.set(rip=CODE, rax=0x55)
    assert guest.vcpu.run() == lib.KVM_EXIT_SHUTDOWN
    assert guest.vcpu.get_regs().rip == CODE


class Bounded:
    """A VM whose RAM ends before memory that the process may touch, so that what reaches too far is seen."""

    def __init__(self, translate: int) -> None:
        self.backend = SoftBackend("virtual", translate=translate)
        self.pages = mmap.mmap(-1, SIZE + PAGE)
        view = ffi.from_buffer(self.pages)
        host = int(ffi.cast("uintptr_t", view))
        ffi.release(view)
        self.vm = self.backend.create_vm()
        self.vm.set_memory(0, 0, host, SIZE)
        self.vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid(self.backend.supported_cpuid())
        self.pages[TABLES : TABLES + 3 * PAGE] = identity_map(TABLES, 1)
        sregs = self.vcpu.get_sregs()
        set_long_mode(sregs, TABLES)
        sregs.cr4 |= x86.CR4_OSFXSR | 1 << 10 | x86.CR4_OSXSAVE
        self.vcpu.set_sregs(sregs)
        xcrs = self.vcpu.get_xcrs()
        xcrs.nr_xcrs, xcrs.xcrs[0].xcr, xcrs.xcrs[0].value = 1, 0, 7
        self.vcpu.set_xcrs(xcrs)
        self.first = self.vcpu.get_sregs()

    def run(self, code: bytes, address: int) -> tuple[object, ...]:
        """What a run of the code ends in, [RBX] at the address, its page in the TLB."""
        whole = b"\x8a\x02\x88\x02" + code + b"\xf4"  # mov al, [rdx]; mov [rdx], al; ...; hlt
        self.pages[CODE : CODE + 1024] = whole.ljust(1024, b"\xf4")
        self.pages[SIZE - 64 : SIZE + 64] = bytes(range(64)) + bytes(64)
        self.vm.memory_written(CODE, 1024)
        self.vcpu.set_sregs(self.first)
        regs = self.vcpu.get_regs()
        for name in ("rax", "rcx", "rsi", "rdi", "rbp"):
            setattr(regs, name, 0)
        regs.rip, regs.rsp, regs.rflags, regs.rbx, regs.rdx = CODE, STACK, 2, address, SIZE - 128
        self.vcpu.set_regs(regs)
        reason = self.vcpu.run()
        at = self.vcpu.record.mmio.phys_addr if reason == lib.KVM_EXIT_MMIO else 0
        if reason == lib.KVM_EXIT_MMIO:
            lib.kp_vcpu_kick(self.vcpu._cpu)
        return reason, at, self.pages[SIZE - 64 : SIZE + 64]


def forms(line: Line) -> Iterator[bytes]:
    """The line with a memory operand, also with other sizes."""
    plain = line.encode(64, True)
    every = [plain, b"\x66" + plain, b"\x48" + plain] if not line.vex else [plain, plain[:2] + bytes([plain[2] | 4]) + plain[3:]]
    for code in every:
        known = decode(code)
        if known is not None and known[0] == line.id:
            yield code[: known[1]]


def test_no_translated_operand_is_larger_than_its_check() -> None:
    """Operands that end where RAM ends do the same as interpreted, where a larger one meets the device behind."""
    interpreted, translated = Bounded(0), Bounded(1)
    try:
        for line in table():
            if line.attributes & (A_END | A_NOTEST) or not line.modrm or line.memory is False:
                continue
            for code in forms(line):
                for size in (1, 2, 4, 8, 16, 32):
                    expected, seen = interpreted.run(code, SIZE - size), translated.run(code, SIZE - size)
                    assert seen == expected, f"{line.id} ({code.hex()}), {size} bytes before the end"
    finally:
        interpreted.vm.close()
        translated.vm.close()


def test_no_block_needs_the_room_that_the_code_cache_keeps_for_one() -> None:
    """Blocks of nothing but one instruction, with flags to be kept over it, whatever it is."""
    room = ffi.new("struct kp_translation[1]")
    machine, most = Bounded(1), 0
    try:
        for line in table():
            if line.attributes & (A_END | A_NOTEST):
                continue
            for code in (*forms(line), *(b"\x64\x67" + code for code in forms(line) if line.modrm and line.memory is not False)):
                machine.run(b"\x11\xd8" + code * (BLOCK - 1), SIZE - 128)  # adc eax, ebx
                if lib.kp_vm_translations(machine.vm._pointer(), CODE, room, 1):  # else it has jumped away, or reached a device
                    most = max(most, room[0].code_size)
    finally:
        machine.vm.close()
    assert 2000 < most < MOST_CODE / 2, most
