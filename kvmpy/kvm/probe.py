"""What this host's KVM does, found by running small guests: it is behaviour that counts, not the module's name.

A KVM without VT-x or AMD-V under it runs most guest code in the kernel's instruction emulator and lacks parts of the architecture;
each probe asks for one such part, in a fresh VM, with a deadline.
"""

from __future__ import annotations

import functools
import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from kvmpy import x86
from kvmpy.errors import HostError, KvmpyError
from kvmpy.kvm.system import KvmBackend
from kvmpy.kvm.vcpu import KvmVcpu
from kvmpy.native import CData, ffi, lib
from kvmpy.regs import identity_map, set_long_mode, set_paging32, set_protected_mode, set_real_mode, set_segment

DEADLINE = 0.02

TABLES, DIRECTORY32, POINTERS_PAE, DIRECTORY_PAE = 0x1000, 0x4000, 0x5000, 0x6000
CODE, HANDLER, STACK, GDT, IDT, TSS, DATA, SIZE = 0x8000, 0x8100, 0xA000, 0xA000, 0xB000, 0xC000, 0xD000, 0x10000

CODE0, DATA0, CODE3_32, DATA3, CODE3, TASK = 0x08, 0x10, 0x18, 0x20, 0x28, 0x30

CAPABILITIES = {
    "irqchip": lib.KVM_CAP_IRQCHIP,
    "split_irqchip": lib.KVM_CAP_SPLIT_IRQCHIP,
    "pit": lib.KVM_CAP_PIT2,
    "irqfd": lib.KVM_CAP_IRQFD,
    "ioeventfd": lib.KVM_CAP_IOEVENTFD,
    "signal_msi": lib.KVM_CAP_SIGNAL_MSI,
    "irq_routing": lib.KVM_CAP_IRQ_ROUTING,
    "coalesced_mmio": lib.KVM_CAP_COALESCED_MMIO,
    "coalesced_pio": lib.KVM_CAP_COALESCED_PIO,
    "readonly_memory": lib.KVM_CAP_READONLY_MEM,
    "dirty_ring": lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    "manual_dirty_log": lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    "sync_regs": lib.KVM_CAP_SYNC_REGS,
    "sregs2": lib.KVM_CAP_SREGS2,
    "xsave2": lib.KVM_CAP_XSAVE2,
    "msr_filter": lib.KVM_CAP_X86_MSR_FILTER,
    "user_space_msr": lib.KVM_CAP_X86_USER_SPACE_MSR,
    "statistics": lib.KVM_CAP_BINARY_STATS_FD,
    "smm": lib.KVM_CAP_X86_SMM,
    "nested_state": lib.KVM_CAP_NESTED_STATE,
    "tsc_control": lib.KVM_CAP_TSC_CONTROL,
    "kvmclock_ctrl": lib.KVM_CAP_KVMCLOCK_CTRL,
    "immediate_exit": lib.KVM_CAP_IMMEDIATE_EXIT,
    "memory_slots": lib.KVM_CAP_NR_MEMSLOTS,
    "vcpus": lib.KVM_CAP_MAX_VCPUS,
    "debugregs": lib.KVM_CAP_DEBUGREGS,
    "memory_fault_info": lib.KVM_CAP_MEMORY_FAULT_INFO,
}


