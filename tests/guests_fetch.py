"""Fetches the real guests from Debian's archive into .cache/guests: `make linux`, or `python -m tests.guests_fetch`.

apt-get downloads the packages, dpkg unpacks them; nothing is installed and no rights are needed.
    vmlinuz, vmlinux     linux-image-cloud-amd64, and the ELF file inside
    initrd.cpio.gz       busybox-static, guests/linux/init and tests, modules of the kernel
    vmlinuz-general      linux-image-amd64, with the drivers of real hardware; initrd-general.cpio.gz has its modules
    memtest64.bin        memtest86+
    ipxe.lkrn, memdisk   ipxe, syslinux-common: programs that live on BIOS services

`python -m tests.guests_fetch debug` fetches vmlinux-debug alone: the kernel with its debug information (280 MB, 590 MB unpacked).
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "guests"
INIT = ROOT / "guests" / "linux" / "init"
KERNELS = {"linux-image-cloud-amd64": "", "linux-image-amd64": "-general"}
"""Packages and the suffix of their files in the cache."""
SECONDS = 300


class FetchError(Exception):
    """A package could not be had; the text says why."""


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        raise FetchError(f"{command[0]} is missing: this needs Debian or a system like it") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{' '.join(command)}: no answer within {SECONDS} s") from None
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise FetchError(f"{' '.join(command)}: {reason[-1] if reason else done.returncode}")
    return done.stdout


def kernel_package(meta: str) -> str:
    """The package that linux-image-cloud-amd64, for instance, stands for."""
    for line in _run("apt-cache", "depends", meta).splitlines():
        word = line.strip().removeprefix("Depends: ")
        if word.startswith("linux-image-") and word != meta:
            return word.removesuffix("-unsigned")
    raise FetchError(f"apt-cache names no kernel for {meta}: run apt-get update")


def unpack(package: str, where: Path) -> Path:
    """Downloads a package into the cache, unless it is there, and unpacks it into `where`."""
    archives = CACHE / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    found = sorted(archives.glob(f"{package}_*.deb"))
    if not found:
        _run("apt-get", "download", "-q", package, cwd=archives)
        found = sorted(archives.glob(f"{package}_*.deb"))
    if not found:
        raise FetchError(f"{package}: apt-get downloaded nothing")
    target = where / package
    _run("dpkg", "-x", str(found[-1]), str(target))
    return target


def _one(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if not found:
        raise FetchError(f"{root.name} holds no {pattern}")
    return found[0]


def fetch() -> None:
    """Fetches all guests. FetchError when one cannot be had."""
    spec = importlib.util.spec_from_file_location("guest_initrd", ROOT / "guests" / "linux" / "initrd.py")
    assert spec is not None and spec.loader is not None
    initrd = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(initrd)
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        where = Path(scratch)
        memtest = unpack("memtest86+", where)
        shutil.copyfile(_one(memtest, "boot/*x64.bin"), CACHE / "memtest64.bin")
        shutil.copyfile(_one(unpack("ipxe", where), "**/ipxe.lkrn"), CACHE / "ipxe.lkrn")
        shutil.copyfile(_one(unpack("syslinux-common", where), "**/memdisk"), CACHE / "memdisk")
        busybox = _one(unpack("busybox-static", where), "**/bin/busybox")
        for meta, suffix in KERNELS.items():
            linux = unpack(kernel_package(meta), where)
            initrd.build(CACHE, _one(linux, "boot/vmlinuz-*"), busybox, INIT, linux, suffix)


def fetch_debug() -> None:
    """Fetches the kernel of linux-image-cloud-amd64 with DWARF. FetchError when it cannot be had."""
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        package = unpack(kernel_package("linux-image-cloud-amd64") + "-dbg", Path(scratch))
        shutil.move(_one(package, "usr/lib/debug/boot/vmlinux-*"), CACHE / "vmlinux-debug")


def main() -> int:
    try:
        if sys.argv[1:] == ["debug"]:
            CACHE.mkdir(parents=True, exist_ok=True)
            fetch_debug()
        else:
            fetch()
    except FetchError as error:
        print(f"guests: {error}", file=sys.stderr)
        return 1
    for path in sorted(CACHE.iterdir()):
        if path.is_file():
            print(f"{path.relative_to(ROOT)}  {path.stat().st_size >> 10} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
