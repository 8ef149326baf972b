"""What a machine at rest tells of its guest. The parts are of a higher layer and are loaded when they are asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kvmpy.errors import ImageError
from kvmpy.verdicts import Verdict

if TYPE_CHECKING:
    from kvmpy.cpu import Cpu
    from kvmpy.memory import GuestMemory


class Inspection:
    """The half of Machine that looks into the guest and changes nothing there."""

    memory: GuestMemory
    cpu: list[Cpu]
    image: str | None
    """Path of the image that was loaded."""
    ended: Verdict | None
    """How the last run ended."""
    _symbols: Any = None

    @property
    def symbols(self) -> Any:
        """Names and source lines (kvmpy.debug.symbols.Symbols), of the loaded image as far as it tells; `add` takes more."""
        if self._symbols is None:
            module = importlib.import_module("kvmpy.debug.symbols")
            self._symbols = module.Symbols(self)
            if self.image is not None and module.has_symbols(self.image):
                try:
                    self._symbols.add(self.image)
                except ImageError:
                    pass  # nobody asked for this file's; a kernel's own table can be taken from memory later
        return self._symbols

    def symbol(self, name: str) -> Any:
        """Address of a symbol (kvmpy.debug.symbols.Address: an int with its symbol and source line). KeyError where no file knows it."""
        symbol = self.symbols.symbol(name)
        if symbol is None:
            raise KeyError(name)
        return importlib.import_module("kvmpy.debug.symbols").Address(symbol, self.symbols.line(symbol.address))

    def where(self, cpu: int = 0) -> Any:
        """Where a vCPU stands (kvmpy.debug.symbols.Place): as text "start_kernel+0x1c (main.c:12)", or the linear address where nothing
        is known."""
        from kvmpy.regs import linear_rip

        vcpu = self.cpu[cpu].vcpu
        return self.symbols.place(linear_rip(vcpu.get_regs(), vcpu.get_sregs()))

    def backtrace(self, cpu: int = 0, limit: int = 64) -> Any:
        """The call stack of a vCPU (kvmpy.debug.unwind.backtrace.Backtrace: a list of Frame whose text has a line for each).
        Nothing that the guest's stack holds makes it raise."""
        return importlib.import_module("kvmpy.debug.unwind.backtrace").backtrace(self, cpu, limit)

    def page_table(self, cpu: int = 0) -> Any:
        """What the page tables of a vCPU map: a list of Mapping (kvmpy.debug.pagetable), neighbours with the same flags joined, whose
        text is a table. Empty while paging is off."""
        return importlib.import_module("kvmpy.debug.pagetable").page_table(self.memory, self.cpu[cpu].vcpu.get_sregs())

    def page_walk(self, address: int, cpu: int = 0) -> Any:
        """How the page tables of a vCPU lead from a linear address to memory (kvmpy.debug.pagewalk.Walk); as text a line for each table."""
        sregs = self.cpu[cpu].vcpu.get_sregs()
        control = {name: int(getattr(sregs, name)) for name in ("cr0", "cr3", "cr4", "efer")}
        return importlib.import_module("kvmpy.debug.pagewalk").walk(self.memory, address, **control)

    def disassemble(self, address: int | None = None, count: int = 10, before: int = 0, cpu: int = 0) -> Any:
        """Instructions (kvmpy.debug.code.Listing) at a linear address, by default where the vCPU stands, in its present mode, and
        `before` of the function's instructions before it where that is known; as text a line each."""
        return importlib.import_module("kvmpy.debug.code").listing(self, address, count, before, cpu)

    def autopsy(self, verdict: Verdict | None = None) -> Any:
        """What the machine at rest did last, and why it goes on no more (kvmpy.debug.autopsy.page.Autopsy): one page of text as str(),
        plain data by as_dict(). `verdict` is the last run's where none is given. Nothing of the guest changes: samples of a loop and
        what led to a triple fault come of a copy on the software CPU."""
        return importlib.import_module("kvmpy.debug.autopsy.page").autopsy(self, verdict or self.ended)

    @property
    def linux(self) -> Any:
        """The Linux kernel that runs in the guest (kvmpy.debug.linux.kernel.Linux): `processes()`, `modules()`, `dmesg()`, out of its
        memory. Raises a KvmpyError, NoLinux, where none is up."""
        return importlib.import_module("kvmpy.debug.linux.kernel").Linux(self)
