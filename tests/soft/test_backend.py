"""The software CPU as a backend: exits, chips, time, state, as the protocol of kvmpy.backend has them."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kvmpy.errors import ConfigError, HostError
from kvmpy.native import ffi, lib
from kvmpy.soft import SoftBackend
from tests.soft.soft_guest import CODE, SIZE, Guest

IO, MMIO, HLT, INTR, DEBUG = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO, lib.KVM_EXIT_HLT, lib.KVM_EXIT_INTR, lib.KVM_EXIT_DEBUG
Make = Callable[..., Guest]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Guest] = []

    def build(*arguments: object, **options: object) -> Guest:
        guest = Guest(*arguments, **options)  # type: ignore[arg-type]
        made.append(guest)
        return guest

    yield build
    for guest in made:
        guest.close()


def test_port_exits(make: Make) -> None:
    guest = make(b"\xe5\x10\x40\xe7\x12\xf4")  # in ax, 10h; inc ax; out 12h, ax; hlt
    assert guest.vcpu.run() == IO
    io = guest.vcpu.record.io
    assert (io.direction, io.size, io.port, io.count) == (0, 2, 0x10, 1)
    guest.vcpu.io_data()[0:2] = b"\x41\x42"
    assert guest.vcpu.run() == IO
    assert (io.direction, io.size, io.port) == (1, 2, 0x12) and bytes(guest.vcpu.io_data()) == b"\x42\x42"
    assert guest.vcpu.run() == HLT


def test_mmio_exits(make: Make) -> None:
    guest = make(b"\x8b\x1d\x00\x00\x20\x00\x88\x1d\x07\x00\x20\x00\xf4", "protected")  # mov ebx, [200000h]; mov [200007h], bl; hlt
    assert guest.vm.run() is guest.vcpu and guest.vcpu.record.exit_reason == MMIO
    mmio = guest.vcpu.record.mmio
    assert (mmio.phys_addr, mmio.len, mmio.is_write) == (0x200000, 4, 0)
    ffi.buffer(mmio.data)[0:4] = b"\x78\x56\x34\x12"
    assert guest.vcpu.run() == MMIO
    assert (mmio.phys_addr, mmio.len, mmio.is_write, mmio.data[0]) == (0x200007, 1, 1, 0x78)
    assert guest.vcpu.run() == HLT and guest.vcpu.get_regs().rbx == 0x12345678


# Real mode: 8259s at 20h, PIT at 1 kHz, ten ticks counted in SI by the handler, then out 99h.
TICKS = bytes.fromhex(
    "b011 e620 b020 e621 b004 e621 b001 e621 b0fe e621"  # ICW1-4, all masked but IRQ 0
    "c706 8000 0090 c706 8200 0000"  # vector 20h: 0000:9000
    "b034 e643 b0a9 e640 b004 e640"  # counter 0, mode 2, 1193
    "31f6 fb f4 83fe0a 72fa e699 f4"
)
HANDLER = bytes.fromhex("46 50 b020 e620 58 cf")  # inc si; EOI; iret


def ticking(make: Make) -> Guest:
    guest = make(TICKS, chips=True)
    guest.put(0x9000, HANDLER)
    return guest


def test_pit_through_the_8259s(make: Make) -> None:
    seen = []
    for _ in range(2):
        guest = ticking(make)
        assert guest.vm.run() is guest.vcpu
        assert guest.vcpu.record.exit_reason == IO and guest.vcpu.record.io.port == 0x99
        assert guest.vcpu.get_regs().rsi == 10
        assert 10 * 999_800 <= guest.vm.now() <= 10 * 1_000_000 + 100_000
        chips = bytes(ffi.buffer(guest.vm.get_pit())) + bytes(ffi.buffer(guest.vcpu.get_lapic()))
        seen.append((guest.vm.now(), guest.vcpu.statistics(), chips))
    assert seen[0] == seen[1]


def test_chips_in_another_vm(make: Make) -> None:
    first, second = ticking(make), ticking(make)
    first.vm.set_deadline(5_000_000)
    assert first.vm.run().record.exit_reason == INTR
    assert 5_000_000 <= first.vm.now() < 5_010_000 and first.vcpu.get_regs().rsi in (4, 5)
    second.put(0, first.get(0, SIZE))
    old, new = first.vcpu, second.vcpu
    second.vm.set_clock(first.vm.get_clock())
    for name in ("sregs", "regs", "lapic", "events", "debugregs"):
        getattr(new, f"set_{name}")(getattr(old, f"get_{name}")())
    new.set_xsave(bytes(old.get_xsave()))
    new.set_mp_state(old.get_mp_state())
    for chip in range(3):
        second.vm.set_irqchip(first.vm.get_irqchip(chip))
    second.vm.set_pit(first.vm.get_pit())
    for guest in (first, second):
        assert guest.vm.run().record.exit_reason == IO
    assert second.vm.now() == first.vm.now()
    assert bytes(ffi.buffer(new.get_regs())) == bytes(ffi.buffer(old.get_regs()))


def test_apics_by_their_registers(make: Make) -> None:
    code = bytes.fromhex(
        "c705f000e0feff010000 c7052003e0fe30000100 c705e003e0fe0b000000"  # SVR 1FFh; timer masked, one-shot; divide by 1
        "c7058003e0fee8030000 a19003e0fe 85c0 75f7"  # 1000 counts; wait for 0
        "a13000e0fe e710"  # version to port 10h
        "c7050000c0fe01000000 a11000c0fe e712 f4"  # the I/O APIC's to port 12h
    )
    guest = make(code, "protected", chips=True)
    versions = []
    for port in (0x10, 0x12):
        assert guest.vcpu.run() == IO and guest.vcpu.record.io.port == port
        versions.append(int.from_bytes(bytes(guest.vcpu.io_data()), "little"))
        if port == 0x10:
            assert 1000 < guest.vm.now() < 1030
    assert versions == [0x50014, 0x170011]


def test_x2apic_by_its_msrs(make: Make) -> None:
    code = bytes.fromhex(
        "b91b000000 0f32 0d000c0000 0f30"  # APIC_BASE: x2APIC mode
        "b902080000 0f32 e710"  # ID
        "b90f080000 b8ff010000 31d2 0f30 b93f080000 b844000000 0f30"  # SVR; self IPI 44h
        "b922080000 0f32 e712 f4"  # IRR, vectors 40h-5Fh
    )
    guest = make(code, "protected", chips=True)
    seen = []
    for _ in range(2):
        assert guest.vcpu.run() == IO
        seen.append(int.from_bytes(bytes(guest.vcpu.io_data()), "little"))
    assert seen == [0, 0x10]


def test_line_from_another_thread(make: Make) -> None:
    # The 8259s as the BIOS leaves them unmasked; vector 8+4 leads to the handler; hlt with interrupts on, then out.
    code = bytes.fromhex("b011e620b008e621b004e621b001e621b000e621c70630000090c706320000 00fbf4e699f4")
    guest = make(code, chips=True, clock="host")
    guest.put(0x9000, HANDLER)
    timer = threading.Timer(0.05, lambda: guest.vm.irq_line(4, 1))
    start = time.monotonic()
    timer.start()
    assert guest.vm.run().record.exit_reason == IO
    assert 0.03 < time.monotonic() - start < 5


def test_kick_and_deadline(make: Make) -> None:
    guest = make(b"\xeb\xfe", clock="host")
    guest.vcpu.kick()
    assert guest.vcpu.run() == INTR
    timer = threading.Timer(0.05, guest.vcpu.kick)
    timer.start()
    assert guest.vm.run().record.exit_reason == INTR
    guest.vm.set_deadline(guest.vm.now() + 10_000_000)
    assert guest.vm.run().record.exit_reason == INTR
    virtual = make(b"\xeb\xfe")
    virtual.vm.set_deadline(123_457)
    virtual.vm.run()
    assert virtual.vm.now() == 123_457


def test_turns_end_with_blocks(make: Make) -> None:
    """Several vCPUs take turns without single steps, and a deadline is met to the instruction even so."""
    guest = make(b"\x40" * 12 + b"\xeb\xf2", "protected", cpus=3)  # 12 times inc eax; jmp
    for vcpu in guest.vcpus[1:]:
        guest.set(vcpu, rip=CODE, rsp=0x7000, rflags=2)
        sregs = guest.vcpu.get_sregs()
        vcpu.set_sregs(sregs)
    guest.vm.set_deadline(1_234_567)
    assert guest.vm.run().record.exit_reason == INTR
    assert guest.vm.now() == 1_234_567
    done = [vcpu.statistics() for vcpu in guest.vcpus]
    assert sum(one["instructions"] for one in done) == 1_234_567
    assert sum(one["alone"] for one in done) < 13
    assert max(one["instructions"] for one in done) - min(one["instructions"] for one in done) <= 2048


def test_step_counts_instructions(make: Make) -> None:
    guest = make(b"\x40\x40\x40\x40\xf4")
    assert guest.vcpu.step(3) == DEBUG and guest.vcpu.get_regs().rax == 3 and guest.vcpu.get_regs().rip == CODE + 3


def test_host_writes_are_seen(make: Make) -> None:
    guest = make(b"\xb0\x01\xf4\xeb\xfb")
    assert guest.vcpu.run() == HLT
    guest.put(CODE + 1, b"\x55")
    assert guest.vcpu.run() == HLT and guest.vcpu.get_regs().rax & 0xFF == 0x55


def test_dirty_log(make: Make) -> None:
    guest = make(b"\xa2\x00\x50\xf4")  # mov [5000h], al
    guest.vm.dirty_log(0)
    guest.vcpu.run()
    bits = int.from_bytes(guest.vm.dirty_log(0), "little")
    assert bits >> 5 & 1 and not bits >> 6 & 1
    assert not int.from_bytes(guest.vm.dirty_log(0), "little") >> 5 & 1


def test_second_cpu_starts_by_init_and_sipi(make: Make) -> None:
    guest = make(b"\xf4", chips=True, cpus=2)
    guest.put(0xA000, b"\x8c\xc8\xe7\x77\xf4")  # mov ax, cs; out 77h, ax
    assert guest.vcpus[1].get_mp_state() in (lib.KVM_MP_STATE_UNINITIALIZED, lib.KVM_MP_STATE_INIT_RECEIVED)
    assert guest.vm.signal_msi(0xFEE01000, 0x500) == 1
    assert guest.vm.signal_msi(0xFEE01000, 0x60A) == 1
    vcpu = guest.vm.run()
    assert vcpu.index == 1 and vcpu.record.io.port == 0x77 and bytes(vcpu.io_data()) == b"\x00\x0a"


def test_state_goes_through(make: Make) -> None:
    guest = make()
    vcpu = guest.vcpu
    for name in ("regs", "sregs", "fpu", "xcrs", "debugregs", "events"):
        state = getattr(vcpu, f"get_{name}")()
        getattr(vcpu, f"set_{name}")(state)
        assert bytes(ffi.buffer(getattr(vcpu, f"get_{name}")())) == bytes(ffi.buffer(state)), name
    image = vcpu.get_xsave()
    image[160:176] = bytes(range(16))
    image[512] |= 2
    vcpu.set_xsave(bytes(image))
    assert vcpu.get_xsave()[160:176] == bytes(range(16))
    assert vcpu.set_msrs({0xC0000081: 0x1234, 0x12345: 1}) == [0x12345]
    assert vcpu.get_msrs([0xC0000081, 0x12345]) == {0xC0000081: 0x1234}
    entries = vcpu.get_cpuid()
    vcpu.set_cpuid(entries)
    assert [bytes(ffi.buffer(e)) for e in vcpu.get_cpuid()] == [bytes(ffi.buffer(e)) for e in entries]
    assert vcpu.translate(0x5678).physical_address == 0x5678
    before = vcpu.get_tsc_khz()
    vcpu.set_tsc_khz(before * 2)
    assert vcpu.get_tsc_khz() == before * 2
    assert "instructions" in vcpu.statistics()


def test_errors(make: Make) -> None:
    guest = make()
    with pytest.raises(HostError) as caught:
        guest.vm.create_vcpu(0)
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(HostError):
        guest.vm.create_vcpu(256)
    with pytest.raises(HostError):
        guest.vm.create_irqchip()
    with pytest.raises(HostError):
        guest.vm.irq_line(4, 1)
    with pytest.raises(HostError):
        guest.vcpu.get_lapic()
    with pytest.raises(HostError):
        guest.vm.set_memory(1, 0x1000, guest.host, 0x1000)
    with pytest.raises(HostError):
        guest.vm.dirty_log(7)
    with pytest.raises(ConfigError):
        SoftBackend(clock="sundial")


def test_closed(make: Make) -> None:
    guest = make()
    guest.vcpu.run()
    guest.close()
    guest.close()
    assert guest.vcpu.record.exit_reason == HLT
    guest.vcpu.kick()
    for call in (guest.vm.run, guest.vcpu.run, guest.vcpu.get_regs, guest.vm.now):
        with pytest.raises(HostError, match="closed"):
            call()


def test_a_vm_that_runs_is_not_closed(make: Make) -> None:
    guest = make(b"\xeb\xfe")
    thread = threading.Thread(target=guest.vm.run)
    thread.start()
    try:
        busy = False
        end = time.monotonic() + 20
        while not busy and time.monotonic() < end:
            busy = bool(lib.kp_vm_running(guest.vm._pointer()))
        with pytest.raises(HostError, match="a thread runs its vCPUs") as caught:
            guest.vm.close()
        assert caught.value.errno == errno.EBUSY
    finally:
        while thread.is_alive():
            guest.vcpu.kick()
            thread.join(0.05)
    guest.close()


def test_a_handler_that_faults_at_once_does_not_stop_time(make):
    """UD2 with a vector that points at itself retires nothing; deadlines and kicks still come."""
    guest = make(b"\x0f\x0b")
    guest.put(6 * 4, (0x8000).to_bytes(4, "little"))
    guest.vm.set_deadline(50_000)
    guest.vm.run()
    assert guest.vcpu.record.exit_reason == lib.KVM_EXIT_INTR
    assert 50_000 <= guest.vm.now() < 60_000


def test_the_l_bit_of_cs_is_not_told_outside_long_mode(make):
    """A far jump in legacy mode may load a 64-bit descriptor; KVM_SET_SREGS would refuse what it leaves in CS."""
    guest = make(b"\xea\x07\x80\x00\x00\x08\x00\xf4", mode="protected")  # jmp 8:8007h; hlt
    guest.put(0x500, bytes(8) + (0x00AF9B000000FFFF).to_bytes(8, "little"))
    sregs = guest.vcpu.get_sregs()
    sregs.gdt.base, sregs.gdt.limit = 0x500, 15
    guest.vcpu.set_sregs(sregs)
    guest.vm.run()
    assert guest.vcpu.record.exit_reason == lib.KVM_EXIT_HLT
    sregs = guest.vcpu.get_sregs()
    assert (sregs.cs.selector, sregs.cs.l) == (8, 0)
    guest.vcpu.set_sregs(sregs)
