"""One machine of a comparison: it goes on from record to record, an exit or some instructions each."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from kvmpy import x86
from kvmpy.debug.code import LONGEST, disassemble, read_linear
from kvmpy.errors import ConfigError
from kvmpy.native import ffi, lib
from kvmpy.regs import GENERAL, SEGMENTS, code_width, dump, linear_rip
from kvmpy.verdicts import Crashed, Halted, Stopped, Verdict

if TYPE_CHECKING:
    from kvmpy.backend import CData
    from kvmpy.machine import Machine

_INTR, _DEBUG, _IO, _MMIO = lib.KVM_EXIT_INTR, lib.KVM_EXIT_DEBUG, lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO
_MSRS = frozenset((lib.KVM_EXIT_X86_RDMSR, lib.KVM_EXIT_X86_WRMSR))
_STEP = lib.KVM_GUESTDBG_ENABLE | lib.KVM_GUESTDBG_SINGLESTEP | lib.KVM_GUESTDBG_BLOCKIRQ
_HALTED = 3
PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
STRINGS = frozenset((*range(0x6C, 0x70), *range(0xA4, 0xA8), *range(0xAA, 0xB0)))
_SHOWN = ("selector", "base", "limit", "dpl", "db", "l")
MOST_PARTS = 64
"""Exits of one instruction."""


class Record(NamedTuple):
    """What one side did: `what` is "io", "mmio", "msr", "instruction", or "end" with the run's verdict. The guest stands behind it."""

    what: str
    data: dict[str, Any]
    address: int
    """Linear: of an exit's instruction as far as it is known, of the next instruction."""
    regs: bytes
    """struct kvm_regs."""
    sregs: CData
    string: bool = False
    """An access of a string instruction, whose registers KVM may be ahead with."""
    verdict: Verdict | None = None


