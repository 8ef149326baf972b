"""KVM_RUN of a traced process: the exit and its payload from the vCPU's record, the answer to it, registers."""

from __future__ import annotations

import errno
import os
from typing import Any

from kvmpy import exits, regs
from kvmpy.debug.code import disassemble, read_linear
from kvmpy.errors import MemoryAccessError
from kvmpy.native import ffi, lib
from kvmpy.spy.fds import FdTable, Vcpu
from kvmpy.spy.memory import ProcessMemory
from kvmpy.trace.event import Event
from kvmpy.x86 import msr_name

_RECORD_SIZE = ffi.sizeof("struct kvm_run")
_ROOM = 1 << 16
"""The longest record that is read: KVM_GET_VCPU_MMAP_SIZE is 3 pages, of which port data have one."""
_VALID_REGS = ffi.offsetof("struct kvm_run", "kvm_valid_regs")
_MMIO_DATA = ffi.offsetof("struct kvm_run", "mmio", "data")
_MSR_ERROR = ffi.offsetof("struct kvm_run", "msr", "error")
_MSR_DATA = ffi.offsetof("struct kvm_run", "msr", "data")
_SYNC = lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS
_LONGEST_INSTRUCTION = 15


class Pending:
    """An exit that waits for what the process answers."""

    __slots__ = ("answer", "cpl", "data", "guest", "host", "rip", "what")

    def __init__(self, what: str, data: dict[str, Any], host: int, guest: int, answer: tuple[int, int]) -> None:
        self.what = what
        self.data = data
        self.host = host
        self.guest = guest
        self.answer = answer
        """Where in the record the value is that the guest gets: offset and bytes; (0, 0) where there is none."""
        self.rip: int | None = None
        self.cpl: int | None = None

    def event(self, vcpu: int, start: int, cost: int) -> Event:
        """The event, once all is known: `start` is when the tracing began, `cost` the time of the answer, which ends the event."""
        return Event(self.what, vcpu, self.host + cost - start, self.data, self.rip, self.host, self.guest, cost, self.cpl)


