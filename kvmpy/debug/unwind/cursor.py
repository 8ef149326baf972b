"""A place on a call stack: program counter, stack pointer, what is known of the other registers; and the memory behind them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kvmpy import x86
from kvmpy.debug.guest_memory import AddressSpace
from kvmpy.debug.pagewalk import walk
from kvmpy.debug.spaces import space_of
from kvmpy.errors import KvmpyError
from kvmpy.regs import BY_NUMBER, code_width
from kvmpy.units import PAGE

if TYPE_CHECKING:
    from kvmpy.debug.symbols import Symbol, Symbols
    from kvmpy.machine import Machine

_MASKS = {16: 0xFFFF, 32: 0xFFFFFFFF, 64: (1 << 64) - 1}


@dataclass(frozen=True)
class Cursor:
    """`pc` and `sp` as the registers hold them (offsets in CS and SS). `exact`: the instruction at `pc` comes next, as where an
    interrupt struck; else it follows a call, which may be the last of its function."""

    pc: int
    sp: int
    cs: int
    width: int
    code_base: int = 0
    stack_base: int = 0
    exact: bool = True
    regs: dict[str, int] = field(default_factory=dict)

    @property
    def linear(self) -> int:
        """Linear address of the instruction."""
        return self.pc if self.width == 64 else self.code_base + self.pc & 0xFFFFFFFF

    @property
    def lookup(self) -> int:
        """An address in the instruction that the frame stands at: that of the call, where it is one."""
        return self.linear if self.exact or not self.linear else self.linear - 1

    @property
    def word(self) -> int:
        """Bytes of a stack slot."""
        return self.width // 8

    @property
    def mask(self) -> int:
        return _MASKS[self.width]

    def moved(self, pc: int, sp: int, **changes: Any) -> Cursor:
        """The caller's frame."""
        return replace(self, pc=pc & self.mask, sp=sp & self.mask, **{"exact": False, **changes})


class Stack:
    """What unwinding looks at: memory, symbols, descriptors of one vCPU."""

    def __init__(self, machine: Machine, cpu: int) -> None:
        self.machine = machine
        self.symbols: Symbols = machine.symbols
        vcpu = machine.cpu[cpu].vcpu
        self.regs, self.sregs = vcpu.get_regs(), vcpu.get_sregs()
        self.space: AddressSpace = space_of(machine, cpu)
        self._pages: dict[int, bytes] = {}
        self._executable: dict[int, bool] = {}

    def first(self) -> Cursor:
        """Where the vCPU stands."""
        regs, sregs = self.regs, self.sregs
        width = code_width(sregs)
        known = {name: int(getattr(regs, name)) for name in BY_NUMBER}
        stack = 64 if width == 64 else 32 if sregs.ss.db else 16
        return Cursor(
            int(regs.rip), int(regs.rsp) & _MASKS[stack], int(sregs.cs.selector), width, 0 if width == 64 else int(sregs.cs.base),
            0 if width == 64 else int(sregs.ss.base), True, known,
        )  # fmt: skip

    def read(self, address: int, size: int) -> bytes:
        """Memory at a linear address; short where there is none."""
        address &= _MASKS[64]
        inside = address % PAGE
        if size > PAGE - inside:
            return self.space.read(address, size)
        page = self._pages.get(address - inside)
        if page is None:
            page = self._pages[address - inside] = self.space.read(address - inside, PAGE)
        return page[inside : inside + size]

    def slot(self, at: Cursor, sp: int, size: int = 0) -> int | None:
        """A stack slot; None where nothing is mapped."""
        size = size or at.word
        data = self.read(at.stack_base + (sp & at.mask) & _MASKS[64 if at.width == 64 else 32], size)
        return int.from_bytes(data, "little") if len(data) == size else None

    def word(self, address: int, size: int = 8) -> int | None:
        """A number at a linear address; None where nothing is mapped."""
        data = self.read(address, size)
        return int.from_bytes(data, "little") if len(data) == size else None

    def function(self, address: int) -> Symbol | None:
        """The function that an address lies in, by the symbols."""
        found = self.symbols.find(address)
        return found[0] if found is not None and found[0].function else None

    def mapped(self, at: Cursor) -> bool:
        """True where there is code at a frame's address."""
        return bool(self.read(at.linear, 1))

    def executable(self, address: int) -> bool:
        """True where the page tables let code run."""
        page = address // PAGE
        if page not in self._executable:
            self._executable[page] = self._may_run(address)
        return self._executable[page]

    def _may_run(self, address: int) -> bool:
        sregs = self.sregs
        found = walk(self.machine.memory, address, cr0=sregs.cr0, cr3=sregs.cr3, cr4=sregs.cr4, efer=sregs.efer)
        if found.gpa is None:
            return self.space.to_physical(address) is not None
        return found.executable

    def after_call(self, at: Cursor, pc: int) -> bool:
        """True where the instruction before `pc` may be a call."""
        before = self.read(replace(at, pc=pc - 7 & at.mask).linear, 7) if pc >= 7 else b""
        if len(before) < 7:
            return False
        if before[-5] == 0xE8 or (at.width == 16 and before[-3] == 0xE8):
            return True
        # FF /2 and FF /3: with a register, memory, SIB and displacements.
        return any(before[-size] == 0xFF and before[1 - size] >> 3 & 7 in (2, 3) for size in (2, 3, 4, 6, 7))

    def code_segment(self, selector: int) -> tuple[int, int] | None:
        """Width and base of the code segment of a selector, by the GDT; None where it is none."""
        sregs = self.sregs
        if not sregs.cr0 & x86.CR0_PE:
            return 16, selector << 4
        if selector & 4 or selector < 8 or selector | 7 > sregs.gdt.limit:
            return None
        data = self.read(int(sregs.gdt.base) + (selector & ~7), 8)
        entry = int.from_bytes(data, "little")
        if len(data) < 8 or entry >> 43 & 0x13 != 0x13:  # present, not a system segment, code
            return None
        if entry >> 53 & 1 and sregs.efer & x86.EFER_LMA:
            return 64, 0
        base = entry >> 16 & 0xFFFFFF | (entry >> 56 & 0xFF) << 24
        return (32 if entry >> 54 & 1 else 16), base


def quietly(method: Any, *arguments: Any) -> Any:
    """What a method gives; None where guest memory or debugging information leads it astray."""
    try:
        return method(*arguments)
    except (KvmpyError, ValueError, KeyError, IndexError, OverflowError, AttributeError, TypeError, AssertionError, RecursionError):
        return None
