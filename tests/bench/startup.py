"""How long until a guest speaks: a tiny PVH guest's first byte, and Linux's first process."""

from __future__ import annotations

import os
import select
import subprocess
import time
from statistics import median

from tests.bench.runners import KVMPY, ROOT, environment, qemu_path

HELLO = str(ROOT / "build" / "guests" / "hello32.elf")
LINUX = ROOT / ".cache" / "guests"
UP, DONE = b"kvmpy-guest: userspace up", b"kvmpy-guest: all checks passed"


def _until(command: list[str], texts: list[bytes], seconds: float) -> list[float | None]:
    """Seconds from the process's start until each text stands in its output (an empty one: the first byte)."""
    found: list[float | None] = [None] * len(texts)
    seen = b""
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment())
    try:
        assert process.stdout is not None
        while None in found and (left := start + seconds - time.monotonic()) > 0:
            if not select.select([process.stdout], [], [], left)[0]:
                break
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                break
            seen += data
            for n, text in enumerate(texts):
                if found[n] is None and text in seen:
                    found[n] = time.monotonic() - start
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return found


def commands(kvm: bool) -> dict[str, list[str]]:
    result = {"soft": [*KVMPY, HELLO, "--backend", "soft"]}
    if kvm:
        result["kvm"] = [*KVMPY, HELLO, "--backend", "kvm"]
    if qemu_path():
        common = [qemu_path(), "-accel", "tcg", "-m", "128", "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"]
        result["qemu microvm"] = [*common, "-M", "microvm,isa-serial=on", "-kernel", HELLO]
    return result


def first_byte(runs: int, kvm: bool) -> dict[str, float | None]:
    """Median ms from the start of the process to the guest's first byte."""
    result: dict[str, float | None] = {}
    for name, command in commands(kvm).items():
        # The BIOS of a microvm prints nothing before the guest.
        times = [t for _ in range(runs) if (t := _until(command, [b"Hello"], 20)[0]) is not None]
        result[name] = median(times) * 1000 if times else None
    return result


def linux(backend: str, seconds: float) -> dict[str, float | None] | None:
    """Seconds to Linux's first process and to the end of its checks; None where `make linux` has not been run."""
    kernel, initrd = LINUX / "vmlinuz", LINUX / "initrd.cpio.gz"
    if not (kernel.exists() and initrd.exists()):
        return None
    command = [*KVMPY, str(kernel), "--initrd", str(initrd), "--append", "console=ttyS0", "--backend", backend, "--memory", "512M"]
    up, done = _until(command, [UP, DONE], seconds)
    return {"first process": up, "checks done": done}
