"""Identity page tables for entries in 64-bit mode (SDM 3A 4.5): 2 MiB pages over the first 4 GiB and all RAM."""

from __future__ import annotations

import struct

from kvmpy.boot.layout import Layout
from kvmpy.units import GIB, MIB, PAGE
from kvmpy.x86 import PTE_P, PTE_PS, PTE_RW

MOST_GIB = 512
"""One PML4 entry's worth; RAM beyond is left to the guest's own tables."""


def identity_map(layout: Layout) -> int:
    """Builds the tables in free memory and returns CR3."""
    top = max(base + size for base, size in layout.ranges)
    gibs = min(max(4, -(-top // GIB)), MOST_GIB)
    # 1 GiB pages would be smaller, but not every CPU model that a guest may be given has them.
    base = layout.reserve((2 + gibs) * PAGE, "page tables")
    link = PTE_P | PTE_RW
    pdpt = b"".join(struct.pack("<Q", base + (2 + i) * PAGE | link) for i in range(gibs))
    pages = struct.pack(f"<{gibs * 512}Q", *(i * 2 * MIB | link | PTE_PS for i in range(gibs * 512)))
    layout.memory.write(base, struct.pack("<Q", base + PAGE | link).ljust(PAGE, b"\0"))
    layout.memory.write(base + PAGE, pdpt.ljust(PAGE, b"\0"))
    layout.memory.write(base + 2 * PAGE, pages)
    return base
