"""Two machines in lock step: record by record until they differ."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from kvmpy import x86
from kvmpy.debug.lockstep.side import PREFIXES, STRINGS, Record, Side
from kvmpy.native import ffi, lib
from kvmpy.record import Record as Plain
from kvmpy.record import field
from kvmpy.regs import code_width
from kvmpy.threads import start_thread
from kvmpy.trace.event import Event
from kvmpy.trace.words import describe
from kvmpy.verdicts import Stopped

BEFORE = 12
"""Records shown of what came before a difference."""
MEMORY_EVERY = 1 << 14
"""Records between two comparisons of memory."""
TICK = 0.05

TIMED_PORTS = frozenset((*range(0x40, 0x44), 0x61, 0x70, 0x71, *range(0x608, 0x60C)))
"""PIT, RTC and ACPI timer: reads tell the time."""
MOST_READS = 1 << 16
"""Answers of devices that one side may be behind with."""
TIMED_MSRS = frozenset((x86.MSR_TSC, x86.MSR_TSC_DEADLINE))
MOST_ELEMENTS = 1 << 20
"""Of one repeated instruction."""
_CLOCKS = frozenset(("rdtsc", "rdtscp", "rdrand", "rdseed", "rdpmc"))
_ARITHMETIC = 0x8D5
_RF = 1 << 16
_STRING_REGISTERS = frozenset(("rcx", "rsi", "rdi", "rip", "rflags"))
IGNORABLE = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "cr2", "cr8")


class Difference(Plain, frozen=True):
    """The first record in which two sides differ: its number from 0, what differs as (name, left, right), and the page about it."""

    number: int
    what: str
    address: int
    """Linear: of the exit's instruction; of the instruction whose results differ, or where its side stood before it."""
    values: list[tuple[str, Any, Any]]
    lines: list[str] = field(default_factory=list, compare=False)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Result(Plain, frozen=True):
    """How a comparison ended: after so many equal records, with a difference or with the same end of both sides."""

    records: int
    difference: Difference | None
    end: str


