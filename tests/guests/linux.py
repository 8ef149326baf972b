"""What the tests of real Linux guests share: the files of `make linux`, tools of the host, file systems and web pages for the guest."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmpy.errors import MissingCapability
from kvmpy.host.net import slirp

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "guests"
PASSED = "kvmpy-guest: all checks passed"


def needs(*tests: str, files: tuple[str, ...] = ()) -> None:
    """Skips without these scripts of guests/linux/tests in the initrd, or without these files in the cache."""
    marker = CACHE / "initrd.tests"
    there = marker.read_text().split() if marker.exists() else []
    missing = [name for name in tests if name not in there] + [name for name in files if not (CACHE / name).exists()]
    if missing or not there:
        pytest.skip(f"no Linux with {', '.join(missing) or 'its tests'} in .cache/guests: make linux")


def needs_user_network() -> None:
    try:
        slirp.load()
    except MissingCapability as missing:
        pytest.skip(str(missing))


def tool(name: str, package: str = "e2fsprogs") -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is missing (package {package})")
    return found


def make_ext4(image: Path, content: bytes, size: str = "16M") -> Path:
    """An image with an ext4 that holds `content` as the file from-host."""
    files = image.parent / f"{image.name}.files"
    files.mkdir()
    (files / "from-host").write_bytes(content)
    subprocess.run([tool("mke2fs"), "-q", "-t", "ext4", "-d", files, image, size], check=True, timeout=60)
    shutil.rmtree(files)
    return image


def assert_ext4_clean(image: Path) -> None:
    done = subprocess.run([tool("e2fsck"), "-fn", image], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def web_page(content: bytes) -> Iterator[int]:
    """Serves `content` on the host's loopback; gives the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
