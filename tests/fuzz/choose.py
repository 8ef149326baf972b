"""Chooses the stored inputs of a target: python -m tests.fuzz.choose TARGET... [--count N]

Of what `make fuzz` has gathered in build/fuzz/corpus, a few inputs that together reach much. Inputs whose name begins with
"finding-" or "case-" were put there by hand and stay.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.fuzz.__main__ import BUILD, ROOT, STORED, command

BY_HAND = ("finding-", "case-")


def features(name: str, corpus: Path, shortest: int, longest: int) -> dict[str, set[str]]:
    """What each input reaches that those before did not, by libFuzzer's record of a merge, which goes by size. Very short inputs
    would lead, with next to nothing in each."""
    with tempfile.TemporaryDirectory() as folder:
        record, merged, fitting = Path(folder) / "record", Path(folder) / "merged", Path(folder) / "fitting"
        merged.mkdir()
        fitting.mkdir()
        for file in corpus.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a fuzzer at work replaces inputs by shorter ones
                if shortest <= file.stat().st_size <= longest:
                    shutil.copyfile(file, fitting / file.name)
        if not any(fitting.iterdir()):
            return {}
        subprocess.run(
            [*command(name), "-merge=1", f"-merge_control_file={record}", str(merged), str(fitting)],
            cwd=ROOT, capture_output=True, timeout=600, check=True,
        )  # fmt: skip
        lines = record.read_text().splitlines()
    count = int(lines[0])
    names = lines[2 : 2 + count]
    reached: dict[str, set[str]] = {}
    for line in lines[2 + count :]:
        kind, index, *numbers = line.split()
        if kind == "FT":
            reached[str(corpus / Path(names[int(index)]).name)] = set(numbers)
    return reached


def choose(name: str, count: int, shortest: int, longest: int) -> int:
    """Bytes of the inputs chosen."""
    stored = STORED / name
    stored.mkdir(parents=True, exist_ok=True)
    reached = features(name, BUILD / "corpus" / name, shortest, longest)
    for file in stored.iterdir():
        if not file.name.startswith(BY_HAND):
            file.unlink()
    covered: set[str] = set()
    total = 0
    for _ in range(count):
        best = max(reached, key=lambda file: (len(reached[file] - covered), -Path(file).stat().st_size), default=None)
        if best is None or not reached[best] - covered:
            break
        covered |= reached.pop(best)
        target = stored / Path(best).name[:12]
        shutil.copyfile(best, target)
        total += target.stat().st_size
    return total


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.choose", description="Chooses the stored inputs of fuzz targets.")
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--count", type=int, default=8, help="how many inputs at most")
    parser.add_argument("--shortest", type=int, default=40, help="bytes of one input")
    parser.add_argument("--longest", type=int, default=160, help="bytes of one input")
    arguments = parser.parse_args()
    for name in arguments.targets:
        print(f"{name}: {choose(name, arguments.count, arguments.shortest, arguments.longest)} bytes")


if __name__ == "__main__":
    main()
