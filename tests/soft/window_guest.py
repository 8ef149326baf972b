"""A guest in long mode with two address spaces that differ in a window of pages: what its TLB keeps shows there.

The first gigabyte is mapped as it is in both. Steps of a program are text: `enter`, `entry`, `look` and `flush` put together what
tests of PCIDs do one after the other; what `look` reads is stored one by one at FOUND.
"""

from __future__ import annotations

from kvmpy.native import lib
from tests.soft.soft_guest import CODE, TABLES, Guest
from tests.soft.system_guest import assemble

WINDOW = 1 << 39  # the second entry of the PML4
SPACES = (TABLES, 0x30000)  # PML4s; their tables for the window follow at 0x20000 and 0x31000
FRAMES, FOUND = 0x40000, 0x60000
P, W, U, PS, G, NO_FLUSH = 1, 2, 4, 0x80, 0x100, 1 << 63
CR4_PGE, CR4_PCIDE, CR4_SMEP, CR4_SMAP = 0x80, 0x20000, 0x100000, 0x200000


def window_directory(space: int) -> int:
    return (0x21000, 0x32000)[space]


def window_table(space: int) -> int:
    """The page table of the window's first 2 MiB."""
    return (0x22000, 0x33000)[space]


def frame(number: int) -> int:
    return FRAMES + number * 0x1000


class WindowGuest(Guest):
    """`frames`: code or data in frames 0 and on, as at the window's pages of the same number; 16 are mapped. `bits`: G for the window's
    pages; `kernel`: what is otherwise than P, W, U in the first gigabyte. RDI is FOUND at the start."""

    def __init__(
        self, source: str, frames: dict[int, str], *, cr4: int = 0, bits: int = 0, kernel: int = 0, chips: bool = True, **options: object
    ) -> None:
        super().__init__(assemble(source, 64, CODE), "long", chips=chips, **options)  # type: ignore[arg-type]
        for at in range(TABLES + 0x2000, TABLES + 0x3000, 8):
            self.put(at, (int.from_bytes(self.get(at, 8), "little") ^ kernel).to_bytes(8, "little"))
        self.put(SPACES[1], self.get(TABLES, 8))
        for space, root in enumerate(SPACES):
            directory = window_directory(space)
            self.put(root + 8, (directory - 0x1000 | P | W | U).to_bytes(8, "little"))
            self.put(directory - 0x1000, (directory | P | W | U).to_bytes(8, "little"))
            self.put(directory, (window_table(space) | P | W | U).to_bytes(8, "little"))
            for page in range(16):
                self.put(window_table(space) + 8 * page, (frame(page) | bits | P | W | U).to_bytes(8, "little"))
        for number, text in frames.items():
            self.put(frame(number), assemble(text, 64, 0))
        sregs = self.vcpu.get_sregs()
        sregs.cr4 |= cr4
        for vcpu in self.vcpus:
            vcpu.set_sregs(sregs)
            self.set(vcpu, rip=CODE, rsp=0x7000, rdi=FOUND, rflags=2)

    def found(self, count: int) -> list[int]:
        data = self.get(FOUND, 8 * count)
        return [int.from_bytes(data[at : at + 8], "little") for at in range(0, 8 * count, 8)]


def run(guest: Guest) -> None:
    assert guest.vcpu.run() == lib.KVM_EXIT_HLT


def enter(space: int, pcid: int, *, keep: bool = True) -> str:
    return f"mov ${SPACES[space] | pcid | (NO_FLUSH if keep else 0):#x},%rax\nmov %rax,%cr3\n"


def entry(space: int, page: int, number: int, bits: int = 0) -> str:
    """The window's page leads to that frame from now on."""
    return f"movq ${frame(number) | bits | P | W | U:#x},{window_table(space) + 8 * page:#x}\n"


def look(page: int) -> str:
    return f"mov ${WINDOW + 0x1000 * page:#x},%rax\nmov (%rax),%rax\nstosq\n"


def call(page: int) -> str:
    """Calls code in the window's page, and stores the RAX that it gives."""
    return f"mov ${WINDOW + 0x1000 * page:#x},%rax\ncall *%rax\nstosq\n"


def invpcid(kind: int, pcid: int = 0, linear: int = 0) -> str:
    return f"mov ${linear:#x},%rax\npush %rax\npushq ${pcid:#x}\nmov ${kind},%eax\ninvpcid (%rsp),%rax\nadd $16,%rsp\n"


def invlpg(page: int) -> str:
    return f"mov ${WINDOW + 0x1000 * page:#x},%rax\ninvlpg (%rax)\n"


def set_cr4(bits: int, clear: int = 0) -> str:
    return f"mov %cr4,%rax\nor ${bits:#x},%rax\nand $~{clear:#x},%rax\nmov %rax,%cr4\n"
