"""Memory as a vCPU sees it, with the kernel's half also where the page tables of user mode leave that out (page table isolation)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kvmpy import x86
from kvmpy.debug.guest_memory import AddressSpace
from kvmpy.debug.pagewalk import walk

if TYPE_CHECKING:
    from kvmpy.machine import Machine

_KERNEL = 1 << 63


def space_of(machine: Machine, cpu: int = 0) -> AddressSpace:
    """The memory of a vCPU by linear address."""
    return _Space(machine, cpu)


class _Space(AddressSpace):
    def __init__(self, machine: Machine, cpu: int) -> None:
        super().__init__(machine.memory, machine.cpu[cpu].vcpu.get_sregs)
        self._machine = machine
        self._vcpu = machine.cpu[cpu].vcpu

    def to_physical(self, address: int) -> int | None:
        found = super().to_physical(address)
        if found is None and address & _KERNEL:
            tables = kernel_tables(self._machine, self._vcpu)
            if tables is not None:
                return walk(self.memory, address, cr0=tables.cr0, cr3=tables.cr3, cr4=tables.cr4, efer=tables.efer).gpa
        return found


def image_distance(machine: Machine, vcpu: Any) -> tuple[int, int] | None:
    """An address in Linux's image (where SYSCALL enters), and how far its memory lies behind it: that page is in all its tables."""
    sregs = vcpu.get_sregs()
    if not (sregs.efer & x86.EFER_LMA and sregs.efer & x86.EFER_SCE):
        return None
    entry = int(vcpu.get_msrs([x86.MSR_LSTAR]).get(x86.MSR_LSTAR, 0))
    gpa = walk(machine.memory, entry, cr0=sregs.cr0, cr3=sregs.cr3, cr4=sregs.cr4, efer=sregs.efer).gpa if entry & _KERNEL else None
    return None if gpa is None else (entry, gpa - entry)


def kernel_tables(machine: Machine, vcpu: Any) -> Any:
    """The control registers under which all of a Linux kernel is mapped; None where its tables are not known."""
    top = machine.symbols.address("init_top_pgt") or machine.symbols.address("swapper_pg_dir")
    found = image_distance(machine, vcpu) if top else None
    if top is None or found is None:
        return None
    sregs = vcpu.get_sregs()
    return SimpleNamespace(cr0=int(sregs.cr0), cr3=top + found[1], cr4=int(sregs.cr4), efer=int(sregs.efer))