class RecordReader:
    """Reads the records of one process's vCPUs."""

    def __init__(self, memory: ProcessMemory, *, addresses: bool, registers: bool) -> None:
        """With `addresses` KVM is made to store the registers into the record at every exit (KVM_CAP_SYNC_REGS): no call is added.
        With `registers` these are told, too."""
        self._memory = memory
        self._ask = addresses or registers
        self._tell = registers
        self._buffer = ffi.new("uint8_t[]", _ROOM)
        self._view = memoryview(ffi.buffer(self._buffer))
        self._record = ffi.cast("struct kvm_run *", self._buffer)

    def enter(self, vcpu: Vcpu, fds: FdTable) -> None:
        """The vCPU is about to run: the answer to its last exit stands in the record now."""
        if not vcpu.record:
            fds.locate(vcpu)
        pending = vcpu.pending
        if pending is not None and pending.answer[1]:
            self._read_answer(vcpu, pending)
        if self._ask:
            self._ask_registers(vcpu)

    def _ask_registers(self, vcpu: Vcpu) -> None:
        where = vcpu.record + _VALID_REGS
        valid = int.from_bytes(self._memory.read(where, 8), "little")
        missing = _SYNC & ~valid
        if missing:
            vcpu.added |= missing
            self._memory.write(where, (valid | missing).to_bytes(8, "little"))

    def restore(self, vcpu: Vcpu) -> None:
        """Takes back what was changed in the record."""
        if vcpu.added and vcpu.record:
            try:
                where = vcpu.record + _VALID_REGS
                valid = int.from_bytes(self._memory.read(where, 8), "little")
                self._memory.write(where, (valid & ~vcpu.added).to_bytes(8, "little"))
            except MemoryAccessError:
                pass  # the process has gone, or unmapped it
            vcpu.added = 0

    def _read_answer(self, vcpu: Vcpu, pending: Pending) -> None:
        offset, size = pending.answer
        try:
            pending.data["value"] = int.from_bytes(self._memory.read(vcpu.record + offset, size), "little")
            if pending.what == "msr":
                pending.data["served"] = not self._memory.read(vcpu.record + _MSR_ERROR, 1)[0]
        except MemoryAccessError:
            pass

    def leave(self, vcpu: Vcpu, result: int, host: int, guest: int) -> Pending | None:
        """KVM_RUN gave `result`: the exit; None where it failed and there was none."""
        if not vcpu.record:
            return None
        try:
            got = os.preadv(self._memory.fileno(), [self._view[:_RECORD_SIZE]], vcpu.record)
        except OSError:
            got = 0
        if got < _RECORD_SIZE:
            return None
        reason = None
        if result == -errno.EINTR:
            reason = exits.IntrExit.REASON  # whatever stands in the record: immediate_exit leaves it alone
        elif result < 0 and self._record.exit_reason != exits.MemoryFaultExit.REASON:
            return None
        pending = self._decode(vcpu, reason, host, guest)
        if self._record.kvm_valid_regs & _SYNC == _SYNC:
            self._registers(vcpu, pending)
        return pending

    def _decode(self, vcpu: Vcpu, reason: int | None, host: int, guest: int) -> Pending:
        record = self._record
        if reason is None and record.exit_reason == exits.IoExit.REASON:
            io = record.io
            size = io.size * io.count
            try:
                if io.data_offset + size > min(_ROOM, vcpu.record_size):
                    raise MemoryAccessError(io.data_offset, size)
                self._view[io.data_offset : io.data_offset + size] = self._memory.read(vcpu.record + io.data_offset, size)
            except MemoryAccessError:
                text = f"port {io.port:#x}, data outside the record"
                return Pending("exit", {"reason": "io", "text": text}, host, guest, (0, 0))
        data: dict[str, Any]
        answer = (0, 0)
        match exit := exits.decode(record, reason):
            case exits.IoExit():
                value = int.from_bytes(exit.data, "little") if exit.out else None
                what = "io"
                data = {"port": exit.port, "size": exit.size, "count": exit.count, "write": exit.out, "value": value}
                if not exit.out:
                    answer = (int(record.io.data_offset), exit.size * exit.count)
            case exits.MmioExit():
                what, data = "mmio", {"address": exit.address, "size": exit.size, "write": exit.write, "value": exit.value}
                if not exit.write:
                    data["value"] = None
                    answer = (_MMIO_DATA, exit.size)
            case exits.MsrReadExit() | exits.MsrWriteExit():
                write = isinstance(exit, exits.MsrWriteExit)
                value = exit.value if isinstance(exit, exits.MsrWriteExit) else None
                what, data = "msr", {"index": exit.index, "name": msr_name(exit.index), "write": write, "value": value, "served": True}
                answer = (_MSR_DATA, 8)
            case exits.HypercallExit():
                what, data = "hypercall", {"number": exit.number, "arguments": list(exit.arguments)}
            case _:
                number = int(record.exit_reason) if reason is None else reason
                what, data = "exit", {"reason": exits.reason_name(number).lower(), "text": str(exit)}
        return Pending(what, data, host, guest, answer)

    def _registers(self, vcpu: Vcpu, pending: Pending) -> None:
        general, system = self._record.s.regs.regs, self._record.s.regs.sregs
        pending.rip = regs.linear_rip(general, system)
        pending.cpl = regs.cpl(system, general.rflags)
        if not self._tell:
            return
        pending.data["registers"] = {
            name: int(getattr(struct, name))
            for struct, names in ((general, (*regs.GENERAL, "rip", "rflags")), (system, regs.CONTROL))
            for name in names
        }
        if vcpu.vm is not None and vcpu.vm.memory.slots:
            code = read_linear(vcpu.vm.memory, system, pending.rip, _LONGEST_INSTRUCTION)
            found = disassemble(code, regs.code_width(system), pending.rip)
            if found is not None:
                pending.data["code"] = found[0]
