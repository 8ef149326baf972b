"""A small guest on one software vCPU: code in GNU as syntax, tables laid out by the test, run to its HLT.

Every vector of the IDT leads to a HLT of its own unless the test gives it a handler: after `run`, `vector` says which one
was taken and `frame` reads what was pushed.
"""

from __future__ import annotations

import mmap
import re
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from kvmpy.native import ffi, lib

GDT, IDT, TSS, LDT = 0x1000, 0x2000, 0x3000, 0x3800
STUBS = 0x4000  # 256 stubs of 16 bytes
USER_STACK, STACK, IST_STACK = 0x6F00, 0x7F00, 0x6000
CODE = 0x8000
TABLES = 0x100000  # page tables
MEMORY = 4 << 20

# Selectors of the table that every protected-mode guest starts with.
CODE0, DATA0, CODE3, DATA3, TSS_SEL, LDT_SEL, CODE16, CODE64, CODE64_3, DATA3_64, CONFORMING, FREE = (
    0x08, 0x10, 0x18 | 3, 0x20 | 3, 0x28, 0x38, 0x48, 0x50, 0x58 | 3, 0x60 | 3, 0x68, 0x70,
)  # fmt: skip

EXIT_HLT, EXIT_SHUTDOWN, EXIT_DEBUG = 5, 8, 4
DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS, NP, SS, GP, PF, MF, AC = 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 16, 17


@cache
def assemble(source: str, bits: int, origin: int) -> bytes:
    """Machine code of AT&T-syntax `source`, linked at `origin`."""
    with tempfile.TemporaryDirectory() as directory:
        object_file, image = Path(directory, "a.o"), Path(directory, "a.bin")
        text = f".code{bits}\n.globl _start\n_start:\n{source}\n"
        subprocess.run(["as", "--64", "-o", object_file, "-"], input=text, text=True, check=True, timeout=20)
        command = ["ld", f"-Ttext={origin:#x}", "--oformat=binary", "-e", "_start", "-o", image, object_file]
        subprocess.run(command, check=True, timeout=20, capture_output=True)
        return image.read_bytes()


def timer_ticks(reload: int) -> str:
    """Source: the 8259s with the first at vector 20h and IRQ 0 alone open; the 8254's channel 0 as a rate generator. Uses AL."""
    pairs = (0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE), (0x43, 0x34), (0x40, reload & 0xFF), (0x40, reload >> 8)
    return "".join(f"mov ${value}, %al\nout %al, ${port}\n" for port, value in pairs)


def descriptor(base: int = 0, limit: int = 0xFFFFFFFF, access: int = 0x93, flags: int = 0xC) -> bytes:
    """A segment descriptor; limit in bytes, flags: G, D/B, L, AVL from the top."""
    if flags & 8:
        limit >>= 12
    low = (limit & 0xFFFF) | (base & 0xFFFFFF) << 16 | access << 40
    return struct.pack("<Q", low | (limit >> 16 & 0xF) << 48 | flags << 52 | (base >> 24 & 0xFF) << 56)


def gate(selector: int, offset: int, access: int, low: int = 0) -> bytes:
    """A call, interrupt, trap or task gate; `low`: parameter count or IST."""
    return struct.pack("<HHBBH", offset & 0xFFFF, selector, low, access, offset >> 16 & 0xFFFF)


def gate64(selector: int, offset: int, access: int, ist: int = 0) -> bytes:
    return gate(selector, offset, access, ist) + struct.pack("<II", offset >> 32, 0)


