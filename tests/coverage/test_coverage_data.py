"""Coverage as data: blocks, merging, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpy.coverage.data import Bits, Coverage, Page, is_coverage
from kvmpy.errors import HostError, ImageError


def coverage(**pages: tuple[int, ...]) -> Coverage:
    found = Coverage()
    for name, bits in pages.items():
        found.add(Page(int(name[1:], 16)), Bits(*bits))
    return found


def test_addresses_and_blocks_over_pages() -> None:
    one = coverage(x1000=(1 << 4095 | 1, 1 << 4095 | 7, 0, 0), x2000=(1 << 2, 0b1111, 0, 0))
    assert one.addresses() == [0x1000, 0x1FFF, 0x2002] and len(one) == 3
    assert one.blocks() == [(0x1000, 3), (0x1FFF, 5)]


def test_ways_of_jumps() -> None:
    assert coverage(x1000=(0b111, 0, 0b101, 0b110)).jumps() == {0x1000: (True, False), 0x1001: (False, True), 0x1002: (True, True)}


def test_merge_adds_bits_and_keeps_privilege_and_space_apart() -> None:
    one, other = coverage(x1000=(1, 1, 0, 0)), coverage(x1000=(2, 2, 0, 2))
    other.add(Page(0x1000, True, 0x5000), Bits(8, 8, 0, 0))
    other.images, other.branches = [("/kernel", 0)], True
    assert one.merge(other) is one and one.merge(other).images == [("/kernel", 0)]
    assert one.addresses() == [0x1000, 0x1001, 0x1003] and one.branches
    assert one.only(user=True).addresses() == [0x1003] and one.only(user=False).addresses() == [0x1000, 0x1001]
    assert one.only(space=0x5000).addresses() == [0x1003]


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    one = coverage(x1000=(1 << 4095, 3, 5, 9), xfffffffff8000000=(1, 1, 0, 0))
    one.images, one.tables, one.branches = [("/a b/kernel", 1 << 33)], {"kernel in memory": [("main", "t", 5)]}, True
    one.save(tmp_path / "x.cov")
    back = Coverage.load(tmp_path / "x.cov")
    assert vars(back) == vars(one) and is_coverage(str(tmp_path / "x.cov"))


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.cov"
    with pytest.raises(ImageError, match=r"x\.cov"):
        Coverage.load(path)
    coverage(x1000=(1, 1, 0, 0)).save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:25], whole[:40] + b"\xff" + whole[41:]):
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match="damaged"):
            Coverage.load(path)
    path.write_bytes(b"TN:\n")
    assert not is_coverage(str(path))
    with pytest.raises(ImageError, match="no coverage of kvmpy"):
        Coverage.load(path)
    with pytest.raises(HostError):
        coverage().save(tmp_path / "missing" / "x.cov")
