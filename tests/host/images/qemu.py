"""qemu-img, the other reader and writer of images."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

QEMU_IMG = shutil.which("qemu-img")
QEMU_IO = shutil.which("qemu-io")
needs_qemu_img = pytest.mark.skipif(QEMU_IMG is None, reason="qemu-img is not installed (package qemu-utils)")


def qemu_img(*arguments: object, status: int = 0) -> str:
    """Runs it; its standard output."""
    done = subprocess.run([QEMU_IMG or "qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=50)
    assert done.returncode == status, f"qemu-img {arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def create(path: Path, size: int, *options: str, backing: Path | None = None, backing_format: str = "qcow2") -> Path:
    behind = ["-b", str(backing), "-F", backing_format] if backing else []
    joined = ["-o", ",".join(options)] if options else []
    qemu_img("create", "-q", "-f", "qcow2", *joined, *behind, path, size)
    return path


def assert_clean(path: Path, *, leaks: bool = False) -> None:
    """No errors, and no leaks unless they are allowed."""
    done = subprocess.run([QEMU_IMG or "qemu-img", "check", "--output=json", str(path)], capture_output=True, text=True, timeout=50)
    assert done.returncode in ((0, 3) if leaks else (0,)), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert not found.get("corruptions") and not found.get("check-errors"), found
    if not leaks:
        assert not found.get("leaks"), found


def content(path: Path, tmp_path: Path, form: str = "qcow2") -> bytes:
    """The disk's bytes as qemu-img reads them."""
    out = tmp_path / f"{path.name}.content"
    qemu_img("convert", "-f", form, "-O", "raw", path, out)
    data = out.read_bytes()
    out.unlink()
    return data
