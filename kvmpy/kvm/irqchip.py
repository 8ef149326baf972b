"""Interrupt chips, routing, lines, messages, PIT and clock in the kernel (KVM API 4.24 to 4.30, 4.52, 4.70, 4.71)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvmpy.kvm.files import KvmFile
from kvmpy.native import CData, check, ffi, lib


@dataclass(frozen=True)
class PinRoute:
    """GSI to a pin of an interrupt chip; chip 0 and 1: the 8259s, 2: the I/O APIC."""

    gsi: int
    chip: int
    pin: int


@dataclass(frozen=True)
class MsiRoute:
    """GSI to a message."""

    gsi: int
    address: int
    data: int


class IrqchipPart(KvmFile):
    """VM calls about interrupts and time."""

    apic_in_kernel = False

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: 8259 pair, I/O APIC, local APICs; before any vCPU."""
        self.ioctl("KVM_CREATE_IRQCHIP")
        self.apic_in_kernel = True

    def create_split_irqchip(self, pins: int = 24) -> None:
        """Local APICs in the kernel, I/O APIC (of `pins` routes) and 8259s with the host (KVM_CAP_SPLIT_IRQCHIP)."""
        cap = ffi.new("struct kvm_enable_cap *", {"cap": lib.KVM_CAP_SPLIT_IRQCHIP, "args": [pins]})
        self.ioctl_ptr("KVM_ENABLE_CAP", cap)
        self.apic_in_kernel = True

    def create_pit(self, *, speaker: bool = True) -> None:
        """KVM_CREATE_PIT2; with `speaker` the kernel answers port 0x61 as well."""
        config = ffi.new("struct kvm_pit_config *", {"flags": lib.KVM_PIT_SPEAKER_DUMMY if speaker else 0})
        self.ioctl_ptr("KVM_CREATE_PIT2", config)

    def reinject_pit(self, enabled: bool) -> None:
        """KVM_REINJECT_CONTROL: whether ticks missed by a stopped guest are delivered late or dropped."""
        self.ioctl_ptr("KVM_REINJECT_CONTROL", ffi.new("struct kvm_reinject_control *", {"pit_reinject": int(enabled)}))

    def irq_line(self, gsi: int, level: int) -> None:
        code = lib.kvm_irq_line(self._fd, gsi, level)
        if code < 0:
            check("KVM_IRQ_LINE", code)

    def irq_line_status(self, gsi: int, level: int) -> int:
        """KVM_IRQ_LINE_STATUS: to how many CPUs the edge was delivered; 0: masked, or merged with a pending one."""
        return check("KVM_IRQ_LINE_STATUS", lib.kvm_irq_line_status(self._fd, gsi, level))

    def signal_msi(self, address: int, data: int) -> int:
        """KVM_SIGNAL_MSI: above 0 when delivered, 0 when the guest blocked it."""
        return check("KVM_SIGNAL_MSI", lib.kvm_signal_msi(self._fd, address, data))

    def set_gsi_routing(self, routes: Sequence[PinRoute | MsiRoute]) -> None:
        """KVM_SET_GSI_ROUTING: replaces the whole table."""
        table = ffi.new("struct kvm_irq_routing *", {"nr": len(routes), "entries": len(routes)})
        for i, route in enumerate(routes):
            entry = table.entries[i]
            entry.gsi = route.gsi
            if isinstance(route, MsiRoute):
                entry.type = lib.KVM_IRQ_ROUTING_MSI
                entry.u.msi.address_lo = route.address & 0xFFFFFFFF
                entry.u.msi.address_hi = route.address >> 32
                entry.u.msi.data = route.data
            else:
                entry.type = lib.KVM_IRQ_ROUTING_IRQCHIP
                entry.u.irqchip.irqchip = route.chip
                entry.u.irqchip.pin = route.pin
        self.ioctl_ptr("KVM_SET_GSI_ROUTING", table)

    def get_irqchip(self, chip: int) -> CData:
        state = ffi.new("struct kvm_irqchip *", {"chip_id": chip})
        self.ioctl_ptr("KVM_GET_IRQCHIP", state)
        return state

    def set_irqchip(self, chip: CData) -> None:
        self.ioctl_ptr("KVM_SET_IRQCHIP", chip)

    def get_pit(self) -> CData:
        return self.fetch("KVM_GET_PIT2", "kvm_pit_state2")

    def set_pit(self, pit: CData) -> None:
        self.ioctl_ptr("KVM_SET_PIT2", pit)

    def get_clock(self) -> CData:
        """KVM_GET_CLOCK: the kvmclock in ns."""
        return self.fetch("KVM_GET_CLOCK", "kvm_clock_data")

    def set_clock(self, clock: CData) -> None:
        """KVM_SET_CLOCK; of the flags that GET gave only KVM_CLOCK_REALTIME may be set (API 4.30)."""
        wanted = ffi.new("struct kvm_clock_data *", clock[0])
        wanted.flags &= lib.KVM_CLOCK_REALTIME
        self.ioctl_ptr("KVM_SET_CLOCK", wanted)


def default_routes() -> list[PinRoute]:
    """The table KVM_CREATE_IRQCHIP starts with: GSI 0-15 to the 8259s and to the I/O APIC (IRQ 0 at pin 2), 16-23 to the I/O APIC."""
    routes = []
    for gsi in range(24):
        if gsi < 16:
            routes.append(PinRoute(gsi, gsi >> 3, gsi & 7))
        if gsi != 2:
            routes.append(PinRoute(gsi, lib.KVM_IRQCHIP_IOAPIC, 2 if gsi == 0 else gsi))
    return routes
