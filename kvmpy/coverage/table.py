"""Coverage as a table for the terminal."""

from __future__ import annotations

import os.path
from collections.abc import Sequence

from kvmpy.coverage.sources import Function
from kvmpy.coverage.tracefile import Totals, Tracefile


def share(hit: int, all: int) -> str:
    """ "87.5% 7/8"; a dash where there is nothing to hit."""
    return f"{100 * hit / all:5.1f}% {f'{hit}/{all}':>11}" if all else f"{'-':>18}"


def _row(name: str, totals: Totals, width: int) -> str:
    n = totals.numbers
    return f"{name:{width}}  {share(n[1], n[0])}  {share(n[3], n[2])}  {share(n[5], n[4])}"


def common(paths: Sequence[str]) -> str:
    """The directory that all paths lie in."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    except ValueError:
        return ""


def by_file(trace: Tracefile) -> list[str]:
    """A line for each source file, and the sum."""
    top = common(list(trace.files))
    names = {path: os.path.relpath(path, top) if top else path for path in trace.files}
    width = max([len(name) for name in names.values()] + [10])
    lines = [f"{'file':{width}}  {'lines':>18}  {'functions':>18}  {'branches':>18}"]
    lines += [_row(names[path], file.totals, width) for path, file in sorted(trace.files.items())]
    return [*lines, _row("all", trace.totals, width)]


def by_function(found: Sequence[Function], *, each: bool) -> list[str]:
    """The sum, and with `each` a line for every function that was executed."""
    hit = [one for one in found if one.hit]
    lines = [f"{one.address:#018x}  {100 * one.hit / one.size:5.1f}% {one.hit:6} of {one.size:6} bytes  {one.name}" for one in hit if each]
    bytes_hit, size = sum(one.hit for one in hit), sum(one.size for one in found)
    return [*lines, f"functions  {share(len(hit), len(found))}  bytes  {share(bytes_hit, size)}"]
