"""Clean sources make a source distribution with all that a build needs, and that a wheel with the native module and blobs, without C."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("kvmpy", "firmware", "guests", "Makefile", "pyproject.toml", "README.md", "LICENSE")


@pytest.mark.slow
def test_wheel_of_a_source_distribution(tmp_path: Path) -> None:
    pytest.importorskip("build")
    tree = tmp_path / "tree"
    tree.mkdir()
    unwanted = shutil.ignore_patterns("blobs", "_native*", "__pycache__", "*.o")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=unwanted)
        elif source.exists():
            shutil.copy(source, tree / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ | {"OPT": "-O0"}, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (sources,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sources) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file() and "kvmpy.egg-info" not in path.parts} <= packed
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert "abi3" in wheel.name
    names = set(zipfile.ZipFile(wheel).namelist())
    for_guests = {"kvmpy/testing/include/kvmpy.h", *(f"kvmpy/testing/start/{name}.S" for name in ("start", "multiboot", "pvh"))}
    assert {"kvmpy/_native.abi3.so", "kvmpy/py.typed", "kvmpy/kvm/vcpu.py", *for_guests} <= names
    assert not [name for name in names - for_guests if name.endswith((".c", ".h", ".inc", ".def", ".S"))]
    here = ROOT / "kvmpy" / "blobs"
    blobs = {f"kvmpy/blobs/{path.name}" for path in here.iterdir()} if here.is_dir() else set()
    assert blobs <= names
    assert {"kvmpy/trace/page/page.css", "kvmpy/trace/page/page.js"} <= names
