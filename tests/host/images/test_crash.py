"""kill -9 in the middle of writes: the image stays consistent, and every flushed write is there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kvmpy.host.images import create_qcow2, open_image
from kvmpy.host.images.hostfile import open_file
from kvmpy.host.images.qcow2_check import check
from kvmpy.host.images.qcow2_header import parse
from tests.host.images.qemu import QEMU_IMG, assert_clean

BLOCK = 4096
SIZE = 48 << 20
WRITER = Path(__file__).with_name("writer.py")
ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [512, 4096, 65536])
@pytest.mark.parametrize("backing", [False, True])
def test_killed_writer(tmp_path: Path, cluster: int, backing: bool) -> None:
    path = tmp_path / "disk.qcow2"
    if backing:
        (tmp_path / "base.raw").write_bytes(bytes(SIZE))
    create_qcow2(str(path), SIZE, "base.raw" if backing else "", "raw" if backing else "", cluster_size=cluster)
    expected: dict[int, set[int]] = {}
    for turn in range(6):
        with tempfile.TemporaryFile("w+") as log:
            writer = subprocess.Popen([sys.executable, WRITER, str(path), str(turn)], stdout=log, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
            time.sleep(0.5 + 0.13 * turn)
            writer.kill()
            assert writer.wait(10) == -9
            log.seek(0)
            lines = log.read().splitlines()
        assert "flushed" in lines
        # What was written after the last flush may be there or not.
        pending: dict[int, set[int]] = {}
        for line in lines:
            if line == "flushed":
                expected.update({block: {max(numbers)} if len(numbers) == 1 else {_last[block]} for block, numbers in pending.items()})
                pending = {}
                continue
            block, number = map(int, line.split())
            pending.setdefault(block, set()).add(number)
            _last[block] = number
        for block, numbers in pending.items():
            expected[block] = expected.get(block, {0}) | numbers
        file = open_file(str(path), readonly=True)
        finding = check(file, parse(file))
        file.close()
        assert not finding.errors, finding
        if QEMU_IMG:
            assert_clean(path, leaks=True)
        image = open_image(f"{path},readonly=on")
        data = bytearray(BLOCK)
        for block, numbers in expected.items():
            image.read_into(block * BLOCK, [memoryview(data)])
            found = int.from_bytes(data[:8], "little")
            assert found in numbers, f"block {block} holds {found}, not one of {numbers}"
            assert data == data[:8] * (BLOCK // 8) or len(numbers) > 1
            expected[block] = {found} if data == data[:8] * (BLOCK // 8) else numbers
        image.close()


_last: dict[int, int] = {}
