"""A virtual machine of the software CPU: memory, vCPUs in turns or in parallel, chips, time."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

from kvmpy.errors import ConfigError, HostError, TranslatorError
from kvmpy.native import CData, check, ffi, lib
from kvmpy.soft.vcpu import SoftVcpu

PAGE = 4096
NO_DEADLINE = (1 << 64) - 1
_FOR_EVER = (1 << 63) - 1
_TAKEN = 1024
_COVERAGE_PAGES = 64
_U32 = (1 << 32) - 1
_INTERRUPTED, _AGAIN = -errno.EINTR, -errno.EAGAIN

Pair = tuple[int, int]
Rule = tuple[int, int, int, Pair, Pair, Pair, Pair, Pair, Pair]


def _difference(one: CData) -> tuple[str, int | None, bytes, bytes]:
    name = ffi.string(one.name).decode()
    gpa = int(one.gpa) if name in ("memory", "stored") else None
    return name, gpa, bytes(one.interpreted[0 : one.size]), bytes(one.translated[0 : one.size])


def _interrupted(vcpus: dict[int, SoftVcpu]) -> SoftVcpu:
    for vcpu in vcpus.values():
        if vcpu.record.exit_reason == lib.KVM_EXIT_INTR:
            return vcpu
    raise HostError("kp_vm_run", errno.EINTR)


class SoftVm:
    """One VM. Made by SoftBackend.create_vm. Its vCPUs run in the one thread that calls `run`, or with `parallel` each in a thread of
    its own, by `SoftVcpu.run`; interrupt lines, messages, kicks, and what is told of memory may come from any thread. The host's
    pages behind memory slots belong to the caller and must outlive the VM."""

    name = "soft"
    threaded = False
    traceable: frozenset[str] = frozenset(
        ("io", "mmio", "msr", "cpuid", "irq", "exception", "hypercall", "block", "instruction", "memory"))
    answerable = traceable

    def __init__(self, virtual_clock: bool = False, tsc_khz: int = 0, parallel: bool = False) -> None:
        self._vm: CData = lib.kp_vm_create(int(virtual_clock), tsc_khz)
        if not self._vm:
            raise HostError("kp_vm_create", errno.ENOMEM)
        if parallel:
            check("kp_vm_set_parallel", lib.kp_vm_set_parallel(self._vm))
            self.threaded = True
            self.answerable = frozenset(("msr",))
        self.virtual_clock = virtual_clock
        self.vcpus: dict[int, SoftVcpu] = {}
        self.translating = False
        """Blocks that run often are translated to host code."""
        self._slots: dict[int, int] = {}
        self._taken: CData = None
        self.run: Callable[[], SoftVcpu] = self._bound_run()
        """Runs the vCPUs, which are not parallel, in turns until one exits, and gives that one; KVM_EXIT_INTR stands in its record
        after a kick or a deadline. Signal handlers of Python run meanwhile; what they raise passes through."""

    def __enter__(self) -> SoftVm:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _pointer(self) -> CData:
        if not self._vm:
            raise HostError("VM of the software CPU", errno.EBADF, "it is closed")
        return self._vm

    # Running.

    def translate(self, threshold: int, code_cache: int = lib.KP_CODE_CACHE) -> bool:
        """Before it runs: blocks that have run `threshold` times are translated to host code, into `code_cache` bytes; 0: none.
        False where the host forbids executable memory."""
        check("kp_vm_set_code_cache", lib.kp_vm_set_code_cache(self._pointer(), code_cache))
        done = int(lib.kp_vm_set_translator(self._pointer(), threshold)) == 0
        self.translating = done and threshold > 0
        return done

    def verify_translator(self) -> None:
        """Before it runs, and with a translator: everything runs twice, interpreted and translated; KP_EXIT_DIFFERS where the two part."""
        check("kp_vm_set_verifier", lib.kp_vm_set_verifier(self._pointer(), 1))

    def difference(self) -> TranslatorError:
        """After KP_EXIT_DIFFERS: what differs, to be raised."""
        stretch = ffi.new("struct kp_stretch *")
        found = ffi.new("struct kp_difference[]", lib.KP_DIFFERENCES)
        count = lib.kp_vm_difference(self._pointer(), stretch, found, lib.KP_DIFFERENCES)
        return TranslatorError(
            stretch.start, stretch.rip, stretch.next or None, bool(stretch.again), (stretch.interpreted, stretch.translated),
            [_difference(found[n]) for n in range(count)],
        )

    def translations(self, rip: int | None = None) -> CData:
        """The blocks that hold an instruction byte at RIP, or all: an owned array of `struct kp_translation`. While it does not run."""
        where = lib.KP_ANY_RIP if rip is None else rip
        count = lib.kp_vm_translations(self._pointer(), where, ffi.NULL, 0)
        found = ffi.new("struct kp_translation[]", count)
        lib.kp_vm_translations(self._pointer(), where, found, count)
        return found

    def host_code(self, translation: CData) -> bytes:
        """The host code of one of `translations`; empty where it is gone."""
        code = ffi.new("uint8_t[]", translation.code_size)
        size = lib.kp_vm_host_code(self._pointer(), translation.host, code, translation.code_size)
        return bytes(ffi.buffer(code, size))

    def thunks(self) -> list[tuple[int, int, str]]:
        """(address, size, name) of the common pieces of host code."""
        found: list[tuple[int, int, str]] = []
        host, size = ffi.new("uint64_t *"), ffi.new("uint32_t *")
        while name := lib.kp_vm_thunk(self._pointer(), len(found), host, size):
            found.append((host[0], size[0], ffi.string(name).decode()))
        return found

    def remember_translations(self) -> None:
        """From now on `remembered` knows those too that have been dropped. Nothing where all is interpreted."""
        if self.translating:
            check("kp_vm_remember_translations", lib.kp_vm_remember_translations(self._pointer()))

    def remembered(self) -> list[tuple[int, int, int]]:
        """(RIP, host address, size) of all translations since the code cache was empty."""
        count = lib.kp_vm_remembered(self._pointer(), ffi.NULL, 0)
        found = ffi.new("struct kp_made[]", count)
        lib.kp_vm_remembered(self._pointer(), found, count)
        return [(one.rip, one.host, one.size) for one in found]

    def _bound_run(self) -> Callable[[], SoftVcpu]:
        """`run` with all that it needs at each exit looked up once."""
        kp_vm_run, pointer, vcpus = lib.kp_vm_run, self._vm, self.vcpus

        def run() -> SoftVcpu:
            while True:
                code = kp_vm_run(pointer)
                if code >= 0:
                    return vcpus[code]
                if code == _INTERRUPTED:
                    return _interrupted(vcpus)
                if code != _AGAIN:
                    check("kp_vm_run", code)

        return run

    def now(self) -> int:
        """Nanoseconds of the VM's clock: since it was made, or as set_clock set it."""
        return int(lib.kp_vm_now(self._pointer()))

    def set_deadline(self, ns: int) -> None:
        """`run` returns KVM_EXIT_INTR when `now()` has reached `ns`; 2**63 - 1 and more: never. One deadline, used once."""
        deadline = NO_DEADLINE if ns >= _FOR_EVER else max(ns, 0)
        check("kp_vm_set_deadline", lib.kp_vm_set_deadline(self._pointer(), deadline))

    def create_vcpu(self, index: int) -> SoftVcpu:
        """`index` is the APIC id. Vcpu 0 is the bootstrap processor; with interrupt chips the others wait for INIT and SIPI."""
        if index in self.vcpus:
            raise HostError("kp_vcpu_create", errno.EEXIST, "a vCPU of this index exists already")
        if not 0 <= index < 256:
            raise HostError("kp_vcpu_create", errno.EINVAL, "an index is 0 to 255")
        pointer = lib.kp_vcpu_create(self._pointer(), index)
        if not pointer:
            raise HostError("kp_vcpu_create", errno.ENOMEM)
        vcpu = SoftVcpu(self, pointer, index)
        self.vcpus[index] = vcpu
        return vcpu

    # Memory.

    def set_memory(self, slot: int, gpa: int, host: int, size: int, *, readonly: bool = False, log_dirty: bool = False) -> None:
        flags = (lib.KVM_MEM_READONLY if readonly else 0) | (lib.KVM_MEM_LOG_DIRTY_PAGES if log_dirty else 0)
        check("kp_vm_set_memory", lib.kp_vm_set_memory(self._pointer(), slot, gpa, ffi.cast("void *", host), size, flags))
        self._slots[slot] = size

    def memory_written(self, gpa: int, size: int) -> None:
        check("kp_vm_memory_written", lib.kp_vm_memory_written(self._pointer(), gpa, size))

    def ranges_written(self, ranges: CData, count: int, size: int) -> None:
        check("kp_vm_ranges_written", lib.kp_vm_ranges_written(self._pointer(), ranges, count, size))

    def dirty_log(self, slot: int) -> bytes:
        size = (self._slots.get(slot, 0) // PAGE + 63) // 64 * 8
        bitmap = ffi.new("uint8_t[]", size)
        check("kp_vm_dirty_log", lib.kp_vm_dirty_log(self._pointer(), slot, bitmap, size))
        return bytes(ffi.buffer(bitmap))

    def set_debug_points(self, points: list[tuple[int, int, int]]) -> None:
        """A debugger's break- and watchpoints in place of those before: (linear address, size, KP_POINT_* bits), any number.
        They cost nothing elsewhere, and the guest cannot see them."""
        table = ffi.new("struct kp_debug_point[]", [{"linear": linear, "size": size, "kind": kind} for linear, size, kind in points])
        check("kp_vm_set_debug_points", lib.kp_vm_set_debug_points(self._pointer(), table, len(points)))

    def set_doorbells(self, doorbells: list[tuple[int, int, int | None]]) -> None:
        """In place of those before, at most KP_DOORBELLS: writes of `size` bytes to an address, with a value if that is not None.
        They end `run` with KVM_EXIT_INTR soon, and are no exits."""
        table = ffi.new(
            "struct kp_doorbell[]",
            [{"gpa": gpa, "size": size, "match": value is not None, "value": value or 0} for gpa, size, value in doorbells],
        )
        check("kp_vm_set_doorbells", lib.kp_vm_set_doorbells(self._pointer(), table, len(doorbells)))

    def take_doorbells(self) -> int:
        """Bit n: the nth doorbell has rung since the last call."""
        return int(lib.kp_vm_take_doorbells(self._pointer()))

    # Tracing.

    def set_trace(self, channel: int, rules: list[Rule], *, host: bool, fd: int = -1) -> None:
        """Replaces the rules of a channel; without rules it is closed. A rule is (kind, KP_RULE_*, group, and the first and last
        subject, value, RIP, size, vCPU, CPL). Records go into the file `fd`, or wait for trace_take; `host`: with the host's time."""
        table = ffi.new("struct kp_trace_rule[]", max(len(rules), 1))
        for entry, (kind, flags, group, subject, value, rip, size, vcpu, cpl) in zip(table, rules, strict=False):
            entry.kind, entry.flags, entry.group = kind, flags, group
            entry.subject, entry.value, entry.rip = subject, value, rip
            for small, (low, high) in ((entry.size, size), (entry.vcpu, vcpu), (entry.cpl, cpl)):
                small[0], small[1] = min(low, _U32), min(high, _U32)
        flags = lib.KP_TRACE_HOST if host else 0
        check("kp_vm_set_trace", lib.kp_vm_set_trace(self._pointer(), channel, table, len(rules), flags, fd))

    def trace_take(self, channel: int) -> bytes:
        """Some of the oldest records of a channel without a file, whole with what follows them; empty where there are none."""
        if self._taken is None:
            self._taken = ffi.new("struct kp_trace_record[]", _TAKEN)
        count = lib.kp_vm_trace_take(self._pointer(), channel, self._taken, _TAKEN)
        return bytes(ffi.buffer(self._taken, count * ffi.sizeof("struct kp_trace_record"))) if count else b""

    def trace_waiting(self, channel: int) -> CData:
        """`uint32_t *` to how many records wait in a channel that has had rules; it lives as long as the VM."""
        return lib.kp_vm_trace_waiting(self._pointer(), channel)

    def trace_flush(self, channel: int, *, last: bool = False) -> None:
        """Brings a channel's records into its file; `last`: also the access that has just been answered. Raises HostError."""
        check("write of the trace", lib.kp_vm_trace_flush(self._pointer(), channel, int(last)))

    def trace_lost(self, channel: int) -> int:
        """Records that no memory was left for."""
        return int(lib.kp_vm_trace_lost(self._pointer(), channel))

    def set_timing(self, on: bool) -> None:
        """Whether statistics tell the time in each engine; it costs some 5 % where code is left often. While it does not run."""
        lib.kp_vm_set_timing(self._pointer(), on)

    # Coverage.

    def set_coverage(self, on: bool, *, branches: bool = False, spaces: bool = False) -> None:
        """Records what is executed from now on, added to what there is; `branches`: also which ways conditional jumps go, `spaces`:
        user pages apart by CR3. Between two runs."""
        if on and self.threaded:
            raise ConfigError("coverage is recorded of vCPUs in turns: leave parallel out")
        flags = (lib.KP_COVERAGE_BRANCHES if branches else 0) | (lib.KP_COVERAGE_SPACES if spaces else 0)
        check("kp_vm_set_coverage", lib.kp_vm_set_coverage(self._pointer(), flags | lib.KP_COVERAGE_ON if on else 0))

    def clear_coverage(self) -> None:
        lib.kp_vm_clear_coverage(self._pointer())

    def read_coverage(self, first: int = 0) -> Iterator[CData]:
        """`struct kp_coverage_page`, each valid until the next, from number `first` on."""
        table = ffi.new("struct kp_coverage_page[]", _COVERAGE_PAGES)
        while count := lib.kp_vm_read_coverage(self._pointer(), first, table, _COVERAGE_PAGES):
            first += count
            for number in range(count):
                yield table[number]

    def coverage_lost(self) -> int:
        """Marks that found no room."""
        return int(lib.kp_vm_coverage_lost(self._pointer()))

    # Interrupt chips.

    def create_irqchip(self) -> None:
        check("kp_vm_create_irqchip", lib.kp_vm_create_irqchip(self._pointer()))

    def create_pit(self) -> None:
        check("kp_vm_create_pit", lib.kp_vm_create_pit(self._pointer()))

    def irq_line(self, gsi: int, level: int) -> None:
        check("kp_vm_irq_line", lib.kp_vm_irq_line(self._pointer(), gsi, level))

    def signal_msi(self, address: int, data: int) -> int:
        """How many local APICs took the message."""
        return check("kp_vm_signal_msi", lib.kp_vm_signal_msi(self._pointer(), address, data))

    def get_irqchip(self, chip: int) -> CData:
        state = ffi.new("struct kvm_irqchip *", {"chip_id": chip})
        check("kp_vm_get_irqchip", lib.kp_vm_get_irqchip(self._pointer(), state))
        return state

    def set_irqchip(self, chip: CData) -> None:
        check("kp_vm_set_irqchip", lib.kp_vm_set_irqchip(self._pointer(), chip))

    def get_pit(self) -> CData:
        state = ffi.new("struct kvm_pit_state2 *")
        check("kp_vm_get_pit", lib.kp_vm_get_pit(self._pointer(), state))
        return state

    def set_pit(self, pit: CData) -> None:
        check("kp_vm_set_pit", lib.kp_vm_set_pit(self._pointer(), pit))

    # Clock, MSRs.

    def get_clock(self) -> CData:
        data = ffi.new("struct kvm_clock_data *")
        check("kp_vm_get_clock", lib.kp_vm_get_clock(self._pointer(), data))
        return data

    def set_clock(self, clock: CData) -> None:
        check("kp_vm_set_clock", lib.kp_vm_set_clock(self._pointer(), clock))

    def set_user_msrs(self, reasons: int, ranges: list[tuple[int, int, int]]) -> None:
        flat = [number for entry in ranges for number in entry]
        table = ffi.new("uint32_t[]", flat)
        check("kp_vm_set_user_msrs", lib.kp_vm_set_user_msrs(self._pointer(), reasons, table, len(ranges)))

    def close(self) -> None:
        """Ends the VM. Records of its vCPUs stay readable. Raises HostError (EBUSY) while a thread runs one of them."""
        pointer = getattr(self, "_vm", None)
        if pointer:
            if lib.kp_vm_running(pointer):
                raise HostError("VM of the software CPU", errno.EBUSY, "a thread runs its vCPUs: kick them, and wait for it")
            self._vm = None
            self.run = self._pointer
            for vcpu in self.vcpus.values():
                vcpu.detach()
            lib.kp_vm_destroy(pointer)
