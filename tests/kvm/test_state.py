"""Registers and other state of a vCPU and a VM: set, read back, carried to another VM."""

from __future__ import annotations

import pytest

from kvmpy.errors import ConfigError, HostError
from kvmpy.native import ffi, lib
from kvmpy.regs import as_dict
from kvmpy.x86 import MSR_KERNEL_GS_BASE, MSR_LSTAR, MSR_STAR, MSR_SYSENTER_CS
from tests.kvm.guest import HLT, IO


def _same(a, b) -> bool:
    return bytes(ffi.buffer(a)) == bytes(ffi.buffer(b))


def test_general_registers(guest) -> None:
    one = guest(b"\x90")
    regs = one.vcpu.get_regs()
    for i, name in enumerate(("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r15")):
        setattr(regs, name, 0x1111111111111111 * (i + 1))
    one.vcpu.set_regs(regs)
    assert as_dict(one.vcpu.get_regs()) == as_dict(regs)


def test_debug_registers_xcrs_mp_state(guest) -> None:
    one = guest(b"\x90", "long", irqchip="full")
    debug = one.vcpu.get_debugregs()
    debug.db[2], debug.dr7 = 0x1234, 0x400
    one.vcpu.set_debugregs(debug)
    assert one.vcpu.get_debugregs().db[2] == 0x1234
    xcrs = one.vcpu.get_xcrs()
    assert xcrs.nr_xcrs == 1 and xcrs.xcrs[0].value & 1
    one.vcpu.set_xcrs(xcrs)
    one.vcpu.set_mp_state(lib.KVM_MP_STATE_HALTED)
    assert one.vcpu.get_mp_state() == lib.KVM_MP_STATE_HALTED


def test_sregs2(guest, need) -> None:
    need("sregs2")
    one = guest(b"\x90", "long")
    sregs2 = one.vcpu.get_sregs2()
    assert sregs2.cr3 == one.vcpu.get_sregs().cr3
    one.vcpu.set_sregs2(sregs2)


def test_xsave_carries_sse_registers(guest) -> None:
    one = guest(b"\xf4", "long")
    image = one.vcpu.get_xsave()
    assert len(image) == one.vm.xsave_size >= 4096
    image[160:176] = bytes(range(16))  # XMM0 in the legacy area (SDM 1 13.4.2)
    image[24:28] = (0x1F80).to_bytes(4, "little")
    image[512] |= 3
    one.vcpu.set_xsave(bytes(image))
    assert one.vcpu.get_xsave()[160:176] == bytes(range(16))
    one.vcpu.set_xsave(bytes(image[:1024]))
    assert one.vcpu.get_xsave()[160:176] == bytes(range(16))
    with pytest.raises(ConfigError, match="XSAVE"):
        one.vcpu.set_xsave(bytes(image) + b"\1")


def test_fpu(guest) -> None:
    one = guest(b"\xf4", "long")
    fpu = one.vcpu.get_fpu()
    fpu.fcw = 0x37F
    one.vcpu.set_fpu(fpu)
    assert one.vcpu.get_fpu().fcw == 0x37F


def test_msrs_skip_what_is_unknown(guest) -> None:
    one = guest(b"\xf4", "long")
    values = {MSR_STAR: 0x0023001000000000, MSR_LSTAR: 0xFFFFFFFF80000000, MSR_SYSENTER_CS: 0x10}
    assert one.vcpu.set_msrs(values) == []
    assert one.vcpu.get_msrs([MSR_STAR, 0x12345678, MSR_LSTAR, 0x12345679, MSR_SYSENTER_CS]) == values
    assert one.vcpu.set_msrs({0x12345678: 1, MSR_KERNEL_GS_BASE: 5, 0x12345679: 1}) == [0x12345678, 0x12345679]
    assert one.vcpu.get_msrs([MSR_KERNEL_GS_BASE]) == {MSR_KERNEL_GS_BASE: 5}
    assert one.vcpu.get_msrs([]) == {}


