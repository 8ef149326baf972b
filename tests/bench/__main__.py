"""`make bench`: native, the software CPU, KVM and QEMU side by side. docs/benchmarks.md tells how to read the tables."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench import disk, exits, rounds, runners, show, trace, untraced
from tests.bench.runners import COMPUTE, MACHINE, NARROW, PAIR, ROOT, RUNNERS
from tests.bench.targets import Rows

EXTRA = ("startup", "linux", "exits", "trace", "untraced", "disk")
SLOW = ("untraced", "disk")
MARK = re.compile(r"(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)", re.DOTALL)


def _arguments() -> argparse.Namespace:
    known = (*COMPUTE, *NARROW, *MACHINE, *PAIR, *EXTRA)
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="kvmpy's backends beside the host's processor and QEMU.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to run (all but {' and '.join(SLOW)}): {' '.join(known)}")
    parser.add_argument("--scale", type=int, help="work in thousandths of the full one, 0.06 s native (100)")
    parser.add_argument("--rounds", type=int, help="how often all runners have their turn (7)")
    parser.add_argument("--repeat", type=int, default=2, help="repetitions in each turn (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="three rounds of a quarter of the work: a look, not a measurement")
    parser.add_argument("--only", action="append", choices=RUNNERS, help="runners (all that are there)")
    parser.add_argument("--seconds", type=float, default=120, help="limit of each process (%(default)s)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    form.add_argument("--markdown", nargs="?", const="-", metavar="FILE", help="tables in Markdown; in FILE between its marks")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in known:
            parser.error(f"no benchmark {name}")
    arguments.scale = arguments.scale or (25 if arguments.quick else 100)
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 7)
    if min(arguments.scale, arguments.rounds, arguments.repeat) < 1:
        parser.error("--scale, --rounds and --repeat are at least 1")
    return arguments


def _kvm_there() -> bool:
    from kvmpy.kvm.probe import unavailable

    return not unavailable()


def _there() -> list[str]:
    return [r for r in RUNNERS if r in ("native", "soft") or (r == "qemu" and runners.qemu_path()) or (r == "kvm" and _kvm_there())]


def _extra(arguments: argparse.Namespace, names: list[str], wanted: list[str], problems: list[str], say: Any) -> dict[str, Any]:
    """What runs in this process, or takes its time by itself."""
    backends = [b for b in ("soft", "kvm") if b in wanted]
    result: dict[str, Any] = {}
    if "exits" in names:
        say("exits")
        result["exits"] = exits.measure(backends, 3)
    if "trace" in names:
        say("trace")
        result["trace"] = trace.measure(backends, 3)
        if "soft" in wanted:
            result["trace core"] = {what: {"soft": trace.core_nanoseconds(what)} for what in ("block", "instruction")}
    if "untraced" in names and "soft" in wanted:
        say("untraced")
        result["untraced"] = untraced.measure(arguments.rounds)
    if "disk" in names and "soft" in wanted:
        say("disk")
        result["disk"] = disk.missing() or disk.measure(1 if arguments.quick else 3, arguments.seconds, problems)
    return result


def _version() -> str:
    path = runners.qemu_path()
    if not path:
        return "QEMU is not there (apt-get install qemu-system-x86)"
    return subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout.partition("\n")[0]


def _show(arguments: argparse.Namespace, results: rounds.Results, rows: list[Any], extra: dict[str, Any], setting: list[str]) -> None:
    form = "markdown" if arguments.markdown else "text"
    table, heading = (show.markdown, show.title(form)) if arguments.markdown else (show.text, show.title(form))
    separator = "  \n" if arguments.markdown else "\n"
    print(separator.join(setting) + "\n")
    heading("Targets")
    show.targets(rows, table)
    heading("Compute, ms")
    show.compute(results, table)
    heading("Machine, ns each")
    show.machine(results, table)
    both = ("soft", "kvm")
    if "exits" in extra:
        heading("Exit to a device in Python and back, us")
        show.simple(extra["exits"], both, table)
    if "trace" in extra:
        heading("A traced port write, us")
        show.simple(extra["trace"], both, table)
    if "trace core" in extra:
        heading("An event of the core in a binary file, ns")
        show.simple(extra["trace core"], ("soft",), table)
    if "untraced" in extra:
        heading("A port write with nobody listening: kvmpy as it is, and without what can trace")
        show.simple(extra["untraced"], (*untraced.SIDES, "ratio"), table)
    if "disk" in extra:
        heading("Disk")
        disk.show(extra["disk"], table)
    for problem in results.problems:
        print(f"PROBLEM  {problem}")


def main() -> int:
    arguments = _arguments()
    subprocess.run(["make", "-s", "guests"], cwd=ROOT, check=True, timeout=300)

    # Results may go to a file: progress does not.
    def say(what: str) -> None:
        print(f"bench: {what} ...", file=sys.stderr, flush=True)

    names = arguments.names or [*COMPUTE, *NARROW, *MACHINE, *PAIR, *(name for name in EXTRA if name not in SLOW)]
    wanted = [runner for runner in _there() if runner in (arguments.only or RUNNERS)]
    plan = rounds.Plan(names, wanted, arguments.rounds, arguments.repeat, arguments.scale, arguments.seconds, say)
    results = rounds.collect(plan)
    rows = Rows(results).all(bool(runners.parallel()))
    extra = _extra(arguments, names, wanted, results.problems, say)
    setting = [
        f"{_processor()}, {os.cpu_count()} CPUs; {_version()}; {arguments.rounds} rounds of {arguments.repeat}, scale {arguments.scale}",
        *show.noise(results),
    ]
    if arguments.json:
        json.dump(
            {
                "setting": setting, "scale": arguments.scale, "rounds": arguments.rounds, **show.for_json(results),
                "targets": [row.as_json() for row in rows], "series": rounds.as_json(results), **extra, "problems": results.problems,
            },
            sys.stdout, indent=2,
        )  # fmt: skip
        print()
    elif arguments.markdown and arguments.markdown != "-":
        page, out = Path(arguments.markdown), io.StringIO()
        with contextlib.redirect_stdout(out):
            _show(arguments, results, rows, extra, setting)
        page.write_text(MARK.sub(lambda _: out.getvalue(), page.read_text()))
    else:
        _show(arguments, results, rows, extra, setting)
    return 1 if results.problems else 0


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "processor unknown"


if __name__ == "__main__":
    sys.exit(main())
