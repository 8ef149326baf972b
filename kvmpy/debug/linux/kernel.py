"""A running Linux: its symbols, types and memory; processes, modules and messages by way of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kvmpy.debug.guest_memory import AddressSpace
from kvmpy.debug.linux.messages import Message, Messages, read_messages
from kvmpy.debug.linux.modules import Module, module_symbols, read_modules
from kvmpy.debug.linux.processes import Process, read_processes
from kvmpy.debug.spaces import space_of
from kvmpy.debug.table import Table
from kvmpy.debug.types.btf import BadBtf, Btf
from kvmpy.debug.types.value import PathError, Value
from kvmpy.errors import ImageError, KvmpyError
from kvmpy.regs import paging_name

if TYPE_CHECKING:
    from kvmpy.machine import Machine

_BANNER = b"Linux version "
_IN_MEMORY = "kernel in memory"
_MOST_BTF = 64 << 20
MOST_ENTRIES = 1 << 17
"""Lists are followed so far: a guest may make them as long as it likes, or let them bite their tails."""


class NoLinux(KvmpyError):
    """No Linux kernel is up in this guest, or its symbols or types are not known."""


class Linux:
    """The kernel that runs on a machine at rest. Symbols come from the files of `machine.symbols`, else from the kernel's own table in
    memory; types from those files, else from the kernel's own BTF. Raises NoLinux where there is none."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.symbols = machine.symbols
        self._space = self._find_space()
        self._need_types()

    def _find_space(self) -> AddressSpace:
        in_long_mode = [cpu.index for cpu in self.machine.cpu if paging_name(cpu.vcpu.get_sregs()) in ("4-level", "5-level")]
        if not in_long_mode:
            raise NoLinux("no Linux runs in this guest: no vCPU is in 64-bit mode with paging")
        for attempt in (1, 2):
            banner = self.symbols.address("linux_banner")
            for index in in_long_mode if banner is not None else ():
                space = space_of(self.machine, index)
                if space.read(banner, len(_BANNER)) == _BANNER:
                    return space
            if attempt == 1:
                self.symbols.drop(_IN_MEMORY)  # perhaps of a kernel before a reset
                try:
                    self.symbols.add_kernel(self.machine.memory)
                except ImageError:
                    break
        raise NoLinux("no Linux kernel is up in this guest yet (or it was built without kallsyms, and --symbols names none that fits)")

    def _need_types(self) -> None:
        try:
            self.symbols.type("struct task_struct")
            return
        except PathError:
            pass
        start = self.symbols.address("__start_BTF")
        try:
            if start is None:
                raise BadBtf("it has none")
            size = Btf.size_of(self._space.read(start, 24))
            if size > _MOST_BTF:
                raise BadBtf(f"{size} bytes are too many")
            self.symbols.add_types(Btf(self._space.read(start, size)))
        except BadBtf as error:
            raise NoLinux(f"the kernel's types are not known: no DWARF, and of BTF in memory: {error}") from None

    # Ways into the kernel's memory.

    def read(self, address: int, size: int) -> bytes:
        """Kernel memory; less than `size` bytes where a page is not mapped."""
        return self._space.read(address, size)

    def physical(self, address: int) -> int | None:
        """The physical address behind one of the kernel's; None where nothing is mapped."""
        return self._space.to_physical(address)

    def at(self, type: str, address: int) -> Value:
        """A value of a type in the kernel's memory. PathError where the type is not known."""
        return Value(self._space, self.symbols.type(type), address)

    def variable(self, type: str, name: str) -> Value:
        """A global variable. NoLinux where this kernel has none of that name."""
        address = self.symbols.address(name)
        if address is None:
            raise NoLinux(f"this kernel has no {name}")
        return self.at(type, address)

    def entries(self, head: int, type: str, member: str) -> Iterator[Value]:
        """What is strung on a list_head: the structures, without the head's own. Ends at an address that is not mapped, or comes again."""
        kind = self.symbols.type(type)
        offset = _offset(kind, member)
        seen = {head}
        at = self._pointer(head)
        while at and at not in seen and len(seen) < MOST_ENTRIES:
            seen.add(at)
            yield Value(self._space, kind, at - offset)
            at = self._pointer(at)

    def _pointer(self, address: int) -> int:
        data = self._space.read(address, 8)
        return int.from_bytes(data, "little") if len(data) == 8 else 0

    # What is asked.

    @property
    def version(self) -> str:
        """The kernel's banner."""
        banner = self.symbols.address("linux_banner")
        return self._space.read(banner, 512).partition(b"\0")[0].decode("utf-8", "replace").strip() if banner else ""

    def processes(self) -> Table[Process]:
        """All processes, kernel threads among them, in the order of the kernel's list."""
        return read_processes(self)

    def modules(self) -> Table[Module]:
        """Loaded modules, the youngest first."""
        return read_modules(self)

    def dmesg(self) -> Messages:
        """The messages in the kernel's ring buffer, the oldest first."""
        return read_messages(self)

    def add_module_symbols(self) -> int:
        """Takes the symbols of all loaded modules into `machine.symbols`; gives their number."""
        found = module_symbols(self)
        self.symbols.add_list("modules in memory", found)
        return len(found)

    def __repr__(self) -> str:
        return f"<{self.version}>"


def _offset(kind: Any, member: str) -> int:
    total, at = 0, kind
    for name in member.split("."):
        total += at.offset(name)
        at = at.member(name)[0].type
    return total


__all__ = ["Linux", "Message", "NoLinux"]
