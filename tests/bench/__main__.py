"""`make bench`: native, the software CPU, KVM and QEMU side by side. docs/benchmarks.md tells how to read the table."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from typing import Any

from tests.bench import disk, exits, memory, runners, startup, trace
from tests.bench.runners import COMPUTE, MACHINE, ROOT, Outcome

EXTRA = ("exits", "trace", "startup", "linux", "memory", "disk")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="kvmpy's backends beside the host's processor and QEMU.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to run (all): {' '.join((*COMPUTE, *MACHINE, *EXTRA))}")
    parser.add_argument("--scale", type=int, default=200, help="work in thousandths of the full one, 0.06 s native (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="repetitions; the table shows medians (%(default)s)")
    parser.add_argument("--only", action="append", choices=("native", "soft", "kvm", "qemu"), help="runners (all that are there)")
    parser.add_argument("--seconds", type=float, default=120, help="limit of each runner (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in (*COMPUTE, *MACHINE, *EXTRA):
            parser.error(f"no benchmark {name}")
    if arguments.scale < 1 or arguments.runs < 1:
        parser.error("--scale and --runs are at least 1")
    return arguments


def _kvm_there() -> bool:
    from kvmpy.kvm.probe import unavailable

    return not unavailable()


def _kvm_lacks(name: str) -> bool:
    """A system call from ring 3 that KVM does not bring to ring 0 would end the guest."""
    from kvmpy.kvm.probe import ask

    need = {"syscall": "syscall_from_user", "int80": "int_n_from_user"}.get(name)
    return need is not None and not ask(need)


def _geometric(values: list[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def _collect(arguments: argparse.Namespace, say: Any) -> dict[str, Any]:
    names = arguments.names or [*COMPUTE, *MACHINE, *EXTRA]
    compute = [n for n in COMPUTE if n in names]
    machine = [n for n in MACHINE if n in names]
    wanted = set(arguments.only or ("native", "soft", "kvm", "qemu"))
    kvm = "kvm" in wanted and _kvm_there()
    scale, runs, seconds = arguments.scale, arguments.runs, arguments.seconds

    plan: list[tuple[str, Any]] = []
    if compute and "native" in wanted:
        plan.append(("native", lambda: runners.native(compute, scale, runs, seconds)))
    if compute or machine:
        if "soft" in wanted:
            plan.append(("soft", lambda: runners.kvmpy("soft", compute + machine, scale, runs, seconds)))
        if kvm and compute:
            plan.append(("kvm", lambda: runners.kvmpy("kvm", compute, scale, runs, seconds, "user")))
        if kvm and (able := [n for n in machine if not _kvm_lacks(n)]):
            plan.append(("kvm machine", lambda: runners.kvmpy("kvm", able, max(scale // 40, 1), runs, seconds)))
        if "qemu" in wanted and runners.qemu_path():
            plan.append(("qemu", lambda: runners.qemu(compute + machine, scale, runs, seconds)))
    outcomes: dict[str, Outcome] = {}
    problems: list[str] = []
    for name, run in plan:
        say(name)
        outcome = run()
        if outcome.problem:
            problems.append(f"{name}: {outcome.problem}")
        target = outcomes.setdefault(name.split()[0], Outcome({}))
        target.series.update(outcome.series)

    for name in compute:
        sums = {runner: o.series[name].checksums for runner, o in outcomes.items() if name in o.series}
        if len(set().union(*sums.values())) > 1:
            problems.append(f"{name}: checksums differ: " + ", ".join(f"{runner} {'/'.join(sorted(s))}" for runner, s in sums.items()))
    for runner, outcome in outcomes.items():
        off = [name for name, series in outcome.series.items() if series.clock_off]
        if off:
            problems.append(f"{runner}: the guest's clock disagrees with the host's in {' '.join(off)}")

    result: dict[str, Any] = {"scale": scale, "runs": runs, "compute": {}, "machine": {}, "problems": problems}
    for group, members in (("compute", compute), ("machine", machine)):
        for name in members:
            row = result[group][name] = {}
            for runner, outcome in outcomes.items():
                if name in outcome.series:
                    series = outcome.series[name]
                    row[runner] = series.time / 1e6 if group == "compute" else series.time / series.work
    result["geometric mean"] = {
        f"{a}/{b}": _geometric([row[a] / row[b] for row in result["compute"].values() if a in row and b in row])
        for a, b in (("soft", "native"), ("qemu", "native"), ("kvm", "native"), ("soft", "qemu"))
    }
    if "exits" in names:
        say("exits")
        result["exits"] = exits.measure([b for b in ("soft", "kvm") if b in wanted and (b != "kvm" or kvm)], runs)
    if "trace" in names:
        say("trace")
        result["trace"] = trace.measure([b for b in ("soft", "kvm") if b in wanted and (b != "kvm" or kvm)], runs)
        result["trace core"] = {what: trace.core_nanoseconds(what) for what in ("block", "instruction")} if "soft" in wanted else {}
    if "startup" in names:
        say("startup")
        result["startup"] = startup.first_byte(max(runs, 5), kvm)
    if "linux" in names and "soft" in wanted:
        say("linux")
        result["linux"] = startup.linux("soft", seconds)
    if "memory" in names and "soft" in wanted:
        say("memory")
        result["memory"] = memory.measure(seconds)
    if "disk" in names and "soft" in wanted:
        say("disk")
        result["disk"] = disk.missing() or disk.measure(runs, seconds, problems)
    return result


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ratio(row: dict[str, float], a: str, b: str) -> str:
    return f"{row[a] / row[b]:.1f}x" if a in row and b in row else "-"


def _table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    for row in [head, *rows]:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]))
    print()


def _show(result: dict[str, Any]) -> None:
    pairs = (("soft", "native"), ("qemu", "native"), ("soft", "qemu"), ("kvm", "native"))
    if result["compute"]:
        print(f"Compute, ms (scale {result['scale']}, median of {result['runs']})")
        rows = [
            [name, *(_number(row.get(r), 2) for r in ("native", "soft", "qemu", "kvm")), *(_ratio(row, a, b) for a, b in pairs)]
            for name, row in result["compute"].items()
        ]
        means = result["geometric mean"]
        rows.append(["geometric mean", "", "", "", "", *(f"{m:.1f}x" if (m := means[f"{a}/{b}"]) else "-" for a, b in pairs)])
        _table(["", "native", "soft", "qemu", "kvm CPL 3", *(f"{a}/{b}" for a, b in pairs)], rows)
    if result["machine"]:
        print("Machine, ns each")
        _table(
            ["", "soft", "qemu", "kvm CPL 0", "soft/qemu"],
            [
                [name, *(_number(row.get(r), 0) for r in ("soft", "qemu", "kvm")), _ratio(row, "soft", "qemu")]
                for name, row in result["machine"].items()
            ],
        )
    if "exits" in result:
        print("Exit to a device in Python and back, us")
        _table(["", "soft", "kvm"], [[name, *(_number(row.get(b), 2) for b in ("soft", "kvm"))] for name, row in result["exits"].items()])
    if "trace" in result:
        print("A traced port write, us")
        _table(["", "soft", "kvm"], [[name, *(_number(row.get(b), 2) for b in ("soft", "kvm"))] for name, row in result["trace"].items()])
        print("An event of the core in a binary file, ns")
        _table(["", "ns"], [[name, _number(value, 0)] for name, value in result["trace core"].items()])
    if "startup" in result:
        print("Process start to the guest's first byte, ms")
        _table(["", "ms"], [[name, _number(value, 0)] for name, value in result["startup"].items()])
    if "linux" in result:
        if result["linux"] is None:
            print("Linux: not fetched (make linux)\n")
        else:
            print("Linux on the software CPU, s")
            _table(["", "s"], [[name, _number(value)] for name, value in result["linux"].items()])
    if result.get("memory"):
        print("Memory beside the guest's RAM after Linux has booted, MiB")
        kinds = ("total", "anonymous", "heap", "shared", "files")
        _table(["", *kinds], [[name, *(_number((row or {}).get(kind)) for kind in kinds)] for name, row in result["memory"].items()])
    if "disk" in result:
        disk.show(result["disk"], _table)
    for problem in result["problems"]:
        print(f"PROBLEM  {problem}")


def main() -> int:
    arguments = _arguments()
    subprocess.run(["make", "-s", "guests"], cwd=ROOT, check=True, timeout=300)
    # Results may go to a file: progress does not.
    result = _collect(arguments, lambda what: print(f"bench: {what} ...", file=sys.stderr, flush=True))
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        _show(result)
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