def test_cpuid_is_read_back(guest) -> None:
    one = guest(b"\xf4", "long")
    table = one.vcpu.get_cpuid()
    assert {entry.function for entry in table} >= {0, 1}
    one.vcpu.set_cpuid([entry for entry in table if entry.function < 7 or entry.function >= 0x40000000])
    assert 7 not in {entry.function for entry in one.vcpu.get_cpuid()}


def test_translate(guest) -> None:
    one = guest(b"\xf4", "long")
    found = one.vcpu.translate(0x8123)
    assert found.valid and found.physical_address == 0x8123
    assert not one.vcpu.translate(0x4000000000).valid


def test_clock_and_tsc(guest) -> None:
    one = guest(b"\xf4", irqchip="full")
    clock = one.vm.get_clock()
    clock.clock += 10**12
    one.vm.set_clock(clock)
    assert one.vm.get_clock().clock >= 10**12
    khz = one.vcpu.get_tsc_khz()
    assert khz > 100_000
    one.vcpu.set_tsc_khz(khz)
    assert one.vm.get_tsc_khz() > 0 or True


def test_clock_was_stopped_needs_a_kvmclock(guest, need) -> None:
    need("kvmclock_ctrl")
    one = guest(b"\xf4", irqchip="full")
    with pytest.raises(HostError, match="KVM_KVMCLOCK_CTRL"):
        one.vcpu.clock_was_stopped()


def test_statistics_by_name(guest, need) -> None:
    need("statistics")
    one = guest(b"\xe6\x80\xf4")
    one.run()
    counters = one.vcpu.statistics()
    assert counters["exits"] >= 1
    assert one.vm.statistics()["remote_tlb_flush"] >= 0


def test_boot_cpu_and_capabilities(guest) -> None:
    one = guest(b"\xf4", irqchip="full", before_vcpu=lambda vm: vm.set_boot_cpu(0))
    with pytest.raises(HostError, match="KVM_ENABLE_CAP"):
        one.vm.enable_cap(9999, 1)
    with pytest.raises(HostError, match="KVM_ENABLE_CAP"):
        one.vcpu.enable_cap(9999, 1)
    with pytest.raises(HostError, match="KVM_SET_IDENTITY_MAP_ADDR"):
        one.vm.set_identity_map_address(0xFEFFC000)


def test_smi_where_there_is_smm(guest, need) -> None:
    need("smm")
    guest(b"\xf4", irqchip="full").vcpu.smi()


def test_state_moves_to_a_fresh_vm(guest) -> None:
    code = b"\x48\xff\xc0\xe6\x80\x48\xff\xc0\xf4"  # inc rax; out 80h; inc rax; hlt
    one, two = guest(code, "long"), guest(code, "long")
    one.set(rax=0x1000)
    assert one.run() == IO
    # The OUT is complete only after the next entry; a kick makes an entry that runs nothing.
    one.vcpu.kick()
    one.vcpu.run()
    a, b = one.vcpu, two.vcpu
    b.set_sregs(a.get_sregs())
    b.set_regs(a.get_regs())
    b.set_xcrs(a.get_xcrs())
    b.set_xsave(bytes(a.get_xsave()))
    values = a.get_msrs(one.kvm.msr_indices())
    b.set_msrs({MSR_STAR: values[MSR_STAR]})
    b.set_events(a.get_events())
    b.set_debugregs(a.get_debugregs())
    assert _same(a.get_regs(), b.get_regs()) and _same(a.get_sregs(), b.get_sregs()) and _same(a.get_debugregs(), b.get_debugregs())
    assert two.run() == HLT and b.get_regs().rax == 0x1002


def test_lapic_and_events_round_trip(guest, need) -> None:
    need("irqchip")
    one = guest(b"\xf4", irqchip="full")
    lapic = one.vcpu.get_lapic()
    registers = ffi.cast("uint32_t *", lapic)
    registers[0x80 // 4] = 0x30
    one.vcpu.set_lapic(lapic)
    assert ffi.cast("uint32_t *", one.vcpu.get_lapic())[0x80 // 4] == 0x30
    events = one.vcpu.get_events()
    events.nmi.masked = 1
    one.vcpu.set_events(events)
    assert one.vcpu.get_events().nmi.masked == 1
