"""Interrupt chips as text: the 8259 pair, the I/O APIC, a local APIC (SDM 3A 11, the chips' data sheets)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpy.native import ffi

if TYPE_CHECKING:
    from kvmpy.machine import Machine

_MODES = ("fixed", "lowest priority", "SMI", "reserved", "NMI", "INIT", "SIPI", "ExtINT")
_LVT = {0x320: "timer", 0x330: "thermal", 0x340: "performance", 0x350: "LINT0", 0x360: "LINT1", 0x370: "error"}
_TIMER_MODES = ("one-shot", "periodic", "TSC deadline", "reserved")


def pic_lines(machine: Machine) -> list[str]:
    """Both 8259s and the I/O APIC's pins that are in use."""
    lines = []
    for number, name in enumerate(("master", "slave")):
        state = machine.vm.get_irqchip(number)  # owns what is looked at below
        pic = state.chip.pic
        lines.append(
            f"8259 {name}: irr {pic.irr:02x} imr {pic.imr:02x} isr {pic.isr:02x}  base vector {pic.irq_base:#04x}"
            f"  elcr {pic.elcr:02x}{'  auto EOI' if pic.auto_eoi else ''}{'' if not pic.init_state else '  in initialisation'}"
        )
    state = machine.vm.get_irqchip(2)
    chip = state.chip.ioapic
    lines.append(f"I/O APIC: id {chip.id}, irr {chip.irr:06x}")
    for pin in range(24):
        entry = int(chip.redirtbl[pin].bits)
        if entry & 0xFF or not entry >> 16 & 1:
            kind = "logical" if entry >> 11 & 1 else "physical"
            lines.append(f"  pin {pin:2}: {_entry_text(entry)}, destination {entry >> 56:02x} {kind}")
    return lines


def _entry_text(entry: int) -> str:
    parts = [f"vector {entry & 0xFF:02x}", _MODES[entry >> 8 & 7], "level" if entry >> 15 & 1 else "edge"]
    parts += [text for bit, text in ((13, "low"), (12, "pending"), (14, "remote IRR"), (16, "masked")) if entry >> bit & 1]
    return " ".join(parts)


def lapic_lines(vcpu: Any) -> list[str]:
    """The local APIC of a vCPU."""
    lapic = vcpu.get_lapic()
    page = bytes(ffi.buffer(lapic.regs))

    def word(offset: int) -> int:
        return int.from_bytes(page[offset : offset + 4], "little")

    def vectors(offset: int) -> str:
        found = [32 * n + bit for n in range(8) for bit in range(32) if word(offset + 16 * n) >> bit & 1]
        return " ".join(f"{vector:02x}" for vector in found) or "none"

    base = int(vcpu.get_sregs().apic_base)
    mode = "disabled" if not base >> 11 & 1 else "x2APIC" if base >> 10 & 1 else "xAPIC"
    spurious = word(0xF0)
    lines = [
        f"local APIC: {mode}, base {base & ~0xFFF:#x}{', bootstrap processor' if base >> 8 & 1 else ''}, "
        f"id {word(0x20) if mode == 'x2APIC' else word(0x20) >> 24:x}, version {word(0x30) & 0xFF:#x}",
        f"  {'enabled' if spurious >> 8 & 1 else 'software disabled'}, spurious vector {spurious & 0xFF:02x}, TPR {word(0x80):02x}, "
        f"LDR {word(0xD0):08x}, DFR {word(0xE0):08x}, ESR {word(0x280):02x}",
        f"  ICR {word(0x310):08x}:{word(0x300):08x}",
    ]
    for offset, name in _LVT.items():
        entry = word(offset)
        timer = f", {_TIMER_MODES[entry >> 17 & 3]}" if offset == 0x320 else ""
        lines.append(f"  LVT {name:11} {_entry_text(entry)}{timer}")
    divide = word(0x3E0)
    lines.append(
        f"  timer: initial count {word(0x380)}, divide by {1 << ((divide & 3 | divide >> 1 & 4) + 1 & 7)}"
    )
    lines += [f"  ISR {vectors(0x100)}", f"  IRR {vectors(0x200)}", f"  level triggered {vectors(0x180)}"]
    return lines
