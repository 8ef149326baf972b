"""Runs one assembled program on any backend through the protocol alone, and collects what it shows to the outside."""

from __future__ import annotations

import functools
import importlib
import mmap
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from kvmpy.backend import Backend
from kvmpy.backends import open_backend
from kvmpy.exits import Exit, IoExit, MmioExit, decode
from kvmpy.native import ffi
from kvmpy.regs import identity_map, set_long_mode, set_protected_mode, set_real_mode
from kvmpy.watchdog import Watchdog

SIZE, CODE, STACK, TABLES = 2 << 20, 0x8000, 0x7000, 0x100000
GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip")


@functools.cache
def assemble(text: str) -> bytes:
    """GNU assembler, Intel syntax, linked at CODE."""
    with tempfile.TemporaryDirectory() as folder:
        source, object_, image = (Path(folder) / name for name in ("p.s", "p.o", "p.bin"))
        source.write_text(".intel_syntax noprefix\n.globl _start\n_start:\n" + text + "\n")
        subprocess.run(["as", "--64", "-o", object_, source], check=True, timeout=20)
        subprocess.run(["ld", "-m", "elf_x86_64", f"-Ttext={CODE:#x}", "--oformat=binary", "-o", image, object_], check=True, timeout=20)
        return image.read_bytes()


def backend_missing(name: str) -> str:
    """Why a backend cannot be had here; empty when it can."""
    if name == "kvm":
        return str(importlib.import_module("kvmpy.kvm.probe").unavailable())
    return "" if hasattr(importlib.import_module("kvmpy.soft"), "SoftBackend") else "the software CPU is not built"


def _port(exit: IoExit) -> tuple[int, int, bool]:
    return exit.port, exit.size, exit.out


@dataclass
class Result:
    """What a program did: exits in order up to and without the last, the last one, general registers, memory."""

    exits: list[Exit] = field(default_factory=list)
    end: Exit | None = None
    registers: dict[str, int] = field(default_factory=dict)
    rflags: int = 0
    memory: bytes = b""

    def texts(self) -> list[str]:
        """Exits as lines; neighbouring accesses to a port by a string instruction are one (how many an exit takes is KVM's choice)."""
        lines: list[str] = []
        joined: IoExit | None = None
        for exit in [*self.exits, self.end]:
            if isinstance(exit, IoExit) and joined is not None and _port(exit) == _port(joined):
                joined = IoExit(exit.port, exit.size, joined.count + exit.count, exit.out, joined.data + exit.data)
                lines[-1] = str(joined)
                continue
            joined = exit if isinstance(exit, IoExit) else None
            lines.append(str(exit))
        return lines


def run(name: str, mode: str, text: str, *, limit: int = 500, seconds: float = 20) -> Result:
    """Runs until HLT, SHUTDOWN or an exit that is no port or MMIO access. IN is answered with 10h, 11h, ..., MMIO reads with A0h, A1h, ...

    Every byte read gets the next number, so that the order of reads shows.
    """
    backend: Backend = open_backend(name)
    memory = mmap.mmap(-1, SIZE)
    view = ffi.from_buffer(memory)
    vm = backend.create_vm()
    try:
        code = assemble(text)
        memory[CODE : CODE + len(code)] = code
        memory[TABLES : TABLES + 6 * 4096] = identity_map(TABLES, 4, user=True)
        vm.set_memory(0, 0, int(ffi.cast("uintptr_t", view)), SIZE)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid(backend.supported_cpuid())
        sregs = vcpu.get_sregs()
        if mode == "real":
            set_real_mode(sregs)
        elif mode == "protected":
            set_protected_mode(sregs)
        else:
            set_long_mode(sregs, TABLES)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(ffi.new("struct kvm_regs *", {"rip": CODE, "rsp": STACK, "rflags": 2}))
        result = Result()
        next_port, next_mmio = 0x10, 0xA0
        with Watchdog(seconds, [vcpu]):
            while len(result.exits) < limit:
                reason = vcpu.run() if vm.threaded else _turn(vm, vcpu)
                exit = decode(vcpu.record, reason)
                if isinstance(exit, IoExit):
                    if not exit.out:
                        size = len(exit.data)
                        answer = bytes((next_port + i) & 0xFF for i in range(size))
                        vcpu.io_data()[0:size] = answer
                        next_port += size
                        exit = IoExit(exit.port, exit.size, exit.count, False, answer)
                elif isinstance(exit, MmioExit):
                    if not exit.write:
                        for i in range(exit.size):
                            vcpu.record.mmio.data[i] = (next_mmio + i) & 0xFF
                        next_mmio += exit.size
                else:
                    result.end = exit
                    break
                result.exits.append(exit)
        regs = vcpu.get_regs()
        result.registers = {register: int(getattr(regs, register)) for register in GENERAL}
        result.rflags = int(regs.rflags)
        result.memory = bytes(memory[0x2000:0x8000])
        return result
    finally:
        vm.close()
        ffi.release(view)
        memory.close()


def _turn(vm, vcpu) -> int:
    vm.run()
    return int(vcpu.record.exit_reason)


