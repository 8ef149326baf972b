"""Grades the start of processors."""

import pytest

ADVICE = (
    "the counter is 0: was INIT sent before SIPI, is the trampoline at 0x8000, and is the SIPI's page 8? Too few: send to all but you. "
    "A crash at 0xfff0, where a processor begins after INIT: it was sent to the processor that sends (bits 19-18 must be 3)."
)


@pytest.mark.parametrize("cpus", [2, 4])
def test_all_come(make_machine, boot, hint, cpus):
    machine = boot(make_machine(cpus=cpus), f"-DOTHERS={cpus - 1}")
    with hint(ADVICE):
        assert machine.exit_code == 0
    with hint("the processors must run the trampoline, which ends in HLT at 0x800b"):
        assert all(cpu.registers.cs["base"] + cpu.registers.rip in range(0x8000, 0x8010) for cpu in machine.cpu[1:])


@pytest.mark.guest(cpus=3, needs="real_mode")
def test_on_kvm(kvm_machine, boot, hint):
    with hint(ADVICE + " When it passes on the software CPU and not here: give INIT a moment (a loop of pauses) before SIPI."):
        assert boot(kvm_machine, "-DOTHERS=2").exit_code == 0
