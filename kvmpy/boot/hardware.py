"""The machine as its tables describe it (ACPI, MP): the fixed addresses, ports and interrupts of kvmpy's devices."""

from __future__ import annotations

from kvmpy.record import Record

LAPIC_BASE = 0xFEE00000
IOAPIC_BASE = 0xFEC00000
IOAPIC_PINS = 24


class Pci(Record, frozen=True):
    """PCI bus 0 as the tables tell it."""

    ecam: int
    """Address of the memory-mapped configuration space, 1 MiB."""
    memory: tuple[int, int]
    """(first, size) of the addresses that the bus decodes."""
    pirq_gsis: tuple[int, ...]
    """INTA# to INTD# of slot s drive GSI pirq_gsis[(s + pin) % len], pin counted from 0. Levels."""
    isa_bridge: int
    """Slot of the ISA bridge."""


class Hardware(Record, frozen=True):
    """What the guest is told. The defaults are the devices that every machine has."""

    cpus: int = 1
    com_ports: tuple[tuple[int, int], ...] = ((0x3F8, 4), (0x2F8, 3))
    """(first port, ISA IRQ) of each 16550A."""
    rtc: bool = True
    i8042: bool = True
    mouse: bool = False
    isa_chips: bool = True
    """8259s, 8254, speaker and FPU error line are told as devices."""
    pci: Pci | None = None
    hpet: int = 0
    """Address of the HPET, 0 without one."""
    virtio_mmio: tuple[tuple[int, int, int], ...] = ()
    """(first address, size, GSI) of each; levels."""
    pm1_event: int = 0x600
    pm1_control: int = 0x604
    pm_timer: int = 0x608
    pm_timer_32bit: bool = True
    gpe0: int = 0x60C
    """Two bytes of status, two of enable."""
    sci: int = 9
    reset_port: int = 0xCF9
    reset_value: int = 0x06
    s5_type: int = 5
    """SLP_TYP that switches the machine off."""
    ioapic_id: int = 0

    @property
    def level_irqs(self) -> frozenset[int]:
        """ISA interrupts that are levels, active high, where the bus's default is an edge."""
        return frozenset({self.sci, *(gsi for _, _, gsi in self.virtio_mmio if gsi < 16)})
