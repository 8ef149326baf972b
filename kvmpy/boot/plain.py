"""Plain static ELF files, started at their entry point.

ELF32: protected mode without paging, EBX = start-info record (see `pvh`), ESP = a fresh 16 KiB stack.
ELF64: 64-bit mode under identity page tables (2 MiB pages, first 4 GiB and all RAM), RDI = start-info record, RSP = a stack
aligned as at a function's entry. Interrupts are off, the IDT is empty, other general registers are 0.
"""

from __future__ import annotations

from kvmpy.boot.elf import EM_386, Elf, is_elf
from kvmpy.boot.flat import stack_top
from kvmpy.boot.image import Image
from kvmpy.boot.job import Job
from kvmpy.boot.paging import identity_map
from kvmpy.boot.pvh import start_info
from kvmpy.boot.state import BootState, long_mode, protected_mode


def recognises(image: Image) -> bool:
    """Any ELF file; what kind it is shows when it is loaded."""
    return is_elf(image)


def load(job: Job) -> BootState:
    elf = Elf(job.image)
    placed = elf.load(job.layout)
    entry = elf.physical_entry(placed)
    summary = f"{len(placed)} segments, entry {entry:#x}"
    if elf.bits == 32 or elf.machine == EM_386:
        gprs = {"rsp": stack_top(job), "rbx": start_info(job)}
        return job.finish(protected_mode("elf", entry, gprs=gprs, summary=summary))
    # The System V ABI has RSP + 8 a multiple of 16 at a function's first instruction.
    gprs = {"rsp": stack_top(job) - 8, "rdi": start_info(job)}
    return job.finish(long_mode("elf", entry, identity_map(job.layout), gprs=gprs, summary=summary))
