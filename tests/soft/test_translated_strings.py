"""String instructions, interpreted and translated, against a model that goes byte by byte: over pages that lie anywhere, over each
other, up and down, into what is not mapped; and how many instructions a long one counts."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from kvmpy.native import lib
from tests.soft.soft_guest import CODE, TABLES, Guest
from tests.soft.system_guest import assemble
from tests.soft.translated import alike, needs_code, state, with_gates

pytestmark = needs_code

LEAVES, PHYSICAL, LINEAR, PAGES, PAGE = 0x20000, 0x40000, 0x100000, 96, 4096
STRETCH = 4096  # elements that count as one instruction
OPCODES = {"movs": 0xA4, "cmps": 0xA6, "stos": 0xAA, "lods": 0xAC, "scas": 0xAE}
CASES = 45
POINTERS = 0x30000
# once for each pointer at r8: mov r10, [r8]; mov r11b, [r10]; mov [r10], r11b; add r8, 8; dec r9; jnz
WARM = bytes.fromhex("4d8b10 458a1a 45881a 4983c008 49ffc9 75ee")


class NotMapped(Exception):
    pass


@dataclass
class Case:
    op: str
    size: int
    prefix: int
    down: bool
    narrow: bool  # 32-bit addresses
    rax: int
    rcx: int
    rsi: int
    rdi: int
    pages: list[int]  # physical page of each linear one; 0: none
    warm: bool  # the TLB holds the pages
    data: bytearray = field(repr=False)
    zf: int = 0
    elements: int = 0
    faulted: bool = False

    @property
    def code(self) -> bytes:
        wide = self.size > 1
        code = bytes([self.prefix]) if self.prefix else b""
        code += b"\x67" if self.narrow else b""
        code += {2: b"\x66", 8: b"\x48"}.get(self.size, b"") + bytes([OPCODES[self.op] | wide])
        before = bytes([0xFD if self.down else 0xFC]) + b"\x31\xd2"  # std or cld; xor edx, edx
        return (WARM if self.warm else b"") + before + code + b"\xf4"

    @property
    def mapped(self) -> list[int]:
        return [LINEAR + PAGE * n for n, page in enumerate(self.pages) if page]

    def place(self, linear: int) -> int:
        page = (linear - LINEAR) // PAGE
        if not 0 <= page < PAGES or not self.pages[page]:
            raise NotMapped
        return self.pages[page] + linear % PAGE - PHYSICAL

    def read(self, linear: int) -> int:
        return int.from_bytes(bytes(self.data[self.place(linear + n)] for n in range(self.size)), "little")

    def write(self, linear: int, value: int) -> None:
        places = [self.place(linear + n) for n in range(self.size)]
        for n, place in enumerate(places):
            self.data[place] = value >> 8 * n & 0xFF

    def once(self) -> None:
        step, mask = -self.size if self.down else self.size, (1 << 8 * self.size) - 1
        source = self.read(self.rsi) if self.op in ("movs", "cmps", "lods") else self.rax & mask
        if self.op in ("movs", "stos"):
            self.write(self.rdi, source)
        elif self.op == "lods":
            self.rax = source if self.size >= 4 else self.rax & ~mask | source
        else:
            self.zf = int(source == self.read(self.rdi))
        if self.op in ("movs", "cmps", "lods"):
            self.rsi += step
        if self.op != "lods":
            self.rdi += step

    def run(self) -> None:
        self.zf = 1  # of XOR
        try:
            if not self.prefix:
                self.once()
                return
            while self.rcx:
                self.once()
                self.rcx -= 1
                self.elements += 1
                if self.op in ("scas", "cmps") and self.zf != (self.prefix == 0xF3):
                    break
        except NotMapped:
            self.faulted = True

    @property
    def instructions(self) -> int:
        """What warms up, STD or CLD, XOR, HLT, and the instruction, if it has come to its end."""
        return len(self.mapped) * 6 * self.warm + 3 + (self.elements // STRETCH if self.faulted else max(1, -(-self.elements // STRETCH)))


def make(seed: int) -> Case:
    choose = random.Random(seed)
    op, size = choose.choice(list(OPCODES)), choose.choice((1, 2, 4, 8))
    prefix, down = choose.choice((0, 0xF2, 0xF3, 0xF3)), choose.random() < 0.25
    count = choose.choice((0, 1, 3, choose.randrange(64), choose.randrange(600), choose.randrange(9000), 4096, 8192, 20000))
    length = count * size
    order = list(range(PAGES))
    if choose.random() < 0.5:
        choose.shuffle(order)
    pages = [PHYSICAL + PAGE * n for n in order]
    if choose.random() < 0.4:
        pages[choose.randrange(PAGES)] = 0
    if choose.random() < 0.2:
        pages[40] = pages[41]  # two addresses of one page
    room = PAGES * PAGE
    first, second = (LINEAR + choose.randrange(max(1, room - length)) for _ in range(2))
    if choose.random() < 0.4:  # over each other
        second = first + choose.choice((-9, -8, -4, -1, 0, 1, 2, 3, 5, 8, 16, 100, PAGE, -PAGE))
        second = min(max(second, LINEAR), LINEAR + room - max(length, 1))
    data = bytearray(choose.randbytes(64) * (room // 64))
    if op in ("scas", "cmps"):
        data = bytearray(bytes([choose.randrange(2)]) * room)
        data[choose.randrange(room)] ^= 2
    top = length - size if down else 0
    return Case(
        op, size, prefix, down, choose.random() < 0.2, choose.choice((0, 0x0101010101010101, choose.randrange(1 << 64))), count,
        first + max(top, 0), second + max(top, 0), pages, choose.random() < 0.7, data,
    )  # fmt: skip


def check(case: Case) -> None:
    before = bytes(case.data)

    def prepare(guest: Guest) -> None:
        with_gates(guest)
        table = [n << 12 | 7 for n in range(256)] + [page | 7 if page else 0 for page in case.pages]
        guest.put(LEAVES, b"".join(entry.to_bytes(8, "little") for entry in table))
        guest.put(TABLES + 0x2000, (LEAVES | 7).to_bytes(8, "little"))
        guest.put(PHYSICAL, before)
        guest.put(POINTERS, b"".join(page.to_bytes(8, "little") for page in case.mapped))
        guest.set(r8=POINTERS, r9=len(case.mapped), rax=case.rax, rcx=case.rcx, rsi=case.rsi, rdi=case.rdi)

    with alike(case.code, lib.KVM_EXIT_HLT, prepare) as guest:
        case.run()
        regs = guest.vcpu.get_regs()
        seen = (regs.rax, regs.rcx, regs.rsi, regs.rdi, guest.vcpu.statistics()["instructions"])
        assert seen == (case.rax, case.rcx, case.rsi, case.rdi, case.instructions), case
        assert guest.get(PHYSICAL, len(case.data)) == case.data, case
        if not case.faulted:
            assert regs.rflags >> 6 & 1 == case.zf, case


@pytest.mark.parametrize("chunk", range(4))
def test_against_a_model(chunk: int) -> None:
    for seed in range(chunk * CASES, (chunk + 1) * CASES):
        check(make(seed))


@pytest.mark.parametrize("op", ["movs", "stos"])
def test_the_last_bytes_of_a_page(op: str) -> None:
    """Runs that end where a page ends, and beyond, where the next one lies elsewhere."""
    pages = [PHYSICAL + PAGE * n for n in reversed(range(PAGES))]
    middle = LINEAR + PAGE // 2
    for size in (1, 2, 4, 8):
        for beyond in sorted({0, 1, size}):
            for length in (5 * size, 1000 * size if size < 8 else PAGE):
                edge = LINEAR + 8 * PAGE - length + beyond
                for first, second in ((edge, middle), (middle, edge)):
                    data = bytearray(random.Random(size).randbytes(PAGES * PAGE))
                    check(Case(op, size, 0xF3, False, False, 0x1122334455667788, length // size, first, second, pages, True, data))


@pytest.mark.parametrize("translate", [0, 1])
def test_where_a_long_one_is_interrupted(translate: int) -> None:
    """A turn of so many instructions: whole stretches while the block fits into it, then the last instruction is one element."""
    for steps in (1, 2, 5, 9):
        guest = Guest(b"\xf3\xaa\xf4", "long", translate=translate)  # rep stosb; hlt
        try:
            guest.set(rcx=10 * STRETCH, rdi=PHYSICAL, rax=7)
            assert guest.vcpu.step(steps) == lib.KVM_EXIT_DEBUG
            regs, done = guest.vcpu.get_regs(), (steps - 1) * STRETCH + 1
            assert (regs.rcx, regs.rdi) == (10 * STRETCH - done, PHYSICAL + done)
            assert guest.get(PHYSICAL, done + 1) == bytes([7]) * done + bytes(1)
        finally:
            guest.close()


def test_turns_that_end_behind_a_long_one() -> None:
    """What a long one has counted is missing from the budget of the code behind it, which translated is one region with it."""
    code = assemble(
        """again: mov $60 * 4096, %ecx
        mov $0x40000, %edi
        rep stosb
        inc %rdx
        inc %rdx
        jmp 1f
        1: inc %rdx
        mov %rdx, %r8
        mov %rdx, %r9
        jmp 2f
        2: mov %rdx, %r10
        mov %rdx, %r11
        test %rdx, %rdx
        jnz again
        hlt""", 64, CODE,
    )  # fmt: skip
    guests = [Guest(code, "long", translate=translate) for translate in (0, 1)]
    choose = random.Random(5)
    try:
        for _ in range(120):
            steps = choose.randrange(100, 400)
            for guest in guests:
                assert guest.vcpu.step(steps) == lib.KVM_EXIT_DEBUG
            first, second = (guest.vcpu.get_regs() for guest in guests)
            assert (first.rip, first.rcx, first.rdx, first.r11) == (second.rip, second.rcx, second.rdx, second.r11)
        assert state(guests[0]) == state(guests[1])
        assert guests[1].vcpu.statistics()["instructions_translated"] > 2000
    finally:
        for guest in guests:
            guest.close()
