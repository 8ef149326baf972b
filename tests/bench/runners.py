"""Runs the benchmark natively and as a guest, in processes of their own, and reads the lines that it prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "build" / "guests"
NATIVE = ROOT / "build" / "bench"
KVMPY = (sys.executable, "-m", "kvmpy.cli.main", "run", "--quiet")

COMPUTE = (
    "mix", "sieve", "strings", "strings4k", "strings64", "copyloop", "copyfar", "quicksort", "calls", "mandelbrot", "nbody", "chase",
    "sha256", "muldiv", "wide64", "wide32", "bytecode", "patched",
)  # fmt: skip
NARROW = tuple(f"32-{name}" for name in ("mix", "sieve", "quicksort", "calls", "sha256", "wide32", "bytecode"))
"""The same sources as 32-bit code, in a guest of protected mode."""
MACHINE = (
    "remap", "reload", "switch", "fault", "syscall", "int80", "timer", "selfipi", "outb", "inb", "mmio", "picport", "picwrite", "lapic",
)  # fmt: skip
PAIR = ("alone", "pair")
"""Of a machine with two processors."""
RUNNERS = ("native", "soft", "qemu", "kvm")


@dataclass
class Lines:
    """What one process told of one benchmark: ns of each repetition, by the guest's clock and between its lines as the host saw them."""

    work: int = 0
    checksums: set[str] = field(default_factory=set)
    times: list[float] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)


@dataclass
class Outcome:
    series: dict[str, Lines]
    problem: str = ""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def measure(command: list[str], seconds: float) -> Outcome:
    """Runs a command that prints the benchmark's lines, for at most `seconds`."""
    series: dict[str, Lines] = defaultdict(Lines)
    khz, begun, ended, last, done = 0.0, 0.0, 0.0, "nothing", False
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=environment()
    )
    late = threading.Timer(seconds, process.kill)
    late.start()
    try:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            now = time.monotonic()
            # SeaBIOS leaves its last words on the first line.
            words = line[line.find("tsc ") :].split() if "tsc " in line else line.split()
            if not words:
                continue
            match words[0]:
                case "tsc":
                    khz = float(words[1])
                case "begin":
                    begun = now
                case "stop":
                    ended = now
                case "end":
                    _, name, checksum, ticks, work = words
                    entry = series[name]
                    entry.work = int(work)
                    entry.checksums.add(checksum)
                    entry.times.append(int(ticks) / khz * 1e6)
                    if begun:
                        entry.walls.append((ended - begun) * 1e9)
                case "done":
                    done = True
            last = line.strip() or last
        errors = process.stderr.read().strip()
        process.wait()
    finally:
        late.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    problem = "" if done else f"ended after {last!r}" + (f": {errors.splitlines()[-1]}" if errors else "")
    return Outcome(dict(series), problem)


def qemu_path() -> str:
    return shutil.which("qemu-system-x86_64") or ""


@cache
def parallel() -> tuple[str, ...]:
    """The option that lets two vCPUs run at the same time, as this kvmpy has it; empty where it has none."""
    text = subprocess.run([*KVMPY[:-1], "--help"], capture_output=True, text=True, timeout=20, env=environment(), check=False).stdout
    return ("--smp", "2,parallel") if "--smp" in text and "parallel" in text else ()


def command(runner: str, names: list[str], scale: int, repeat: int) -> list[str]:
    """How a runner is started on benchmarks of one image. QEMU's machine is "pc": a microvm lacks port 61h, by which a guest takes its
    clock's measure."""
    narrow = names[0] in NARROW
    words = [f"scale={scale}", f"repeat={repeat}", *(name.removeprefix("32-") for name in names)]
    image, native = ("bench32.elf", "native32") if narrow else ("bench.elf", "native")
    pair = names[0] in PAIR
    match runner:
        case "native":
            return [str(NATIVE / native), *words]
        case "qemu":
            return [
                qemu_path(), "-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot",
                "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", str(GUESTS / image),
                "-smp", "2" if pair else "1", "-append", " ".join(words),
            ]  # fmt: skip
        case _:
            if runner == "kvm" and names[0] in COMPUTE:
                words.append("user")  # a KVM without VT-x or AMD-V runs only ring 3 on the processor
            cpus = (parallel() or ("--cpus", "2")) if pair else ()
            return [*KVMPY, str(GUESTS / image), "--backend", runner, "--memory", "512M", *cpus, "--append", " ".join(words)]
