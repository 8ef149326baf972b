"""Interrupt chips, PIT, routing, messages, event descriptors, coalesced writes, several vCPUs."""

from __future__ import annotations

import errno
import os
import select
import threading
import time

import pytest

from kvmpy.errors import HostError
from kvmpy.exits import decode
from kvmpy.kvm import CoalescedWrite, MsiRoute, PinRoute, default_routes
from kvmpy.native import ffi, lib
from kvmpy.regs import set_segment
from kvmpy.watchdog import Watchdog
from kvmpy.x86 import SEG_TSS_BUSY
from tests.kvm.guest import CODE, HLT, INTR, IO

IDT, GDT, HANDLER = 0x9000, 0xA000, 0xB000


def _with_handler(one, vector: int, handler: bytes = b"\xe6\x99\x48\xcf") -> None:
    """A long mode IDT whose one gate leads to a handler: by default OUT 99h, IRETQ."""
    one.put(GDT, b"".join(d.to_bytes(8, "little") for d in (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)))
    one.put(IDT + 16 * vector, (HANDLER & 0xFFFF | 8 << 16 | 0x8E00 << 32).to_bytes(16, "little"))
    one.put(HANDLER, handler)
    sregs = one.vcpu.get_sregs()
    sregs.gdt.base, sregs.gdt.limit = GDT, 0x17
    sregs.idt.base, sregs.idt.limit = IDT, 0xFFF
    set_segment(sregs.tr, 0x28, 0xC000, 0x67, SEG_TSS_BUSY, s=0)
    one.vcpu.set_sregs(sregs)


def _enable_apic(one) -> None:
    lapic = one.vcpu.get_lapic()
    registers = ffi.cast("uint32_t *", lapic)
    registers[0xF0 // 4] = 0x1FF
    one.vcpu.set_lapic(lapic)


STI_SPIN = b"\xfb\xeb\xfe"
STI_HLT = b"\xfb\xf4\xeb\xfd"


def test_injected_interrupt_and_window(guest) -> None:
    one = guest(b"\xfa\x90\xe6\x10\xfb\xeb\xfe", "long")  # cli; nop; out 10h; sti; jmp $
    _with_handler(one, 0x40)
    assert one.run() == IO
    assert not one.vcpu.record.ready_for_interrupt_injection and not one.vcpu.record.if_flag
    one.vcpu.record.request_interrupt_window = 1
    assert one.run() == lib.KVM_EXIT_IRQ_WINDOW_OPEN
    assert str(decode(one.vcpu.record)) == "IRQ_WINDOW_OPEN" and one.vcpu.record.ready_for_interrupt_injection
    one.vcpu.record.request_interrupt_window = 0
    one.vcpu.interrupt(0x40)
    assert one.run() == IO and one.vcpu.record.io.port == 0x99


def test_interrupt_with_a_chip_in_the_kernel_is_refused(guest, need) -> None:
    need("irqchip")
    one = guest(irqchip="full")
    with pytest.raises(HostError, match=r"KVM_INTERRUPT: .*in the kernel") as caught:
        one.vcpu.interrupt(0x20)
    assert caught.value.errno == errno.ENXIO


def test_nmi(guest) -> None:
    one = guest(b"\x90\xf4", "long")
    _with_handler(one, 2)
    one.vcpu.nmi()
    assert one.run() == IO and one.vcpu.record.io.port == 0x99
    assert one.run() == HLT


def test_exception_by_events(guest) -> None:
    one = guest(b"\x90\xf4", "long")
    _with_handler(one, 6, b"\xe6\x99\xf4")
    events = one.vcpu.get_events()
    events.exception.injected, events.exception.nr = 1, 6
    one.vcpu.set_events(events)
    assert one.run() == IO and one.vcpu.record.io.port == 0x99


def test_line_through_the_8259(guest, need) -> None:
    need("irqchip")
    one = guest(STI_SPIN, irqchip="full")
    one.put(0x0B * 4, b"\x00\xb0\x00\x00")  # vector 0Bh: IRQ 3 of a master at base 8
    one.put(HANDLER, b"\xe6\x99\xf4")
    chip = one.vm.get_irqchip(lib.KVM_IRQCHIP_PIC_MASTER)
    chip.chip.pic.irq_base, chip.chip.pic.imr = 8, 0
    one.vm.set_irqchip(chip)
    again = one.vm.get_irqchip(lib.KVM_IRQCHIP_PIC_MASTER)
    assert again.chip.pic.irq_base == 8
    lapic = one.vcpu.get_lapic()
    registers = ffi.cast("uint32_t *", lapic)
    registers[0xF0 // 4], registers[0x350 // 4] = 0x1FF, 0x700  # enabled, LINT0 ExtINT
    one.vcpu.set_lapic(lapic)
    one.vm.irq_line(3, 0)
    one.vm.irq_line(3, 1)
    assert one.run() == IO and one.vcpu.record.io.port == 0x99
    one.vm.irq_line(3, 0)
    assert one.vm.irq_line_status(4, 1) >= 0
    with pytest.raises(HostError, match="KVM_GET_IRQCHIP"):
        one.vm.get_irqchip(7)


def test_line_through_the_ioapic_level_and_edge(guest, need) -> None:
    need("irqchip")
    one = guest(STI_SPIN, "long", irqchip="full")
    _with_handler(one, 0x51)
    _enable_apic(one)
    chip = one.vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC)
    entry = chip.chip.ioapic.redirtbl[17]
    entry.bits = 0
    entry.fields.vector = 0x51
    one.vm.set_irqchip(chip)
    assert one.vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC).chip.ioapic.redirtbl[17].fields.vector == 0x51
    one.vm.irq_line(17, 1)
    assert one.run() == IO and one.vcpu.record.io.port == 0x99


