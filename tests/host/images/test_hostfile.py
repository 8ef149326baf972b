"""Files of the host under images, used by several threads."""

from __future__ import annotations

import errno
import os

import pytest

from kvmpy.host.images.hostfile import open_file


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    file = open_file(str(path))
    yield file
    file.close()


def test_a_write_during_a_sync_is_for_the_next_one(file, monkeypatch) -> None:
    synced = []

    def fdatasync(fd):
        if not synced:
            file.write_bytes(512, b"late")  # by another thread, behind what this call brings to the disk
        synced.append(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    file.write_bytes(0, b"early")
    file.sync()
    file.sync()
    file.sync()
    assert len(synced) == 2


def test_a_sync_that_fails_is_tried_again(file, monkeypatch) -> None:
    calls = []

    def fdatasync(fd):
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    file.write_bytes(0, b"x")
    with pytest.raises(OSError):
        file.sync()
    file.sync()
    file.sync()
    assert len(calls) == 2
