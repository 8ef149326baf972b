"""The protocol that both backends fill: KVM (`kvmpy.kvm`) and the software CPU (`kvmpy.soft`).

Records and register structs are cffi pointers to the structs of `kvmpy/abi`, named as in <linux/kvm.h>.
`get_*` methods return a fresh owned struct; `set_*` methods take one. All raise HostError when the host refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kvmpy.history import Delivery, ExitNote

CData = Any


class Vcpu(Protocol):
    """One virtual CPU. Every method is called from the thread that runs it, except `kick`."""

    index: int
    record: CData
    """`struct kvm_run *`: why the last run ended; answers to IN and MMIO reads go into it before the next run."""

    def run(self) -> int:
        """Runs until an exit and returns its KVM_EXIT_* number; a signal or `kick` gives KVM_EXIT_INTR (10)."""

    def kick(self) -> None:
        """Makes a present or the next `run` return KVM_EXIT_INTR soon. Safe from any thread and from a signal handler."""

    def io_data(self) -> CData:
        """Writable buffer of size*count bytes: the data of the present KVM_EXIT_IO."""

    def get_regs(self) -> CData: ...
    def set_regs(self, regs: CData) -> None: ...
    def get_sregs(self) -> CData: ...
    def set_sregs(self, sregs: CData) -> None: ...
    def get_fpu(self) -> CData: ...
    def set_fpu(self, fpu: CData) -> None: ...
    def get_xsave(self) -> bytearray: ...
    def set_xsave(self, image: bytes) -> None: ...
    def get_xcrs(self) -> CData: ...
    def set_xcrs(self, xcrs: CData) -> None: ...
    def get_debugregs(self) -> CData: ...
    def set_debugregs(self, debugregs: CData) -> None: ...
    def get_msrs(self, indices: list[int]) -> dict[int, int]:
        """Values of those of `indices` that the vCPU knows; unknown ones are absent from the answer."""

    def set_msrs(self, values: dict[int, int]) -> list[int]:
        """Sets MSRs one by one as far as they are accepted; returns the indices that were refused."""

    def get_cpuid(self) -> list[CData]:
        """The CPUID table in force (entries of `struct kvm_cpuid_entry2`): read back, not what was asked for."""

    def set_cpuid(self, entries: list[CData]) -> None: ...
    def get_lapic(self) -> CData: ...
    def set_lapic(self, lapic: CData) -> None: ...
    def get_events(self) -> CData: ...
    def set_events(self, events: CData) -> None: ...
    def get_mp_state(self) -> int: ...
    def set_mp_state(self, state: int) -> None: ...
    def interrupt(self, vector: int) -> None:
        """Queues an external interrupt by vector (only without an in-kernel interrupt chip)."""

    def nmi(self) -> None: ...
    def translate(self, linear: int) -> CData:
        """`struct kvm_translation *` for a linear address under the present page tables."""

    def set_guest_debug(self, control: int, debug_registers: tuple[int, ...] = ()) -> None: ...
    def get_tsc_khz(self) -> int: ...
    def set_tsc_khz(self, khz: int) -> None: ...
    def position(self) -> tuple[int, int]:
        """Linear address and privilege level of the instruction that the present exit is about. On KVM a write to a device that
        the kernel's emulator has carried out stands one instruction further."""

    def fault(self, vector: int, error: int | None) -> None:
        """An exception in place of the instruction of the present exit; behind a write to a device, which has been done."""

    def exits(self) -> list[ExitNote]:
        """The last exits to user space, oldest first; those that the host asked for (kicks, debugging) are left out. On KVM `rip` is an
        offset in CS, and 0 where this KVM does not store registers with exits."""

    def deliveries(self) -> list[Delivery]:
        """The last exceptions and interrupts, oldest first, also those whose delivery failed; empty on KVM, which does not tell."""

    def statistics(self) -> dict[str, int]:
        """Counters by name, as the backend gives them."""


class Vm(Protocol):
    """One virtual machine."""

    name: str
    """"kvm" or "soft"."""

    threaded: bool
    """True: each vCPU wants a thread of its own (`Vcpu.run`). False: one thread calls `run` below, vCPUs take turns."""

    traceable: frozenset[str]
    """Kinds of events (kvmpy.trace) that the backend can be asked to tell, beside what exits anyway."""

    answerable: frozenset[str]
    """Those of them that a listener may answer."""

    def run(self) -> Vcpu:
        """Only where `threaded` is false: runs the vCPUs in turns until one exits, and returns that one.

        `exit_reason` in its record is always set, to KVM_EXIT_INTR too: after a kick of any vCPU, and at `set_deadline`.
        """

    def create_vcpu(self, index: int) -> Vcpu: ...
    def set_memory(self, slot: int, gpa: int, host: int, size: int, *, readonly: bool = False, log_dirty: bool = False) -> None:
        """Adds, moves or (size 0) deletes a memory slot; `host` is the address of the backing pages. All page aligned."""

    def memory_written(self, gpa: int, size: int) -> None:
        """Tells the backend that the host wrote guest RAM (DMA, loader): decoded code there is dropped, the dirty log marked."""

    def ranges_written(self, ranges: CData, count: int, size: int) -> None:
        """The same of the first `size` bytes of `count` ranges (`struct kp_range *`), one behind the other."""

    def dirty_log(self, slot: int) -> bytes:
        """One bit per page of the slot written since the last call; the log is cleared."""

    def create_irqchip(self) -> None:
        """8259 pair, I/O APIC and a local APIC per vCPU in the backend; before any vCPU is created."""

    def create_pit(self) -> None:
        """8254 in the backend, on GSI 0, ports 0x40-0x43 and 0x61; after create_irqchip."""

    def irq_line(self, gsi: int, level: int) -> None: ...
    def signal_msi(self, address: int, data: int) -> int: ...
    def get_irqchip(self, chip: int) -> CData:
        """`struct kvm_irqchip *`; chip 0 and 1: the 8259s, 2: the I/O APIC."""

    def set_irqchip(self, chip: CData) -> None: ...
    def get_pit(self) -> CData: ...
    def set_pit(self, pit: CData) -> None: ...
    def get_clock(self) -> CData: ...
    def set_clock(self, clock: CData) -> None: ...
    def set_user_msrs(self, reasons: int, ranges: list[tuple[int, int, int]]) -> None:
        """MSR accesses that become KVM_EXIT_X86_RDMSR/WRMSR: `reasons` is a mask of KVM_MSR_EXIT_REASON_*;
        `ranges` are (first index, count, KVM_MSR_FILTER_READ|WRITE) which the filter denies."""

    def close(self) -> None:
        """Ends the VM and frees all it holds. Calling it twice is harmless."""


class Backend(Protocol):
    """A way to make VMs."""

    name: str

    def create_vm(self) -> Vm: ...
    def supported_cpuid(self) -> list[CData]:
        """The `struct kvm_cpuid_entry2` entries that a guest may be shown."""
