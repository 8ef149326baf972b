"""kvmpy image: info, check, create."""

import json

from tests.cli.test_command import kvmpy
from tests.host.images.qemu import QEMU_IMG, assert_clean


def test_image_commands(tmp_path):
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    assert kvmpy("image", "create", base, "10M").returncode == 0
    assert kvmpy("image", "create", top, "--backing", "base.qcow2", "--cluster-size", "4K").returncode == 0
    if QEMU_IMG:
        assert_clean(top)
    again = kvmpy("image", "create", base, "10M")
    assert again.returncode == 65 and "exists" in again.stderr
    done = kvmpy("image", "info", "--json", top)
    data = json.loads(done.stdout)
    assert (data["format"], data["size"], data["cluster_size"], data["backing"]) == ("qcow2", 10 << 20, 4096, str(base))
    assert "qcow2" in kvmpy("image", "info", top).stdout
    assert kvmpy("image", "check", top).stdout.startswith("0 errors, 0 leaked")
    raw = bytearray(top.read_bytes())
    table = int.from_bytes(raw[48:56], "big")
    block = int.from_bytes(raw[table : table + 8], "big")
    raw[block : block + 2] = bytes(2)
    top.write_bytes(raw)
    broken = kvmpy("image", "check", "--json", top)
    assert broken.returncode == 65 and json.loads(broken.stdout)["errors"] == 1
    assert kvmpy("image", "create", "--format", "raw", tmp_path / "raw", "1M").returncode == 0
    assert kvmpy("image", "create", tmp_path / "none").returncode == 64
    assert kvmpy("image", "check", tmp_path / "raw").returncode == 65
