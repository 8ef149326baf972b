"""What can interrupt a vCPU, and in words why nothing will wake one that waits (SDM 3A 6.8, 11.8; the 8259's and 82093AA's data sheets)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpy import x86
from kvmpy.native import ffi

if TYPE_CHECKING:
    from kvmpy.machine import Machine

RUNNING, NOT_STARTED, INIT_RECEIVED, HALTED = 0, 1, 2, 3
_MASKED = 1 << 16
_LVT_TIMER, _LVT_LINT0, _INITIAL_COUNT, _TPR, _SVR = 0x320, 0x350, 0x380, 0x80, 0xF0
_ISR, _IRR = 0x100, 0x200
_EXTINT, _DEADLINE = 7, 2
_MOST = 6
_LEGACY = {0: "PIT", 1: "keyboard", 3: "COM2", 4: "COM1", 8: "RTC", 12: "mouse", 14: "IDE", 15: "IDE"}


class Waiting:
    """The interrupt state of one vCPU at rest."""

    def __init__(self, machine: Machine, index: int) -> None:
        vcpu = machine.cpu[index].vcpu
        self.mp_state = vcpu.get_mp_state()
        self.enabled = bool(vcpu.get_regs().rflags & x86.RFLAGS_IF)
        self._events = vcpu.get_events()
        self._page = bytes(ffi.buffer(vcpu.get_lapic().regs))
        sregs = vcpu.get_sregs()
        self._apic_there = bool(int(sregs.apic_base) & 1 << 11)
        self._apic_on = self._apic_there and bool(self._word(_SVR) & 1 << 8)
        self._deadline = vcpu.get_msrs([x86.MSR_TSC_DEADLINE]).get(x86.MSR_TSC_DEADLINE, 0)
        self._chips: list[Any] = [machine.vm.get_irqchip(number) for number in range(3)]
        self._boot = bool(int(sregs.apic_base) & 1 << 8)

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._page[offset : offset + 4], "little")

    def _vectors(self, offset: int) -> list[int]:
        return [32 * n + bit for n in range(8) for bit in range(32) if self._word(offset + 16 * n) >> bit & 1]

    @property
    def pending(self) -> list[int]:
        """Vectors in the local APIC's IRR."""
        return self._vectors(_IRR)

    @property
    def in_service(self) -> list[int]:
        """Vectors in its ISR."""
        return self._vectors(_ISR)

    @property
    def threshold(self) -> int:
        """The processor priority's class: vectors of it and below wait."""
        return max(self._word(_TPR) & 0xF0, max(self.in_service, default=0) & 0xF0)

    def _takes_pic(self) -> bool:
        if not self._boot:
            return False
        lint0 = self._word(_LVT_LINT0)
        if not self._apic_there or (not lint0 & _MASKED and lint0 >> 8 & 7 == _EXTINT):
            return True
        first = int(self._chips[2].chip.ioapic.redirtbl[0].bits)
        return not first & _MASKED and first >> 8 & 7 == _EXTINT

    def sources(self) -> list[str]:
        """What could send an interrupt that is not masked."""
        found = []
        timer = self._word(_LVT_TIMER)
        if self._apic_on and not timer & _MASKED:
            if self._deadline if timer >> 17 & 3 == _DEADLINE else self._word(_INITIAL_COUNT):
                found.append(f"local APIC timer (vector {timer & 0xFF:#x})")
        if self._takes_pic():
            master, slave = (self._chips[number].chip.pic for number in range(2))
            lines = [line for line in range(8) if line != 2 and not master.imr >> line & 1]
            if not master.imr >> 2 & 1:
                lines += [8 + line for line in range(8) if not slave.imr >> line & 1]
            found += [f"8259 IRQ {line}{f' ({_LEGACY[line]})' if line in _LEGACY else ''}" for line in lines]
        for pin in range(24 if self._apic_on else 0):
            entry = int(self._chips[2].chip.ioapic.redirtbl[pin].bits)
            if not entry & _MASKED and entry & 0xFF:
                found.append(f"I/O APIC pin {pin} (vector {entry & 0xFF:#x})")
        return found

    def words(self) -> str:
        """The state in a sentence: what the vCPU waits for, and what can end that."""
        if self.mp_state in (NOT_STARTED, INIT_RECEIVED):
            return "was not started: waits for a SIPI of another CPU"
        if self.mp_state != HALTED:
            if self.enabled:
                return "runs with interrupts on"
            held = self.pending
            return "runs with interrupts off" + (f"; {_vectors(held)} {'is' if len(held) == 1 else 'are'} pending" if held else "")
        if not self.enabled:
            nmi = "no NMI is pending" if not self._events.nmi.pending else "an NMI is pending"
            blocked = ", and NMIs are blocked" if self._events.nmi.masked else ""
            held = self.pending
            lost = f"; {_vectors(held)} pending in vain" if held else ""
            return f"waits in HLT with interrupts off: only an NMI, INIT or a reset wakes it, {nmi}{blocked}{lost}"
        return "waits in HLT with interrupts on: " + self._why_none()

    def _why_none(self) -> str:
        held = self.pending
        below = [vector for vector in held if vector & 0xF0 <= self.threshold]
        if below:
            reason = f"in service {_vectors(self.in_service)}, never ended by EOI" if self.in_service else f"TPR {self._word(_TPR):#x}"
            return f"{_vectors(below)} pending, held back by the priority ({reason})"
        sources = self.sources()
        if not sources:
            return "every source of interrupts is masked or off: nothing wakes it but an NMI, INIT or another CPU"
        return f"it can be woken by {_some(sources)}, and none is due"

    def lines(self) -> list[str]:
        """The flags and the chips' bits."""
        events = self._events
        pic = [self._chips[number].chip.pic for number in range(2)]
        flags = [f"IF {int(self.enabled)}"]
        if events.interrupt.shadow:
            flags.append("in the shadow of STI or MOV SS")
        if events.nmi.masked:
            flags.append("NMIs blocked")
        if events.nmi.pending:
            flags.append("NMI pending")
        return [
            f"{self.words()}",
            f"{', '.join(flags)}; local APIC {'on' if self._apic_on else 'off'}: pending {_vectors(self.pending)}, in service "
            f"{_vectors(self.in_service)}, TPR {self._word(_TPR):#x}",
            f"8259s: requested {pic[0].irr:#04x} {pic[1].irr:#04x}, in service {pic[0].isr:#04x} {pic[1].isr:#04x}, "
            f"masked {pic[0].imr:#04x} {pic[1].imr:#04x}",
            f"unmasked: {_some(self.sources()) or 'nothing'}",
        ]


def _some(sources: list[str]) -> str:
    return ", ".join(sources[:_MOST]) + (" and others" if len(sources) > _MOST else "")


def _vectors(found: list[int]) -> str:
    return " ".join(f"{vector:#x}" for vector in found[:8]) + (" ..." if len(found) > 8 else "") if found else "none"
