"""kill -9 of a whole `kvmpy run` while its Linux writes to a qcow2: the image is consistent, and what was durable is there."""

from __future__ import annotations

import random
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.guests.linux import CACHE, ROOT, needs
from tests.host.images.qemu import assert_clean, needs_qemu_img, qemu_img

BLOCK = 4096
SIZE = 64 << 20
ROUNDS, SEED = 4, 1
SECONDS = 100

pytestmark = pytest.mark.slow


def content(block: int, seed: int) -> bytes:
    """A block as guests/linux/durable.c writes it."""
    first = (block + 1) * 0x9E3779B97F4A7C15 + seed
    return struct.pack("<512Q", *((first + word) % (1 << 64) for word in range(BLOCK // 8)))


@needs_qemu_img
def test_what_was_durable_is_there(tmp_path: Path) -> None:
    """Each round begins where the last was killed, on the same image, with another permutation."""
    needs("durable")
    rng = random.Random(SEED)
    disk, flat = tmp_path / "disk.qcow2", tmp_path / "disk.raw"
    qemu_img("create", "-f", "qcow2", disk, str(SIZE))
    present: dict[int, set[bytes]] = {}
    for turn in range(ROUNDS):
        permutation = rng.randrange(1, 1 << 20)
        told = written_before_the_kill(disk, permutation, rng.uniform(0.05, 2.0), tmp_path / f"serial{turn}")
        assert told, "no block was told before the kill"
        assert_clean(disk, leaks=True)  # a cluster taken and not yet referred to is no error
        qemu_img("convert", "-f", "qcow2", "-O", "raw", disk, flat)
        with flat.open("rb") as image:
            # A block that was on its way, not yet told, may have replaced what an earlier round had left: old or new, nothing else.
            for block in told:
                present[block] = {content(block, permutation)}
            missing = []
            for block, wanted in present.items():
                image.seek(block * BLOCK)
                found = image.read(BLOCK)
                if found not in wanted and found != content(block, permutation):
                    missing.append(block)
                present[block] = {found}
        assert not missing, f"round {turn}: blocks {missing[:10]} of {len(told)} told are not in the image"


def written_before_the_kill(disk: Path, permutation: int, delay: float, serial: Path) -> list[int]:
    """Runs Linux until it has told its first durable block and `delay` seconds more; the blocks told."""
    command = [
        sys.executable, "-m", "kvmpy.cli.main", "run", str(CACHE / "vmlinuz"), "--initrd", str(CACHE / "initrd.cpio.gz"), "--quiet",
        "--append", f"console=ttyS0 quiet kvmpy.test=durable kvmpy.seed={permutation}", "--memory", "256M", "--backend", "soft",
        "--disk", f"{disk},bus=virtio", "--serial", f"file:{serial}", "--timeout", str(SECONDS),
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + SECONDS
        while not (serial.exists() and b"durable " in serial.read_bytes()):
            assert process.poll() is None and time.monotonic() < end, process.stderr.read() if process.stderr else ""
            time.sleep(0.02)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # The last line may have been cut off in the middle of its number.
    return [int(number) for number in re.findall(rb"durable (\d+)\r?\n", serial.read_bytes())]
