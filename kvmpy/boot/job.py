"""What every boot protocol is given, and the steps that they share."""

from __future__ import annotations

from kvmpy.boot.image import Image
from kvmpy.boot.layout import VGA, Layout
from kvmpy.boot.state import BootState, Table, pack_gdt
from kvmpy.record import Record, field
from kvmpy.units import MIB, PAGE

LOADER_NAME = b"kvmpy"


class Module(Record, frozen=True):
    """A file loaded beside the kernel; `cmdline` is its own text, by multiboot's custom the file's name and arguments."""

    image: Image
    cmdline: bytes = b""


class Job(Record):
    """One load: the image, where it goes, and what goes with it."""

    image: Image
    layout: Layout
    cmdline: bytes = b""
    modules: list[Module] = field(default_factory=list)
    """The initrd, where one is given, is the first."""
    rsdp: int = 0
    """Address of the ACPI root pointer; 0 when there is no room for tables."""
    address: int | None = None
    """The address named with the protocol ("flat32@0x200000")."""

    def no_modules(self, protocol: str) -> None:
        """ImageError when there are modules, for a protocol that has no way to hand them over."""
        if self.modules:
            raise self.modules[0].image.error(f"an initrd or module was given, but {protocol} cannot hand one over")

    def put_modules(self) -> list[tuple[int, int, bytes]]:
        """Loads the modules above the kernel, each on a page of its own: (address, size, command line)."""
        placed = []
        for module in self.modules:
            size = len(module.image)
            base = self.layout.find(size, align=PAGE, low=MIB)
            if base is None:
                raise module.image.error(f"module too large: no free {size:#x} bytes of memory for it")
            self.layout.take(module.image, base, size, "module")
            self.layout.memory.write(base, module.image.data)
            placed.append((base, size, module.cmdline))
        return placed

    def put_low(self, data: bytes, what: str, align: int = 16) -> int:
        """Writes a record for the guest: below 640 KiB when there is room, else above 1 MiB."""
        if self.layout.find(len(data), align=align, high=VGA) is not None:
            return self.layout.put(data, what, align=align, high=VGA)
        return self.layout.put(data, what, align=align, low=MIB)

    def finish(self, state: BootState) -> BootState:
        """Puts the GDT that the segment registers came from into memory."""
        table = pack_gdt(state)
        state.gdt = Table(self.put_low(table, "GDT"), len(table) - 1)
        return state
