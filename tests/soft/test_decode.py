"""The decoder: prefixes, lengths, which line of the table the bytes belong to; and the table's own good form."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.soft.insn_lines import A_LOCK, Line, decode, disassemble, table


def of(text: str, mode: int = 64) -> tuple[str, int] | None:
    return decode(bytes.fromhex(text).ljust(20, b"\x90"), mode)


PLAIN = [
    # mode, bytes, line, length
    (64, "01 d8", "add_EvGv", 2),
    (64, "48 05 78 56 34 12", "add_rAXIz", 6),
    (64, "66 05 34 12", "add_rAXIz", 4),
    (16, "05 34 12", "add_rAXIz", 3),
    (16, "66 05 78 56 34 12", "add_rAXIz", 6),
    (64, "48 b8 88 77 66 55 44 33 22 11", "mov_ZvIv", 10),
    (64, "b8 44 33 22 11", "mov_ZvIv", 5),
    (64, "66 b8 22 11", "mov_ZvIv", 4),
    (64, "48 66 b8 22 11", "mov_ZvIv", 5),  # a REX prefix that is not the last counts for nothing
    (64, "a1 88 77 66 55 44 33 22 11", "mov_rAXOv", 9),
    (64, "67 a1 44 33 22 11", "mov_rAXOv", 6),
    (32, "a1 44 33 22 11", "mov_rAXOv", 5),
    (16, "a1 22 11", "mov_rAXOv", 3),
    (64, "c8 10 00 01", "enter", 4),
    (64, "f6 03 05", "test_EbIb", 3),
    (64, "f7 03 05 00 00 00", "test_EvIz", 6),
    (64, "66 f7 03 05 00", "test_EvIz", 5),
    (64, "f7 13", "not_Ev", 2),
    (32, "82 c3 05", "add_EbIb82", 3),
    # ModRM, SIB, displacements
    (64, "8b 04 25 00 00 00 00", "mov_GvEv", 7),
    (64, "8b 05 00 00 00 00", "mov_GvEv", 6),
    (64, "8b 44 8b 10", "mov_GvEv", 4),
    (64, "8b 84 8b 10 00 00 00", "mov_GvEv", 7),
    (64, "8b 04 2b", "mov_GvEv", 3),
    (64, "8b 04 2d 00 00 00 00", "mov_GvEv", 7),
    (16, "8b 06 34 12", "mov_GvEv", 4),
    (16, "8b 46 12", "mov_GvEv", 3),
    (16, "8b 86 34 12", "mov_GvEv", 4),
    (16, "67 8b 05 00 00 00 00", "mov_GvEv", 7),
    (32, "67 8b 06 34 12", "mov_GvEv", 5),
    # near branches: 66 is ignored in 64-bit mode
    (64, "e8 00 00 00 00", "call_Jz", 5),
    (64, "66 e8 00 00 00 00", "call_Jz", 6),
    (32, "66 e8 00 00", "call_Jz", 4),
    (16, "e8 00 00", "call_Jz", 3),
    (16, "66 0f 84 00 00 00 00", "je_Jz", 7),
    (64, "c2 08 00", "ret_Iw", 3),
    # 90 and its relatives
    (64, "90", "nop", 1),
    (64, "66 90", "nop", 2),
    (64, "48 90", "nop", 2),
    (64, "41 90", "xchg_ZvrAX", 2),
    (64, "f3 90", "pause", 2),
    (64, "f3 41 90", "xchg_ZvrAX", 3),
    (64, "91", "xchg_ZvrAX", 1),
    (64, "0f 1f 84 00 00 00 00 00", "nop_1f", 8),
    (64, "f3 0f 1e fa", "endbr64", 4),
    (64, "f3 0f 1e c8", "nop_1e", 4),
    (64, "0f 18 08", "prefetcht0", 3),
    (64, "0f 18 c8", "nop_18", 3),
    # mandatory prefixes, alone and beside an operand size
    (64, "0f bc c3", "bsf", 3),
    (64, "f3 0f bc c3", "tzcnt", 4),
    (64, "66 f3 0f bc c3", "tzcnt", 5),
    (64, "f3 66 0f bc c3", "tzcnt", 5),
    (64, "f2 f3 0f bc c3", "tzcnt", 5),
    (64, "f3 f2 0f bc c3", "bsf", 5),
    (64, "f3 48 0f b8 c3", "popcnt", 5),
    (64, "66 f2 0f 38 f1 c3", "crc32_Ev", 6),
    (64, "f2 0f 38 f0 c3", "crc32_Eb", 5),
    (64, "0f 38 f0 03", "movbe_GvMv", 4),
    (64, "66 0f 38 f6 c3", "adcx", 5),
    (64, "f3 0f 38 f6 c3", "adox", 5),
    (64, "0f c7 0b", "cmpxchg8b", 3),
    (64, "48 0f c7 0b", "cmpxchg16b", 4),
    # LOCK
    (64, "f0 01 03", "add_EvGv", 3),
    (64, "f0 87 03", "xchg_EvGv", 3),
    (64, "f0 0f b1 0b", "cmpxchg_EvGv", 4),
    # by mode
    (64, "63 c3", "movsxd", 2),
    (32, "40", "inc_Zv", 1),
    (64, "40 40 90", "nop", 3),
    (32, "60", "pusha", 1),
    (32, "62 03", "bound", 2),
    (32, "d4 0a", "aam", 2),
    (64, "9e", "sahf_64", 1),
    (32, "9e", "sahf", 1),
    # VEX
    (64, "c4 e2 60 f2 c1", "andn", 5),
    (64, "c4 e2 e0 f2 c1", "andn", 5),
    (32, "c4 e2 60 f2 c1", "andn", 5),
    (64, "c4 e3 7b f0 c1 05", "rorx", 6),
    (64, "c4 e2 78 f3 c9", "blsr", 5),
    # fourteen prefixes are the most that an instruction of one byte can have
    (64, "66 " * 14 + "90", "nop", 15),
]


@pytest.mark.parametrize(("mode", "code", "line", "length"), PLAIN)
def test_decode(mode: int, code: str, line: str, length: int) -> None:
    assert of(code, mode) == (line, length)


NONE = [
    # mode, bytes, why
    (64, "66 " * 15 + "90", "longer than 15 bytes"),
    (64, "66 " * 10 + "81 04 25 00 00 00 00 00 00 00 00", "longer than 15 bytes with its immediate"),
    (64, "06", "invalid in 64-bit mode"),
    (64, "60", "invalid in 64-bit mode"),
    (64, "62 f1 7c 48 58 c0", "EVEX"),
    (32, "62 c3", "BOUND of a register"),
    (64, "82 c3 05", "alias of 80 outside 64-bit mode only"),
    (64, "d6", "SALC"),
    (64, "8d c0", "LEA of a register"),
    (64, "0f 38 ff c0", "no such opcode"),
    (64, "0f b8 c3", "POPCNT without F3"),
    (64, "0f 38 f0 c3", "MOVBE of a register"),
    (64, "0f c3 c3", "MOVNTI of a register"),
    (64, "0f c7 cb", "CMPXCHG8B of a register"),
    (64, "fe d0", "group 4 has INC and DEC alone"),
    (64, "8f c8", "group 1A has POP alone"),
    (64, "c6 c8 00", "group 11 has MOV alone"),
    (64, "0f ba c3 01", "group 8 begins with /4"),
    (64, "f0 01 d8", "LOCK with a register destination"),
    (64, "f0 03 03", "LOCK with memory as the source only"),
    (64, "f0 8b 03", "LOCK with MOV"),
    (64, "f0 0f a3 03", "LOCK with BT"),
    (64, "f0 38 03", "LOCK with CMP"),
    (64, "f0 90", "LOCK with NOP"),
    (64, "66 c4 e2 60 f2 c1", "66 before VEX"),
    (64, "f3 c4 e2 60 f2 c1", "F3 before VEX"),
    (64, "f2 c4 e2 60 f2 c1", "F2 before VEX"),
    (64, "f0 c4 e2 60 f2 01", "LOCK before VEX"),
    (64, "48 c4 e2 60 f2 c1", "REX before VEX"),
    (64, "c4 e2 64 f2 c1", "ANDN with VEX.L"),
    (64, "c4 e3 63 f0 c1 05", "RORX with VEX.vvvv"),
    (64, "c4 e0 60 f2 c1", "VEX map 0"),
    (64, "c4 e4 60 f2 c1", "VEX map 4"),
]


@pytest.mark.parametrize(("mode", "code", "why"), NONE)
def test_no_instruction(mode: int, code: str, why: str) -> None:
    assert of(code, mode) is None, why


@pytest.mark.parametrize(
    "code", ["48 b8 88 77 66 55 44 33 22 11", "66 0f 38 f6 84 8b 10 00 00 00", "c4 e3 7b f0 44 8b 10 05", "c8 10 00 01"]
)
def test_every_byte_is_asked_for(code: str) -> None:
    whole = bytes.fromhex(code)
    assert decode(whole) is not None
    for size in range(len(whole)):
        assert decode(whole[:size]) is None, f"{size} of {len(whole)} bytes"


def test_vex_prefix_or_les() -> None:
    """C4 and C5 are LES and LDS outside 64-bit mode where the next byte is the ModRM byte of a memory operand."""
    vex = of("c4 e2 60 f2 c1", 32)
    assert vex is not None and vex[0] == "andn"
    les = of("c4 03", 32)
    assert les is None or les[1] == 2


def test_fourth_register_of_eight() -> None:
    """Outside 64-bit mode the top bit of the register in an immediate is ignored."""
    code = bytes.fromhex("c4 e3 7d 4c 03 90")
    assert disassemble(code, 64)[1].endswith(",ymm9") and disassemble(code, 32)[1].endswith(",ymm1")


def overlap(a: Line, b: Line) -> bool:
    """Is there an instruction that both lines claim?"""
    if a.vex != b.vex or a.map != b.map or not set(a.opcodes) & set(b.opcodes):
        return False
    mine, other = a.claims(), b.claims()
    return all(other.get(field, value) == value for field, value in mine.items())


def more_specific(a: Line, b: Line) -> bool:
    """Are a's instructions a proper part of b's?"""
    mine, other = a.claims(), b.claims()
    return len(mine) > len(other) and other.keys() <= mine.keys()


def test_no_two_lines_claim_the_same_bytes() -> None:
    by_map: dict[tuple[bool, int], list[Line]] = {}
    for line in table():
        by_map.setdefault((line.vex, line.map), []).append(line)
    clashes = []
    for lines in by_map.values():
        for a, b in combinations(lines, 2):
            if not overlap(a, b) or more_specific(a, b) or more_specific(b, a):
                continue
            if a.row != b.row:  # NOP among the rows of XCHG
                continue
            clashes.append(f"{a.id} and {b.id}")
    assert not clashes, clashes


@pytest.mark.parametrize("memory", [False, True])
def test_every_line_is_reachable(memory: bool) -> None:
    lost = []
    for line in table():
        found = [decode(line.encode(mode, memory)[:15], mode) for mode in line.modes()]
        if not any(f is not None and f[0] == line.id for f in found):
            others = [f and f[0] for f in found]
            if not any(more_specific(other, line) for other in table() if other.id in others):
                lost.append((line.id, line.encode(line.modes()[-1], memory)[:8].hex(), others))
    assert not lost, lost


def test_identifiers_are_unique_and_flags_make_sense() -> None:
    assert len({line.id for line in table()}) == len(table())
    for line in table():
        read, written, undefined = line.flags
        assert not (read | written | undefined) & ~0x8D5, f"{line.id}: only the six arithmetic flags stand in the table"


def test_lock_needs_a_memory_form() -> None:
    for line in table():
        if line.attributes & A_LOCK:
            assert line.modrm and line.memory is not False, line.id
