"""Runs fuzz targets: `make fuzz`. One line for each; exit status 1 with the reproducer's path where something was found."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz import targets

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
STORED = Path(__file__).resolve().parent / "corpus"
LONGEST_INPUT = 1024
SECONDS_PER_INPUT = 20
GRACE = 90


def core_targets() -> list[str]:
    """Those in C that were built."""
    return sorted(path.name for path in (BUILD / "bin").iterdir()) if (BUILD / "bin").is_dir() else []


class Run:
    """One target at work."""

    def __init__(self, name: str, seconds: int) -> None:
        self.name = name
        self.corpus, self.found, self.log = BUILD / "corpus" / name, BUILD / "found", BUILD / "log" / name
        for directory in (self.corpus, self.found, self.log.parent):
            directory.mkdir(parents=True, exist_ok=True)
        self.before = set(self.found.glob(f"{name}-*"))
        directories = [str(self.corpus), *([str(STORED / name)] if (STORED / name).is_dir() else [])]
        options = [f"-max_total_time={seconds}", f"-max_len={LONGEST_INPUT}", "-len_control=20", f"-timeout={SECONDS_PER_INPUT}",
                   "-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={self.found}/{name}-"]  # fmt: skip
        self.end = time.monotonic() + seconds + GRACE
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([*command(name), *options, *directories], cwd=ROOT, stdout=log, stderr=log)

    def over(self) -> bool:
        if self.process.poll() is None and time.monotonic() > self.end:
            self.process.kill()
            self.process.wait()
        return self.process.poll() is not None

    def report(self) -> tuple[str, bool]:
        """The line, and whether something was found."""
        text = self.log.read_text(errors="replace")
        counts = re.findall(r"number_of_executed_units: (\d+)", text) or re.findall(r"^#(\d+)", text, re.M)
        coverage = re.findall(r"cov: (\d+)", text)
        line = f"{self.name:22} {int(counts[-1]) if counts else 0:>9} executions, coverage {coverage[-1] if coverage else '?':>6}"
        new = sorted(set(self.found.glob(f"{self.name}-*")) - self.before)
        findings = [path for path in new if not path.name.startswith(f"{self.name}-slow-unit-")]
        if findings:
            return f"{line}, FOUND {' '.join(str(path.relative_to(ROOT)) for path in findings)}", True
        if self.process.returncode:
            return f"{line}, FAILED with status {self.process.returncode}: {self.log.relative_to(ROOT)}", True
        return f"{line}, no findings", False


def command(name: str) -> list[str]:
    if name in targets.NAMES:
        return [sys.executable, "-m", "tests.fuzz.cover", name]
    return [str(BUILD / "bin" / name)]


def replay(name: str, files: list[str]) -> int:
    """Runs inputs through a Python target, without a fuzzer around it."""
    run = targets.find(name)
    for file in files:
        run(Path(file).read_bytes())
    print(f"{len(files)} inputs")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Runs fuzz targets, or inputs through one.")
    parser.add_argument("--seconds", type=int, default=20, help="for each target")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--run", nargs="+", metavar=("TARGET", "FILE"), help="run files through a Python target")
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("targets", nargs="*", help="(all)")
    arguments = parser.parse_args()
    every = [*core_targets(), *targets.NAMES]
    if arguments.run:
        return replay(arguments.run[0], arguments.run[1:])
    if arguments.list:
        print(*every, sep="\n")
        return 0
    unknown = [name for name in arguments.targets if name not in every]
    if unknown:
        print(f"no such fuzz target: {' '.join(unknown)}; there are {' '.join(every)}", file=sys.stderr)
        return 2
    waiting, running, found = arguments.targets or every, [], False
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    try:
        while waiting or running:
            while waiting and len(running) < max(arguments.jobs, 1):
                running.append(Run(waiting.pop(0), arguments.seconds))
            time.sleep(0.1)
            for run in [run for run in running if run.over()]:
                running.remove(run)
                line, bad = run.report()
                print(line, flush=True)
                found |= bad
    except KeyboardInterrupt:
        return 130
    finally:
        for run in running:
            run.process.kill()
            run.process.wait()
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
