"""Processes of a running Linux: the list that begins at init_task (include/linux/sched.h)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvmpy.debug.guest_memory import AddressSpace
from kvmpy.debug.pagetable import size_text
from kvmpy.debug.table import Table
from kvmpy.debug.types.model import Struct, bare
from kvmpy.debug.types.value import Value
from kvmpy.errors import KvmpyError
from kvmpy.units import PAGE

if TYPE_CHECKING:
    from kvmpy.debug.linux.kernel import Linux

_IDLE, _STATE_BITS = 0x402, (("S", 1), ("D", 2), ("T", 4), ("t", 8), ("X", 0x10), ("Z", 0x20), ("P", 0x40))
_LONGEST_COMMAND = 4096


@dataclass(frozen=True)
class Process:
    """`state` is ps's letter; `memory` counts bytes of address space; `task` is the struct task_struct."""

    pid: int
    parent: int
    uid: int
    state: str
    threads: int
    memory: int
    kernel: bool
    name: str
    task: Value = field(repr=False, compare=False)
    command: str = ""
    """Its command line as its own memory has it; empty for kernel threads."""

    @property
    def address(self) -> int:
        """Address of its struct task_struct."""
        return self.task.address


_COLUMNS = (
    (">PID", lambda one: one.pid), (">PPID", lambda one: one.parent), (">UID", lambda one: one.uid), ("S", lambda one: one.state),
    (">THREADS", lambda one: one.threads), (">MEMORY", lambda one: size_text(one.memory) if one.memory else "-"),
    ("TASK", lambda one: f"{one.address:x}"), ("COMMAND", lambda one: one.command or f"[{one.name}]"),
)  # fmt: skip


def read_processes(linux: Linux) -> Table[Process]:
    """What is damaged is left out; the list ends where its links do."""
    first = linux.variable("struct task_struct", "init_task")
    found: list[Process] = []
    for task in [first, *linux.entries(first.member("tasks").address, "struct task_struct", "tasks")]:
        try:
            found.append(_process(linux, task))
        except KvmpyError:
            continue
    return Table(found, _COLUMNS, "no processes")


def _process(linux: Linux, task: Value) -> Process:
    kind = bare(task.type)
    assert isinstance(kind, Struct)
    memory = task.member("mm")
    running = int(memory) != 0
    return Process(
        int(task.member("tgid")), int(task.member("real_parent").member("tgid")), int(task.member("cred").member("uid").member("val")),
        _state(task, kind), _number(task, "signal", "nr_threads"), _number(memory, "total_vm") * PAGE if running else 0, not running,
        task.member("comm").string(), task, _command(linux, memory) if running else "",
    )  # fmt: skip


def _number(value: Value, *path: str) -> int:
    """A member down a path; 0 where a kernel has it under another name, or it is not mapped."""
    try:
        for name in path:
            value = value.member(name)
        return int(value)
    except KvmpyError:
        return 0


def _state(task: Value, kind: Struct) -> str:
    state = int(task.member("__state" if kind.member("__state") else "state")) | int(task.member("exit_state"))
    if state & _IDLE == _IDLE:
        return "I"
    return next((letter for letter, bit in reversed(_STATE_BITS) if state & bit), "R")


def _command(linux: Linux, memory: Value) -> str:
    start, end = _number(memory, "arg_start"), _number(memory, "arg_end")
    space = process_space(linux, memory)
    if space is None or not 0 < end - start <= _LONGEST_COMMAND:
        return ""
    words = space.read(start, end - start).rstrip(b"\0").split(b"\0")
    return " ".join(word.decode("utf-8", "replace") for word in words)


def process_space(linux: Linux, memory: Value) -> AddressSpace | None:
    """A process's own memory by its page tables (`memory` is its struct mm_struct pointer)."""
    tables = linux.physical(_number(memory, "pgd"))
    if tables is None:
        return None
    sregs: Any = linux.machine.cpu[0].vcpu.get_sregs()
    sregs.cr3 = tables
    return AddressSpace(linux.machine.memory, lambda: sregs)
