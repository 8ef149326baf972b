"""The disassembler and the decoder's lengths, against objdump where it is installed."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.soft.insn_lines import disassemble

OBJDUMP = shutil.which("objdump")
MACHINE = {16: ("-m", "i8086"), 32: ("-m", "i386"), 64: ("-m", "i386:x86-64")}
SLOT = 32
LEGACY = bytes([0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3])
# Prefixes that objdump writes out where they mean nothing.
IDLE = re.compile(r"^((rex(\.\w+)?|data16|data32|addr16|addr32|cs|ss|ds|es|fs|gs|bnd|xacquire|xrelease|repz|repnz) +)+(?=\w)")
NEAR_66 = re.compile(r"^(j|call|ret|loop|bnd)")

TEXTS = [
    (64, "8b 44 8b 10", "mov    eax,DWORD PTR [rbx+rcx*4+0x10]"),
    (64, "48 89 d8", "mov    rax,rbx"),
    (64, "48 8b 05 10 00 00 00", "mov    rax,QWORD PTR [rip+0x10]        # 0x17"),
    (64, "64 48 8b 04 25 28 00 00 00", "mov    rax,QWORD PTR fs:0x28"),
    (64, "88 65 f8", "mov    BYTE PTR [rbp-0x8],ah"),
    (64, "40 88 65 f8", "mov    BYTE PTR [rbp-0x8],spl"),
    (64, "48 83 ec 08", "sub    rsp,0x8"),
    (64, "48 83 c4 f8", "add    rsp,0xfffffffffffffff8"),
    (64, "6a ff", "push   0xffffffffffffffff"),
    (64, "c1 e0 1f", "shl    eax,0x1f"),
    (64, "48 b8 88 77 66 55 44 33 22 11", "movabs rax,0x1122334455667788"),
    (64, "a0 88 77 66 55 44 33 22 11", "movabs al,ds:0x1122334455667788"),
    (64, "f3 48 ab", "rep stos QWORD PTR es:[rdi],rax"),
    (64, "f2 ae", "repnz scas al,BYTE PTR es:[rdi]"),
    (64, "f0 48 0f b1 0f", "lock cmpxchg QWORD PTR [rdi],rcx"),
    (64, "74 10", "je     0x12"),
    (64, "e8 fb ff ff ff", "call   0x0"),
    (64, "ff 25 00 00 00 00", "jmp    QWORD PTR [rip+0x0]        # 0x6"),
    (64, "41 0f 94 c0", "sete   r8b"),
    (64, "0f 1f 84 00 00 00 00 00", "nop    DWORD PTR [rax+rax*1+0x0]"),
    (64, "f3 0f 1e fa", "endbr64"),
    (64, "48 63 c8", "movsxd rcx,eax"),
    (64, "4d 0f be 00", "movsx  r8,BYTE PTR [r8]"),
    (64, "c4 e2 e0 f2 c1", "andn   rax,rbx,rcx"),
    (64, "48 98", "cdqe"),
    (64, "99", "cdq"),
    (64, "d7", "xlat   BYTE PTR ds:[rbx]"),
    (32, "a1 44 33 22 11", "mov    eax,ds:0x11223344"),
    (32, "e3 00", "jecxz  0x2"),
    (16, "8b 46 12", "mov    ax,WORD PTR [bp+0x12]"),
    (16, "8b 00", "mov    ax,WORD PTR [bx+si]"),
    (16, "66 8b 06 34 12", "mov    eax,DWORD PTR ds:0x1234"),
    (16, "e2 fe", "loop   0x0"),
]


@pytest.mark.parametrize(("mode", "code", "text"), TEXTS)
def test_text(mode: int, code: str, text: str) -> None:
    assert disassemble(bytes.fromhex(code), mode) == (len(bytes.fromhex(code)), text)


def test_bad_bytes_and_short_rooms() -> None:
    length, text = disassemble(b"\x06")
    assert length < 0 and text == "(bad)"
    assert disassemble(b"")[0] < 0


def objdump(path: Path, *options: str) -> list[tuple[int, int, str]]:
    """(address, length, text) of each instruction."""
    assert OBJDUMP is not None
    command = [OBJDUMP, "-M", "intel", "-z", "--insn-width=16", *options, str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = []
    for line in out.splitlines():
        match = re.match(r"\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*(.*)", line)
        if match:
            text = re.sub(r"\s+<[^>]*>", "", match[3]).strip()
            found.append((int(match[1], 16), len(match[2].split()), text))
    return found


def same(ours: str, theirs: str) -> bool:
    return re.sub(r"\s+", " ", ours) == re.sub(r"\s+", " ", IDLE.sub("", theirs))


def random_code(generator: random.Random, mode: int) -> bytes:
    """Bytes that begin an instruction more often than pure noise."""
    code = bytes(generator.choice(LEGACY) for _ in range(generator.choice((0, 0, 0, 0, 1, 1, 2))))
    body = bytes(generator.randrange(256) for _ in range(14))
    choice = generator.random()
    if choice < 0.45:
        body = (b"\x0f", b"\x0f", b"\x0f\x38", b"\x0f\x3a")[int(choice * 8)] + body
    if mode == 64 and generator.random() < 0.5 and body[0] not in LEGACY and body[0] & 0xF0 != 0x40:
        body = bytes([0x40 | generator.randrange(16)]) + body
    return (code + body)[:15]


@pytest.mark.skipif(OBJDUMP is None, reason="objdump (binutils) is not installed")
@pytest.mark.parametrize("mode", [16, 32, 64])
def test_random_bytes_have_objdumps_lengths(mode: int, tmp_path: Path) -> None:
    generator = random.Random(mode)
    codes = [random_code(generator, mode).ljust(SLOT, b"\x90") for _ in range(8000)]
    file = tmp_path / "code"
    file.write_bytes(b"".join(codes))
    theirs = {address: (length, text) for address, length, text in objdump(file, "-D", "-b", "binary", *MACHINE[mode])}
    compared = alike = 0
    for n, code in enumerate(codes):
        length, text = theirs.get(n * SLOT, (0, "(bad)"))
        mine, my_text = disassemble(code, mode, n * SLOT)
        if mine < 0 or length == 0 or my_text == "fwait" or "(bad)" in text or IDLE.fullmatch(text + " x"):
            continue
        if re.fullmatch(r"(\w+ )*rex\S*", text):  # objdump gives a REX prefix before another prefix a line of its own
            continue
        if mode == 64 and b"\x66" in code[: mine - 1] and NEAR_66.match(my_text):
            continue  # objdump follows AMD here: a near branch with 66 has 16 bits
        compared += 1
        assert mine == length, f"{code[:15].hex(' ')}: {my_text} ({mine} bytes), objdump: {text} ({length} bytes)"
        alike += same(my_text, text)
    assert compared > 3000
    # Beyond 64-bit mode objdump writes idle prefixes and sizes of stack instructions in ways of its own.
    assert alike > compared * (0.97 if mode == 64 else 0.8), f"{alike} of {compared} texts are objdump's"


@pytest.mark.skipif(OBJDUMP is None, reason="objdump (binutils) is not installed")
def test_compiled_code_reads_as_objdump_reads_it(tmp_path: Path) -> None:
    """20000 instructions of the C library."""
    places = ("/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib64/libc.so.6", "/lib64/libc.so.6")
    library = next((p for p in map(Path, places) if p.exists()), None)
    if library is None:
        pytest.skip("no C library to read")
    sections = subprocess.run([str(OBJDUMP), "-h", "-j", ".text", str(library)], capture_output=True, text=True, check=True, timeout=60)
    match = re.search(r"\.text\s+([0-9a-f]+)\s+([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)", sections.stdout)
    assert match
    _, start, offset = (int(value, 16) for value in match.groups())
    image = library.read_bytes()
    compared = alike = 0
    different = []
    for address, length, text in objdump(library, "-d", "-j", ".text", f"--stop-address={start + 0x18000}")[:20000]:
        at = offset + address - start
        mine, my_text = disassemble(image[at : at + 15], 64, address)
        if "(bad)" in text or mine < 0:
            continue
        assert mine == length, f"{image[at:at + length].hex(' ')}: {my_text}, objdump: {text}"
        compared += 1
        text = re.sub(r"(?<=[ ,])([0-9a-f]+)$", r"0x\1", text) if re.match(r"(j|call|.*# )", text) else text
        if same(my_text, text):
            alike += 1
        else:
            different.append((my_text, text))
    assert compared > 10000
    assert alike > compared * 0.98, different[:20]
