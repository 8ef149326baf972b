"""User space's answer to an MSR access reaches the guest, whatever happens between the exit and the next run."""

import pytest

from kvmpy.machine import Machine
from kvmpy.native import lib

pytestmark = pytest.mark.skipif(not hasattr(lib, "kp_vm_create"), reason="the software CPU is not built")


@pytest.fixture
def vcpu():
    with Machine("1M", backend="soft") as machine:
        machine.memory.write(0x7C00, bytes.fromhex("66b978560000 0f32 90 f4"))  # mov ecx, 0x5678; rdmsr; nop; hlt
        registers = machine.cpu[0].registers
        registers.cs = {"base": 0, "selector": 0}
        registers.rip, registers.rflags = 0x7C00, 2
        yield machine.cpu[0].vcpu


def test_a_kick_in_between(vcpu):
    assert vcpu.run() == lib.KVM_EXIT_X86_RDMSR
    vcpu.record.msr.data, vcpu.record.msr.error = 0x1122334455667788, 0
    vcpu.kick()
    assert vcpu.run() == lib.KVM_EXIT_INTR
    assert vcpu.run() == lib.KVM_EXIT_HLT
    regs = vcpu.get_regs()
    assert (regs.rax, regs.rdx) == (0x55667788, 0x11223344)


def test_a_step_ends_behind_the_answer(vcpu):
    assert vcpu.step(2) == lib.KVM_EXIT_X86_RDMSR
    vcpu.record.msr.data, vcpu.record.msr.error = 0x55, 0
    assert vcpu.step(2) == lib.KVM_EXIT_DEBUG
    assert (vcpu.get_regs().rax, vcpu.get_regs().rip) == (0x55, 0x7C08)
    assert [(one.reason, one.subject, one.value) for one in vcpu.exits()] == [(lib.KVM_EXIT_X86_RDMSR, 0x5678, 0x55)]
