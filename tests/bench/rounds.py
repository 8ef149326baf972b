"""The plan of a whole run: in each round every runner does a few benchmarks at a time, one runner right after the other, so that what
disturbs the host disturbs all of them. Who begins changes from round to round."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.bench import runners, startup
from tests.bench.figures import Series
from tests.bench.runners import COMPUTE, MACHINE, NARROW, PAIR

TOGETHER = 5
"""So many benchmarks in one process."""


@dataclass
class Plan:
    names: list[str]
    wanted: list[str]
    rounds: int
    repeat: int
    scale: int
    seconds: float
    say: Callable[[str], None]


@dataclass
class Results:
    """By benchmark and runner. Starts and boots are series too, under names of their own: times in ns, memory in MiB."""

    series: dict[str, dict[str, Series]] = field(default_factory=dict)
    checksums: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    walls: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    def add(self, name: str, runner: str, n: int, values: list[float], work: int = 1) -> None:
        series = self.series.setdefault(name, {}).setdefault(runner, Series({}))
        series.rounds.setdefault(n, []).extend(values)
        series.work = work

    def get(self, name: str, runner: str) -> Series | None:
        return self.series.get(name, {}).get(runner)

    def problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)


def _groups(names: list[str]) -> Iterator[list[str]]:
    """Those of one image that fit together."""
    for all_of in (COMPUTE, NARROW, MACHINE, PAIR):
        chosen = [name for name in all_of if name in names]
        for at in range(0, len(chosen), TOGETHER):
            yield chosen[at : at + TOGETHER]


def _kvm_lacks(name: str) -> bool:
    """A system call from ring 3 that KVM does not bring to ring 0 would end the guest. Of 32 bits and of two CPUs it has no column."""
    from kvmpy.kvm.probe import ask

    need = {"syscall": "syscall_from_user", "int80": "int_n_from_user"}.get(name)
    return name in NARROW + PAIR or (need is not None and not ask(need))


def _run(plan: Plan, results: Results, runner: str, names: list[str], n: int) -> None:
    scale = plan.scale
    if runner == "kvm":
        # In ring 0 it may be the kernel's instruction emulator that works.
        scale = scale if names[0] in COMPUTE else max(scale // 40, 1)
        names = [name for name in names if not _kvm_lacks(name)]
    if not names or (runner == "native" and names[0] in MACHINE + PAIR):
        return
    if runner == "native" and names[0] in NARROW and not runs_32_bits():
        return
    outcome = runners.measure(runners.command(runner, names, scale, plan.repeat), plan.seconds)
    if outcome.problem:
        results.problem(f"{runner}, {' '.join(names)}: {outcome.problem}")
    prefix = "32-" if names[0] in NARROW else ""
    for name, lines in outcome.series.items():
        results.add(prefix + name, runner, n, lines.times, lines.work)
        results.checksums.setdefault(prefix + name, {}).setdefault(runner, set()).update(lines.checksums)
        results.walls.setdefault((prefix + name, runner), []).extend(lines.walls)


def runs_32_bits() -> bool:
    """Does the host's kernel run 32-bit programs?"""
    try:
        return subprocess.run([runners.NATIVE / "native32", "none"], capture_output=True, timeout=10, check=False).returncode == 0
    except OSError:
        return False


def _starts(plan: Plan, results: Results, n: int, order: list[str]) -> None:
    for _ in range(plan.repeat):
        for runner in order:
            for part, ms in startup.first_byte(runner).items():
                results.add(f"first byte, {part}", runner, n, [ms * 1e6])
    for runner in order:
        if runner != "kvm" and (mib := startup.occupied(runner)) is not None:
            results.add("memory, tiny guest", runner, n, [mib])


def _linux(plan: Plan, results: Results, n: int, order: list[str]) -> None:
    if startup.linux_missing():
        results.problem("Linux: not fetched (make linux)")
        return
    for runner in order:
        if runner == "kvm":
            continue
        # What its checks show is known after two boots of each.
        found = startup.boot(runner, plan.seconds, checks=n < 2)
        if "up" not in found:
            results.problem(f"Linux, {runner}: no first process within {plan.seconds:.0f} s")
        names = {"up": "Linux, first process", "done": "Linux, checks done"}
        for what, value in found.items():
            if what in names:
                results.add(names[what], runner, n, [value * 1e9])
            else:
                results.add(what, runner, n, [value])


def collect(plan: Plan) -> Results:
    """All rounds."""
    results = Results()
    results.loads.append(os.getloadavg()[0])
    for n in range(plan.rounds):
        plan.say(f"round {n + 1} of {plan.rounds}")
        turn = n % len(plan.wanted)
        order = plan.wanted[turn:] + plan.wanted[:turn]
        for names in _groups(plan.names):
            for runner in order:
                if runner != "kvm" or n == 0:  # a column beside the others, in no verdict
                    _run(plan, results, runner, names, n)
        guests = [runner for runner in order if runner != "native"]
        if "startup" in plan.names:
            _starts(plan, results, n, [runner for runner in guests if runner != "kvm" or n == 0])
        if "linux" in plan.names and n < 4:
            _linux(plan, results, n, guests)
    results.loads.append(os.getloadavg()[0])
    for name, sums in results.checksums.items():
        if name in COMPUTE + NARROW and len(set().union(*sums.values())) > 1:
            told = ", ".join(f"{runner} {'/'.join(sorted(s))}" for runner, s in sums.items())
            results.problem(f"{name}: checksums differ: {told}")
    for (name, runner), walls in results.walls.items():
        series = results.get(name, runner)
        if series and clock_off(walls, series.times):
            results.problem(f"{runner}: the guest's clock disagrees with the host's in {name}")
    return results


def clock_off(walls: list[float], times: list[float]) -> bool:
    """Do the guest's clock and the host's differ by more than a third and 5 ms each? The host may see any line late, the first as well as
    the last: sums are compared."""
    return bool(walls) and abs(sum(walls) - sum(times)) > max(5e6 * len(walls), sum(times) / 3)


def as_json(results: Results) -> dict[str, Any]:
    """Every value of every round."""
    return {
        name: {runner: {"work": s.work, "rounds": list(s.rounds.values())} for runner, s in row.items()}
        for name, row in results.series.items()
    }
