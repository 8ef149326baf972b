"""Guests for the debugger's tests, compiled as they need them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("ld") is None, reason="gcc and ld are not installed")


def compile_c(source: Path, folder: Path, bits: int, *options: str) -> Path:
    """A plain ELF file at 2 MiB."""
    elf = folder / f"{source.stem}{bits}.elf"
    flags = ["-ffreestanding", "-nostdlib", "-static", "-no-pie", "-fno-pic", "-fno-stack-protector", "-mno-red-zone"]
    flags += ["-mgeneral-regs-only", "-fcf-protection=none"]
    flags += [ "-march=x86-64" if bits == 64 else "-march=i486", f"-m{bits}", "-fno-optimize-sibling-calls"]
    flags += ["-Wl,-Ttext=0x200000", "-Wl,--build-id=none", "-Wl,--no-warn-rwx-segments", "-Wl,-z,noexecstack"]
    subprocess.run(["gcc", "-O1", "-g", *flags, *options, "-o", str(elf), str(source)], check=True, timeout=60, capture_output=True)
    return elf


def assemble_16(text: str, folder: Path, origin: int = 0x7C00) -> tuple[Path, Path]:
    """16-bit code as ELF with symbols, and as raw bytes."""
    source, object_, elf, raw = (folder / f"code.{end}" for end in ("s", "o", "elf", "bin"))
    source.write_text(text)
    for command in (
        ["as", "--32", "-o", object_, source],
        ["ld", "-m", "elf_i386", f"-Ttext={origin:#x}", "-e", hex(origin), "--no-warn-rwx-segments", "-o", elf, object_],
        ["objcopy", "-O", "binary", "-j", ".text", elf, raw],
    ):
        subprocess.run([str(word) for word in command], check=True, timeout=30, capture_output=True)
    return elf, raw
