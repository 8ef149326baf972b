"""System instructions on both backends: the software CPU runs each program to its end, and shows what KVM shows where KVM can run it."""

from __future__ import annotations

import functools

import pytest

from tests.backends.harness import Result, backend_missing, run
from tests.backends.system_programs import PROGRAMS


@functools.cache
def _run(backend: str, name: str) -> Result:
    return run(backend, *PROGRAMS[name])


@pytest.mark.parametrize("name", PROGRAMS)
def test_software_runs_to_the_end(name: str) -> None:
    if why := backend_missing("soft"):
        pytest.skip(why)
    assert _run("soft", name).texts()[-1] == "HLT"


@pytest.mark.parametrize("name", PROGRAMS)
def test_kvm_agrees(name: str) -> None:
    for backend in ("kvm", "soft"):
        if why := backend_missing(backend):
            pytest.skip(f"{backend}: {why}")
    kvm, soft = _run("kvm", name), _run("soft", name)
    last = kvm.texts()[-1]
    if "INTERNAL_ERROR" in last.upper().replace(" ", "_"):
        pytest.skip(f"this KVM stops in the program: {last}")
    assert soft.texts() == kvm.texts()
    assert soft.registers == kvm.registers
    assert soft.rflags & 0x3E7701 == kvm.rflags & 0x3E7701  # without what instructions leave undefined
    assert soft.memory == kvm.memory
