"""The fixed ACPI tables (ACPI 6.5 chapter 5) and their place between E0000h and the firmware table."""

from __future__ import annotations

import struct
from collections.abc import Callable

from kvmpy.boot.acpi.dsdt import dsdt_body
from kvmpy.boot.hardware import IOAPIC_BASE, LAPIC_BASE, Hardware, Pci

OEM_ID, OEM_TABLE_ID, CREATOR = b"KVMPY ", b"KVMPYPC ", b"KPY "

# FADT flags (5.2.9).
WBINVD = 1 << 0
PROC_C1 = 1 << 2
SLP_BUTTON = 1 << 5
TMR_VAL_EXT = 1 << 8
RESET_REG_SUP = 1 << 10

# IA-PC boot architecture flags (5.2.9.3).
LEGACY_DEVICES = 1 << 0
HAS_8042 = 1 << 1
VGA_NOT_PRESENT = 1 << 2
CMOS_RTC_NOT_PRESENT = 1 << 5

LEVEL_HIGH = 0x0D
"""MPS INTI flags: active high, level triggered."""


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of all bytes 0."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with its 36-byte header (5.2.6)."""
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR, 1
    )
    whole = bytearray(header + body)
    whole[9] = checksum(whole)
    return bytes(whole)


def rsdp(rsdt: int, xsdt: int) -> bytes:
    """Root pointer, revision 2 (5.2.5.3): the first 20 bytes have a checksum of their own."""
    first = bytearray(struct.pack("<8sB6sBI", b"RSD PTR ", 0, OEM_ID, 2, rsdt))
    first[8] = checksum(first)
    whole = bytearray(first + struct.pack("<IQB3x", 36, xsdt, 0))
    whole[32] = checksum(whole)
    return bytes(whole)


def _register(port: int, bits: int, access: int) -> bytes:
    """Generic Address Structure of an I/O port; access 1 byte, 2 word, 3 double word. All zero for port 0."""
    return struct.pack("<BBBBQ", 1, bits, 0, access, port) if port else bytes(12)


def fadt(hardware: Hardware, facs: int, dsdt: int) -> bytes:
    """Fixed ACPI description table, revision 5.1. SMI_CMD is 0: the machine is in ACPI mode from the start."""
    # The button flags say that a button is *not* in the PM1 registers: the power button is, a sleep button does not exist.
    flags = WBINVD | PROC_C1 | SLP_BUTTON | RESET_REG_SUP
    if hardware.pm_timer_32bit:
        flags |= TMR_VAL_EXT
    boot = LEGACY_DEVICES | VGA_NOT_PRESENT
    if hardware.i8042:
        boot |= HAS_8042
    if not hardware.rtc:
        boot |= CMOS_RTC_NOT_PRESENT
    body = bytearray(268 - 36)

    def put(offset: int, layout: str, *values: int) -> None:
        struct.pack_into("<" + layout, body, offset - 36, *values)

    put(36, "II", facs, dsdt)
    put(46, "H", hardware.sci)
    put(56, "I", hardware.pm1_event)
    put(64, "I", hardware.pm1_control)
    put(76, "II", hardware.pm_timer, hardware.gpe0)
    put(88, "BBBBB", 4, 2, 0, 4, 4)
    # Latencies above 100 and 1000 us say that C2 and C3 do not exist.
    put(96, "HH", 0x0FFF, 0x0FFF)
    put(108, "B", 0x32 if hardware.rtc else 0)
    put(109, "H", boot)
    put(112, "I", flags)
    body[116 - 36 : 128 - 36] = _register(hardware.reset_port, 8, 1)
    put(128, "B", hardware.reset_value)
    put(131, "B", 1)
    put(140, "Q", dsdt)
    body[148 - 36 : 160 - 36] = _register(hardware.pm1_event, 32, 2)
    body[172 - 36 : 184 - 36] = _register(hardware.pm1_control, 16, 2)
    body[208 - 36 : 220 - 36] = _register(hardware.pm_timer, 32, 3)
    body[220 - 36 : 232 - 36] = _register(hardware.gpe0, 32, 1)
    return table(b"FACP", 5, bytes(body))


def facs() -> bytes:
    """Firmware control structure (5.2.10): no header checksum, 64-byte aligned, nothing to wake to."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def madt(hardware: Hardware) -> bytes:
    """Interrupt controllers (5.2.12).

    ISA interrupts are identity mapped, IRQ 0 too: KVM's default routing has GSI 0 on pin 0 of the I/O APIC, not on pin 2.
    The SCI and virtio-mmio differ from the ISA default: level triggered.
    """
    body = struct.pack("<II", LAPIC_BASE, 1)
    for cpu in range(hardware.cpus):
        # APIC ID 255 is the broadcast, and ACPI wants x2APIC entries from there on.
        body += struct.pack("<BBBBI", 0, 8, cpu, cpu, 1) if cpu < 255 else struct.pack("<BBHIII", 9, 16, 0, cpu, 1, cpu)
    body += struct.pack("<BBBBII", 1, 12, hardware.ioapic_id, 0, IOAPIC_BASE, 0)
    for irq in sorted(hardware.level_irqs):
        body += struct.pack("<BBBBIH", 2, 10, 0, irq, irq, LEVEL_HIGH)
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)
    if hardware.cpus > 255:
        body += struct.pack("<BBHIB3x", 10, 12, 0, 0xFFFFFFFF, 1)
    return table(b"APIC", 4, body)


def mcfg(pci: Pci) -> bytes:
    """Memory-mapped configuration space of bus 0 (PCI Firmware 3.0 §4.1.2)."""
    return table(b"MCFG", 1, struct.pack("<8xQHBB4x", pci.ecam, 0, 0, 0))


def hpet(base: int) -> bytes:
    """HPET description (IA-PC HPET 1.0a §3.2.4): revision 1, three comparators, 64 bits, no legacy replacement."""
    block = 0x01 | 2 << 8 | 1 << 13 | 0x8086 << 16
    return table(b"HPET", 1, struct.pack("<IBBBBQBHB", block, 0, 64, 0, 0, base, 0, 0x80, 0))


def build(hardware: Hardware, place: Callable[[bytes, int], int]) -> int:
    """Makes all tables; `place(data, alignment)` puts one into memory and gives its address. Returns the RSDP's address."""
    facs_at = place(facs(), 64)
    dsdt_at = place(table(b"DSDT", 2, dsdt_body(hardware)), 16)
    listed = [place(fadt(hardware, facs_at, dsdt_at), 16), place(madt(hardware), 16)]
    if hardware.pci is not None:
        listed.append(place(mcfg(hardware.pci), 16))
    if hardware.hpet:
        listed.append(place(hpet(hardware.hpet), 16))
    rsdt_at = place(table(b"RSDT", 1, struct.pack(f"<{len(listed)}I", *listed)), 16)
    xsdt_at = place(table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)), 16)
    return place(rsdp(rsdt_at, xsdt_at), 16)
