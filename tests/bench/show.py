"""Tables of results: aligned text, or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.bench.figures import NOISY, Figure, figure, ratio
from tests.bench.rounds import Results
from tests.bench.runners import COMPUTE, MACHINE, NARROW, RUNNERS
from tests.bench.targets import Row

WORST = 8
"""So many noisy series are named."""

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], None]


def text(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the last too where it is of words."""
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    for row in [head, *rows]:
        cells = [cell.rjust(width) if name else cell.ljust(width) for name, cell, width in zip(head, row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    print()


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in [head, ["---" if n == 0 or not cell else "---:" for n, cell in enumerate(head)], *rows]:
        print("| " + " | ".join(row) + " |")
    print()


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(value: Figure | None) -> str:
    return f"{number(value.low)} to {number(value.high)}" if value and value.count > 1 else "-"


def targets(rows: list[Row], table: Table) -> None:
    cells = []
    for row in rows:
        bound = "-" if row.target is None else f"{'>=' if row.least else '<='} {row.target:g}"
        marks = ", ".join(filter(None, [row.verdict, "noisy" if row.noisy else ""]))
        value = row.value
        cells.append([
            row.what, row.unit, number(value and value.median), _spread(value), number(value and value.best), bound,
            number(row.tcg and row.tcg.median), marks, row.note,
        ])  # fmt: skip
    table(["", "unit", "median", "quartiles", "best", "target", "TCG", "", ""], cells)


def _present(results: Results, names: Sequence[str]) -> list[str]:
    return [name for name in names if name in results.series]


def compute(results: Results, table: Table) -> None:
    pairs = (("soft", "native"), ("qemu", "native"), ("qemu", "soft"), ("kvm", "native"))
    rows = []
    for name in _present(results, (*COMPUTE, *NARROW)):
        row = results.series[name]
        cells = [name]
        for runner in RUNNERS:
            found = figure(row[runner].times) if runner in row else None
            cells += [number(found and found.median / 1e6), *([number(found and found.best / 1e6)] if runner in ("native", "soft") else [])]
        for a, b in pairs:
            found = ratio([row[a]], [row[b]]) if a in row and b in row else None
            cells.append(number(found and found.median))
        rows.append(cells)
    if rows:
        names = {"qemu": "TCG", "kvm": "KVM"}
        ratios = [f"{names.get(a, a)}/{names.get(b, b)}" for a, b in pairs]
        table(["", "native", "best", "soft", "best", "TCG", "KVM", *ratios], rows)


def machine(results: Results, table: Table) -> None:
    rows = []
    for name in _present(results, MACHINE):
        cells, row = [name], results.series[name]
        for runner in ("soft", "qemu", "kvm"):
            found = figure([time / row[runner].work for time in row[runner].times]) if runner in row else None
            cells += [number(found and found.median), *([_spread(found), number(found and found.best)] if runner == "soft" else [])]
        both = ratio([row["soft"]], [row["qemu"]]) if "soft" in row and "qemu" in row else None
        rows.append([*cells, number(both and both.median)])
    if rows:
        table(["", "soft", "quartiles", "best", "TCG", "KVM", "soft/TCG"], rows)


def noise(results: Results) -> list[str]:
    """What to know before a figure is believed."""
    wide, count = [], sum(map(len, results.series.values()))
    for name, row in results.series.items():
        for runner, series in row.items():
            found = figure(series.times)
            if found and found.count > 2 and found.spread > NOISY:
                wide.append((found.spread, f"{name} {runner} {found.spread:.0%}"))
    first, last = results.loads
    lines = [f"load average {first:.1f} before, {last:.1f} after"]
    if wide:
        worst = ", ".join(words for _, words in sorted(wide, reverse=True)[:WORST])
        lines.append(f"{len(wide)} of {count} series with quartiles more than {NOISY:.0%} of the median apart, the worst: {worst}")
    return lines


def simple(values: dict[str, dict[str, float]], columns: Sequence[str], table: Table) -> None:
    """Plain values by row and column."""
    table(["", *columns], [[name, *(number(row.get(column)) for column in columns)] for name, row in values.items()])


def title(form: str) -> Callable[[str], None]:
    return (lambda words: print(f"### {words}\n")) if form == "markdown" else print


def for_json(results: Results) -> dict[str, Any]:
    """Medians by group, benchmark and runner: ms of a compute benchmark, ns of one operation of a machine's."""
    compute_ms: dict[str, dict[str, float]] = {}
    machine_ns: dict[str, dict[str, float]] = {}
    for name in _present(results, (*COMPUTE, *NARROW)):
        compute_ms[name] = {runner: found.median / 1e6 for runner, s in results.series[name].items() if (found := figure(s.times))}
    for name in _present(results, MACHINE):
        machine_ns[name] = {runner: found.median / s.work for runner, s in results.series[name].items() if (found := figure(s.times))}
    return {"compute": compute_ms, "machine": machine_ns}
