"""Break- and watchpoints of a debugger, by what the backend offers.

The software CPU keeps any number itself, unseen by the guest. KVM has the four debug registers, and breakpoint instructions
written into guest memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvmpy.backend import Vcpu, Vm
from kvmpy.debug.guest_memory import AddressSpace
from kvmpy.errors import KvmpyError
from kvmpy.kvm.probe import ask
from kvmpy.native import lib

INT3 = b"\xcc"
KINDS = ("software", "hardware", "write", "read", "access")
"""By the number in a Z packet."""
_CORE_KINDS = {
    "software": lib.KP_POINT_EXECUTE, "hardware": lib.KP_POINT_EXECUTE, "write": lib.KP_POINT_WRITE, "read": lib.KP_POINT_READ,
    "access": lib.KP_POINT_READ | lib.KP_POINT_WRITE,
}  # fmt: skip
_REGISTER_KINDS = {"hardware": 0, "write": 1, "access": 3}
_REGISTER_SIZES = {1: 0, 2: 1, 8: 2, 4: 3}


class PointError(KvmpyError):
    """The backend cannot hold this point."""


@dataclass(frozen=True)
class Point:
    """`size` bytes at a linear address; `kind` is one of KINDS."""

    kind: str
    address: int
    size: int = 1

    def covers(self, address: int) -> bool:
        return self.address <= address < self.address + self.size


@dataclass(frozen=True)
class Hit:
    """Why a vCPU stopped: `kind` is one of KINDS or "step"; the address of the instruction or of the access."""

    kind: str
    address: int


class Points:
    """What both backends share: the set of points, put in force by `apply` before a run."""

    def __init__(self) -> None:
        self._points: dict[Point, int] = {}
        self._changed = True

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Any:
        return iter(self._points)

    def add(self, point: Point) -> None:
        """One more; the same one may be added several times. PointError where the backend cannot hold it."""
        if point.size < 1 or point.address + point.size > 1 << 64:
            raise PointError(f"{point.size} bytes at {point.address:#x}: no such range")
        if point not in self._points:
            self._insert(point)
            self._changed = True
        self._points[point] = self._points.get(point, 0) + 1

    def remove(self, point: Point) -> None:
        """Harmless where there is none."""
        count = self._points.get(point, 0)
        if count > 1:
            self._points[point] = count - 1
        elif count:
            del self._points[point]
            self._withdraw(point)
            self._changed = True

    def clear(self) -> None:
        """No point is left."""
        for point in list(self._points):
            self._points[point] = 1
            self.remove(point)

    def apply(self, steps: frozenset[int]) -> None:
        """Puts the points in force, and single-stepping on the vCPUs `steps`."""

    def hit(self, vcpu: Vcpu) -> Hit | None:
        """What the present KVM_EXIT_DEBUG of a vCPU is of; None: of nothing here."""
        return None

    def refused(self, vcpu: Vcpu, code: bytes) -> Hit | None:
        """The same for an instruction that the backend could not execute."""
        return None

    def hide(self, gpa: int, data: bytes) -> bytes:
        """Memory as the guest would see it: without what breakpoints have put there."""
        return data

    def reinsert(self) -> None:
        """The guest's memory is new: what was written into it is written again."""

    def _insert(self, point: Point) -> None:
        """The backend's part of `add`."""

    def _withdraw(self, point: Point) -> None:
        """The backend's part of `remove`."""

    def _watch_at(self, address: int, size: int) -> Point | None:
        for point in self._points:
            if point.kind not in ("software", "hardware") and point.address < address + size and address < point.address + point.size:
                return point
        return None


class SoftPoints(Points):
    """The software CPU's: nothing is limited, nothing is written to memory."""

    def __init__(self, vm: Vm, vcpus: list[Vcpu]) -> None:
        super().__init__()
        self._vm: Any = vm
        self._vcpus = vcpus
        self._stepping: frozenset[int] = frozenset()

    def apply(self, steps: frozenset[int]) -> None:
        if self._changed:
            self._vm.set_debug_points([(point.address, point.size, _CORE_KINDS[point.kind]) for point in self])
            self._changed = False
        for vcpu in self._vcpus:
            if (vcpu.index in steps) != (vcpu.index in self._stepping):
                on = lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP | lib.KVM_GUESTDBG_BLOCKIRQ
                vcpu.set_guest_debug(on if vcpu.index in steps else 0)
        self._stepping = steps

    def hit(self, vcpu: Any) -> Hit | None:
        found = vcpu.debug_hit()
        if found is None:
            return Hit("step", 0) if vcpu.record.debug.arch.exception == 1 else None
        address, size, kind = found
        if kind == lib.KP_POINT_EXECUTE:
            exact = Point("hardware", address)
            return Hit("hardware" if exact in self._points else "software", address)
        point = self._watch_at(address, size)
        return Hit(point.kind, max(address, point.address)) if point else None


