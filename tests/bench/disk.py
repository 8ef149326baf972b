"""A disk under Linux: the same guest on the same image file, by turns on the software CPU and on QEMU's translator."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.runners import KVMPY, ROOT, environment, qemu_path

GUESTS = ROOT / ".cache" / "guests"
TEST = "diskspeed"
MIB, READS = 256, 4000
ROUNDS = 3
"""Measurements in each boot."""
FORMATS = ("raw", "qcow2")
ROWS = {"read": "sequential read, MiB/s", "write": "sequential write, MiB/s", "random": "random 4 KiB reads/s"}


def missing() -> str:
    """Why nothing can be measured, or an empty text."""
    tests = GUESTS / "initrd.tests"
    if not tests.exists():
        return "no Linux guest (make linux)"
    if TEST not in tests.read_text().split():
        return "the Linux guest has no program diskspeed (make linux, with a compiler that links statically)"
    return ""


def _image(where: Path, form: str) -> Path:
    from kvmpy.host.images import DiskSpec, open_image
    from kvmpy.host.images.qcow2_create import create_qcow2

    path = where / f"disk.{form}"
    if form == "raw":
        path.write_bytes(os.urandom(1 << 20) * MIB)
        return path
    create_qcow2(str(path), MIB << 20)
    image = open_image(DiskSpec(str(path)))
    content = memoryview(os.urandom(1 << 20))
    for at in range(MIB):
        image.write_from(at << 20, [content])
    image.close()
    return path


def commands(path: Path, form: str) -> dict[str, list[str]]:
    """How each runner is started."""
    kernel, initrd = str(GUESTS / "vmlinuz"), str(GUESTS / "initrd.cpio.gz")
    append = f"console=ttyS0 quiet kvmpy.test={TEST} kvmpy.diskspeed={MIB},{READS},{ROUNDS}"
    result = {
        "soft": [
            *KVMPY, kernel, "--initrd", initrd, "--append", append, "--backend", "soft", "--memory", "512M",
            "--disk", f"{path},bus=virtio,format={form}",
        ],
    }  # fmt: skip
    if qemu_path():
        result["qemu"] = [
            qemu_path(), "-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot",
            "-serial", "stdio", "-kernel", kernel, "-initrd", initrd, "-append", append,
            "-drive", f"file={path},format={form},if=none,id=disk", "-device", "virtio-blk-pci,drive=disk",
        ]  # fmt: skip
    return result


def parse(output: str) -> dict[str, list[tuple[float, str]]]:
    """By kind of access: (MiB or requests a second, checksum) of every round that the guest has printed."""
    found: dict[str, list[tuple[float, str]]] = {}
    for line in output.splitlines():
        _, mark, rest = line.partition("kvmpy-disk: ")
        words = rest.split()
        if mark and len(words) == 4 and words[0] in ROWS:
            amount, nanoseconds = int(words[1]), max(int(words[2]), 1)
            unit = 1 if words[0] == "random" else 1 << 20
            found.setdefault(words[0], []).append((amount / unit / (nanoseconds / 1e9), words[3]))
    return found


def _run(command: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace",
            timeout=seconds, env=environment(), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
    return done.stdout


def measure(runs: int, seconds: float, problems: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Medians by format, kind of access, and runner. What went wrong is added to `problems`."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for form in FORMATS:
            path = _image(Path(directory), form)
            figures: dict[str, dict[str, list[float]]] = {kind: {} for kind in ROWS}
            sums: dict[str, set[str]] = {kind: set() for kind in ROWS}
            for _ in range(runs):
                for runner, command in commands(path, form).items():
                    found = parse(_run(command, seconds))
                    for kind in ROWS:
                        rounds = found.get(kind, [])
                        if len(rounds) != ROUNDS:
                            problems.append(f"disk {form}, {runner}: {len(rounds)} of {ROUNDS} rounds of {kind}")
                        figures[kind].setdefault(runner, []).extend(rate for rate, _ in rounds)
                        sums[kind] |= {checksum for _, checksum in rounds}
            problems += [f"disk {form}, {kind}: checksums differ" for kind, found in sums.items() if len(found) > 1]
            result[form] = {kind: {runner: median(rates) for runner, rates in row.items() if rates} for kind, row in figures.items()}
            path.unlink()
    return result


def show(result: Any, table: Any) -> None:
    """Prints what `measure` gave, or the reason that stands in its place."""
    if isinstance(result, str):
        print(f"Disk: skipped, {result}\n")
        return
    print(f"virtio-blk under Linux, direct I/O, {MIB} MiB")
    if not qemu_path():
        print("without QEMU: qemu-system-x86_64 is not there (apt-get install qemu-system-x86)")
    rows = []
    for form, kinds in result.items():
        for kind, row in kinds.items():
            ratio = f"{row['soft'] / row['qemu']:.2f}" if "soft" in row and "qemu" in row else "-"
            rows.append([f"{form}, {ROWS[kind]}", *(f"{row[r]:.0f}" if r in row else "-" for r in ("soft", "qemu")), ratio])
    table(["", "soft", "qemu", "soft/qemu"], rows)
