"""The figures that kvmpy is held to, each with its target: one row, one verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.bench.figures import NOISY, Figure, Series, figure, ratio
from tests.bench.memory import TOTAL
from tests.bench.rounds import Results
from tests.bench.runners import COMPUTE, NARROW

MEAN = ("mix", "sieve", "strings", "copyloop", "quicksort", "calls", "mandelbrot", "nbody", "chase", "sha256", "muldiv", "bytecode")
"""One benchmark of each kind of work. `patched` is an operation of its own below; the others measure kinds again, from another side."""

MEMORY = tuple(f"memory, {kind}" for kind in ("anonymous", "shared", "heap", "files", "stack"))
FLOAT = ("mandelbrot", "nbody")
INTEGER = ("muldiv", "wide64", "wide32")
STRINGS = ("strings", "strings4k", "strings64")


@dataclass(frozen=True)
class Row:
    """`target` with `least`: the value is to be at least that, else at most; None: told for information."""

    what: str
    unit: str
    value: Figure | None
    target: float | None = None
    least: bool = False
    tcg: Figure | None = None
    note: str = ""

    def _meets(self, value: float) -> bool:
        assert self.target is not None
        return value >= self.target if self.least else value <= self.target

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self.target is None:
            return ""
        if self._meets(self.value.median):
            return "met"
        return "met by the best runs" if self._meets(self.value.best) else "missed"

    @property
    def noisy(self) -> bool:
        return self.value is not None and self.value.spread > NOISY

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what, "unit": self.unit, "value": self.value and self.value.as_json(), "target": self.target,
            "sense": "at least" if self.least else "at most", "tcg": self.tcg and self.tcg.as_json(), "verdict": self.verdict,
            "noisy": self.noisy, "note": self.note,
        }  # fmt: skip


def _each(series: Series | None, scale: float) -> Figure | None:
    """Of one operation: a benchmark's time by its work."""
    return figure([time / series.work * scale for time in series.times]) if series else None


class Rows:
    def __init__(self, results: Results) -> None:
        self.results = results

    def compare(self, names: tuple[str, ...], above: str, below: str) -> Figure | None:
        """Over those of the names that both have run."""
        pairs = [(a, b) for name in names if (a := self.results.get(name, above)) and (b := self.results.get(name, below))]
        return ratio([a for a, _ in pairs], [b for _, b in pairs])

    def _over_native(self, what: str, names: tuple[str, ...], target: float | None = None) -> Row:
        return Row(what, "x", self.compare(names, "soft", "native"), target, tcg=self.compare(names, "qemu", "native"))

    def _against_tcg(self, what: str, names: tuple[str, ...]) -> Row:
        each = [(name, found) for name in names if (found := self.compare((name,), "qemu", "soft"))]
        note = ", ".join(f"{name} {found.median:.1f}" for name, found in each)
        return Row(what, "x", self.compare(names, "qemu", "soft"), 8, True, note=note)

    def _slowest(self, names: tuple[str, ...]) -> Row:
        each = sorted((found.median, name, found) for name in names if (found := self.compare((name,), "qemu", "soft")))
        behind = [f"{name} {value:.2f}" for value, name, _ in each if value < 1]
        note = f"slower: {', '.join(behind)}" if behind else f"{each[0][1]}" if each else ""
        return Row("the slowest compute benchmark: TCG's time over ours", "x", each[0][2] if each else None, 1, True, note=note)

    def _operation(self, what: str, name: str, target: float, unit: str = "ns", parts: int = 1, note: str = "") -> Row:
        scale = {"ns": 1.0, "us": 1e-3}[unit] / parts
        soft, qemu = (_each(self.results.get(name, runner), scale) for runner in ("soft", "qemu"))
        return Row(what, unit, soft, target, tcg=qemu, note=note)

    def _plain(self, what: str, name: str, unit: str, scale: float, target: float | None, note: str = "") -> Row:
        soft, qemu = (_each(self.results.get(name, runner), scale) for runner in ("soft", "qemu"))
        return Row(what, unit, soft, target, tcg=qemu, note=note)

    def _start_parts(self) -> str:
        parts = {part: _each(self.results.get(f"first byte, {part}", "soft"), 1e-6) for part in ("Python", "imports", "machine", "guest")}
        if not all(parts.values()):
            return ""
        python, imports, machine, guest = (found.median for found in parts.values() if found)
        return f"aim 25; Python's own start {python:.0f}, imports {imports:.0f}, machine and image {machine:.0f}, guest (C) {guest:.1f}"

    def _kinds(self) -> str:
        found = {name.removeprefix("memory, "): _each(row.get("soft"), 1) for name, row in self.results.series.items() if name in MEMORY}
        return ", ".join(f"{kind} {mib.median:.1f}" for kind, mib in found.items() if mib)

    def _pair(self, offered: bool) -> Row:
        note = "" if offered else "this kvmpy lets vCPUs take turns: it has no --smp N,parallel"
        value, tcg = (self._one_over(runner) for runner in ("soft", "qemu"))
        return Row("2 vCPUs at once: time over that of one alone", "x", value, 1.2 if offered else None, tcg=tcg, note=note)

    def _one_over(self, runner: str) -> Figure | None:
        pair, alone = self.results.get("pair", runner), self.results.get("alone", runner)
        return ratio([pair], [alone]) if pair and alone else None

    def all(self, offered: bool) -> list[Row]:
        """`offered`: this kvmpy lets vCPUs run at the same time."""
        linux = self.compare(("Linux, first process",), "soft", "qemu")
        both = [_each(self.results.get("Linux, first process", runner), 1e-9) for runner in ("soft", "qemu")]
        seconds = f"{both[0].median:.2f} s, TCG {both[1].median:.2f} s" if both[0] and both[1] else ""
        rows = [
            self._over_native("compute, geometric mean over native", MEAN, 2),
            self._slowest((*COMPUTE, *NARROW)),
            self._against_tcg("SSE2 floating point: TCG's time over ours", FLOAT),
            self._against_tcg("integer multiplication and division: TCG's time over ours", INTEGER),
            self._against_tcg("rep movs and stos: TCG's time over ours", STRINGS),
            self._operation("syscall, sysret", "syscall", 60),
            self._operation("int 80h, iret", "int80", 250),
            self._operation("page fault, mapped, iret", "fault", 500),
            self._operation("page remapped, invlpg, load", "remap", 250),
            self._operation("CR3 load, 16 pages touched", "reload", 2500),
            self._operation("code patched and called", "patched", 0.7, "us", 100),
            self._operation("port write to a chip of the core", "picwrite", 50),
            self._operation("port write to a device in Python", "outb", 0.7, "us", note="TCG's device is in C"),
            Row("Debian's kernel from process start to its first process, over TCG's microvm", "x", linux, 1.0, note=seconds),
            self._plain("kvmpy run of a tiny guest to its first byte", "first byte, all", "ms", 1e-6, 60, self._start_parts()),
            self._plain("memory beside guest RAM, tiny guest", "memory, tiny guest", "MiB", 1, 40),
            self._plain("memory beside guest RAM, Debian after its checks", f"memory, {TOTAL}", "MiB", 1, 40, self._kinds()),
            self._over_native("32-bit code, geometric mean over native", NARROW),
            self._over_native("copy loop, buffers 16 MiB apart, over native", ("copyfar",)),
            self._pair(offered),
        ]
        return [row for row in rows if row.value is not None or row.target is not None]
