"""Grades the hypercall."""

import pytest


@pytest.mark.guest(needs="hypercall")
def test_the_hypercall(machine, boot, hint):
    boot(machine)
    with hint("has_hypervisor() is bit 31 of ECX of CPUID leaf 1; call() executes VMCALL with the number in RAX and gives RAX back"):
        assert machine.exit_code == 0
        assert len(machine.asserts) == 12, "main was changed"
    with hint("the name stands in EBX, ECX, EDX of CPUID leaf 0x40000000, in this order, four letters each"):
        assert machine.guest_log == ["KVMKVMKVM\0\0\0"] or machine.guest_log == ["KVMKVMKVM"]
