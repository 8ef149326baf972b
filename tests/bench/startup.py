"""How long until a guest speaks, and what its process occupies then: a tiny PVH guest, and Linux's first process.

Both have their smallest machine (kvmpy's "micro", QEMU's "microvm") and the same kernel, initrd and memory.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import memory
from tests.bench.runners import GUESTS, KVMPY, ROOT, environment, qemu_path

LINUX = ROOT / ".cache" / "guests"
UP, DONE = b"kvmpy-guest: userspace up", b"kvmpy-guest: all checks passed"
MIB = 256

PARTS = ("Python", "imports", "machine", "guest")
"""Of kvmpy's start: the interpreter; modules; the machine made and its image loaded; from then to the guest's first byte, in C."""

_TOLD = """
import sys, time
born = time.monotonic()
from kvmpy.cli.main import main
from kvmpy.cli import run
imported = time.monotonic()
own = run.Machine.run
def told(machine, *arguments):
    print("parts", born, imported, time.monotonic(), file=sys.stderr, flush=True)
    return own(machine, *arguments)
run.Machine.run = told
sys.exit(main(sys.argv[1:]))
"""


def _until(
    command: list[str], texts: list[bytes], seconds: float, then: Callable[[int], None] | None = None
) -> tuple[float, list[float | None], str]:
    """(when the process began, when each text stood in its output, its standard error). `then` gets the process id while it runs."""
    found: list[float | None] = [None] * len(texts)
    seen = b""
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        while None in found and (left := start + seconds - time.monotonic()) > 0:
            if not select.select([process.stdout], [], [], left)[0]:
                break
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                break
            now = time.monotonic()
            seen += data
            for n, text in enumerate(texts):
                if found[n] is None and text in seen:
                    found[n] = now
        if then is not None and None not in found and process.poll() is None:
            then(process.pid)
    finally:
        process.kill()
        errors = process.stderr.read().decode(errors="replace")
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
    return start, found, errors


def tiny(runner: str, guest: str = "hello32.elf", memory: int = 128) -> list[str]:
    """A PVH guest that says something at once."""
    image = str(GUESTS / guest)
    if runner == "qemu":
        return [*_microvm(memory), "-kernel", image]
    machine = "pc" if runner == "kvm" else "micro"
    return ["run", "--quiet", image, "--backend", runner, "--machine", machine, "--memory", f"{memory}M"]


def linux(runner: str) -> list[str]:
    """Debian's kernel for clouds and the initrd of `make linux`."""
    kernel, initrd, append = str(LINUX / "vmlinuz"), str(LINUX / "initrd.cpio.gz"), "console=ttyS0"
    if runner == "qemu":
        return [*_microvm(MIB), "-kernel", kernel, "-initrd", initrd, "-append", append + _tsc_frequency()]
    words = ["run", "--quiet", kernel, "--initrd", initrd, "--append", append]
    return [*words, "--backend", runner, "--machine", "micro", "--memory", f"{MIB}M"]


def _microvm(memory: int) -> list[str]:
    return [
        qemu_path(), "-M", "microvm,isa-serial=on", "-accel", "tcg", "-m", str(memory), "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none", "-serial", "stdio",
    ]  # fmt: skip


def _tsc_frequency() -> str:
    """A microvm has nothing but a PIT to measure the TSC by: on a busy host that fails, and Linux stands still."""
    found = re.search(r"^cpu MHz\s*: (\d+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f" tsc_early_khz={found[1]}000" if found else ""


def linux_missing() -> bool:
    return not ((LINUX / "vmlinuz").exists() and (LINUX / "initrd.cpio.gz").exists())


def first_byte(runner: str) -> dict[str, float]:
    """ms from the process's start to the guest's first byte ("all"), and kvmpy's parts of it; empty when it said nothing."""
    command = tiny(runner)
    if runner != "qemu":
        command = [sys.executable, "-c", _TOLD, *command]
    # The BIOS of a microvm prints nothing before the guest.
    start, (byte,), errors = _until(command, [b"H"], 20)
    if byte is None:
        return {}
    result = {"all": byte - start}
    if told := re.search(r"^parts (\S+) (\S+) (\S+)$", errors, re.MULTILINE):
        marks = [start, *map(float, told.groups()), byte]
        result |= {part: marks[n + 1] - marks[n] for n, part in enumerate(PARTS)}
    return {name: seconds * 1000 for name, seconds in result.items()}


def occupied(runner: str) -> float | None:
    """MiB beside guest RAM with a tiny guest that waits for a key."""
    found: list[dict[str, float]] = []
    command = tiny(runner, "echo.elf")
    if runner != "qemu":
        command = [*KVMPY[:3], *command]
    _until(command, [b"\n"], 20, lambda pid: found.append(memory.of_process(pid, 128 << 20)))
    return found[0][memory.TOTAL] if found else None


def boot(runner: str, seconds: float, checks: bool) -> dict[str, float]:
    """Seconds to Linux's first process ("up") and, where wanted, to the end of its checks ("done"), with the MiB beside guest RAM then, by
    kind ("memory, ..."). What has not come is left out."""
    found: list[dict[str, float]] = []
    command = linux(runner)
    if runner != "qemu":
        command = [*KVMPY[:3], *command]
    texts = [UP, DONE] if checks else [UP]
    start, times, _ = _until(command, texts, seconds, lambda pid: found.append(memory.of_process(pid, MIB << 20)))
    result = {name: at - start for name, at in zip(("up", "done"), times, strict=False) if at is not None}
    if found and checks:
        result |= {f"memory, {kind}": mib for kind, mib in found[0].items()}
    return result