class Lockstep:
    """Both sides' machines belong to the caller. `by` is "exit" or "instruction"; `stride` counts instructions of a record.
    `ignore` names registers that are not compared."""

    def __init__(self, left: Side, right: Side, *, by: str = "exit", stride: int = 1, ignore: Iterable[str] = ()) -> None:
        self.left, self.right = left, right
        self._by, self._stride = by, stride
        self._ignore = frozenset(ignore)
        self._alike = left.machine.vm.name == right.machine.vm.name == "soft"
        self._last: deque[tuple[int, Record]] = deque(maxlen=BEFORE)
        self.records = 0
        if not self._alike:
            right.source = left.reads  # devices with a clock of their own are no concern of the CPUs
            # One table for both: what CPUID says is no difference.
            from_kvm, to_soft = (left, right) if left.machine.vm.name == "kvm" else (right, left)
            if to_soft.machine.vm.name == "soft":
                to_soft.vcpu.set_cpuid(from_kvm.vcpu.get_cpuid())

    def run(self, count: int | None = None, timeout: float | None = None) -> Result:
        """Until they differ, end, `count` records were equal, or the time is over."""
        with _Ticker((self.left, self.right), timeout):
            while count is None or self.records < count:
                found = self._one()
                if found is not None:
                    return Result(self.records, found, "")
                self.records += 1
                record = self._last[-1][1]
                if record.what == "end":
                    return Result(self.records, self._memory(record), str(record.verdict))
                if self.records % MEMORY_EVERY == 0 and (found := self._memory(record)) is not None:
                    return Result(self.records, found, "")
        return Result(self.records, self._memory(self._last[-1][1]) if self._last else None, f"{self.records} records")

    def _one(self) -> Difference | None:
        """One record of both."""
        if self._by == "exit":
            left, right = self.left.next_exit(), self.right.next_exit()
        else:
            begun = self._last[-1][1] if self._last else None
            at, sregs = (begun.address, begun.sregs) if begun else self._here()
            code = b"" if self._alike else self.left.code(at, sregs)
            left, right = self.left.next_steps(self._stride), self.right.next_steps(self._stride)
            if code and left.what == right.what == "instruction":
                left, right = self._settle(code, code_width(sregs), begun, left, right)
        for reads in (self.left.reads, self.right.reads):
            if self._alike or self._by == "instruction" or len(reads) > MOST_READS:
                reads.clear()
        if left.verdict == Stopped("timeout") or right.verdict == Stopped("timeout"):
            ended = Stopped("timeout")  # the host's doing: nothing can be said of the last record
            self._last.append((self.records, left._replace(what="end", verdict=ended)))
            return None
        values = self._differences(left, right)
        if values:
            return self._difference(left, right, values)
        self._last.append((self.records, left))
        return None

    def _here(self) -> tuple[int, Any]:
        from kvmpy.regs import linear_rip

        regs, sregs = self.left.vcpu.get_regs(), self.left.vcpu.get_sregs()
        return linear_rip(regs, sregs), sregs

    def _settle(self, code: bytes, width: int, begun: Record | None, left: Record, right: Record) -> tuple[Record, Record]:
        """What the manual leaves open, and what tells the time, the right side takes from the left."""
        mnemonic, undefined, length = _instruction(code, width)
        if left.address != right.address and _loads_ss(code) and begun is not None:
            # A step's trap comes behind the instruction after one that loads SS (SDM 3A 6.8.3); some hosts' KVM stops before it.
            if left.address == begun.address + length:
                left = self.left.next_steps()
            elif right.address == begun.address + length:
                right = self.right.next_steps()
        if begun is not None and _repeats(code, width):
            # The trap comes behind every element (SDM 3B 17.3.1.4); an emulator may do several at once.
            left, right = _through(self.left, left, begun.address), _through(self.right, right, begun.address)
        one, other = self.left.state(left), self.right.state(right)
        take: dict[str, int] = {}
        if mnemonic in _CLOCKS or (mnemonic == "rdmsr" and one["rcx"] & 0xFFFFFFFF in TIMED_MSRS) or _timed_in(mnemonic, code, one):
            take = {name: one[name] for name in ("rax", "rdx", "rcx") if one[name] != other[name]}
        open_flags = undefined | (_ARITHMETIC if mnemonic in ("rdrand", "rdseed") else 0)
        flags = other["rflags"] & ~open_flags | one["rflags"] & open_flags
        if flags != other["rflags"]:
            take["rflags"] = flags
        if take:
            self.right.take_over(take)
            regs = self.right.vcpu.get_regs()
            right = right._replace(regs=bytes(ffi.buffer(regs)))
        return left, right

    # Differences.

    def _differences(self, left: Record, right: Record) -> list[tuple[str, Any, Any]]:
        if left.what != right.what:
            return [("event", _text(left), _text(right))]
        if left.data != right.data or left.verdict != right.verdict:
            return [("event", _text(left), _text(right))]
        same_regs = left.regs == right.regs
        if self._alike and same_regs and ffi.buffer(left.sregs)[:] == ffi.buffer(right.sregs)[:]:
            return self._vector_differences(left)
        one, other = self.left.state(left), self.right.state(right)
        skip = set(self._ignore)
        if not self._alike:
            one["rflags"] &= ~_RF
            other["rflags"] &= ~_RF
            if left.what != "instruction":
                one["rflags"] &= ~_ARITHMETIC  # some are undefined behind an instruction; branches show those that count
                other["rflags"] &= ~_ARITHMETIC
                if left.data.get("write", False) or left.what == "end":
                    skip.add("rip")  # before or behind the instruction: KVM's hosts differ
                if left.string:
                    skip |= _STRING_REGISTERS
        names = [name for name in {**one, **other} if name not in skip]
        return [(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]

    def _vector_differences(self, record: Record) -> list[tuple[str, Any, Any]]:
        if self._by == "exit" and record.what != "end":
            return []
        one, other = self.left.vectors(), self.right.vectors()
        return [(name, one[name], other[name]) for name in one if one[name] != other[name]]

    def _memory(self, record: Record) -> Difference | None:
        """The first byte of memory that differs."""
        for mine, its in zip(self.left.machine.memory.regions, self.right.machine.memory.regions, strict=False):
            if mine.view == its.view:
                continue
            at = _first_difference(mine.view, its.view)
            values = [(f"memory {mine.gpa + at:#x}", bytes(mine.view[at : at + 16]).hex(" "), bytes(its.view[at : at + 16]).hex(" "))]
            found = self._difference(record, record, values)
            found.lines.insert(1, f"written within the last {min(self.records, MEMORY_EVERY)} records")
            return found
        return None

    # The page.

    def _difference(self, left: Record, right: Record, values: list[tuple[str, Any, Any]]) -> Difference:
        before = self._last[-1][1] if self._last else None
        stepped = left.what == "instruction" or right.what == "instruction"
        address = before.address if stepped and before is not None else left.address
        names = f"{self.left.name:>24}  {self.right.name:>24}"
        lines = [f"difference in record {self.records}, {'behind the instruction' if stepped else 'at'} {address:#x}"]
        lines.append(f"{'':14} {names}")
        lines += [f"{name:14} {_shown(one):>24}  {_shown(other):>24}" for name, one, other in values]
        lines.append("what came before (equal on both)")
        lines += [f"  {number:8}  {self._line(self.left, record)}" for number, record in self._last]
        for side, record in ((self.left, left), (self.right, right)):
            lines.append(f"{side.name}: {_text(record)}")
            if stepped and before is not None:
                lines.append(f"  executed {side.instruction(before.address, before.sregs)}")
            lines.append(f"  now at   {side.instruction(record.address, record.sregs)}")
            lines += [f"  {line}" for line in side.dump(record)]
        return Difference(self.records, left.what, address, values, lines)

    def _line(self, side: Side, record: Record) -> str:
        if record.what == "instruction":
            return f"to {side.instruction(record.address, record.sregs)}"
        return f"{record.address:#x}  {_text(record)}"


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:#x}" if isinstance(value, int) else str(value)


def _text(record: Record) -> str:
    if record.what == "instruction":
        return "an instruction ended"
    if record.what == "end":
        return f"the end: {record.verdict}"
    return describe(Event(record.what, 0, 0, record.data))


def _timed_in(mnemonic: str, code: bytes, state: dict[str, int]) -> bool:
    if mnemonic != "in":
        return False
    opcode = next((at for at, byte in enumerate(code) if byte in (0xE4, 0xE5, 0xEC, 0xED)), None)
    if opcode is None:
        return False
    port = code[opcode + 1] if code[opcode] < 0xEC else state["rdx"] & 0xFFFF
    return port in TIMED_PORTS


def _repeats(code: bytes, width: int) -> bool:
    """A string instruction with a REP prefix."""
    at = next((n for n, byte in enumerate(code) if byte not in PREFIXES and not (width == 64 and byte & 0xF0 == 0x40)), 0)
    return code[at] in STRINGS and (b"\xf2" in code[:at] or b"\xf3" in code[:at])


def _through(side: Side, record: Record, address: int) -> Record:
    """To the end of a repeated instruction at `address`."""
    for _ in range(MOST_ELEMENTS):
        if record.what != "instruction" or record.address != address:
            break
        record = side.next_steps()
    return record


def _loads_ss(code: bytes) -> bool:
    """MOV SS or POP SS."""
    at = next((n for n, byte in enumerate(code) if byte not in PREFIXES), 0)
    return code[at : at + 1] == b"\x17" or (code[at : at + 1] == b"\x8e" and code[at + 1 : at + 2] != b"" and code[at + 1] >> 3 & 7 == 2)


def _instruction(code: bytes, width: int) -> tuple[str, int, int]:
    """Mnemonic, the flags that the manual leaves undefined behind it, length."""
    length, info = ffi.new("uint32_t *"), ffi.new("struct kp_insn_info *")
    index = lib.kp_decode(code, len(code), width, length)
    if index < 0 or lib.kp_insn_info(index, info) != 0:
        return "", 0, 0
    return ffi.string(info.mnemonic).decode(), int(info.flags_undefined), int(length[0])


def _first_difference(one: Any, other: Any) -> int:
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if one[low:middle] != other[low:middle] else (middle, high)
    return low


class _Ticker:
    """Kicks both sides now and then, so that Python's signals, halted CPUs and the time limit are looked at."""

    def __init__(self, sides: tuple[Side, Side], timeout: float | None) -> None:
        import threading

        self._sides, self._timeout = sides, timeout
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> _Ticker:
        self._thread = start_thread(self._tick, "kvmpy-ticker")
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _tick(self) -> None:
        import time

        end = None if self._timeout is None else time.monotonic() + self._timeout
        while not self._over.wait(TICK):
            late = end is not None and time.monotonic() >= end
            for side in self._sides:
                side.timed_out = side.timed_out or late
                side.vcpu.kick()


def narrowed(make: Callable[[int], Lockstep], stride: int, timeout: float | None = None) -> Result:
    """Compares with a record of `stride` instructions; where the sides differ, again from the start with shorter ones, as long as the
    difference stays. `make` gives fresh sides. Both must do the same every time: the software CPU under virtual time does."""
    result = make(stride).run(timeout=timeout)
    while result.difference is not None and stride > 1:
        stride = max(stride // 8, 1)
        closer = make(stride).run(count=(result.records + 1) * 8 + 8, timeout=timeout)
        if closer.difference is None:
            break  # it takes longer runs to show
        result = closer
    return result