class KvmPoints(Points):
    """KVM's: breakpoint instructions in guest memory, and DR0 to DR3 for the rest.

    A breakpoint whose address is not mapped to writable memory takes a debug register; so do all, while there are any, where
    KVM runs kernel code in its instruction emulator, which may take a breakpoint instruction for the guest's own.
    """

    def __init__(self, vm: Vm, vcpus: list[Vcpu], space: Callable[[], AddressSpace]) -> None:
        super().__init__()
        self._vcpus = vcpus
        self._space = space
        self._written: dict[Point, tuple[int, bytes]] = {}
        self._registers: dict[Point, list[tuple[int, int, int]]] = {}
        self._block = lib.KVM_GUESTDBG_BLOCKIRQ if self._allowed(vm) & lib.KVM_GUESTDBG_BLOCKIRQ else 0
        self._instructions = ask("cpl0_on_hardware")
        self._control: dict[int, int] = {}
        self._debug_registers: tuple[int, ...] = ()

    @staticmethod
    def _allowed(vm: Any) -> int:
        return int(vm.check_extension(lib.KVM_CAP_SET_GUEST_DEBUG2))

    def _insert(self, point: Point) -> None:
        if point.kind == "software" and (self._instructions or self._taken() == 4):
            gpa = self._space().to_physical(point.address)
            if gpa is not None and self._space().memory.contains(gpa, 1, write=True):
                memory = self._space().memory
                self._written[point] = (gpa, memory.read(gpa, 1))
                memory.write(gpa, INT3)
                return
        self._registers[point] = self._pieces(point)

    def _pieces(self, point: Point) -> list[tuple[int, int, int]]:
        """Address, size and kind for each debug register that the point takes: sizes 1, 2, 4 and 8, each aligned."""
        kind = _REGISTER_KINDS["hardware" if point.kind == "software" else "access" if point.kind == "read" else point.kind]
        address, left = point.address, 1 if kind == 0 else point.size
        pieces: list[tuple[int, int, int]] = []
        while left and len(pieces) <= 4:
            size = next(n for n in (8, 4, 2, 1) if address % n == 0 and n <= left)
            pieces.append((address, size, kind))
            address += size
            left -= size
        if self._taken() + len(pieces) > 4:
            raise PointError("the processor has four debug registers, and they are taken")
        return pieces

    def reinsert(self) -> None:
        memory = self._space().memory
        for point, (gpa, _) in self._written.items():
            self._written[point] = gpa, memory.read(gpa, 1)
            memory.write(gpa, INT3)

    def _withdraw(self, point: Point) -> None:
        self._registers.pop(point, None)
        placed = self._written.pop(point, None)
        if placed is not None:
            gpa, before = placed
            memory = self._space().memory
            if memory.contains(gpa, 1, write=True) and memory.read(gpa, 1) == INT3:  # the guest may have put something newer there
                memory.write(gpa, before)

    def _taken(self) -> int:
        return sum(map(len, self._registers.values()))

    def _pieces_in_order(self) -> list[tuple[Point, tuple[int, int, int]]]:
        return [(point, piece) for point, pieces in self._registers.items() for piece in pieces]

    def apply(self, steps: frozenset[int]) -> None:
        pieces = self._pieces_in_order()
        registers = [0] * 8
        for n, (_, (address, size, kind)) in enumerate(pieces):
            registers[n] = address
            registers[7] |= 2 << 2 * n | (kind | (_REGISTER_SIZES[size] << 2 if kind else 0)) << 16 + 4 * n
        registers[7] |= 0x600 if pieces else 0
        base = (lib.KVM_GUESTDBG_USE_SW_BP if self._written else 0) | (lib.KVM_GUESTDBG_USE_HW_BP if pieces else 0)
        for vcpu in self._vcpus:
            control = base | (lib.KVM_GUESTDBG_SINGLESTEP | self._block if vcpu.index in steps else 0)
            self._control[vcpu.index] = control | lib.KVM_GUESTDBG_ENABLE if control else 0
            self._debug_registers = tuple(registers) if pieces else ()
            vcpu.set_guest_debug(self._control[vcpu.index], self._debug_registers)

    def hit(self, vcpu: Vcpu) -> Hit | None:
        debug = vcpu.record.debug.arch
        if debug.exception == 3:
            return self._software(int(debug.pc))
        pieces = self._pieces_in_order()
        for n in range(min(4, len(pieces))):
            if debug.dr6 >> n & 1:
                point, (address, _, kind) = pieces[n]
                return Hit(point.kind, address if kind else int(debug.pc))
        return Hit("step", int(debug.pc)) if debug.dr6 & 1 << 14 else None

    def refused(self, vcpu: Vcpu, code: bytes) -> Hit | None:
        if code[:1] != INT3:
            return None
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        base = 0 if sregs.efer & 1 << 10 and sregs.cs.l else int(sregs.cs.base)
        return self._software(int(regs.rip) + base)

    def _software(self, pc: int) -> Hit | None:
        gpa = self._space().to_physical(pc)
        for point, (where, _) in self._written.items():
            if point.address == pc or where == gpa:
                return Hit("software", pc)
        return None

    def pass_on(self, vcpu: Vcpu) -> None:
        """The guest's own breakpoint instruction: its handler is entered when the vCPU goes on (KVM API 4.86)."""
        vcpu.set_guest_debug(self._control.get(vcpu.index, 0) | lib.KVM_GUESTDBG_INJECT_BP, self._debug_registers)

    def hide(self, gpa: int, data: bytes) -> bytes:
        out = bytearray(data)
        for where, before in self._written.values():
            if gpa <= where < gpa + len(data):
                out[where - gpa] = before[0]
        return bytes(out)
