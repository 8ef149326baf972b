"""Runs of buffers in guest memory: cut, copied, read from files and written to them."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.iovector import IoVector
from kvmpy.memory import GuestMemory
from kvmpy.native import ffi, lib


@pytest.fixture(scope="module")
def memory():
    memory = GuestMemory("1M")
    memory.carve(0x40000, 0x1000)
    yield memory
    memory.close()


def vector(memory, pieces, writable=True):
    """Of (guest address, size) pairs."""
    buffers = ffi.new("struct kp_buffer[]", len(pieces))
    for at, (gpa, size) in enumerate(pieces):
        (region,) = [each for each in memory.regions if each.gpa <= gpa < each.end]
        buffers[at] = {"base": ffi.cast("void *", region.host + gpa - region.gpa), "size": size}
    return IoVector(memory.map, buffers, 0, len(pieces), sum(size for _, size in pieces), writable)


def test_views_are_guest_memory(memory) -> None:
    run = vector(memory, [(0x1000, 3), (0x50000, 2)])
    run[0][:] = b"abc"
    run[-1][:] = b"de"
    assert memory.read(0x1000, 3) == b"abc" and memory.read(0x50000, 2) == b"de"
    assert len(run) == 2 and run.tobytes(0, 2) == b"ab" and run.tobytes(1, 100) == b"bcde"
    run.set_last(0x5A)
    assert memory.read_u8(0x50001) == 0x5A
    assert all(view.readonly for view in vector(memory, [(0x1000, 3)], writable=False))


def test_views_outlive_the_memory() -> None:
    memory = GuestMemory("64K")
    run = vector(memory, [(0, 4)])
    memory.write(0, b"kept")
    memory.close()
    assert bytes(run[0]) == b"kept"


sizes = st.lists(st.integers(0, 20), min_size=1, max_size=8)


@given(sizes, st.integers(0, 200), st.integers(0, 200))
def test_cutting_is_slicing(memory, sizes, offset, size) -> None:
    pieces = [(0x2000 + 0x100 * number, size) for number, size in enumerate(sizes)]
    run = vector(memory, pieces)
    whole = os.urandom(run.nbytes)
    at = 0
    for view in run:
        view[:] = whole[at : at + len(view)]
        at += len(view)
    part = run.cut(offset, size)
    assert b"".join(part) == whole[offset : offset + size] == run.tobytes(offset, size)
    assert part.nbytes == len(whole[offset : offset + size])


def test_files_of_more_buffers_than_one_call_takes(memory, tmp_path) -> None:
    pieces = [(0x10000 + 8 * number, 5) for number in range(3000)]
    run, content = vector(memory, pieces), os.urandom(15000)
    path = tmp_path / "file"
    path.write_bytes(b"12" + content)
    with path.open("r+b") as file:
        assert run.read_file(file.fileno(), 2) == 15000 and b"".join(run) == content
        assert run.read_file(file.fileno(), 10002) == 5000  # the file's end
        assert run.write_file(file.fileno(), 4) == 15000
    assert path.read_bytes()[4:] == b"".join(run)


def test_errors_of_the_host(memory) -> None:
    with open("/dev/full", "r+b", buffering=0) as full:
        with pytest.raises(OSError) as raised:
            vector(memory, [(0, 512)]).write_file(full.fileno(), 0)
        assert raised.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as raised:
        vector(memory, [(0, 512)]).read_file(-1, 0)
    assert raised.value.errno == errno.EBADF


def test_an_unreadable_buffer_is_no_crash(memory) -> None:
    buffers = ffi.new("struct kp_buffer[]", [{"base": ffi.cast("void *", 16), "size": 512}])
    with open("/dev/zero", "rb") as zero:
        assert lib.kp_buffers_read(zero.fileno(), buffers, 1, 0) == -errno.EFAULT
