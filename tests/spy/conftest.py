"""Tests that need ptrace or KVM are skipped with the reason where they are not to be had."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from kvmpy.kvm.probe import unavailable
from tests.spy.programs import ENVIRONMENT, no_ptrace


@pytest.fixture
def ptrace() -> None:
    pytest.importorskip("ptrace", reason="python-ptrace is not installed")
    if why := no_ptrace():
        pytest.skip(why)


@pytest.fixture
def kvm(ptrace: None) -> None:
    if why := unavailable():
        pytest.skip(why)


@pytest.fixture
def started() -> Iterator[Any]:
    """Starts processes in groups of their own; whatever is left of them at the end is killed."""
    made: list[subprocess.Popen[str]] = []

    def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        made.append(subprocess.Popen(command, text=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL, start_new_session=True, **options))
        return made[-1]

    yield start
    for process in made:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()