class Side:
    """A loaded machine with one CPU. `stepped`: KVM's way of stepping, with interrupts held back, where two backends are compared."""

    def __init__(self, name: str, machine: Machine, *, stepped: bool = False) -> None:
        if len(machine.cpu) != 1:
            raise ConfigError("machines are compared with one CPU each")
        self.name = name
        self.machine = machine
        self.vcpu = machine.cpu[0].vcpu
        self.stepped = stepped
        self.timed_out = False
        self.reads: deque[tuple[str, int, int]] = deque()
        """What devices answered: kind, port or address, value; the other side takes it."""
        self.source: deque[tuple[str, int, int]] | None = None
        """Answers of the other side's devices, to be given in place of the own ones."""
        self.taken_over = 0
        """Answers that were another's."""
        self._loop = machine.loop
        self._seat = machine.loop.seats[0]
        self._waiting: deque[Record] = deque()
        self._loop.verdict = None
        self._serve_guest = self._loop.serve
        self._loop.serve = self._served  # type: ignore[method-assign]  # what the assist's instructions access are records too
        if stepped:
            self.vcpu.set_guest_debug(_STEP)

    # Going on.

    def next_exit(self) -> Record:
        """The next access of a device or an unknown MSR, answered; or the end."""
        while not self._waiting:
            if self._loop.verdict is not None:
                return self._end(self._loop.verdict)
            self._once(self._run)
            self._check_end()
        return self._waiting.popleft()

    def next_steps(self, count: int = 1) -> Record:
        """So many instructions further, or the end."""
        left = count
        while left and self._loop.verdict is None:
            reason = self._kvm_step() if self.machine.vm.threaded else self._once(
                self._run if self.stepped else partial(self._soft_step, left)
            )
            if reason == _DEBUG:
                left = left - 1 if self.stepped else 0
                if self.stepped and self.vcpu.get_mp_state() == _HALTED:
                    self._loop.verdict = Halted()
            else:
                self._check_end()
        self._waiting.clear()
        if self._loop.verdict is not None:
            return self._end(self._loop.verdict)
        return self._record("instruction", {}, None)

    def _run(self) -> int:
        if self.machine.vm.threaded:
            return self.vcpu.run()
        return int(self.machine.vm.run().record.exit_reason)

    def _kvm_step(self) -> int:
        """KVM's trap of a step can come an instruction late behind an exit to user space: what ends with the exit's answer ends here."""
        begun, assisted = int(self.vcpu.get_regs().rip), self._loop.assisted
        reason = self._once(self.vcpu.run)
        for _ in range(MOST_PARTS):
            if self._loop.verdict is not None or reason in (_INTR, _DEBUG):
                break
            if self._loop.assisted != assisted:
                return _DEBUG
            self.vcpu.kick()
            reason = self._once(self.vcpu.run)
            if reason == _INTR and int(self.vcpu.get_regs().rip) != begun:
                return _DEBUG
        return reason

    def _soft_step(self, count: int) -> int:
        return int(self.vcpu.step(count))  # type: ignore[attr-defined]

    def _once(self, run: Any) -> int:
        """One run and the answer to its exit."""
        loop, seat = self._loop, self._seat
        if self.machine.vm.threaded:
            reason = run()
            with loop.lock:
                self._handle(reason)
            if reason == _INTR:
                loop.look_for_halt(seat)
        else:
            with loop.lock:
                reason = run()
                self._handle(reason)
        if reason == _INTR:
            loop.post(_nothing)  # what devices have left to do
        return int(reason)

    def _handle(self, reason: int) -> None:
        loop, seat = self._loop, self._seat
        if reason == _INTR:
            if loop.timers_due is not None:
                loop.timers_due()
            if loop.rung is not None:
                loop.rung()
        elif reason != _DEBUG:
            before = self._place(reason)
            loop.handlers[min(reason, len(loop.handlers) - 1)](loop, seat)
            self._note(self.vcpu, reason, before)

    def _served(self, vcpu: Any) -> None:
        reason = int(vcpu.record.exit_reason)
        before = self._place(reason)
        self._serve_guest(vcpu)
        self._note(vcpu, reason, before)

    def _check_end(self) -> None:
        if self.timed_out and self._loop.verdict is None:
            self._loop.verdict = Stopped("timeout")

    # Records.

    def _place(self, reason: int) -> int | None:
        return self.vcpu.position()[0] if reason in (_IO, _MMIO) or reason in _MSRS else None

    def _note(self, vcpu: Any, reason: int, place: int | None) -> None:
        record = vcpu.record
        if reason == _IO:
            io, data = record.io, vcpu.io_data()
            size = int(io.size)
            for at in range(0, len(data), size):
                value = int.from_bytes(data[at : at + size], "little")
                if not io.direction:
                    value = self._answer("io", int(io.port), value)
                    data[at : at + size] = value.to_bytes(size, "little")
                self._add("io", {"port": int(io.port), "size": size, "write": bool(io.direction), "value": value}, place)
        elif reason == _MMIO:
            mmio = record.mmio
            value = int.from_bytes(bytes(mmio.data)[: mmio.len], "little")
            if not mmio.is_write:
                value = self._answer("mmio", int(mmio.phys_addr), value)
                ffi.memmove(mmio.data, value.to_bytes(8, "little"), 8)
            self._add("mmio", {"address": int(mmio.phys_addr), "size": int(mmio.len), "write": bool(mmio.is_write), "value": value}, place)
        elif reason in _MSRS:
            msr = record.msr
            data = {"index": int(msr.index), "name": x86.msr_name(msr.index), "write": reason == lib.KVM_EXIT_X86_WRMSR}
            self._add("msr", {**data, "value": int(msr.data), "served": not msr.error}, place)

    def _answer(self, kind: str, place: int, value: int) -> int:
        """A device's answer: the other side's where that made the same access."""
        source = self.source
        if source and source[0][:2] == (kind, place):
            other = source.popleft()[2]
            self.taken_over += other != value
            value = other
        self.reads.append((kind, place, value))
        return value

    def _add(self, what: str, data: dict[str, Any], place: int | None) -> None:
        self._waiting.append(self._record(what, data, place))

    def _record(self, what: str, data: dict[str, Any], place: int | None) -> Record:
        regs, sregs = self.vcpu.get_regs(), self.vcpu.get_sregs()
        string = False
        if place is not None:
            code = read_linear(self.machine.memory, sregs, place, LONGEST)
            opcode = next((byte for byte in code if byte not in PREFIXES and not (code_width(sregs) == 64 and byte & 0xF0 == 0x40)), 0)
            string = opcode in STRINGS
        return Record(what, data, linear_rip(regs, sregs) if place is None else place, bytes(ffi.buffer(regs)), sregs, string)

    def _end(self, verdict: Verdict) -> Record:
        record = self._record("end", {"verdict": str(verdict)}, None)
        return record._replace(verdict=Crashed(verdict.rip, verdict.why) if isinstance(verdict, Crashed) else verdict)

    # Looking and changing.

    def state(self, record: Record) -> dict[str, int]:
        """Registers of a record by name."""
        regs = ffi.new("struct kvm_regs *")
        ffi.memmove(regs, record.regs, len(record.regs))
        sregs = record.sregs
        out = {name: int(getattr(regs, name)) for name in (*GENERAL, "rip", "rflags")}
        for name in SEGMENTS:
            segment = getattr(sregs, name)
            if segment.unusable or not segment.present:
                out[name] = int(segment.selector)
                continue
            out.update({name if field == "selector" else f"{name}.{field}": int(getattr(segment, field)) for field in _SHOWN})
        for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
            out[name] = int(getattr(sregs, name))
        for name in ("gdt", "idt"):
            table = getattr(sregs, name)
            out[f"{name}.base"], out[f"{name}.limit"] = int(table.base), int(table.limit)
        return out

    def vectors(self) -> dict[str, int]:
        """x87, SSE and AVX registers by name, as an XSAVE image tells them (SDM 1 13.4)."""
        image = bytes(self.vcpu.get_xsave())
        used = image[512]
        out = {"fcw": int.from_bytes(image[0:2], "little") if used & 1 else 0x37F}
        for n in range(8):
            out[f"st{n}"] = int.from_bytes(image[32 + 16 * n : 42 + 16 * n], "little") if used & 1 else 0
        for n in range(16):
            low = image[160 + 16 * n : 176 + 16 * n] if used & 2 else bytes(16)
            high = image[576 + 16 * n : 592 + 16 * n] if used & 4 else bytes(16)
            out[f"ymm{n}"] = int.from_bytes(low + high, "little")
        return out

    def code(self, address: int, sregs: CData) -> bytes:
        """The bytes of an instruction, as they are now."""
        return read_linear(self.machine.memory, sregs, address, LONGEST)

    def instruction(self, address: int, sregs: CData) -> str:
        """Text of the instruction at a linear address, with its symbol."""
        code = self.code(address, sregs)
        found = disassemble(code, code_width(sregs), address)
        name = self.machine.symbols.text(address)
        where = f"{address:#x} <{name}>" if name else f"{address:#x}"
        return f"{where}: {found[0]}" if found else f"{where}: {code.hex(' ') or 'no memory there'}"

    def dump(self, record: Record) -> list[str]:
        """All registers of a record as lines."""
        regs = ffi.new("struct kvm_regs *")
        ffi.memmove(regs, record.regs, len(record.regs))
        return dump(regs, record.sregs).split("\n")

    def take_over(self, values: dict[str, int]) -> None:
        """Sets general registers or RFLAGS."""
        regs = self.vcpu.get_regs()
        for name, value in values.items():
            setattr(regs, name, value)
        self.vcpu.set_regs(regs)


def _nothing() -> None:
    pass