class Guest:
    """mode: real, prot16, prot32, paging32, pae, long or compat. CPL 0, IF 0, no interrupt chips."""

    def __init__(self, source: str, mode: str = "long", *, virtual_clock: bool = True, cpl: int = 0) -> None:
        self.mode = mode
        self.wide = mode in ("long", "compat")
        self.memory = mmap.mmap(-1, MEMORY)
        self._buffer = ffi.from_buffer(self.memory)
        self.vm = lib.kp_vm_create(1 if virtual_clock else 0, 1000000)
        assert lib.kp_vm_set_memory(self.vm, 0, 0, self._buffer, MEMORY, 0) == 0
        self.cpu = lib.kp_vcpu_create(self.vm, 0)
        self.record = lib.kp_vcpu_record(self.cpu)
        if mode == "long":  # what is written for 32 bits alike
            source = re.sub(r"%e(\w\w),%(cr|dr)", r"%r\1,%\2", source)
            source = re.sub(r"%(cr\d|dr\d),%e", r"%\1,%r", source).replace("(%esp)", "(%rsp)")
        bits = {"real": 16, "prot16": 16, "long": 64}.get(mode, 32)
        self.write(CODE, assemble(source, bits, CODE))
        self.write(STUBS, (b"\xf4" + b"\x90" * 15) * 256)
        self._tables()
        self._registers(cpl)

    def __del__(self) -> None:
        if getattr(self, "vm", None):
            lib.kp_vm_destroy(self.vm)
            self.vm = None

    # memory

    def write(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data
        lib.kp_vm_memory_written(self.vm, address, len(data))

    def u16(self, address: int) -> int:
        return struct.unpack_from("<H", self.memory, address)[0]

    def u32(self, address: int) -> int:
        return struct.unpack_from("<I", self.memory, address)[0]

    def u64(self, address: int) -> int:
        return struct.unpack_from("<Q", self.memory, address)[0]

    def put64(self, address: int, value: int) -> None:
        self.write(address, struct.pack("<Q", value & (1 << 64) - 1))

    def put32(self, address: int, value: int) -> None:
        self.write(address, struct.pack("<I", value & 0xFFFFFFFF))

    # tables

    def _tables(self) -> None:
        self.write(GDT, bytes(8) + descriptor(access=0x9B) + descriptor() + descriptor(access=0xFB) + descriptor(access=0xF3))
        tss = descriptor(TSS, 0x7FF, 0x89, 0)
        self.write(GDT + TSS_SEL, tss + bytes(8))
        self.write(GDT + LDT_SEL, descriptor(LDT, 0xFF, 0x82, 0) + bytes(8))
        self.write(GDT + CODE16, descriptor(0, 0xFFFF, 0x9B, 0))
        self.write(GDT + CODE64, descriptor(access=0x9B, flags=0xA))
        self.write(GDT + (CODE64_3 & ~3), descriptor(access=0xFB, flags=0xA))
        self.write(GDT + (DATA3_64 & ~3), descriptor(access=0xF3))
        self.write(GDT + CONFORMING, descriptor(access=0x9F, flags=0xA if self.mode == "long" else 0xC))
        if self.mode == "real":
            for vector in range(256):
                self.write(vector * 4, struct.pack("<HH", STUBS + vector * 16, 0))
            return
        for vector in range(256):
            self.set_gate(vector, STUBS + vector * 16)
        if self.wide:
            self.write(TSS, bytes(4) + struct.pack("<QQQ", STACK, STACK, STACK) + bytes(8) + struct.pack("<7Q", *[IST_STACK] * 7))
        else:
            self.write(TSS, struct.pack("<IIIII", 0, STACK, DATA0, STACK, DATA0))
        self.write(TSS + 0x66, struct.pack("<H", 0x88))
        if self.mode in ("long", "compat"):
            self.put64(TABLES, TABLES + 0x1000 | 7)
            self.put64(TABLES + 0x1000, TABLES + 0x2000 | 7)
            self._identity(TABLES + 0x2000)
        elif self.mode == "pae":
            self.put64(TABLES, TABLES + 0x2000 | 1)
            self._identity(TABLES + 0x2000)
        elif self.mode == "paging32":
            self.put32(TABLES, TABLES + 0x1000 | 7)
            for page in range(1024):
                self.put32(TABLES + 0x1000 + 4 * page, page << 12 | 7)

    def _identity(self, directory: int) -> None:
        for n in range(2):
            self.put64(directory + 8 * n, directory + 0x1000 * (n + 1) | 7)
            for page in range(512):
                self.put64(directory + 0x1000 * (n + 1) + 8 * page, (n << 21) + (page << 12) | 7)

    def pte(self, address: int) -> int:
        """Address of the page-table entry of a linear address (PAE and long: 8 bytes, else 4)."""
        if self.mode == "paging32":
            return TABLES + 0x1000 + 4 * (address >> 12)
        return TABLES + 0x3000 + 8 * (address >> 12)

    def set_gate(self, vector: int, offset: int, *, dpl: int = 0, kind: int = 0, selector: int = 0, ist: int = 0) -> None:
        """kind: 0 is the interrupt gate of the mode's size."""
        if self.wide:
            self.write(IDT + 16 * vector, gate64(selector or CODE64, offset, 0x80 | dpl << 5 | (kind or 14), ist))
        else:
            default = 6 if self.mode == "prot16" else 14
            selector = selector or (CODE16 if self.mode == "prot16" else CODE0)
            self.write(IDT + 8 * vector, gate(selector, offset, 0x80 | dpl << 5 | (kind or default)))

    # registers

    def _registers(self, cpl: int) -> None:
        sregs = ffi.new("struct kvm_sregs *")
        assert lib.kp_vcpu_get_sregs(self.cpu, sregs) == 0
        real = self.mode == "real"
        selectors = {
            "prot16": (CODE16, DATA0), "long": (CODE64, DATA0), "real": (0, 0),
        }.get(self.mode, (CODE0, DATA0))  # fmt: skip
        if cpl == 3:
            selectors = (CODE64_3 if self.mode == "long" else CODE3, DATA3)
        for name in ("cs", "ds", "es", "fs", "gs", "ss"):
            segment = getattr(sregs, name)
            code = name == "cs"
            segment.selector = selectors[0] if code else selectors[1]
            segment.base = 0
            segment.limit = 0xFFFF if real or (code and self.mode == "prot16") else 0xFFFFFFFF
            segment.type = 11 if code else 3
            segment.present, segment.s, segment.dpl, segment.unusable = 1, 1, cpl, 0
            segment.g = 0 if segment.limit == 0xFFFF else 1
            segment.l = 1 if code and self.mode == "long" else 0
            segment.db = 0 if real or segment.l or (code and self.mode == "prot16") else 1
        sregs.tr.base, sregs.tr.limit, sregs.tr.selector, sregs.tr.type, sregs.tr.present = TSS, 0x7FF, TSS_SEL, 11, 1
        self.write(GDT + TSS_SEL + 5, b"\x8b")
        sregs.ldt.unusable = 1
        sregs.gdt.base, sregs.gdt.limit = GDT, 0xFFF
        sregs.idt.base, sregs.idt.limit = (0, 0x3FF) if real else (IDT, 0xFFF)
        sregs.cr0 = 0x10 if real else 0x31
        sregs.cr3 = TABLES
        if self.wide:
            sregs.cr0, sregs.cr4, sregs.efer = 0x80010031, 0x6A0, 0xD01
        elif self.mode == "pae":
            sregs.cr0, sregs.cr4 = 0x80010031, 0x20
        elif self.mode == "paging32":
            sregs.cr0 = 0x80010031
        assert lib.kp_vcpu_set_sregs(self.cpu, sregs) == 0
        self.set(rip=CODE, rsp=USER_STACK if cpl == 3 else STACK - 0x100, rflags=2)

    @property
    def regs(self) -> Any:
        regs = ffi.new("struct kvm_regs *")
        assert lib.kp_vcpu_get_regs(self.cpu, regs) == 0
        return regs

    @property
    def sregs(self) -> Any:
        sregs = ffi.new("struct kvm_sregs *")
        assert lib.kp_vcpu_get_sregs(self.cpu, sregs) == 0
        return sregs

    def set(self, **values: int) -> None:
        regs = self.regs
        for name, value in values.items():
            setattr(regs, name, value)
        assert lib.kp_vcpu_set_regs(self.cpu, regs) == 0

    def set_system(self, **values: int) -> None:
        sregs = self.sregs
        for name, value in values.items():
            setattr(sregs, name, value)
        assert lib.kp_vcpu_set_sregs(self.cpu, sregs) == 0

    def msr(self, index: int) -> int:
        value = ffi.new("uint64_t *")
        assert lib.kp_vcpu_get_msr(self.cpu, index, value) == 0
        return int(value[0])

    def set_msr(self, index: int, value: int) -> None:
        assert lib.kp_vcpu_set_msr(self.cpu, index, value) == 0

    # running

    def run(self) -> int:
        """Runs to the next exit; gives its reason."""
        for _ in range(1000):
            assert lib.kp_vcpu_run(self.cpu) in (0, -4)
            if self.record.exit_reason != 10:
                break
        return int(self.record.exit_reason)

    def finish(self) -> Any:
        """Runs to HLT and gives the registers."""
        reason = self.run()
        assert reason == EXIT_HLT, f"exit {reason} at {self.regs.rip:#x}"
        return self.regs

    @property
    def vector(self) -> int:
        """The vector whose stub the guest stands in."""
        stub = self.regs.rip - 1 - STUBS
        assert stub >= 0 and stub % 16 == 0 and stub < 4096, f"no stub at {self.regs.rip:#x}"
        return int(stub // 16)

    def frame(self, count: int, size: int = 0) -> list[int]:
        """What stands on the stack, from its top."""
        size = size or (8 if self.wide else 2 if self.mode in ("real", "prot16") else 4)
        format_ = {2: "H", 4: "I", 8: "Q"}[size]
        sregs = self.sregs
        base = 0 if sregs.cs.l else sregs.ss.base
        return list(struct.unpack_from(f"<{count}{format_}", self.memory, base + self.regs.rsp))

    def fault(self) -> tuple[int, int]:
        """Runs into a fault with an error code; gives vector and error."""
        self.finish()
        return self.vector, self.frame(1)[0]