@dataclass(frozen=True)
class HostKvm:
    """What was found. Where /dev/kvm cannot be used, `why` says so and everything else is false."""

    available: bool
    why: str = ""
    modules: tuple[str, ...] = ()
    cpl0_on_hardware: bool = False
    """Kernel code runs on the processor; false: in the instruction emulator, a thousand times slower."""
    real_mode: bool = False
    paging32: bool = False
    paging_pae: bool = False
    long_mode: bool = False
    sse_at_cpl0: bool = False
    x87_at_cpl0: bool = False
    int_n_at_cpl0: bool = False
    int_n_from_user: bool = False
    syscall_from_user: bool = False
    hypercall: bool = False
    """VMCALL comes back; false: it does not, and only a signal ends the run."""
    singlestep_kernel: bool = False
    singlestep_user: bool = False
    breakpoint_kernel: bool = False
    breakpoint_user: bool = False
    watchpoint_kernel: bool = False
    capabilities: dict[str, int] = field(default_factory=dict)
    """KVM_CHECK_EXTENSION by kvmpy's names; 0 when absent."""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class _Guest:
    """A VM of 64 KiB with identity tables, a GDT, an IDT of absent gates and one vCPU."""

    def __init__(self, kvm: KvmBackend, code: bytes, handler: bytes = b"\xf4") -> None:
        self.memory = mmap.mmap(-1, SIZE)
        view = ffi.from_buffer(self.memory)
        self.host = int(ffi.cast("uintptr_t", view))
        del view
        self.vm = kvm.create_vm()
        try:
            self.vm.set_memory(0, 0, self.host, SIZE)
            self.put(TABLES, identity_map(TABLES, user=True))
            self.put(DIRECTORY32, (x86.PTE_P | x86.PTE_RW | x86.PTE_US | x86.PTE_PS).to_bytes(4, "little"))
            self.put(POINTERS_PAE, (DIRECTORY_PAE | x86.PTE_P).to_bytes(8, "little"))
            self.put(DIRECTORY_PAE, (x86.PTE_P | x86.PTE_RW | x86.PTE_US | x86.PTE_PS).to_bytes(8, "little"))
            self.put(CODE, code)
            self.put(HANDLER, handler)
            descriptors = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
            self.put(GDT, b"".join(d.to_bytes(8, "little") for d in (*descriptors, 0x00008B0000000067 | TSS << 16, 0)))
            self.put(TSS + 4, STACK.to_bytes(8, "little"))
            self.put(TSS + 0x66, b"\x68\x00")
            self.vcpu = self.vm.create_vcpu(0)
            self.vcpu.set_cpuid(kvm.supported_cpuid())
        except BaseException:
            self.close()
            raise

    def put(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data

    def gate(self, vector: int, dpl: int = 0) -> None:
        """A 64-bit interrupt gate to HANDLER."""
        low = HANDLER & 0xFFFF | CODE0 << 16 | (0x8E00 | dpl << 13) << 32
        self.put(IDT + 16 * vector, low.to_bytes(16, "little"))

    def start(self, mode: str, cpl: int = 0, rflags: int = 2) -> CData:
        """Puts the vCPU at CODE in a mode: "real", "paging32", "pae" or "long"; gives the sregs that were set."""
        sregs = self.vcpu.get_sregs()
        if mode == "real":
            set_real_mode(sregs)
        elif mode == "long":
            code, data = (CODE3, DATA3) if cpl else (CODE0, DATA0)
            set_long_mode(sregs, TABLES, cs=code, ds=data, cpl=cpl)
            sregs.cr4 |= x86.CR4_OSFXSR
            sregs.efer |= x86.EFER_SCE
        else:
            set_protected_mode(sregs, cs=CODE0, ds=DATA0)
            set_paging32(sregs, DIRECTORY32 if mode == "paging32" else POINTERS_PAE, pae=mode == "pae")
        if mode != "real":
            sregs.cr0 |= x86.CR0_MP | x86.CR0_NE
            sregs.gdt.base, sregs.gdt.limit = GDT, 0x3F
            sregs.idt.base, sregs.idt.limit = IDT, 0xFFF
            set_segment(sregs.tr, TASK, TSS, 0x67, x86.SEG_TSS_BUSY, s=0)
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        regs.rip, regs.rsp, regs.rflags = CODE, STACK - 0x100, rflags
        regs.rax, regs.rbx = 0xFFFF, DATA
        self.vcpu.set_regs(regs)
        return sregs

    def run(self) -> int:
        """One exit, or KVM_EXIT_INTR at the deadline."""
        return run_bounded(self.vcpu, DEADLINE)

    def close(self) -> None:
        self.vm.close()
        self.memory.close()


def run_bounded(vcpu: KvmVcpu, seconds: float) -> int:
    """Vcpu.run that a timer ends with KVM_EXIT_INTR."""
    timer = threading.Timer(seconds, vcpu.kick)
    timer.daemon = True
    timer.start()
    try:
        return vcpu.run()
    finally:
        timer.cancel()


def _halts(mode: str, code: bytes, cpl: int = 0) -> Callable[[KvmBackend], bool]:
    """Does the code reach HLT?"""

    def probe(kvm: KvmBackend) -> bool:
        guest = _Guest(kvm, code)
        try:
            guest.start(mode, cpl)
            return guest.run() == lib.KVM_EXIT_HLT
        finally:
            guest.close()

    return probe


def _int_n(cpl: int) -> Callable[[KvmBackend], bool]:
    """Does INT 80h enter its gate's handler at CPL 0?"""

    def probe(kvm: KvmBackend) -> bool:
        guest = _Guest(kvm, b"\xcd\x80")
        try:
            guest.gate(0x80, dpl=3)
            guest.start("long", cpl)
            return guest.run() == lib.KVM_EXIT_HLT and guest.vcpu.get_regs().rip == HANDLER + 1
        finally:
            guest.close()

    return probe


def _syscall(kvm: KvmBackend) -> bool:
    """Does SYSCALL from CPL 3 enter LSTAR at CPL 0? HLT there tells: at CPL 3 it faults."""
    guest = _Guest(kvm, b"\x0f\x05")
    try:
        guest.start("long", 3)
        # STAR: SYSCALL takes CS from 47:32, SYSRET from 63:48 (SDM 2B, SYSCALL).
        star = CODE0 << 32 | (CODE3_32 | 3) << 48
        refused = guest.vcpu.set_msrs({x86.MSR_STAR: star, x86.MSR_LSTAR: HANDLER, x86.MSR_SFMASK: 0})
        return not refused and guest.run() == lib.KVM_EXIT_HLT
    finally:
        guest.close()


def _debugged(code: bytes, cpl: int, control: int, registers: tuple[int, ...], pc: int) -> Callable[[KvmBackend], bool]:
    """Does guest debugging stop the vCPU at `pc`?"""

    def probe(kvm: KvmBackend) -> bool:
        guest = _Guest(kvm, code)
        try:
            guest.start("long", cpl)
            guest.vcpu.set_guest_debug(lib.KVM_GUESTDBG_ENABLE | control, registers)
            return guest.run() == lib.KVM_EXIT_DEBUG and guest.vcpu.record.debug.arch.pc == pc
        finally:
            guest.close()

    return probe


# DR7: local enable of breakpoint 0, its R/W and length fields (SDM 3B 18.2.4).
_EXECUTE = (CODE + 1, 0, 0, 0, 0, 0, 0, 0x401)
_WRITE4 = (DATA, 0, 0, 0, 0, 0, 0, 0xD0401)

_NOPS = b"\x90\x90\x90\xeb\xfe"
_STORE = b"\x89\x03\x90\xf4"  # mov [rbx], eax; nop; hlt

PROBES: dict[str, Callable[[KvmBackend], bool]] = {
    "cpl0_on_hardware": _halts("long", b"\xf3\x0f\xb8\xc2\xf4"),  # popcnt eax, edx: no emulator has it
    "real_mode": _halts("real", b"\x90\xf4"),
    "paging32": _halts("paging32", b"\x90\xf4"),
    "paging_pae": _halts("pae", b"\x90\xf4"),
    "long_mode": _halts("long", b"\x90\xf4"),
    "sse_at_cpl0": _halts("long", b"\x66\x0f\xfe\xc1\xf4"),  # paddd xmm0, xmm1
    "x87_at_cpl0": _halts("long", b"\xd9\xe8\x9b\xf4"),  # fld1; fwait
    "int_n_at_cpl0": _int_n(0),
    "int_n_from_user": _int_n(3),
    "syscall_from_user": _syscall,
    "hypercall": _halts("long", b"\x0f\x01\xc1\xf4"),  # vmcall
    "singlestep_kernel": _debugged(_NOPS, 0, lib.KVM_GUESTDBG_SINGLESTEP, (), CODE + 1),
    "singlestep_user": _debugged(_NOPS, 3, lib.KVM_GUESTDBG_SINGLESTEP, (), CODE + 1),
    "breakpoint_kernel": _debugged(_NOPS, 0, lib.KVM_GUESTDBG_USE_HW_BP, _EXECUTE, CODE + 1),
    "breakpoint_user": _debugged(_NOPS, 3, lib.KVM_GUESTDBG_USE_HW_BP, _EXECUTE, CODE + 1),
    "watchpoint_kernel": _debugged(_STORE, 0, lib.KVM_GUESTDBG_USE_HW_BP, _WRITE4, CODE + 2),
}


def _modules() -> tuple[str, ...]:
    return tuple(name for name in ("kvm", "kvm_intel", "kvm_amd", "kvm_pvm") if os.path.isdir(f"/sys/module/{name}"))


def _capabilities(kvm: KvmBackend) -> dict[str, int]:
    found = {}
    for name, number in CAPABILITIES.items():
        try:
            found[name] = kvm.check_extension(number)
        except HostError:
            found[name] = 0
    return found


@functools.cache
def unavailable() -> str:
    """Why no VM can be made, with the remedy; empty when one can."""
    try:
        with KvmBackend() as kvm:
            kvm.create_vm().close()
    except KvmpyError as error:
        return str(error)
    return ""


@functools.cache
def ask(name: str) -> bool:
    """The finding of one probe of PROBES, run once per process; false where KVM refuses the guest."""
    if unavailable():
        return False
    try:
        with KvmBackend() as kvm:
            return PROBES[name](kvm)
    except HostError:
        return False


@functools.cache
def probe() -> HostKvm:
    """Every finding; takes some tens of milliseconds the first time."""
    why = unavailable()
    if why:
        return HostKvm(False, why, _modules())
    with KvmBackend() as kvm:
        capabilities = _capabilities(kvm)
    return HostKvm(True, "", _modules(), capabilities=capabilities, **{name: ask(name) for name in PROBES})
