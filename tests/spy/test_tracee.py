"""What wait() says of a traced thread, and why one cannot be traced."""

from __future__ import annotations

import builtins
import io
import os
import signal
from typing import Any

import pytest

pytest.importorskip("ptrace", reason="python-ptrace is not installed")

from kvmpy.spy import tracee


@pytest.mark.parametrize("status, kind, number", [
    (0x857F, "call", 0),
    (0x7057F, "entry", 0),
    (0x3057F, "event", 3),
    (0x4057F, "event", tracee.EXEC),
    (0x80_057F, "trap", 0),
    (0x80_137F, "stopped", signal.SIGSTOP),
    (0x80_147F, "stopped", signal.SIGTSTP),
    (0x057F, "signal", signal.SIGTRAP),
    (0x137F, "signal", signal.SIGSTOP),
    (0x0B7F, "signal", signal.SIGSEGV),
    (0x0700, "exited", 7),
    (0x0009, "killed", signal.SIGKILL),
    (0x008B, "killed", signal.SIGSEGV),
])  # fmt: skip
def test_wait_statuses(status: int, kind: str, number: int) -> None:
    assert tracee.read_stop(status) == (kind, number)


@pytest.mark.parametrize("user, status, scope, text", [
    (1000, {"TracerPid": "77", "Uid": "1000 1000"}, "0", "process 77 traces it already"),
    (1000, {"TracerPid": "0", "Uid": "0 0 0 0"}, "0", "it belongs to another user"),
    (1000, {"TracerPid": "0", "Uid": "1000 1000"}, "1", "ptrace_scope=0"),
    (1000, {"TracerPid": "0", "Uid": "1000 1000"}, "2", "ptrace_scope is 2: root alone"),
    (0, {"TracerPid": "0", "Uid": "1000 1000"}, "3", "nobody until the next boot"),
    (0, {"TracerPid": "0", "Uid": "0 0"}, "0", "--cap-add SYS_PTRACE"),
    (1000, {"TracerPid": "0", "Uid": "1000 1000"}, "", "--cap-add SYS_PTRACE"),
])  # fmt: skip
def test_why_it_is_not_allowed(monkeypatch: pytest.MonkeyPatch, user: int, status: dict[str, str], scope: str, text: str) -> None:
    real = builtins.open

    def fake(path: Any, *arguments: Any, **options: Any) -> Any:
        if path != "/proc/sys/kernel/yama/ptrace_scope":
            return real(path, *arguments, **options)
        if not scope:
            raise FileNotFoundError(path)
        return io.StringIO(scope + "\n")

    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(tracee, "read_status", lambda pid: status)
    monkeypatch.setattr(builtins, "open", fake)
    assert text in tracee._why_not(5)


def test_a_thread_that_is_gone() -> None:
    with pytest.raises(tracee.Gone):
        tracee.resume(1 << 22, tracee.CONT)
    assert tracee.read_status(1 << 22) == {}
