"""What a process takes beside its guest's RAM, once Linux has booted in it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from tests.bench.runners import KVMPY, environment, qemu_path
from tests.bench.startup import DONE, LINUX

RAM = "512M"
GUEST = re.compile(r"/memfd:(kvmpy-ram|memory-backend-memfd)\b")
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+) *(.*)")


def by_kind(smaps: str) -> dict[str, float]:
    """MiB of a process's resident pages by kind of mapping, from the text of its `smaps`; guest RAM is left out.

    A page of a file counts whole, whoever else has the file mapped: the figure must not depend on what runs beside.
    Shared memory of the process itself counts by its proportional size: mapped twice, it is there once.
    """
    kib: Counter[str] = Counter()
    kind, field = "", ""
    for line in smaps.splitlines():
        if found := _MAPPING.match(line):
            inode, name = found.groups()
            anonymous = name.startswith(("/dev/zero", "/memfd:", "/SYSV"))
            if GUEST.match(name):
                kind = ""
            elif anonymous:
                kind = "shared"
            elif inode != "0":
                kind = "files"
            else:
                kind = {"[heap]": "heap", "[stack]": "stack"}.get(name, "anonymous")
            field = "Pss" if anonymous else "Rss"
        elif kind and line.startswith(f"{field}:"):
            kib[kind] += int(line.split()[1])
    return {"total": kib.total() / 1024, **{kind: n / 1024 for kind, n in sorted(kib.items())}}


def commands() -> dict[str, list[str]]:
    kernel, initrd = str(LINUX / "vmlinuz"), str(LINUX / "initrd.cpio.gz")
    guest = ["--initrd", initrd, "--append", "console=ttyS0", "--memory", RAM]
    result = {"soft": [*KVMPY, kernel, *guest, "--backend", "soft", "--machine", "micro"]}
    if qemu_path():
        ram = ["-object", f"memory-backend-memfd,id=ram,size={RAM}", "-m", RAM, "-M", "microvm,isa-serial=on,memory-backend=ram"]
        result["qemu microvm"] = [
            *(qemu_path(), "-accel", "tcg", "-cpu", "max", *ram, "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"),
            *("-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0"),
        ]
    return result


def at_text(command: list[str], text: bytes, seconds: float) -> dict[str, float] | None:
    """by_kind() of a command that is stopped where it prints a text, and ended then; None where it does not come to it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment())
    assert process.stdout is not None
    seen, end = b"", time.monotonic() + seconds
    try:
        while text not in seen:
            left = end - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                return None
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                return None
            seen += data
        process.send_signal(signal.SIGSTOP)
        return by_kind(Path(f"/proc/{process.pid}/smaps").read_text())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def measure(seconds: float) -> dict[str, dict[str, float] | None] | None:
    """MiB by runner and kind after a boot to the end of the guest's checks; None where `make linux` has not been run."""
    if not (LINUX / "vmlinuz").exists() or not (LINUX / "initrd.cpio.gz").exists():
        return None
    tries = 4  # On a busy host QEMU's guest may fail to calibrate its TSC, and hangs.
    return {
        name: next((found for _ in range(tries) if (found := at_text(command, DONE, seconds / tries))), None)
        for name, command in commands().items()
    }
