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
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
GUEST = ROOT / "build" / "guests" / "bench.elf"
NATIVE = ROOT / "build" / "bench" / "native"
KVMPY = (sys.executable, "-m", "kvmpy.cli.main", "run", "--quiet")

COMPUTE = (
    "mix", "sieve", "strings", "copyloop", "quicksort", "calls", "mandelbrot", "nbody", "chase", "sha256", "muldiv", "bytecode", "patched",
)  # fmt: skip
MACHINE = ("remap", "reload", "fault", "syscall", "int80", "timer", "selfipi", "outb", "inb", "mmio", "picport", "lapic")


@dataclass
class Series:
    """The runs of one benchmark by one runner: ns of each, by the guest's clock and between its lines as the host saw them."""

    work: int = 0
    checksums: set[str] = field(default_factory=set)
    times: list[float] = field(default_factory=list)
    walls: list[float] = field(default_factory=list)

    @property
    def time(self) -> float:
        return median(self.times)

    @property
    def clock_off(self) -> bool:
        """Do the guest's clock and the host's differ by more than a third and 5 ms?"""
        if not self.walls:
            return False
        wall, time_ = min(self.walls), min(self.times)
        return abs(wall - time_) > max(5e6, time_ / 3)


@dataclass
class Outcome:
    series: dict[str, Series]
    problem: str = ""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def measure(command: list[str], seconds: float) -> Outcome:
    """Runs a command that prints the benchmark's lines, for at most `seconds`."""
    series: dict[str, Series] = defaultdict(Series)
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


def _append(names: list[str], scale: int, runs: int, *words: str) -> str:
    return " ".join([f"scale={scale}", f"repeat={runs}", *words, *names])


def native(names: list[str], scale: int, runs: int, seconds: float) -> Outcome:
    return measure([str(NATIVE), *_append(names, scale, runs).split()], seconds)


def kvmpy(backend: str, names: list[str], scale: int, runs: int, seconds: float, *words: str) -> Outcome:
    return measure(
        [*KVMPY, str(GUEST), "--backend", backend, "--memory", "512M", "--append", _append(names, scale, runs, *words)], seconds
    )


def qemu_path() -> str:
    return shutil.which("qemu-system-x86_64") or ""


def qemu(names: list[str], scale: int, runs: int, seconds: float) -> Outcome:
    """QEMU's translator on the same image. The machine is "pc": a microvm lacks port 61h, by which the guest takes its clock's measure."""
    return measure(
        [
            qemu_path(), "-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot",
            "-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", str(GUEST),
            "-append", _append(names, scale, runs),
        ],
        seconds,
    )  # fmt: skip