@pytest.mark.parametrize("irqchip", ["full", "split"])
def test_message_is_delivered(guest, need, irqchip) -> None:
    need("signal_msi")
    one = guest(STI_SPIN, "long", irqchip=irqchip)
    _with_handler(one, 0x61)
    _enable_apic(one)
    assert one.vm.signal_msi(0xFEE00000, 0x61) >= 1
    assert one.run() == IO and one.vcpu.record.io.port == 0x99


def test_irqfd_by_routing(guest, need) -> None:
    need("irqfd")
    one = guest(STI_SPIN, "long", irqchip="split")
    _with_handler(one, 0x62)
    _enable_apic(one)
    one.vm.set_gsi_routing([MsiRoute(5, 0xFEE00000, 0x62)])
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        one.vm.irqfd(event, 5)
        os.eventfd_write(event, 1)
        assert one.run() == IO and one.vcpu.record.io.port == 0x99
        one.vm.irqfd_remove(event, 5)
    finally:
        os.close(event)


def test_default_routes_are_accepted(guest, need) -> None:
    need("irq_routing")
    one = guest(irqchip="full")
    routes = default_routes()
    assert PinRoute(0, 2, 2) in routes and PinRoute(9, 1, 1) in routes and len(routes) == 39
    one.vm.set_gsi_routing(routes)


# out 99h; mov dword [rbx], 0 (the APIC's EOI register); out 98h; hlt
EOI_HANDLER = b"\xe6\x99\xc7\x03\x00\x00\x00\x00\xe6\x98\xf4"
EOI = 0xFEE000B0


def test_split_irqchip_tells_eoi(guest, need) -> None:
    need("split_irqchip")
    one = guest(STI_SPIN, "long", irqchip="split")
    _with_handler(one, 0x63, EOI_HANDLER)
    _enable_apic(one)
    one.set(rbx=EOI)
    one.vm.set_gsi_routing([MsiRoute(5, 0xFEE00000, 0x63 | 1 << 15 | 1 << 14)])  # level, assert
    event = os.eventfd(0)
    try:
        one.vm.irqfd(event, 5)
        os.eventfd_write(event, 1)
        assert one.run() == IO and one.vcpu.record.io.port == 0x99
        assert one.run() == lib.KVM_EXIT_IOAPIC_EOI
        assert decode(one.vcpu.record).vector == 0x63
        assert one.run() == IO and one.vcpu.record.io.port == 0x98
    finally:
        os.close(event)


def test_irqfd_with_resampling(guest, need) -> None:
    need("irqfd")
    one = guest(STI_SPIN, "long", irqchip="full")
    _with_handler(one, 0x64, EOI_HANDLER)
    _enable_apic(one)
    one.set(rbx=EOI)
    chip = one.vm.get_irqchip(lib.KVM_IRQCHIP_IOAPIC)
    entry = chip.chip.ioapic.redirtbl[18]
    entry.bits = 0
    entry.fields.vector, entry.fields.trig_mode = 0x64, 1
    one.vm.set_irqchip(chip)
    event, resample = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
    try:
        one.vm.irqfd(event, 18, resample=resample)
        os.eventfd_write(event, 1)
        assert one.run() == IO and one.vcpu.record.io.port == 0x99
        assert one.run() == IO and one.vcpu.record.io.port == 0x98
        assert os.eventfd_read(resample) == 1
        one.vm.irqfd_remove(event, 18)
    finally:
        os.close(event)
        os.close(resample)


