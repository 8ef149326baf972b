"""ptrace on one thread of another process: attach, resume, detach, and what a stop tells.

python-ptrace lends the calls. Its own event loop is not used: it asks every thread in turn, which many threads make slow, and attaches
with SIGSTOP, which the traced process can see.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from typing import NamedTuple

from ptrace import PtraceError
from ptrace.binding import func

from kvmpy.errors import HostError, MissingCapability

# Requests and options that python-ptrace does not name (<linux/ptrace.h>).
_SEIZE, _INTERRUPT, _LISTEN, _GET_SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 0x420E
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_O_TRACESECCOMP, _O_EXITKILL = 1 << 7, 1 << 20
_OP_ENTRY, _OP_EXIT, _OP_SECCOMP = 1, 2, 3
_ARCH_X86_64 = 0xC000003E

CONT, SYSCALL = func.PTRACE_CONT, func.PTRACE_SYSCALL
"""Ways to resume: to the next call that the filter names, or to the next border of any call."""

OPTIONS = func.PTRACE_O_TRACESYSGOOD | func.PTRACE_O_TRACECLONE | func.PTRACE_O_TRACEEXEC
FORKS = func.PTRACE_O_TRACEFORK | func.PTRACE_O_TRACEVFORK
FILTERED = _O_TRACESECCOMP | _O_EXITKILL

EXEC = func.PTRACE_EVENT_EXEC
_JOB_CONTROL = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_INFO_SIZE = 88
_info = (ctypes.c_uint64 * (_INFO_SIZE // 8))()
_info_address = ctypes.addressof(_info)
_ENTRY = struct.Struct("=BxxxIQQQ6Q")
_EXIT = struct.Struct("=BxxxIQQq")


class Gone(Exception):
    """The thread is no longer there, or no longer stopped: it was killed. The kernel tells the rest by wait()."""


class Call(NamedTuple):
    """A system call at its entry."""

    number: int
    arguments: tuple[int, ...]
    native: bool
    """False for one made in 32-bit mode."""


class Stop(NamedTuple):
    """What wait() said of a thread."""

    kind: str
    """call (a border of a system call), entry (one that the filter names begins), event, stopped (job control), trap, signal,
    exited, killed."""
    number: int = 0
    """The event, the signal, the exit status."""


_CALL, _ENTRY_STOP, _TRAP = Stop("call"), Stop("entry"), Stop("trap")
_SIGTRAP_CALL, _SIGTRAP_SECCOMP = signal.SIGTRAP | 0x80, signal.SIGTRAP | _EVENT_SECCOMP << 8


def read_stop(status: int) -> Stop:
    """The meaning of a wait status."""
    if status & 0xFF == 0x7F:
        why = status >> 8
        if why == _SIGTRAP_CALL:
            return _CALL
        if why == _SIGTRAP_SECCOMP:
            return _ENTRY_STOP
        event, number = why >> 8, why & 0xFF
        if event == _EVENT_STOP:
            return Stop("stopped", number) if number in _JOB_CONTROL else _TRAP
        return Stop("event", event) if event else Stop("signal", number)
    return Stop("killed", status & 0x7F) if status & 0x7F else Stop("exited", status >> 8 & 0xFF)


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    try:
        return int(func.ptrace(request, tid, address, data))
    except PtraceError as error:
        if error.errno == errno.ESRCH:
            raise Gone from None
        if request == _GET_SYSCALL_INFO and error.errno == errno.EIO:
            raise MissingCapability("this kernel lacks PTRACE_GET_SYSCALL_INFO: Linux 5.3 or newer is wanted") from None
        raise HostError("ptrace", error.errno or errno.EIO) from None


def attach(tid: int, options: int) -> None:
    """Attaches without stopping the thread. Raises Gone, or MissingCapability with the remedy where it is not allowed."""
    try:
        _ptrace(_SEIZE, tid, 0, options)
    except HostError as error:
        if error.errno == errno.EPERM:
            raise MissingCapability(f"process {tid} cannot be traced: {_why_not(tid)}") from None
        if error.errno == errno.EIO:
            raise MissingCapability("this kernel lacks PTRACE_SEIZE") from None
        raise


def _why_not(tid: int) -> str:
    """The reason of EPERM, with the remedy."""
    status = read_status(tid)
    tracer = status.get("TracerPid", "0")
    if tracer != "0":
        return f"process {tracer} traces it already"
    owner = status.get("Uid", "").split()[:1]
    if os.geteuid() and owner and owner != [str(os.geteuid())]:
        return "it belongs to another user: run kvmpy spy as that user, or with sudo"
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            scope = file.read().strip()
    except OSError:
        scope = "0"
    if scope == "1" and os.geteuid():
        return "kernel.yama.ptrace_scope is 1: start it with kvmpy spy -- COMMAND, or sudo sysctl kernel.yama.ptrace_scope=0"
    if scope != "0":
        return f"kernel.yama.ptrace_scope is {scope}: root alone may (2), or nobody until the next boot (3)"
    return "it has more rights than kvmpy, or this container forbids ptrace (docker run --cap-add SYS_PTRACE)"


def read_status(pid: int) -> dict[str, str]:
    """Lines of /proc/PID/status by name; empty where the process is not there."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    except OSError:
        return {}


def interrupt(tid: int) -> None:
    """Makes a running thread stop; a KVM_RUN ends with EINTR, as by a signal."""
    _ptrace(_INTERRUPT, tid)


def resume(tid: int, how: int, number: int = 0) -> None:
    """Lets a stopped thread go on, CONT or SYSCALL, with the signal `number` delivered."""
    _ptrace(how, tid, 0, number)


def listen(tid: int) -> None:
    """Leaves a thread that job control stopped as it is, until SIGCONT."""
    _ptrace(_LISTEN, tid)


def detach(tid: int, number: int = 0) -> None:
    """Lets a stopped thread go for good."""
    _ptrace(func.PTRACE_DETACH, tid, 0, number)


def call_of(tid: int) -> Call | None:
    """The system call that a thread is about to make; None where the stop is no entry."""
    _ptrace(_GET_SYSCALL_INFO, tid, _INFO_SIZE, _info_address)
    op, arch, _, _, number, *arguments = _ENTRY.unpack_from(_info)
    return Call(number, tuple(arguments), arch == _ARCH_X86_64) if op in (_OP_ENTRY, _OP_SECCOMP) else None


def result_of(tid: int) -> int:
    """What a system call gave, negative errno for errors; the stop is its end."""
    _ptrace(_GET_SYSCALL_INFO, tid, _INFO_SIZE, _info_address)
    return int(_EXIT.unpack_from(_info)[4])
