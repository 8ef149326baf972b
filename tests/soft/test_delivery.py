"""Events whose descriptor table or stack is a device's: each is delivered, and each access reaches the device once."""

from __future__ import annotations

import struct

import pytest

from kvmpy.native import ffi, lib
from tests.soft.system_guest import CODE0, DE, DF, EXIT_HLT, EXIT_SHUTDOWN, NMI, NP, STUBS, UD, Guest, gate

EXIT_MMIO = 6
TABLE, DEVICE_STACK = 0x800000, 0x900F00  # no RAM there
WRITE = "write"


class Device:
    """Answers as memory would, and notes what it was asked."""

    def __init__(self, guest: Guest, *, real: bool = False) -> None:
        self.guest, self.real = guest, real
        self.bytes: dict[int, int] = {}
        self.asked: list[tuple[object, ...]] = []
        for vector in range(256):
            self.put(TABLE + 8 * vector, gate(CODE0, STUBS + 16 * vector, 0x8E))

    def put(self, address: int, data: bytes) -> None:
        self.bytes.update(enumerate(data, address))

    def absent(self, vector: int) -> None:
        self.put(TABLE + 8 * vector + 5, b"\x0e")

    def u32(self, address: int) -> int:
        return int.from_bytes(bytes(self.bytes[address + n] for n in range(4)), "little")

    def run(self, meanwhile: object = None) -> int:
        """Runs to an exit that is no device access."""
        while (reason := self.guest.run()) == EXIT_MMIO:
            mmio = self.guest.record.mmio
            place = mmio.phys_addr
            if mmio.is_write:
                self.asked.append((WRITE, place, mmio.len))
                self.put(place, bytes(ffi.buffer(mmio.data))[: mmio.len])
            else:
                self.asked.append((place, mmio.len))
                ffi.buffer(mmio.data)[0 : mmio.len] = bytes(self.bytes[place + n] for n in range(mmio.len))
            if callable(meanwhile):
                meanwhile()
        return reason


def device_guest(source: str, **system: int) -> tuple[Guest, Device]:
    guest = Guest(source, "prot32")
    sregs = guest.sregs
    sregs.idt.base, sregs.idt.limit = TABLE, 0x7FF
    assert lib.kp_vcpu_set_sregs(guest.cpu, sregs) == 0
    return guest, Device(guest)


def gates(*vectors: int) -> list[tuple[object, ...]]:
    return [(TABLE + 8 * vector, 8) for vector in vectors]


def test_exception_through_a_table_in_a_device() -> None:
    guest, device = device_guest("nop\nud2")
    assert device.run() == EXIT_HLT and guest.vector == UD
    assert guest.frame(3)[:2] == [0x8001, CODE0] and device.asked == gates(UD)


def test_stack_and_table_in_a_device() -> None:
    guest, device = device_guest("ud2")
    guest.set(rsp=DEVICE_STACK)
    assert device.run() == EXIT_HLT and guest.vector == UD and guest.regs.rsp == DEVICE_STACK - 12
    assert device.asked == gates(UD) + [(WRITE, DEVICE_STACK - 4 * n, 4) for n in (1, 2, 3)]
    assert [device.u32(DEVICE_STACK - 4 * n) for n in (3, 2)] == [0x8000, CODE0]


@pytest.mark.parametrize(
    ("source", "absent", "taken", "asked"),
    [
        ("ud2", [UD], NP, [UD, NP]),  # benign, then contributory: the second is delivered
        ("xor %ecx,%ecx\ndiv %ecx", [DE], DF, [DE, DF]),
        ("xor %ecx,%ecx\ndiv %ecx", [DE, DF], None, [DE, DF]),
    ],
)
def test_faults_while_an_event_is_delivered(source: str, absent: list[int], taken: int | None, asked: list[int]) -> None:
    guest, device = device_guest(source)
    guest.set(rsp=DEVICE_STACK)
    for vector in absent:
        device.absent(vector)
    assert device.run() == (EXIT_HLT if taken is not None else EXIT_SHUTDOWN)
    assert [entry for entry in device.asked if entry[0] != WRITE] == gates(*asked)
    if taken is not None:
        assert guest.vector == taken and device.u32(guest.regs.rsp) == (UD << 3 | 2 | 1 if taken == NP else 0)


def test_interrupt_and_nmi() -> None:
    guest, device = device_guest("again: inc %eax\njmp again")
    guest.set(rflags=0x202, rax=0)
    assert lib.kp_vcpu_interrupt(guest.cpu, 0x41) == 0
    assert device.run() == EXIT_HLT and guest.vector == 0x41 and device.asked == gates(0x41)
    assert guest.frame(1)[0] == 0x8000 and guest.regs.rax == 0
    assert lib.kp_vcpu_nmi(guest.cpu) == 0
    assert device.run() == EXIT_HLT and guest.vector == NMI and device.asked == gates(0x41, NMI)


@pytest.mark.parametrize("external", [False, True])
def test_state_taken_while_an_event_waits(external: bool) -> None:
    """What user space reads meanwhile has the event, and another vCPU's state made of it takes it."""
    guest, device = device_guest("ud2")
    events = ffi.new("struct kvm_vcpu_events *")
    if external:
        guest.set(rflags=0x202)
        assert lib.kp_vcpu_interrupt(guest.cpu, 0x41) == 0

    def move() -> None:
        assert lib.kp_vcpu_get_events(guest.cpu, events) == 0
        if len(device.asked) == 1:
            assert lib.kp_vcpu_set_events(guest.cpu, events) == 0

    vector = 0x41 if external else UD
    assert device.run(move) == EXIT_HLT and guest.vector == vector
    assert device.asked == gates(vector, vector)  # what was begun is begun anew by what the state says
    assert guest.frame(1)[0] == 0x8000


def test_real_mode_vector_in_a_device() -> None:
    guest = Guest("int3", "real")
    sregs = guest.sregs
    sregs.idt.base = TABLE
    assert lib.kp_vcpu_set_sregs(guest.cpu, sregs) == 0
    device = Device(guest)
    device.put(TABLE + 4 * 3, struct.pack("<HH", STUBS + 16 * 3, 0))
    assert lib.kp_vcpu_nmi(guest.cpu) == 0
    device.put(TABLE + 4 * 2, struct.pack("<HH", STUBS + 16 * 2, 0))
    assert device.run() == EXIT_HLT and guest.vector == 2 and device.asked == [(TABLE + 8, 4)]