def test_pit_ticks_through_the_8259(guest, need) -> None:
    need("pit")
    one = guest(STI_SPIN, irqchip="full", before_vcpu=lambda vm: (vm.create_pit(), vm.reinject_pit(False)))
    one.put(8 * 4, b"\x00\xb0\x00\x00")
    one.put(HANDLER, b"\xe6\x99\xf4")
    chip = one.vm.get_irqchip(0)
    chip.chip.pic.irq_base, chip.chip.pic.imr = 8, 0xFE
    one.vm.set_irqchip(chip)
    lapic = one.vcpu.get_lapic()
    registers = ffi.cast("uint32_t *", lapic)
    registers[0xF0 // 4], registers[0x350 // 4] = 0x1FF, 0x700
    one.vcpu.set_lapic(lapic)
    pit = one.vm.get_pit()
    channel = pit.channels[0]
    channel.mode, channel.rw_mode, channel.count, channel.gate = 2, 3, 1193, 1
    one.vm.set_pit(pit)
    assert one.vm.get_pit().channels[0].count == 1193
    assert one.run() == IO and one.vcpu.record.io.port == 0x99


def test_hlt_waits_in_the_kernel_until_a_kick(guest, need) -> None:
    need("irqchip")
    one = guest(b"\xf4", irqchip="full")
    timer = threading.Timer(0.05, one.vcpu.kick)
    timer.start()
    assert one.vcpu.run() == INTR
    timer.join()
    assert one.vcpu.get_mp_state() == lib.KVM_MP_STATE_HALTED


@pytest.mark.parametrize("port", [True, False])
def test_ioeventfd(guest, need, port) -> None:
    need("ioeventfd")
    code = b"\xef\xff\xc0\xef\xf4" if port else b"\x89\x03\xff\xc0\x89\x03\xf4"  # two writes, of eax and eax+1
    one = guest(code, "long")
    one.set(rax=7, rdx=0x510, rbx=0x20000000)
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    address = 0x510 if port else 0x20000000
    try:
        one.vm.ioeventfd(event, address, 4, port=port, match=7)
        assert one.run() == (IO if port else lib.KVM_EXIT_MMIO)  # the second write: 8 does not match
        assert select.select([event], [], [], 0)[0] and os.eventfd_read(event) == 1
        one.vm.ioeventfd(event, address, 4, port=port, match=7, remove=True)
        one.set(rip=CODE, rax=7)
        assert one.run() != HLT
        with pytest.raises(HostError, match="KVM_IOEVENTFD"):
            one.vm.ioeventfd(event, address, 4, port=port, match=7, remove=True)
    finally:
        os.close(event)


def test_ioeventfd_of_any_length(guest, need) -> None:
    need("ioeventfd")
    one = guest(b"\xee\xef\xf4", "long")
    one.set(rdx=0x510)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        one.vm.ioeventfd(event, 0x510, 0, port=True)
        assert one.run() == HLT and os.eventfd_read(event) == 2
    finally:
        os.close(event)


@pytest.mark.parametrize("port", [True, False])
def test_coalesced_writes(guest, need, port) -> None:
    need("coalesced_pio" if port else "coalesced_mmio")
    one = guest(b"\xef\xff\xc0\xef\xf4" if port else b"\x89\x03\xff\xc0\x89\x03\xf4", "long")
    one.set(rax=7, rdx=0x510, rbx=0x20000000)
    address = 0x510 if port else 0x20000000
    one.vm.coalesce(address, 4, port=port)
    assert one.run() == HLT
    expected = [CoalescedWrite(address, value.to_bytes(4, "little"), port) for value in (7, 8)]
    assert one.vcpu.coalesced_writes() == expected
    assert one.vcpu.coalesced_writes() == []
    one.vm.uncoalesce(address, 4, port=port)
    one.set(rip=CODE)
    assert one.run() != HLT


def test_second_cpu_starts_by_init_and_sipi(guest, need) -> None:
    need("irqchip")

    def store(address: int, value: int) -> bytes:
        return b"\xc7\x05" + address.to_bytes(4, "little") + value.to_bytes(4, "little")

    # ICR: destination APIC 1, INIT, then start-up at page 0Ch (SDM 3A 11.6.1).
    code = store(0xFEE00310, 1 << 24) + store(0xFEE00300, 0x4500) + store(0xFEE00300, 0x460C) + b"\xf4"
    one = guest(code, "protected", irqchip="full")
    _enable_apic(one)
    second = one.add_vcpu(1)
    assert second.get_mp_state() == lib.KVM_MP_STATE_UNINITIALIZED
    one.put(0xC000, b"\xe6\x77\xf4")
    exits = []

    def body() -> None:
        with Watchdog(10, [second]):
            exits.append((second.run(), second.record.io.port))

    thread = threading.Thread(target=body)
    thread.start()
    time.sleep(0.02)
    with Watchdog(1, [one.vcpu]) as dog:  # HLT waits in the kernel
        threading.Timer(0.2, one.vcpu.kick).start()
        assert one.vcpu.run() == INTR
    thread.join(10)
    assert exits == [(IO, 0x77)] and second.index == 1 and not dog.fired
    sregs = second.get_sregs()
    assert sregs.cs.selector == 0xC00 and sregs.cs.base == 0xC000


def test_a_cpu_that_waits_for_its_start_can_be_kicked(guest, need) -> None:
    need("irqchip")
    one = guest(irqchip="full")
    second = one.add_vcpu(1)
    timer = threading.Timer(0.05, second.kick)
    timer.start()
    assert second.run() == INTR
    timer.join()
