"""Where a vCPU spins, out of samples of its RIP: a histogram of places, and the code of the hottest one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmpy.machine import Machine

MOST_PLACES = 6
MOST_CODE = 12
_REACH = 64
"""Bytes around the hottest address that are one place where no symbol tells."""
_BAR = 20


def places(machine: Machine, samples: list[int | None]) -> list[dict[str, Any]]:
    """Functions, or 64 bytes where none is known, by how often a sample lay there; the lowest and the highest address seen."""
    found: dict[str | int, list[int]] = {}
    for address in samples:
        if address is None:
            found.setdefault("in HLT", [])
            continue
        symbol = machine.symbols.find(address)
        found.setdefault(symbol[0].name if symbol else address // _REACH, []).append(address)
    halted = sum(address is None for address in samples)
    rows = []
    for name, seen in sorted(found.items(), key=lambda item: -(len(item[1]) or halted))[:MOST_PLACES]:
        count = len(seen) or halted
        if not isinstance(name, str):
            name = f"{min(seen):#x}" + (f"-{max(seen):#x}" if max(seen) > min(seen) else "")
        rows.append({
            "place": name, "count": count, "share": count / len(samples),
            "first": min(seen, default=None), "last": max(seen, default=None),
            "hottest": Counter(seen).most_common(1)[0][0] if seen else None,
        })  # fmt: skip
    return rows


def hot_code(machine: Machine, index: int, samples: list[int | None], row: dict[str, Any]) -> list[str]:
    """Instructions of a place, each with the samples that it got."""
    counts = Counter(samples)
    first, last = row["first"], row["last"]
    if first is None:
        return []
    start = first if last - first < _REACH else row["hottest"]
    lines = []
    for one in machine.disassemble(start, MOST_CODE, cpu=index):
        if one.address > last:
            break
        lines.append(f"{counts.get(one.address, 0) or '':>5} {one}")
    return lines


def histogram(rows: list[dict[str, Any]]) -> list[str]:
    """The places as bars."""
    return [f"{100 * row['share']:5.1f} % {'#' * round(_BAR * row['share']):{_BAR}} {row['place']}" for row in rows]
