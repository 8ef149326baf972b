"""Random programs in random states on the software CPU: `make fuzz`, and a short run as a test.

Whatever the bytes: the core answers with an exit in bounded time, touches no memory but the guest's (pages without access stand
around it), and gives a state that it takes back. Each case follows from its number, so that a failing one can be repeated:
    python -m tests.fuzz.core_fuzz --first 1234 --count 1
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import faulthandler
import mmap
import sys
import time
from collections import Counter
from random import Random
from typing import Any

from kvmpy import x86
from kvmpy.exits import decode
from kvmpy.native import ffi, lib
from kvmpy.regs import GENERAL, identity_map, set_long_mode, set_paging32, set_protected_mode, set_real_mode
from kvmpy.soft import SoftBackend
from tests.soft.insn_lines import Line, table

PAGE, SIZE = 4096, 2 << 20
IVT, GDT, IDT, TSS, CODE, STACK = 0, 0x3000, 0x4000, 0x6000, 0x8000, 0x10000
LONG, LEGACY, POINTERS, DIRECTORY, LEAVES = 0x100000, 0x110000, 0x111000, 0x112000, 0x114000
ROM = 0x300000
CASES_PER_VM = 40
SECONDS_PER_CASE = 60
MODES = ("real", "vm86", "protected16", "protected32", "paged32", "pae", "compatibility", "long")
PREFIXES = (b"\x66", b"\x67", b"\xf0", b"\xf2", b"\xf3", b"\x26", b"\x2e", b"\x36", b"\x64", b"\x65", b"\x48", b"\x41", b"\x4f")
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFF, 0x1000, 0x7FFF, 0x8000, 0xFFFF, 0x10000, SIZE - 1, SIZE, ROM, ROM + 0xFFF,
         0xFEE00000, 0xFEC00000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32,
         (1 << 47) - 1, 1 << 47, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1)  # fmt: skip
MSRS = (0x10, 0x1B, 0x174, 0x175, 0x176, 0x277, 0x2FF, 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000100, 0xC0000101, 0xC0000102,
        0xDA0, 0x6E0, 0x808, 0x830, 0x4B564D00, 0x4B564D01, 0x200, 0x201, 0xC0000103)  # fmt: skip


class Failure(AssertionError):
    """The core did something that it must not do; the text names the case."""


class Memory:
    """Guest RAM between two pages that nobody may touch."""

    def __init__(self) -> None:
        self.pages = mmap.mmap(-1, SIZE + 2 * PAGE)
        view = ffi.from_buffer(self.pages)
        first = int(ffi.cast("uintptr_t", view))
        ffi.release(view)
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (first, first + PAGE + SIZE):
            if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.host = first + PAGE

    def put(self, address: int, data: bytes) -> None:
        self.pages[PAGE + address : PAGE + address + len(data)] = data


def number(random: Random) -> int:
    """An interesting 64-bit number."""
    kind = random.randrange(4)
    if kind == 0:
        return random.getrandbits(64)
    if kind == 1:
        return random.choice(EDGES)
    if kind == 2:
        return random.randrange(SIZE)
    return (random.choice(EDGES) + random.randrange(-16, 17)) & (1 << 64) - 1


def instruction(random: Random, lines: tuple[Line, ...], width: int) -> bytes:
    """A line of the table with random operands, or any bytes."""
    if random.random() < 0.25:
        return random.randbytes(random.randrange(1, 12))
    line = random.choice(lines)
    code = bytearray(line.encode(width, random.random() < 0.5)[: random.randrange(3, 14)])
    while len(code) > 1 and code[-1] == 0 and random.random() < 0.8:
        code.pop()  # the room that `encode` leaves for immediates would be ADD [rax], al for the most part
    for _ in range(random.choice((0, 0, 1, 3))):
        code[random.randrange(len(code))] ^= 1 << random.randrange(8)
    prefix = b"".join(random.choice(PREFIXES) for _ in range(random.choice((0, 0, 0, 1, 2))))
    return prefix + bytes(code) + random.randbytes(random.choice((0, 0, 1, 4)))


def fill(random: Random, memory: Memory, width: int) -> None:
    """Code, stack, tables: right for the most part, damaged here and there."""
    lines = table()
    code = b"".join(instruction(random, lines, width) for _ in range(60))
    memory.put(CODE, code[: PAGE * 2])
    memory.put(STACK - 256, random.randbytes(512))
    memory.put(IVT, b"".join((CODE + random.randrange(256)).to_bytes(4, "little") for _ in range(256)))
    descriptors = [0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CF9B000000FFFF, 0x00009B000000FFFF]
    descriptors += [0x00AFFB000000FFFF, 0x00CFF3000000FFFF]
    descriptors += [random.getrandbits(64) & ~0xFF0000FF_FF000000 | random.getrandbits(16) << 16 for _ in range(25)]
    memory.put(GDT, b"".join(entry.to_bytes(8, "little") for entry in descriptors))
    wide = width == 64
    gates = b""
    for _ in range(48):
        target, kind = CODE + random.randrange(512), random.choice((0x8E, 0xEE, 0x8F, 0xEF, 0x85, 0x86, 0x87, random.randrange(256)))
        gate = target & 0xFFFF | random.choice((8, 0x18, 0x20, random.randrange(256))) << 16 | kind << 40 | (target >> 16) << 48
        gates += gate.to_bytes(8, "little") + (bytes(8) if wide else b"")
    memory.put(IDT, gates)
    memory.put(TSS, random.randbytes(16) + STACK.to_bytes(8, "little") * 11 + random.randbytes(24))
    memory.put(LONG, identity_map(LONG, 1, user=True))
    leaves = [n << 12 | (7 if random.random() < 0.97 else random.getrandbits(8)) | (random.random() < 0.02) << 63 for n in range(512)]
    memory.put(LEAVES, b"".join(leaf.to_bytes(8, "little") for leaf in leaves))
    if random.random() < 0.6:
        memory.put(LONG + 0x2000, (LEAVES | 7).to_bytes(8, "little"))
    memory.put(LEGACY, b"".join((n << 22 | 0x87).to_bytes(4, "little") for n in range(1024)))
    memory.put(POINTERS, b"".join((DIRECTORY | 1).to_bytes(8, "little") for _ in range(4)))
    memory.put(DIRECTORY, (LEAVES | 7).to_bytes(8, "little") + b"".join((n << 21 | 0x87).to_bytes(8, "little") for n in range(1, 512)))
    for _ in range(random.choice((0, 0, 2))):
        memory.put(LONG + 8 * random.randrange(0x600), random.randbytes(8))


def set_state(random: Random, vcpu: Any, mode: str) -> None:
    sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
    sregs.cr4, sregs.cr0 = 0, x86.CR0_ET | random.choice((0, x86.CR0_NE, x86.CR0_WP, x86.CR0_TS, x86.CR0_AM, x86.CR0_EM))
    user = random.random() < 0.3
    cpl = 3 if user and mode not in ("real", "vm86") else 0
    if mode == "real":
        set_real_mode(sregs)
    elif mode == "compatibility" or mode == "long":
        set_long_mode(sregs, LONG, compatibility=mode == "compatibility", cpl=cpl)
    else:
        set_protected_mode(sregs, width=16 if mode == "protected16" else 32, cpl=cpl)
        if mode in ("paged32", "pae"):
            set_paging32(sregs, LEGACY if mode == "paged32" else POINTERS, pae=mode == "pae")
    if mode == "vm86":
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            segment = getattr(sregs, name)
            segment.base, segment.limit, segment.selector, segment.type, segment.dpl, segment.db, segment.g = 0, 0xFFFF, 0, 3, 3, 0, 0
    sregs.gdt.base, sregs.gdt.limit = GDT, 0xFF
    if mode != "real":
        sregs.idt.base, sregs.idt.limit = IDT, random.choice((0x7FF, 0xFFF, 0x50, 0))
        sregs.tr.base = TSS
    for bit in (x86.CR4_OSFXSR, x86.CR4_OSXSAVE, 1 << 10, 1 << 16, 1 << 20, 1 << 21, 1 << 7, 1 << 3, 1 << 2, 1 << 11):
        if random.random() < 0.6:
            sregs.cr4 |= bit
    sregs.efer |= random.choice((0, 1, 1 | 1 << 11))
    if random.random() < 0.1:  # the state of a hostile snapshot: taken or refused, both are right
        ffi.buffer(sregs)[random.randrange(ffi.sizeof("struct kvm_sregs"))] = random.randbytes(1)
    for name in GENERAL:
        setattr(regs, name, number(random))
    regs.rip, regs.rflags = CODE + random.choice((0, 0, 0, random.randrange(512))), 2 | random.getrandbits(22) & 0x7CFD5
    if random.random() < 0.8:
        regs.rsp = STACK
        regs.rflags &= ~0x100  # TF
    regs.rflags = regs.rflags | 0x20000 if mode == "vm86" else regs.rflags & ~0x20000
    _try(lambda: vcpu.set_sregs(sregs))
    _try(lambda: vcpu.set_regs(regs))
    xsave = vcpu.get_xsave()
    xsave[0:24] = random.randbytes(24)
    xsave[28:576] = random.randbytes(548)
    xsave[24:28] = (random.getrandbits(16) & 0xFFBF | random.choice((0, 0x1F80))).to_bytes(4, "little")
    xsave[512:576] = (7).to_bytes(8, "little") + bytes(56)
    _try(lambda: vcpu.set_xsave(bytes(xsave)))
    vcpu.set_msrs({index: number(random) for index in random.sample(MSRS, 4)})
    debug = vcpu.get_debugregs()
    if random.random() < 0.15:
        for n in range(4):
            debug.db[n] = random.choice((CODE + random.randrange(64), STACK, number(random)))
        debug.dr7 = 0x400 | random.getrandbits(32) & 0xFFFF00FF
    else:
        debug.dr7 = 0x400
    _try(lambda: vcpu.set_debugregs(debug))
    vcpu.set_guest_debug(random.choice((0, 0, 0, 0, 0, 0, 0, 3, 0x10001)))


def _try(call: Any) -> None:
    """A state that the core refuses is fine."""
    from kvmpy.errors import HostError

    try:
        call()
    except HostError as error:
        if error.errno not in (errno.EINVAL, errno.EEXIST):
            raise


class Fuzzer:
    """Runs cases by number; a new VM every CASES_PER_VM of them."""

    def __init__(self) -> None:
        self.exits: Counter[str] = Counter()
        self.memory = Memory()
        self.backend = SoftBackend("virtual")
        self.vm: Any = None

    def _new_vm(self, chips: bool) -> None:
        self.close()
        self.vm = self.backend.create_vm()
        if chips:
            self.vm.create_irqchip()
            self.vm.create_pit()
        self.vm.set_memory(0, 0, self.memory.host, SIZE, log_dirty=True)
        self.vm.set_memory(1, ROM, self.memory.host + CODE, PAGE, readonly=True)
        self.vm.set_user_msrs(lib.KVM_MSR_EXIT_REASON_UNKNOWN, [])
        self.vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid(self.backend.supported_cpuid())
        self.chips = chips

    def close(self) -> None:
        if self.vm is not None:
            self.vm.close()

    def case(self, seed: int) -> None:
        """One case. Raises Failure."""
        random = Random(seed)
        chips = seed // CASES_PER_VM % 2 == 1
        if self.vm is None or seed % CASES_PER_VM == 0 or self.chips != chips:
            self._new_vm(chips)
        mode = random.choice(MODES)
        vcpu = self.vcpu
        vcpu.set_events(ffi.new("struct kvm_vcpu_events *"))
        vcpu.set_mp_state(0)
        fill(random, self.memory, 64 if mode == "long" else 32 if mode in ("protected32", "paged32", "pae", "compatibility") else 16)
        self.vm.memory_written(0, SIZE)
        set_state(random, vcpu, mode)
        if random.random() < 0.1:
            vcpu.nmi()
        if chips and random.random() < 0.3:
            self.vm.irq_line(random.randrange(24), 1)
            self.vm.signal_msi(0xFEE00000 | random.getrandbits(20), random.getrandbits(16))
        elif not chips and random.random() < 0.2:
            _try(lambda: vcpu.interrupt(random.randrange(256)))
        self.vm.set_deadline(self.vm.now() + 2000)
        for _ in range(16):
            if not self._run(random, vcpu):
                break
        try:
            vcpu.set_sregs(vcpu.get_sregs())
            vcpu.set_regs(vcpu.get_regs())
            vcpu.set_xsave(bytes(vcpu.get_xsave()))
            vcpu.set_debugregs(vcpu.get_debugregs())
            vcpu.set_events(vcpu.get_events())
        except Exception as error:
            raise Failure(f"case {seed} ({mode}): the core refuses its own state: {error}") from error
        vcpu.translate(number(random))
        lib.kp_vcpu_kick(vcpu._cpu)
        lib.kp_vm_run(self.vm._pointer())  # takes the kick, and what was left of a device's answer

    def _run(self, random: Random, vcpu: Any) -> bool:
        """One run and the answer to its exit; false when the case is over."""
        code = lib.kp_vm_run(self.vm._pointer())
        if code == -errno.EAGAIN:
            self.exits["asleep"] += 1
            return False
        record = vcpu.record
        reason = int(record.exit_reason)
        self.exits[str(decode(record, reason)).split(" ")[0]] += 1
        if code == -errno.EINTR:
            return False
        if code != 0:
            raise Failure(f"kp_vm_run gave {code}")
        if reason == lib.KVM_EXIT_IO:
            data = vcpu.io_data()
            if len(data) > PAGE or not record.io.size:
                raise Failure(f"an I/O exit of {len(data)} bytes")
            if not record.io.direction:
                data[0 : len(data)] = random.randbytes(len(data))
        elif reason == lib.KVM_EXIT_MMIO:
            if not 1 <= record.mmio.len <= 8:
                raise Failure(f"an MMIO exit of {record.mmio.len} bytes")
            if not record.mmio.is_write:
                for n in range(8):
                    record.mmio.data[n] = random.getrandbits(8)
        elif reason in (lib.KVM_EXIT_X86_RDMSR, lib.KVM_EXIT_X86_WRMSR):
            record.msr.error, record.msr.data = random.choice((0, 1)), random.getrandbits(64)
        else:
            return reason == lib.KVM_EXIT_DEBUG
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Random programs in random states on the software CPU.")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--count", type=int, default=0, help="how many (default: until the time is over)")
    parser.add_argument("--seconds", type=float, default=60, help="time to spend")
    parser.add_argument("--note", default="build/fuzz-case", help="file that holds the number of the present case")
    arguments = parser.parse_args()
    fuzzer, seed, end = Fuzzer(), arguments.first, time.monotonic() + arguments.seconds
    last = arguments.first + arguments.count
    # The number stands in a mapped file: it survives whatever the core does to the process.
    with open(arguments.note, "w+b") as note:
        note.write(bytes(24))
        note.flush()
        with mmap.mmap(note.fileno(), 24) as current:
            while seed < last if arguments.count else time.monotonic() < end:
                current[:] = f"{seed:<23}\n".encode()
                faulthandler.dump_traceback_later(SECONDS_PER_CASE, exit=True)
                fuzzer.case(seed)
                seed += 1
    faulthandler.cancel_dump_traceback_later()
    fuzzer.close()
    print(f"{seed - arguments.first} cases: " + ", ".join(f"{name} {count}" for name, count in fuzzer.exits.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
