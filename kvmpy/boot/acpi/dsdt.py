"""The DSDT: processors, the ISA devices with their resources, and the sleep type that switches the machine off."""

from __future__ import annotations

from kvmpy.boot.acpi import aml
from kvmpy.boot.hardware import IOAPIC_BASE, LAPIC_BASE, Hardware, Pci

PRESENT = 0x0F
"""_STA: present, enabled, shown, working."""


def _isa_device(path: str, hid: str, *descriptors: bytes, uid: int | None = None) -> bytes:
    terms = [aml.name("_HID", aml.eisa_id(hid))]
    if uid is not None:
        terms.append(aml.name("_UID", aml.integer(uid)))
    terms += [aml.name("_STA", aml.integer(PRESENT)), aml.name("_CRS", aml.resources(*descriptors))]
    return aml.device(path, *terms)


def _isa_bus(hardware: Hardware) -> bytes:
    devices = [] if not hardware.isa_chips else [
        _isa_device("PIC", "PNP0000", aml.io_ports(0x20, 2), aml.io_ports(0xA0, 2), aml.irq(2)),
        _isa_device("TMR", "PNP0100", aml.io_ports(0x40, 4), aml.irq(0)),
        _isa_device("SPKR", "PNP0800", aml.io_ports(0x61, 1)),
        _isa_device("FPU", "PNP0C04", aml.io_ports(0xF0, 1), aml.irq(13)),
    ]
    if hardware.rtc:
        devices.append(_isa_device("RTC", "PNP0B00", aml.io_ports(0x70, 2), aml.irq(8)))
    if hardware.i8042:
        devices.append(_isa_device("KBD", "PNP0303", aml.io_ports(0x60, 1), aml.io_ports(0x64, 1), aml.irq(1)))
    if hardware.mouse:
        devices.append(_isa_device("MOU", "PNP0F13", aml.irq(12)))
    for number, (port, line) in enumerate(hardware.com_ports, 1):
        devices.append(_isa_device(f"COM{number}", "PNP0501", aml.io_ports(port, 8), aml.irq(line), uid=number))
    if hardware.pci is not None:
        return _pci_bus(hardware.pci, aml.device("ISA", aml.name("_ADR", aml.integer(hardware.pci.isa_bridge << 16)), *devices))
    # PNP0A05 is a plain container: there is no PCI bus above the ISA devices.
    return aml.device("ISA", aml.name("_HID", aml.eisa_id("PNP0A05")), aml.name("_UID", aml.integer(0)), *devices)


def _pci_bus(pci: Pci, *children: bytes) -> bytes:
    """The host bridge: bus 0, its windows, and the interrupt of every slot's every pin, hard-wired."""
    routes = [
        aml.package(
            aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), aml.integer(0),
            aml.integer(pci.pirq_gsis[(slot + pin) % len(pci.pirq_gsis)]),
        )
        for slot in range(32) for pin in range(4)
    ]
    windows = aml.resources(
        aml.bus_numbers(0, 1), aml.io_ports(0xCF8, 8), aml.io_window(0, 0xCF8), aml.io_window(0xD00, 0xF300),
        aml.memory_window(0xA0000, 0x20000), aml.memory_window(*pci.memory),
    )
    return aml.device(
        "PCI0", aml.name("_HID", aml.eisa_id("PNP0A03")), aml.name("_UID", aml.integer(0)), aml.name("_BBN", aml.integer(0)),
        aml.name("_CRS", windows), aml.name("_PRT", aml.package(*routes)), *children,
    )


def _virtio(hardware: Hardware) -> list[bytes]:
    return [
        aml.device(
            f"V{number:03X}", aml.name("_HID", aml.string("LNRO0005")), aml.name("_UID", aml.integer(number)),
            aml.name("_CRS", aml.resources(aml.memory32(base, size), aml.interrupt(gsi))),
        )
        for number, (base, size, gsi) in enumerate(hardware.virtio_mmio)
    ]


def _hpet(base: int) -> list[bytes]:
    return [_isa_device("HPET", "PNP0103", aml.memory32(base, 0x400), uid=0)] if base else []


def _board(hardware: Hardware) -> bytes:
    """Ports and memory that belong to the board itself, so that no driver is given them."""
    ecam = [aml.memory32(hardware.pci.ecam, 1 << 20)] if hardware.pci is not None else []
    return _isa_device(
        "BRD", "PNP0C02", aml.io_ports(hardware.pm1_event, 4), aml.io_ports(hardware.pm1_control, 2),
        aml.io_ports(hardware.pm_timer, 4), aml.io_ports(hardware.gpe0, 4),
        aml.io_ports(hardware.reset_port, 1), aml.io_ports(0x80, 1),
        aml.memory32(IOAPIC_BASE, 0x1000), aml.memory32(LAPIC_BASE, 0x1000), *ecam, uid=0,
    )


def _processors(count: int) -> list[bytes]:
    return [
        aml.device(f"C{number:03X}", aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", aml.integer(number)))
        for number in range(count)
    ]


def dsdt_body(hardware: Hardware) -> bytes:
    """The AML of the DSDT, without the table header."""
    sleep = aml.integer(hardware.s5_type)
    off = aml.name("\\_S5", aml.package(sleep, sleep, aml.integer(0), aml.integer(0)))
    devices = [*_processors(hardware.cpus), _isa_bus(hardware), _board(hardware), *_hpet(hardware.hpet), *_virtio(hardware)]
    return off + aml.scope("\\_SB", *devices)
