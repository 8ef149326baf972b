"""A vCPU as a person sees it: registers by name, its power-on state, and the state that a boot protocol asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmpy import x86
from kvmpy.backend import CData, Vcpu

if TYPE_CHECKING:
    from kvmpy.boot.state import BootState

GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
TABLES = ("gdt", "idt")
SEGMENT_FIELDS = ("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable")

# What a reset must put back beside the register structs. CET, XSS and the like are zero after power-on and stay with xsave.
SAVED_MSRS = [
    x86.MSR_TSC_ADJUST, x86.MSR_SYSENTER_CS, x86.MSR_SYSENTER_ESP, x86.MSR_SYSENTER_EIP, x86.MSR_MISC_ENABLE, x86.MSR_PAT,
    x86.MSR_MTRR_DEF_TYPE, *range(x86.MSR_MTRR_PHYSBASE0, x86.MSR_MTRR_PHYSBASE0 + 16), x86.MSR_MTRR_FIX64K_00000,
    x86.MSR_MTRR_FIX16K_80000, x86.MSR_MTRR_FIX16K_A0000, *range(x86.MSR_MTRR_FIX4K_C0000, x86.MSR_MTRR_FIX4K_C0000 + 8),
    x86.MSR_STAR, x86.MSR_LSTAR, x86.MSR_CSTAR, x86.MSR_SFMASK, x86.MSR_KERNEL_GS_BASE, x86.MSR_TSC_AUX, x86.MSR_TSC_DEADLINE,
    x86.MSR_KVM_SYSTEM_TIME, x86.MSR_KVM_WALL_CLOCK,
]


class Registers:
    """General, control and segment registers of a stopped vCPU, read and written by name: `registers.rip = 0x7c00`; as text a dump.

    Segments and descriptor tables are dictionaries when read: `registers.cs["base"]`.
    """

    __slots__ = ("_vcpu",)

    def __init__(self, vcpu: Vcpu) -> None:
        object.__setattr__(self, "_vcpu", vcpu)

    def __getattr__(self, name: str) -> Any:
        if name in GENERAL:
            return int(getattr(self._vcpu.get_regs(), name))
        if name in CONTROL:
            return int(getattr(self._vcpu.get_sregs(), name))
        if name in SEGMENTS:
            segment = getattr(self._vcpu.get_sregs(), name)
            return {field: int(getattr(segment, field)) for field in SEGMENT_FIELDS}
        if name in TABLES:
            table = getattr(self._vcpu.get_sregs(), name)
            return {"base": int(table.base), "limit": int(table.limit)}
        raise AttributeError(f"a vCPU has no register {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in GENERAL:
            regs = self._vcpu.get_regs()
            setattr(regs, name, value & ((1 << 64) - 1))
            self._vcpu.set_regs(regs)
        elif name in CONTROL:
            sregs = self._vcpu.get_sregs()
            setattr(sregs, name, value)
            self._vcpu.set_sregs(sregs)
        elif name in SEGMENTS or name in TABLES:
            sregs = self._vcpu.get_sregs()
            target = getattr(sregs, name)
            for field, number in value.items():
                setattr(target, field, number)
            self._vcpu.set_sregs(sregs)
        else:
            raise AttributeError(f"a vCPU has no register {name!r}")

    def __str__(self) -> str:
        from kvmpy.regs import dump

        return dump(self._vcpu.get_regs(), self._vcpu.get_sregs())

    __repr__ = __str__

    def __dir__(self) -> list[str]:
        return [*GENERAL, *CONTROL, *SEGMENTS, *TABLES, "as_dict"]

    def as_dict(self) -> dict[str, Any]:
        """All of them as plain data, read at one moment."""
        regs, sregs = self._vcpu.get_regs(), self._vcpu.get_sregs()
        out: dict[str, Any] = {name: int(getattr(regs, name)) for name in GENERAL}
        out.update({name: int(getattr(sregs, name)) for name in CONTROL})
        for name in SEGMENTS:
            segment = getattr(sregs, name)
            out[name] = {field: int(getattr(segment, field)) for field in SEGMENT_FIELDS}
        for name in TABLES:
            table = getattr(sregs, name)
            out[name] = {"base": int(table.base), "limit": int(table.limit)}
        return out


class Cpu:
    """One vCPU of a machine. Touch it only while the machine does not run."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.index = vcpu.index
        self.registers = Registers(vcpu)
        self._power_on = self._save()

    def _save(self) -> dict[str, Any]:
        vcpu = self.vcpu
        return {
            "sregs": vcpu.get_sregs(), "regs": vcpu.get_regs(), "xcrs": vcpu.get_xcrs(), "xsave": bytes(vcpu.get_xsave()),
            "msrs": vcpu.get_msrs(SAVED_MSRS), "lapic": vcpu.get_lapic(), "events": vcpu.get_events(),
            "debugregs": vcpu.get_debugregs(), "mp_state": vcpu.get_mp_state(),
        }

    def power_on(self) -> None:
        """Puts back the state that the vCPU was created with."""
        vcpu, saved = self.vcpu, self._power_on
        vcpu.set_sregs(saved["sregs"])
        vcpu.set_regs(saved["regs"])
        vcpu.set_xcrs(saved["xcrs"])
        vcpu.set_xsave(saved["xsave"])
        vcpu.set_msrs(saved["msrs"])
        vcpu.set_lapic(saved["lapic"])
        vcpu.set_events(saved["events"])
        vcpu.set_debugregs(saved["debugregs"])
        vcpu.set_mp_state(saved["mp_state"])

    def settle(self) -> None:
        """Completes an exit that still waits for its answer to be consumed, without running any further."""
        for _ in range(16):
            self.vcpu.kick()
            if self.vcpu.run() == 10:  # KVM_EXIT_INTR; parts of one access may come first
                return

    def start_at(self, state: BootState) -> None:
        """Sets the registers that a boot protocol prescribes."""
        sregs = self.vcpu.get_sregs()
        for name, segment in state.segments.items():
            put_segment(getattr(sregs, name), segment)
        sregs.gdt.base, sregs.gdt.limit = state.gdt.base, state.gdt.limit
        sregs.idt.base, sregs.idt.limit = state.idt.base, state.idt.limit
        sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = state.cr0, state.cr3, state.cr4, state.efer
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        for name in GENERAL:
            setattr(regs, name, 0)
        for name, value in state.gprs.items():
            setattr(regs, name, value & ((1 << 64) - 1))
        regs.rip, regs.rflags = state.rip, state.rflags
        self.vcpu.set_regs(regs)


def put_segment(target: CData, segment: Any) -> None:
    """Copies a boot protocol's segment into a `struct kvm_segment`."""
    for field in SEGMENT_FIELDS[:-1]:
        setattr(target, field, getattr(segment, field))
    target.unusable = 0 if segment.present else 1
