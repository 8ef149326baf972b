"""Integer instructions where modes, stack sizes and string registers matter; what 64-bit code does is compared with the host's processor
elsewhere."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvmpy.native import lib
from tests.soft.soft_guest import CODE, Guest

DATA = 0x20000
Make = Callable[..., Guest]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Guest] = []

    def build(code: str, mode: str, **registers: int) -> Guest:
        guest = Guest(bytes.fromhex(code) + b"\xf4", mode)
        made.append(guest)
        guest.set(**registers)
        return guest

    yield build
    for guest in made:
        guest.close()


def run(guest: Guest) -> Any:
    """Runs to the closing HLT; the registers."""
    assert guest.vcpu.run() == lib.KVM_EXIT_HLT
    return guest.vcpu.get_regs()


def test_pusha_and_popa(make: Make) -> None:
    guest = make("60 61", "real", rsp=0x1000, rax=1, rcx=2, rdx=3, rbx=4, rbp=5, rsi=6, rdi=7)
    regs = run(guest)
    assert struct.unpack("<8H", guest.get(0xFF0, 16)) == (7, 6, 5, 0x1000, 4, 3, 2, 1)
    assert (regs.rsp, regs.rax, regs.rdi) == (0x1000, 1, 7)


def test_pushad_keeps_esp_of_before(make: Make) -> None:
    guest = make("60", "protected", rsp=0x6000, rax=0x11111111, rdi=0x77777777)
    assert run(guest).rsp == 0x6000 - 32
    assert struct.unpack("<8I", guest.get(0x6000 - 32, 32))[3] == 0x6000


def test_stack_wraps_at_64_kib(make: Make) -> None:
    guest = make("50", "real", rsp=0x10000, rax=0xABCD)  # SP is 0
    assert run(guest).rsp == 0x1FFFE
    assert guest.get(0xFFFE, 2) == b"\xcd\xab"


@pytest.mark.parametrize(("level", "frame"), [(0, []), (1, [0x5FF8]), (3, [0xA2, 0xA1, 0x5FF8])])
def test_enter_copies_frame_pointers(make: Make, level: int, frame: list[int]) -> None:
    guest = make(f"c8 20 00 {level:02x}", "long", rsp=0x6000, rbp=0x5800)
    guest.put(0x5800 - 16, struct.pack("<QQ", 0xA1, 0xA2))
    regs = run(guest)
    assert regs.rbp == 0x5FF8 and regs.rsp == 0x5FF8 - 8 * len(frame) - 0x20
    assert struct.unpack("<Q", guest.get(0x5FF8, 8))[0] == 0x5800
    assert [struct.unpack("<Q", guest.get(0x5FF8 - 8 * (n + 1), 8))[0] for n in range(len(frame))] == frame


def test_leave(make: Make) -> None:
    guest = make("c9", "long", rbp=0x5000, rsp=0x1234)
    guest.put(0x5000, struct.pack("<Q", 0xFEED))
    regs = run(guest)
    assert (regs.rsp, regs.rbp) == (0x5008, 0xFEED)


def test_pop_to_an_address_off_the_stack_pointer(make: Make) -> None:
    guest = make("8f 44 24 10", "long", rsp=0x6000)  # pop qword [rsp+16]: RSP after the pop
    guest.put(0x6000, b"\x88" * 8)
    assert run(guest).rsp == 0x6008
    assert guest.get(0x6018, 8) == b"\x88" * 8


def test_push_of_the_stack_pointer(make: Make) -> None:
    guest = make("54 8f c0", "long", rsp=0x6000)
    assert run(guest).rax == 0x6000


@pytest.mark.parametrize(
    ("code", "mode", "size"),
    [("f3 a4", "real", 1), ("f3 a5", "real", 2), ("f3 a5", "protected", 4), ("f3 48 a5", "long", 8), ("f3 a4", "long", 1)],
)
def test_rep_movs(make: Make, code: str, mode: str, size: int) -> None:
    count = 5000 // size
    source, target = 0xAF01, 0xD003
    guest = make(code, mode, rcx=count, rsi=source, rdi=target)
    data = bytes(n * 7 & 0xFF for n in range(count * size))
    guest.put(source, data)
    regs = run(guest)
    assert guest.get(target, len(data)) == data and guest.get(target + len(data), 1) == b"\0"
    assert (regs.rcx, regs.rsi, regs.rdi) == (0, source + len(data), target + len(data))


def test_overlapping_rep_movs_repeats_its_source(make: Make) -> None:
    guest = make("f3 a4", "long", rcx=9000, rsi=DATA, rdi=DATA + 3)
    guest.put(DATA, b"abc")
    run(guest)
    assert guest.get(DATA, 9003) == b"abc" * 3001


def test_rep_movs_downwards(make: Make) -> None:
    guest = make("fd f3 a4", "long", rcx=5000, rsi=DATA + 4999, rdi=DATA + 6999)
    data = bytes(n * 13 >> 3 & 0xFF for n in range(5000))
    guest.put(DATA, data)
    regs = run(guest)
    assert guest.get(DATA + 2000, 5000) == data and regs.rsi == DATA - 1


@pytest.mark.parametrize(("code", "size"), [("f3 aa", 1), ("f3 66 ab", 2), ("f3 ab", 4), ("f3 48 ab", 8)])
def test_rep_stos(make: Make, code: str, size: int) -> None:
    guest = make(code, "long", rcx=20000 // size, rdi=DATA + 1, rax=0x8877665544332211)
    assert run(guest).rdi == DATA + 1 + 20000
    unit = (0x8877665544332211).to_bytes(8, "little")[:size]
    assert guest.get(DATA, 20002) == b"\0" + unit * (20000 // size) + b"\0"


def test_string_registers_are_cut_to_the_address_size(make: Make) -> None:
    guest = make("67 f3 a4", "long", rcx=0x5_0000_0004, rsi=0xF_0002_3000, rdi=0xE_0002_4000)
    guest.put(0x23000, b"wxyz!")
    regs = run(guest)
    assert guest.get(0x24000, 5) == b"wxyz\0" and (regs.rcx, regs.rsi, regs.rdi) == (0, 0x23004, 0x24004)


def test_source_segment_override(make: Make) -> None:
    guest = make("f3 26 a4", "real", rcx=2, rsi=0x3000, rdi=0x4000)
    sregs = guest.vcpu.get_sregs()
    sregs.es.base, sregs.es.selector = 0x100, 0x10
    guest.vcpu.set_sregs(sregs)
    guest.put(0x3100, b"hi")
    run(guest)
    assert guest.get(0x4100, 2) == b"hi"


def test_repne_scasb_finds_the_end_of_a_string(make: Make) -> None:
    guest = make("f2 ae", "long", rcx=(1 << 64) - 1, rdi=DATA, rax=0)
    guest.put(DATA, b"x" * 6000 + b"\0")
    regs = run(guest)
    assert regs.rdi == DATA + 6001 and regs.rcx == (1 << 64) - 1 - 6001 and regs.rflags & 0x40


def test_repe_cmpsb_stops_at_a_difference(make: Make) -> None:
    guest = make("f3 a6", "long", rcx=100, rsi=DATA, rdi=DATA + 0x1000)
    guest.put(DATA, b"same text A")
    guest.put(DATA + 0x1000, b"same text B")
    regs = run(guest)
    assert regs.rcx == 100 - 11 and regs.rflags & 0x41 == 1


def test_a_page_fault_in_rep_stos_leaves_the_registers_between_elements(make: Make) -> None:
    """The identity map ends at 1 GiB; without an IDT the fault ends in a shutdown, with the registers at the fault."""
    guest = make("f3 48 ab", "long", rcx=4, rdi=(1 << 30) - 8)
    exit_reason = guest.vcpu.run()
    while exit_reason == lib.KVM_EXIT_MMIO:
        exit_reason = guest.vcpu.run()
    assert exit_reason == lib.KVM_EXIT_SHUTDOWN
    regs = guest.vcpu.get_regs()
    assert (regs.rip, regs.rcx, regs.rdi) == (CODE, 3, 1 << 30)


@pytest.mark.parametrize(
    ("code", "before", "after"),
    [
        ("27", {"rax": 0x7D}, 0x83),  # daa
        ("2f", {"rax": 0x9F}, 0x39),  # das
        ("37", {"rax": 0x010B}, 0x0201),  # aaa
        ("3f", {"rax": 0x0205}, 0x0205),  # aas
        ("d4 0a", {"rax": 63}, 0x0603),  # aam
        ("d5 0a", {"rax": 0x0603}, 63),  # aad
        ("f9 d6", {"rax": 0}, 0xFF),  # stc; salc
        ("66 98", {"rax": 0x8000}, 0xFFFF8000),  # cwde
        ("d7", {"rax": 5, "rbx": 0x3000}, ord("5")),  # xlat
    ],
)
def test_decimal_and_conversions(make: Make, code: str, before: dict[str, int], after: int) -> None:
    guest = make(code, "real", **before)
    guest.put(0x3000, b"0123456789")
    assert run(guest).rax == after


@pytest.mark.parametrize(("code", "mode", "count", "left"), [("e2 fe", "real", 0x10003, 0x10000), ("67 e2 fd", "long", 0x1_0000_0003, 0)])
def test_loop_counts_by_the_address_size(make: Make, code: str, mode: str, count: int, left: int) -> None:
    assert run(make(code, mode, rcx=count)).rcx == left


def test_jump_past_the_segment_limit_is_a_fault_of_the_jump(make: Make) -> None:
    guest = make("66 e9 00 00 01 00", "real")  # jmp to 18006h in a segment of 64 KiB
    guest.put(13 * 4, struct.pack("<HH", 0x9000, 0))
    guest.put(0x9000, b"\xf4")
    regs = run(guest)
    assert regs.rip == 0x9001
    assert struct.unpack("<H", guest.get(regs.rsp, 2))[0] == CODE


def test_near_return_to_an_address_that_is_not_canonical(make: Make) -> None:
    guest = make("c3", "long", rsp=0x6000)
    guest.put(0x6000, struct.pack("<Q", 1 << 62))
    assert guest.vcpu.run() == lib.KVM_EXIT_SHUTDOWN
    regs = guest.vcpu.get_regs()
    assert (regs.rip, regs.rsp) == (CODE, 0x6000)


@pytest.mark.parametrize(
    ("code", "vector"),
    [("c4 e2 60 f2 c1", 6), ("66 " * 15 + "90", 13), ("f0 90", 6), ("0f 0b", 6), ("f0 89 c0", 6), ("d4 00", 0), ("f6 f0", 0)],
    ids=["VEX in real mode", "16 bytes", "LOCK NOP", "UD2", "LOCK MOV", "AAM 0", "DIV by 0"],
)
def test_faults_in_real_mode(make: Make, code: str, vector: int) -> None:
    guest = make(code, "real")
    guest.put(vector * 4, struct.pack("<HH", 0x9000, 0))
    guest.put(0x9000, b"\xf4")
    regs = run(guest)
    assert regs.rip == 0x9001
    assert struct.unpack("<H", guest.get(regs.rsp, 2))[0] == CODE
