"""Recording what a machine executes."""

from __future__ import annotations

import os.path
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvmpy.coverage.data import Bits, Coverage, Page
from kvmpy.errors import MissingCapability
from kvmpy.native import ffi

if TYPE_CHECKING:
    from kvmpy.machine import Machine


class Recorder:
    """`machine.coverage`. Nothing costs anything until `start`; then an instruction costs a microsecond when it is first executed."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._branches = False
        self.collect: Callable[[Coverage], None] | None = None
        """Takes what is recorded before it would be lost: the machine loads another image, or is closed."""

    def start(self, *, branches: bool = True, spaces: bool = False) -> Recorder:
        """Records from now on, added to what is recorded. `branches`: also which ways conditional jumps go. `spaces`: user code apart
        by address space. Not while the guest runs in another thread. Raises MissingCapability on KVM."""
        vm: Any = self._machine.vm
        if not hasattr(vm, "set_coverage"):
            raise MissingCapability("coverage is recorded by the software CPU: backend soft")
        vm.set_coverage(True, branches=branches, spaces=spaces)
        self._branches |= branches
        return self

    def stop(self) -> None:
        """Records no more; what is recorded stays."""
        vm: Any = self._machine.vm
        if hasattr(vm, "set_coverage"):
            vm.set_coverage(False)

    def clear(self) -> None:
        """Forgets what is recorded."""
        vm: Any = self._machine.vm
        if hasattr(vm, "clear_coverage"):
            vm.clear_coverage()

    @property
    def lost(self) -> int:
        """Instructions that found no room: a guest has executed more than 65536 pages."""
        vm: Any = self._machine.vm
        return int(vm.coverage_lost()) if hasattr(vm, "coverage_lost") else 0

    def read(self) -> Coverage:
        """What is recorded so far, with the symbol files of the machine."""
        vm: Any = self._machine.vm
        found = Coverage()
        found.branches = self._branches
        symbols = self._machine.symbols
        len(symbols)  # finds out where a kernel has moved itself
        found.images = [(os.path.abspath(file.path), file.offset) for file in symbols.files if os.path.isfile(file.path)]
        found.tables = {
            file.path: [(one.name, "t" if one.function else "d", one.address) for one in file.listing()]
            for file in symbols.files if not os.path.isfile(file.path)
        }  # fmt: skip
        if hasattr(vm, "read_coverage"):
            for page in vm.read_coverage():
                bits = Bits(*(_number(one) for one in (page.start, page.bytes, page.taken, page.passed)))
                found.add(Page(page.linear, bool(page.user), page.space), bits)
        return found

    def settle(self) -> None:
        """Hands over what is recorded and forgets it: other code will stand at the same addresses."""
        if self.collect is not None:
            self.collect(self.read())
        self.clear()

    def __enter__(self) -> Recorder:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _number(bits: Any) -> int:
    return int.from_bytes(ffi.buffer(bits), "little")
