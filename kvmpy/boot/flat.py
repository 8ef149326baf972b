"""Images without a header: `flat16`, `flat32`, `flat64` at an address, and `sector`, a boot sector without a BIOS under it.

    flat16@A   real mode at A (default 0x7c00, below 1 MiB), CS = A >> 4 when A >= 64 KiB, else CS = 0; DS = ES = SS = CS
    flat32@A   protected mode without paging at A (default 0x100000), ESP below the EBDA
    flat64@A   64-bit mode, identity-mapped, at A (default 0x100000), RSP below the EBDA
    sector     512 bytes (or all of a larger file) at 0000:7C00, DL = 0x80
EBX / RDI hold the address of the start-info record (see `pvh`) in flat32 and flat64.
"""

from __future__ import annotations

from kvmpy.boot.job import Job
from kvmpy.boot.layout import EBDA
from kvmpy.boot.state import BootState, long_mode, protected_mode, real_mode

SECTOR = 0x7C00


def has_signature(data: bytes) -> bool:
    """True for a boot sector: 55 AA at its end."""
    return len(data) >= 512 and data[510:512] == b"\x55\xaa"


def _place(job: Job, default: int) -> int:
    base = default if job.address is None else job.address
    job.layout.take(job.image, base, len(job.image), "the image")
    job.layout.memory.write(base, job.image.data)
    return base


def stack_top(job: Job) -> int:
    """A fresh 16 KiB stack in low memory; returns its end, 16-byte aligned."""
    size = 0x4000
    low = job.layout.find(size, high=EBDA, top=True)
    if low is None:
        return job.layout.reserve(size, "stack") + size
    return job.layout.reserve(size, "stack", high=EBDA, top=True) + size


def load_flat16(job: Job) -> BootState:
    job.no_modules("flat16")
    base = _place(job, SECTOR)
    if base >= 0x100000:
        raise job.image.error(f"real-mode code cannot start at {base:#x}: the address must be below 1 MiB")
    cs = base >> 4 if base >= 0x10000 else 0
    # Below 64 KiB the stack ends where the image begins, as after a BIOS; above, at the top of its own segment.
    stack = base & ~1 if cs == 0 and base >= 0x600 else 0xFFFE
    return real_mode(
        "flat16", cs, base - (cs << 4), data=cs, gprs={"rsp": stack, "rdx": 0x80}, summary=f"{len(job.image)} bytes at {base:#x}"
    )


def load_sector(job: Job) -> BootState:
    job.no_modules("sector")
    if not has_signature(job.image.data):
        raise job.image.error("no boot sector: the bytes 55 AA are not at offset 510")
    job.layout.take(job.image, SECTOR, len(job.image), "the boot sector")
    job.layout.memory.write(SECTOR, job.image.data)
    return real_mode("sector", 0, SECTOR, gprs={"rsp": SECTOR, "rdx": 0x80}, summary=f"boot sector at {SECTOR:#x}")


def load_flat32(job: Job) -> BootState:
    from kvmpy.boot.pvh import start_info

    base = _place(job, 0x100000)
    gprs = {"rsp": stack_top(job), "rbx": start_info(job)}
    return job.finish(protected_mode("flat32", base, gprs=gprs, summary=f"{len(job.image)} bytes at {base:#x}"))


def load_flat64(job: Job) -> BootState:
    from kvmpy.boot.paging import identity_map
    from kvmpy.boot.pvh import start_info

    base = _place(job, 0x100000)
    gprs = {"rsp": stack_top(job), "rdi": start_info(job)}
    state = long_mode("flat64", base, identity_map(job.layout), gprs=gprs, summary=f"{len(job.image)} bytes at {base:#x}")
    return job.finish(state)
