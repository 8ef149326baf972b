"""The guest's initrd (cpio "newc", gzip) from busybox, scripts and kernel modules, and the vmlinux inside a bzImage."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import re
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

MODULES = (
    "virtio_mmio", "virtio_pci", "virtio_blk", "virtio-rng", "virtio_console", "virtio_net", "virtio_balloon", "vmw_vsock_virtio_transport",
    "e1000", "ne2k-pci", "ata_piix", "sd_mod", "sr_mod", "crc32c_generic", "ext4",
)
"""Wanted with all that they depend on; a kernel that has one built in, or lacks it, goes without."""

NEEDED_BY = {"threads": ("smp", "together")}
"""Programs and the tests that run them, beside the one of the same name."""

S_DIR, S_REG, S_CHR, S_LNK = 0o040000, 0o100000, 0o020000, 0o120000


def cpio_entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0), inode: int = 0) -> bytes:
    """One archive member: 13 fields of 8 hexadecimal digits, name and data each padded to 4 bytes."""
    raw = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def modules_in_order(root: Path) -> list[tuple[str, bytes]]:
    """(name, file) of MODULES and their dependencies below a /lib/modules tree, each after those that it needs."""
    files = {path.name.partition(".ko")[0].replace("-", "_"): path for path in sorted(root.glob("**/*.ko*"))}
    done: dict[str, bytes] = {}

    def take(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path.name in done:
            return
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        # Module information is a run of key=value strings, each ended by a zero byte.
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in (depends[1].decode() if depends else "").split(","):
            take(other)
        done[path.name] = data

    for name in MODULES:
        take(name)
    return [(name.removesuffix(".xz"), data) for name, data in done.items()]


def make_initrd(
    busybox: bytes, init: bytes, tests: dict[str, bytes], modules: list[tuple[str, bytes]], programs: dict[str, bytes]
) -> bytes:
    """An initrd with /init, /bin/busybox, further programs in /bin, the console node, /tests/NAME, and /modules with their order in
    /modules/order; the same bytes for the same input."""
    order = "".join(f"{name}\n" for name, _ in modules).encode()
    members = [
        ("bin", S_DIR | 0o755, b"", (0, 0)), ("dev", S_DIR | 0o755, b"", (0, 0)), ("tmp", S_DIR | 0o777, b"", (0, 0)),
        ("dev/console", S_CHR | 0o600, b"", (5, 1)), ("dev/null", S_CHR | 0o666, b"", (1, 3)),
        ("bin/busybox", S_REG | 0o755, busybox, (0, 0)), ("init", S_REG | 0o755, init, (0, 0)),
        *((f"bin/{name}", S_REG | 0o755, data, (0, 0)) for name, data in sorted(programs.items())),
        ("tests", S_DIR | 0o755, b"", (0, 0)),
        *((f"tests/{name}", S_REG | 0o755, data, (0, 0)) for name, data in sorted(tests.items())),
        ("modules", S_DIR | 0o755, b"", (0, 0)), ("modules/order", S_REG | 0o644, order, (0, 0)),
        *((f"modules/{name}", S_REG | 0o644, data, (0, 0)) for name, data in modules),
    ]
    archive = b"".join(cpio_entry(name, mode, data, device, number) for number, (name, mode, data, device) in enumerate(members, 1))
    archive += cpio_entry("TRAILER!!!", 0)
    return gzip.compress(archive + bytes(-len(archive) % 512), 6, mtime=0)


def _zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=False).stdout


def _lz4_block(data: bytes) -> bytes:
    """An LZ4 block: runs of literals, each followed by a copy from what was written before."""
    out = bytearray()
    at, end = 0, len(data)
    while at < end:
        token = data[at]
        at += 1
        count = token >> 4
        if count == 15:
            while data[at] == 255:
                count += 255
                at += 1
            count += data[at]
            at += 1
        out += data[at : at + count]
        at += count
        if at >= end:
            break
        distance = data[at] | data[at + 1] << 8
        at += 2
        count = token & 15
        if count == 15:
            while data[at] == 255:
                count += 255
                at += 1
            count += data[at]
            at += 1
        count += 4
        start = len(out) - distance
        if count <= distance:
            out += out[start : start + count]
        else:
            # The copy runs into its own output: the last `distance` bytes repeat.
            run = bytes(out[start:])
            out += (run * (count // distance + 1))[:count]
    return bytes(out)


def _lz4_legacy(data: bytes) -> bytes:
    """LZ4's legacy frame, as kernels are packed: blocks of at most 8 MiB, each with its size before it."""
    out, at = [], 4
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        # After the last block stands the unpacked size, which is no block.
        if at + 4 + size > len(data):
            break
        out.append(_lz4_block(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return b"".join(out)


DECODERS = {
    b"\x02\x21\x4c\x18": _lz4_legacy,
    b"\x1f\x8b": lambda data: zlib.decompressobj(31).decompress(data),
    b"\xfd7zXZ\0": lambda data: lzma.LZMADecompressor().decompress(data),
    b"BZh": lambda data: bz2.BZ2Decompressor().decompress(data),
    b"\x5d\0\0": lambda data: lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data),
    b"\x28\xb5\x2f\xfd": _zstd,
}


def extract_vmlinux(bzimage: bytes) -> bytes:
    """The compressed payload of a bzImage, unpacked; its place is in the setup header (protocol 2.08)."""
    (version,) = struct.unpack_from("<H", bzimage, 0x206)
    if bzimage[0x202:0x206] != b"HdrS" or version < 0x208:
        raise ValueError("no bzImage of protocol 2.08 or later")
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (bzimage[0x1F1] + 1) * 512 + offset
    payload = bzimage[start : start + length]
    for magic, decode in DECODERS.items():
        if payload.startswith(magic):
            return decode(payload)
    raise ValueError(f"unknown compression, magic {payload[:6].hex()}")


def compile_programs(sources: Path, where: Path) -> dict[str, bytes]:
    """The C programs beside init, linked statically; those that this host cannot build are left out."""
    programs = {}
    for source in sorted(sources.glob("*.c")):
        target = where / source.stem
        command = ["gcc", "-static", "-pthread", "-O2", "-s", "-Wall", "-Wextra", "-o", str(target), str(source)]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            programs[source.stem] = target.read_bytes()
    return programs


def build(cache: Path, bzimage: Path, busybox: Path, init: Path, modules: Path, suffix: str = "") -> None:
    """Writes vmlinuz, vmlinux and initrd.cpio.gz into the cache, and the names of the tests in the initrd into initrd.tests.
    With a suffix ("-general"), vmlinuz-general and initrd-general.cpio.gz alone."""
    tests = {path.name: path.read_bytes() for path in sorted((init.parent / "tests").iterdir())}
    with tempfile.TemporaryDirectory() as where:
        programs = compile_programs(init.parent, Path(where))
    # A test that is named like a program needs it, and those that say so.
    for source in init.parent.glob("*.c"):
        if source.stem not in programs:
            for test in (source.stem, *NEEDED_BY.get(source.stem, ())):
                tests.pop(test, None)
    kernel = bzimage.read_bytes()
    (cache / f"vmlinuz{suffix}").write_bytes(kernel)
    archive = make_initrd(busybox.read_bytes(), init.read_bytes(), tests, modules_in_order(modules), programs)
    (cache / f"initrd{suffix}.cpio.gz").write_bytes(archive)
    if not suffix:
        (cache / "vmlinux").write_bytes(extract_vmlinux(kernel))
        (cache / "initrd.tests").write_text("".join(f"{name}\n" for name in tests))
