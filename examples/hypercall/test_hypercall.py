"""Grades the hypercall."""

import pytest


@pytest.mark.guest(needs="hypercall")
def test_the_hypercall(machine, boot, hint):
    boot(machine)
    with hint("has_hypervisor() is bit 31 of ECX of CPUID leaf 1; call() executes VMCALL with the number in RAX and gives RAX back"):
        assert machine.exit_code == 0
        assert len(machine.asserts) == 12, "main was changed"
    with hint("the name stands in EBX, ECX, EDX of CPUID leaf 0x40000000, in this order, four letters each"):
        name = machine.guest_log[0].rstrip("\0")
        assert name == "KVMKVMKVM", f"name_of gave {name!r}"


def test_the_number_is_in_rax(soft_machine, boot, hint):
    boot(soft_machine)
    numbers = []
    soft_machine.trace("hypercall", lambda event: numbers.append(event.data["number"]))
    with hint("make test_the_hypercall pass first"):
        assert soft_machine.exit_code == 0
    with hint("call(number, argument): the number belongs into RAX, the argument into RBX"):
        assert numbers == [9999, *range(10000, 10010)], f"the calls had the numbers {', '.join(map(str, numbers[:4]))}, ..."
