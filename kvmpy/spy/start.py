"""A command under ptrace from its first instruction, with a seccomp filter that stops it at the calls that count."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Sequence
from contextlib import suppress

from kvmpy.errors import HostError
from kvmpy.spy import tracee
from kvmpy.spy.ioctls import KVMIO

IOCTL, MMAP, CLOSE, DUP2, DUP3, CLOSE_RANGE = 16, 9, 3, 33, 292, 436
WATCHED = frozenset((IOCTL, MMAP, CLOSE, DUP2, DUP3, CLOSE_RANGE))
"""System calls of x86-64 that say something of KVM: the ioctls, the mapping of a vCPU's record, the end of a file descriptor."""

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_RET_TRACE, _RET_ALLOW = 0x7FF00000, 0x7FFF0000
_LD_WORD, _AND, _JEQ, _RET = 0x20, 0x54, 0x15, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_ARCH_X86_64 = 0xC000003E
_MAP_SHARED = 1


def seccomp_rules() -> bytes:
    """struct sock_filter[]: stops at WATCHED; of ioctls at those of KVM's type byte, of mappings at shared ones."""
    trace, allow = ("trace",), ("allow",)
    lines: list[tuple[object, ...]] = [
        (_LD_WORD, None, None, _ARCH), (_JEQ, 0, allow, _ARCH_X86_64), (_LD_WORD, None, None, _NUMBER),
        (_JEQ, 0, 3, IOCTL), (_LD_WORD, None, None, _ARGUMENTS + 8), (_AND, None, None, 0xFF00), (_JEQ, trace, allow, KVMIO << 8),
        (_JEQ, 0, 3, MMAP), (_LD_WORD, None, None, _ARGUMENTS + 24), (_AND, None, None, _MAP_SHARED), (_JEQ, trace, allow, _MAP_SHARED),
        *((_JEQ, trace, 0, number) for number in (CLOSE, DUP2, DUP3)), (_JEQ, trace, allow, CLOSE_RANGE),
        (_RET, None, None, _RET_TRACE), (_RET, None, None, _RET_ALLOW),
    ]  # fmt: skip
    ends = {trace: len(lines) - 2, allow: len(lines) - 1}
    out = b""
    for at, (code, true, false, value) in enumerate(lines):
        jumps = [ends[where] - at - 1 if where in ends else where or 0 for where in (true, false)]
        out += struct.pack("=HBBI", code, *jumps, value)
    return out


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


class Started:
    """A command that waits to be let go; `go` gives whether the filter stands once it runs."""

    def __init__(self, command: Sequence[str], mask: set[int]) -> None:
        """Forks and attaches; `mask` is the signal mask that the command shall have. Raises HostError, MissingCapability."""
        self.command = command
        rules = seccomp_rules()
        program = _Program(len(rules) // 8, rules)
        libc = ctypes.CDLL(None, use_errno=True)
        go_read, self._go = os.pipe2(os.O_CLOEXEC)
        self._said, say = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                # Only this end may stay open: the other side's death must be seen.
                os.close(self._go)
                if os.read(go_read, 1):
                    os.write(say, b"filter " if _install(libc, program) else b"no ")
                    _plain_signals(mask)
                    os.execvp(command[0], list(command))
            except OSError as error:
                os.write(say, str(error.errno).encode())
            finally:
                os._exit(127)
        os.close(go_read)
        os.close(say)
        try:
            tracee.attach(self.pid, tracee.OPTIONS | tracee.FORKS | tracee.FILTERED)
        except BaseException:
            os.close(self._go)
            os.close(self._said)
            os.waitpid(self.pid, 0)
            raise

    def go(self) -> None:
        """Lets the child run on to its exec."""
        os.write(self._go, b"g")
        os.close(self._go)

    def filtered(self) -> bool:
        """After exec: whether the filter stands. Raises HostError where there was no exec."""
        said = os.read(self._said, 64).decode()
        os.close(self._said)
        word, _, error = said.partition(" ")
        if error or not word:
            raise HostError(f"exec {self.command[0]}", int(error or errno.ECHILD))
        return word == "filter"


def _install(libc: ctypes.CDLL, program: _Program) -> bool:
    """Sets the filter of this process; without rights only after giving up all hope of more (setuid programs run as the user then)."""
    for _ in range(2):
        if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0:
            return True
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return False


def _plain_signals(mask: set[int]) -> None:
    """As the command would have found them in the shell: Python ignores two."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
