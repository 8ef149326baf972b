"""One machine stated once, as kvmpy's command line and as QEMU's: the same kernel, initrd, devices and MAC addresses."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guests.linux import CACHE, PASSED, ROOT

QEMU = shutil.which("qemu-system-x86_64")

_QEMU_MACHINES = {"pc": "pc", "micro": "microvm"}
_QEMU_NICS = {"virtio": {"pc": "virtio-net-pci", "micro": "virtio-net-device"}, "e1000": {"pc": "e1000"}, "ne2000": {"pc": "ne2k_pci"}}
_QEMU_DISKS = {
    "virtio": {"pc": "virtio-blk-pci", "micro": "virtio-blk-device"},
    "ata": {"pc": "ide-hd,bus=ide.0"},
    "cdrom": {"pc": "ide-cd,bus=ide.1"},
}
_SPEEDS = re.compile(r"XFER_\w+")
"""Which of its transfer modes a controller and a drive agree on."""


@dataclass(frozen=True)
class Disk:
    path: Path
    bus: str = "virtio"
    serial: str = ""


@dataclass(frozen=True)
class Configuration:
    """`tests` are names of guests/linux/tests; `kernel` is the suffix of the files of `make linux`."""

    machine: str = "pc"
    cpus: int = 1
    tests: str = ""
    append: str = ""
    disks: tuple[Disk, ...] = ()
    nics: tuple[str, ...] = ()
    kernel: str = ""
    memory: int = 256

    def __str__(self) -> str:
        words = [self.machine, str(self.cpus), *self.nics, *(disk.bus for disk in self.disks), self.tests.replace(",", "+"), self.append]
        return "-".join(filter(None, words))

    @property
    def _files(self) -> tuple[str, str]:
        return str(CACHE / f"vmlinuz{self.kernel}"), str(CACHE / f"initrd{self.kernel}.cpio.gz")

    @property
    def _command_line(self) -> str:
        return " ".join(filter(None, ["console=ttyS0", "quiet", f"kvmpy.test={self.tests}" if self.tests else "", self.append]))

    @staticmethod
    def _mac(index: int) -> str:
        return f"52:54:00:12:34:{0x56 + index:02x}"

    def kvmpy(self, *options: str) -> list[str]:
        kernel, initrd = self._files
        command = [
            sys.executable, "-m", "kvmpy.cli.main", "run", kernel, "--initrd", initrd, "--append", self._command_line, "--quiet",
            "--machine", self.machine, "--cpus", str(self.cpus), "--memory", f"{self.memory}M",
        ]  # fmt: skip
        for disk in self.disks:
            serial = f",serial={disk.serial}" if disk.serial else ""
            command += ["--disk", f"{disk.path},format=raw,bus={disk.bus}{serial}"]
        for index, model in enumerate(self.nics):
            command += ["--net", f"user,model={model},mac={self._mac(index)}"]
        return [*command, *options]

    def qemu(self) -> list[str]:
        kernel, initrd = self._files
        kind, command_line = _QEMU_MACHINES[self.machine], self._command_line
        if self.machine == "micro":
            command_line += _tsc_frequency()
        command = [
            str(QEMU), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio", "-accel", "tcg", "-M", kind,
            "-smp", str(self.cpus), "-m", str(self.memory), "-kernel", kernel, "-initrd", initrd, "-append", command_line,
            "-global", "virtio-mmio.force-legacy=false",
        ]  # fmt: skip
        for index, disk in enumerate(self.disks):
            serial = f",serial={disk.serial}" if disk.serial else ""
            medium = ",media=cdrom,readonly=on" if disk.bus == "cdrom" else ""
            command += ["-drive", f"file={disk.path},format=raw,if=none,id=d{index}{medium}"]
            command += ["-device", f"{_QEMU_DISKS[disk.bus][self.machine]},drive=d{index}{serial}"]
        for index, model in enumerate(self.nics):
            command += ["-netdev", f"user,id=n{index}"]
            command += ["-device", f"{_QEMU_NICS[model][self.machine]},netdev=n{index},mac={self._mac(index)}"]
        return command


def _tsc_frequency() -> str:
    """For Linux on QEMU's microvm, which has nothing but a PIT to measure the TSC by: on a busy host that fails, and nothing runs on."""
    found = re.search(r"^cpu MHz\s*: (\d+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f" tsc_early_khz={found[1]}000" if found else ""


def run(command: list[str], seconds: float) -> str:
    """The serial output of a guest that passed all its checks and powered off."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", cwd=ROOT, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"{Path(command[0]).name}: not ended within {seconds} s\n{late.stdout!r}") from None
    text, complaint = done.stdout, done.stderr
    if "not compiled into this binary" in complaint or "is not a valid" in complaint:
        pytest.skip(f"{Path(command[0]).name}: {complaint.strip()}")
    assert PASSED in text and "kvmpy-guest: FAIL" not in text, f"{text}\n{complaint}"
    assert done.returncode == 0, f"{done.returncode}\n{text}\n{complaint}"
    return text


def told(text: str) -> list[str]:
    """What the guest's scripts said, in an order of its own since some of them run at once; without what speed decides."""
    lines = re.findall(r"kvmpy-guest: (.*?)\r?$", text, re.MULTILINE)
    return sorted(_SPEEDS.sub("(transfer mode)", line) for line in lines)
