"""Executed code in DynamoRIO's drcov format, version 2, which Lighthouse and other plugins of disassemblers read."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from os import PathLike, fspath

from kvmpy.coverage.data import Coverage
from kvmpy.debug.symbol_file import SymbolFile
from kvmpy.errors import HostError

_ENTRY = struct.Struct("<IHH")
_MOST = 0xFFFF
_REGION = 1 << 31


def drcov(coverage: Coverage, files: Iterable[SymbolFile]) -> bytes:
    """A module for each ELF file, and for each 2 GiB with code that belongs to none."""
    modules: list[tuple[int, int, str]] = []
    for file in files:
        loads = [] if file.elf is None else [one for one in file.elf.iter_segments("PT_LOAD") if one["p_memsz"]]
        if loads:
            low, high = min(one["p_vaddr"] for one in loads), max(one["p_vaddr"] + one["p_memsz"] for one in loads)
            modules.append((file.moved(low), file.moved(high), file.path))
    entries = bytearray()
    for start, size in coverage.blocks():
        number = next((n for n, (low, high, _) in enumerate(modules) if low <= start < high), len(modules))
        if number == len(modules):
            base = start // _REGION * _REGION
            modules.append((base, base + _REGION, f"[code at {base:#x}]"))
        for part in range(0, size, _MOST):
            entries += _ENTRY.pack(start + part - modules[number][0] & 0xFFFFFFFF, min(size - part, _MOST), number)
    lines = ["DRCOV VERSION: 2", "DRCOV FLAVOR: kvmpy", f"Module Table: version 2, count {len(modules)}"]
    lines.append("Columns: id, base, end, entry, path")
    lines += [f"{n:3}, {low:#018x}, {high:#018x}, {0:#018x}, {path}" for n, (low, high, path) in enumerate(modules)]
    lines.append(f"BB Table: {len(entries) // _ENTRY.size} bbs")
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape") + entries


def save(path: str | PathLike[str], coverage: Coverage, files: Iterable[SymbolFile]) -> None:
    """Raises HostError."""
    try:
        with open(path, "wb") as out:
            out.write(drcov(coverage, files))
    except OSError as error:
        raise HostError(f"write {fspath(path)}", error.errno or 0) from None
