"""Who usually answers at a port or address of a PC, for traces that do not say it themselves."""

from __future__ import annotations

from bisect import bisect_right

# First, last, name. Fixed by the PC's chip set; addresses of PCI devices are the guest's own choice and have no line here.
PORTS = (
    (0x00, 0x0F, "dma"), (0x20, 0x21, "pic"), (0x2E, 0x2F, "super i/o"), (0x40, 0x43, "pit"), (0x4E, 0x4F, "super i/o"),
    (0x60, 0x60, "i8042"), (0x61, 0x61, "port 61h"), (0x64, 0x64, "i8042"), (0x70, 0x71, "rtc"), (0x80, 0x80, "post"),
    (0x81, 0x8F, "dma page"), (0x92, 0x92, "port 92h"), (0xA0, 0xA1, "pic"), (0xB2, 0xB3, "apm"), (0xC0, 0xDF, "dma"),
    (0xE9, 0xE9, "debug console"), (0xF0, 0xF1, "fpu"), (0x170, 0x177, "ide1"), (0x1F0, 0x1F7, "ide0"), (0x278, 0x27A, "lpt2"),
    (0x2E8, 0x2EF, "com4"), (0x2F8, 0x2FF, "com2"), (0x376, 0x376, "ide1"), (0x378, 0x37A, "lpt1"), (0x3B0, 0x3DF, "vga"),
    (0x3E8, 0x3EF, "com3"), (0x3F0, 0x3F5, "floppy"), (0x3F6, 0x3F6, "ide0"), (0x3F7, 0x3F7, "floppy"), (0x3F8, 0x3FF, "com1"),
    (0x4D0, 0x4D1, "pic"), (0x510, 0x51B, "fw_cfg"), (0xCF8, 0xCFB, "pci"), (0xCFC, 0xCFF, "pci"),
)  # fmt: skip
ADDRESSES = (
    (0xA0000, 0xBFFFF, "vga"), (0xFEC00000, 0xFEC00FFF, "ioapic"), (0xFED00000, 0xFED003FF, "hpet"), (0xFED40000, 0xFED44FFF, "tpm"),
    (0xFEE00000, 0xFEEFFFFF, "lapic"),
)  # fmt: skip
_PORT_FIRSTS = [first for first, _, _ in PORTS]
_ADDRESS_FIRSTS = [first for first, _, _ in ADDRESSES]


def port_name(port: int) -> str:
    """ "com1" for 0x3F8; empty where nothing has its fixed place."""
    at = bisect_right(_PORT_FIRSTS, port) - 1
    return PORTS[at][2] if at >= 0 and port <= PORTS[at][1] else ""


def address_name(address: int) -> str:
    """ "lapic" for 0xFEE00020; empty where nothing has its fixed place."""
    at = bisect_right(_ADDRESS_FIRSTS, address) - 1
    return ADDRESSES[at][2] if at >= 0 and address <= ADDRESSES[at][1] else ""
