"""Boot programs for the BIOS tests: a few lines of 16-bit code become a sector image."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kvmpy.verdicts import GuestExit

DONE = GuestExit(0)

PRELUDE = """
        .code16
        .macro  exit code
        movw    $0xF4, %dx
        movb    $\\code, %al
        outb    %al, %dx
        hlt
        .endm
        .macro  out_char char
        movw    $0x0E00 + \\char, %ax
        movw    $0x0007, %bx
        int     $0x10
        .endm
        # stores all registers and flags at RESULT + 64 * n: EAX EBX ECX EDX ESI EDI EBP, FLAGS, ES, DS
        .macro  keep n
        pushfw
        pushw   %ds
        pushw   $0
        popw    %ds
        movl    %eax, 0x9000 + 64 * \\n
        movl    %ebx, 0x9004 + 64 * \\n
        movl    %ecx, 0x9008 + 64 * \\n
        movl    %edx, 0x900C + 64 * \\n
        movl    %esi, 0x9010 + 64 * \\n
        movl    %edi, 0x9014 + 64 * \\n
        movl    %ebp, 0x9018 + 64 * \\n
        movw    %es, 0x9020 + 64 * \\n
        popw    %ds
        movw    %ds, %cs:0x9022 + 64 * \\n
        popw    %cs:0x901C + 64 * \\n
        .endm
        .text
        .globl  _start
_start:
"""
RESULT = 0x9000
FIELDS = {"eax": (0, 4), "ebx": (4, 4), "ecx": (8, 4), "edx": (12, 4), "esi": (16, 4), "edi": (20, 4), "ebp": (24, 4),
          "flags": (28, 2), "es": (32, 2), "ds": (34, 2)}
CF, ZF = 1, 0x40


def assemble(directory: Path, code: str, *, size: int = 512) -> Path:
    """A boot image of `size` bytes with the signature; code past 510 bytes goes on in the second sector."""
    source, elf, out = directory / "boot.S", directory / "boot.o", directory / "boot.img"
    source.write_text(PRELUDE + code + "\n")
    subprocess.run(["gcc", "-m32", "-c", source, "-o", elf], check=True, timeout=60)
    subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", elf, "-o", out], check=True, timeout=60)
    data = bytearray(out.read_bytes())
    assert len(data) <= 510, f"{len(data)} bytes do not fit into a boot sector"
    data += bytes(size - len(data))
    data[510:512] = b"\x55\xaa"
    out.write_bytes(data)
    return out


class Kept(dict):
    """Registers that `keep n` stored."""

    def __init__(self, memory, n: int) -> None:
        raw = memory.read(RESULT + 64 * n, 64)
        super().__init__({name: int.from_bytes(raw[at : at + size], "little") for name, (at, size) in FIELDS.items()})

    def __getattr__(self, name: str) -> int:
        if name in self:
            return self[name]
        wide = "e" + name[0] + "x"
        if name[1] == "x":
            return self["e" + name] & 0xFFFF
        return self[wide] >> 8 & 0xFF if name[1] == "h" else self[wide] & 0xFF

    @property
    def carry(self) -> bool:
        return bool(self["flags"] & CF)
