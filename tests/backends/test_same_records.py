"""Every program shows the same exits, registers and memory on each backend: KVM's record format is the contract of both."""

from __future__ import annotations

import functools

import pytest

from tests.backends.harness import Result, backend_missing, run
from tests.backends.programs import PROGRAMS

# What the outside must see, where it is worth saying in full; HLT or SHUTDOWN ends every list.
EXPECTED = {
    "ports of every size": [
        "OUT 0x10.1 = 0xef", "OUT 0x10.2 = 0xbeef", "OUT 0x10.4 = 0xdeadbeef", "OUT 0x3f8.1 = 0xef", "IN 0x60.1", "IN 0x3f8.2", "IN 0x70.4",
        "OUT 0x20.4 = 0x16151413", "HLT",
    ],
    "MMIO read-modify-write": [
        "MMIO read 0x10000000.4", "MMIO write 0x10000000.4 = 0xa4a3a2a1", "MMIO read 0x10000004.1", "MMIO write 0x10000004.1 = 0xe4",
        "MMIO read 0x10000008.4", "MMIO write 0x10000008.4 = 0x1010101", "MMIO read 0x1000000c.2", "MMIO write 0x1000000c.2 = 0xaaaa",
        "MMIO read 0x10000010.8", "MMIO write 0x10000010.8 = 0x4d4e4f5051525354", "HLT",
    ],
    "real mode interrupts": ["OUT 0x10.2 = 0x1234", "OUT 0x11.2 = 0x4321", "OUT 0x12.1 = 0x21", "HLT"],
    "triple fault": ["SHUTDOWN"],
    "real to long mode": ["OUT 0x32.1 = 0x10", "OUT 0x64.4 = 0x789abcde", "HLT"],
    "self-modifying code": ["OUT 0x10.1 x3 = 0x11 0x12 0x13", "HLT"],
}  # fmt: skip


@functools.cache
def _run(backend: str, name: str) -> Result:
    return run(backend, *PROGRAMS[name])


def _need(backend: str) -> None:
    if why := backend_missing(backend):
        pytest.skip(f"{backend}: {why}")


@pytest.mark.parametrize("backend", ["kvm", "soft"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_ends_as_it_should(backend: str, name: str) -> None:
    _need(backend)
    texts = _run(backend, name).texts()
    assert texts[-1] == ("SHUTDOWN" if name == "triple fault" else "HLT")
    assert texts == EXPECTED.get(name, texts)


@pytest.mark.parametrize("name", PROGRAMS)
def test_both_backends_agree(name: str) -> None:
    _need("kvm")
    _need("soft")
    kvm, soft = _run("kvm", name), _run("soft", name)
    assert soft.texts() == kvm.texts()
    assert soft.registers == kvm.registers
    # PF, AF, ZF, SF and OF are left undefined by some of the instructions, RF by a shutdown.
    assert soft.rflags & 0x3E7701 == kvm.rflags & 0x3E7701
    assert soft.memory == kvm.memory
