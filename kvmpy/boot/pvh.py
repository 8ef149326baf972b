"""PVH: a 32-bit entry found through an ELF note (Xen's x86/HVM direct boot ABI, `docs/misc/pvh.pandoc`, `start_info.h`)."""

from __future__ import annotations

import struct

from kvmpy.boot.elf import Elf, is_elf
from kvmpy.boot.image import Image
from kvmpy.boot.job import Job
from kvmpy.boot.state import BootState, protected_mode

XEN_ELFNOTE_PHYS32_ENTRY = 18
START_MAGIC = 0x336EC578


def entry_note(elf: Elf) -> int | None:
    """The 32-bit physical entry point, or None without such a note. The descriptor has 4 bytes, or 8 in Linux."""
    for name, kind, desc in elf.notes():
        if name == b"Xen" and kind == XEN_ELFNOTE_PHYS32_ENTRY and len(desc) in (4, 8):
            return int.from_bytes(desc, "little")
    return None


def recognises(image: Image) -> bool:
    return is_elf(image) and entry_note(Elf(image)) is not None


def start_info(job: Job) -> int:
    """Writes `struct hvm_start_info` version 1 with all it points to; returns its address."""
    modules = b""
    placed = job.put_modules()
    for base, size, text in placed:
        at = job.put_low(text + b"\0", "module command line") if text else 0
        modules += struct.pack("<QQQQ", base, size, at, 0)
    list_at = job.put_low(modules, "module list", 8) if modules else 0
    entries = job.layout.map
    memmap = b"".join(struct.pack("<QQII", r.base, r.size, r.kind, 0) for r in entries)
    memmap_at = job.put_low(memmap, "memory map", 8)
    cmdline_at = job.put_low(job.cmdline + b"\0", "command line")
    record = struct.pack(
        "<IIIIQQQQII", START_MAGIC, 1, 0, len(placed), list_at, cmdline_at, job.rsdp, memmap_at, len(entries), 0
    )
    return job.put_low(record, "start info", 8)


def load(job: Job) -> BootState:
    elf = Elf(job.image)
    entry = entry_note(elf)
    if entry is None:
        raise job.image.error("no PVH kernel: the ELF note XEN_ELFNOTE_PHYS32_ENTRY is missing")
    placed = elf.load(job.layout)
    if not any(p.paddr <= entry < p.paddr + p.memsz for p in placed):
        raise job.image.error(f"the PVH entry point {entry:#x} lies in no segment")
    summary = f"{len(placed)} segments, entry {entry:#x}"
    return job.finish(protected_mode("pvh", entry, gprs={"rbx": start_info(job)}, summary=summary))
