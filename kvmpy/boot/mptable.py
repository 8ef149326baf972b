"""MultiProcessor Specification 1.4 tables, for guests that do not read ACPI."""

from __future__ import annotations

import struct

from kvmpy.boot.acpi.tables import LEVEL_HIGH, checksum
from kvmpy.boot.hardware import IOAPIC_BASE, LAPIC_BASE, Hardware

INT, NMI, EXTINT = 0, 1, 3
LAPIC_VERSION, IOAPIC_VERSION = 0x14, 0x11
CPU_ENABLED, CPU_BOOT = 1, 2
MOST_CPUS = 254
"""8-bit APIC IDs, less the broadcast and one for the I/O APIC."""


def config_table(hardware: Hardware) -> bytes:
    """Processors, ISA bus, I/O APIC, and ISA interrupts mapped pin by pin (4.2, 4.3)."""
    cpus = min(hardware.cpus, MOST_CPUS)
    # I/O APIC and local APICs share one space of IDs in this specification, unlike in ACPI.
    ioapic = cpus
    entries = [
        struct.pack("<BBBBII8x", 0, cpu, LAPIC_VERSION, CPU_ENABLED | (0 if cpu else CPU_BOOT), 0x600, 0x201) for cpu in range(cpus)
    ]
    # PCI buses have their own numbers, so the ISA bus follows.
    isa = 0 if hardware.pci is None else 1
    if hardware.pci is not None:
        entries.append(struct.pack("<BB6s", 1, 0, b"PCI   "))
    entries.append(struct.pack("<BB6s", 1, isa, b"ISA   "))
    entries.append(struct.pack("<BBBBI", 2, ioapic, IOAPIC_VERSION, 1, IOAPIC_BASE))
    for line in range(16):
        # The second 8259 hangs on IRQ 2: nothing else can come from there.
        if line != 2:
            flags = LEVEL_HIGH if line in hardware.level_irqs else 0
            entries.append(struct.pack("<BBHBBBB", 3, INT, flags, isa, line, ioapic, line))
    if hardware.pci is not None:
        gsis = hardware.pci.pirq_gsis
        for slot in range(32):
            for pin in range(4):
                entries.append(struct.pack("<BBHBBBB", 3, INT, 0, 0, slot << 2 | pin, ioapic, gsis[(slot + pin) % len(gsis)]))
    entries.append(struct.pack("<BBHBBBB", 4, EXTINT, 0, isa, 0, 0, 0))
    entries.append(struct.pack("<BBHBBBB", 4, NMI, 0, isa, 0, 0xFF, 1))
    body = b"".join(entries)
    header = struct.pack(
        "<4sHBB8s12sIHHIHBB", b"PCMP", 44 + len(body), 4, 0, b"KVMPY   ", b"PC          ", 0, 0, len(entries), LAPIC_BASE, 0, 0, 0
    )
    whole = bytearray(header + body)
    whole[7] = checksum(whole)
    return bytes(whole)


def floating_pointer(config: int) -> bytes:
    """The 16 bytes that guests search for (4.1); no IMCR, virtual wire mode by LINT0."""
    whole = bytearray(struct.pack("<4sIBBB5s", b"_MP_", config, 1, 4, 0, bytes(5)))
    whole[10] = checksum(whole)
    return bytes(whole)
