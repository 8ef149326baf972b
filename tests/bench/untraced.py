"""What a trace that nobody asks for costs an exit: kvmpy as it is, beside one that cannot trace. That one's core is compiled with
KP_WITHOUT_TRACE, and the lines that ask for a listener are taken out of its loop's source. Instructions are counted by valgrind, where
it is installed: they do not depend on what else the host does; times are taken by turns, in processes of their own."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "build" / "untraced" / "_native.abi3.so"
MODULES = ("kvmpy.exit_handlers", "kvmpy.loop")
ASKING = frozenset(("drains", "tracer"))
"""Names whose `if` is there for the trace alone."""
COUNT, TIMED = 3000, 60000
SIDES = ("with", "without")


class _Taken(ast.NodeTransformer):
    def __init__(self) -> None:
        self.count = 0

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt] | None:
        self.generic_visit(node)
        if any(getattr(part, "attr", getattr(part, "id", "")) in ASKING for part in ast.walk(node.test)):
            self.count += 1
            return node.orelse or None
        return node


def taken_out(source: str) -> tuple[ast.Module, int]:
    """A module without what asks for a listener, and how many places that were."""
    taken = _Taken()
    tree = taken.visit(ast.parse(source))
    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.With, ast.For, ast.While, ast.FunctionDef)) and not node.body:
            node.body.append(ast.Pass())
    return ast.fix_missing_locations(tree), taken.count


def _without() -> None:
    """From here on this process imports a kvmpy that cannot trace."""
    spec = importlib.util.spec_from_file_location("kvmpy._native", NATIVE)
    assert spec is not None and spec.loader is not None
    native = sys.modules["kvmpy._native"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        tree, count = taken_out(Path(spec.origin).read_text("utf-8"))
        assert count, name
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        exec(compile(tree, spec.origin, "exec"), module.__dict__)


def _child(side: str, count: int, rounds: int) -> None:
    if side == "without":
        _without()
    from tests.bench.exits import ACCESSES, microseconds

    print(min(microseconds("soft", ACCESSES["port write"], count) for _ in range(rounds)))


def _run(side: str, count: int, rounds: int, *before: str) -> tuple[float, str]:
    done = subprocess.run(
        [*before, sys.executable, "-m", "tests.bench.untraced", side, str(count), str(rounds)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=True, env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    return float(done.stdout), done.stderr


def _instructions(side: str, count: int) -> int:
    """All that a process executes for so many exits."""
    counted = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--smc-check=all", "--cachegrind-out-file=/dev/null")
    found = re.search(r"I\s+refs:\s+([\d,]+)", _run(side, count, 1, *counted)[1])
    assert found is not None
    return int(found[1].replace(",", ""))


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Of one exit, by row: with the trace, without it, and the ratio (of times: the median of each round's)."""
    built = NATIVE.relative_to(ROOT)  # as make names what depends on headers
    subprocess.run(
        ["make", "-s", "native", f"NATIVE={built}", f"NATIVE_OBJ={built.parent}", "OPT=-O2 -DKP_WITHOUT_TRACE"],
        cwd=ROOT, check=True, timeout=600, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    result: dict[str, dict[str, float]] = {}
    if shutil.which("valgrind"):
        counts = {side: (_instructions(side, 2 * COUNT) - _instructions(side, COUNT)) / COUNT for side in SIDES}
        result["instructions"] = {**counts, "ratio": counts["with"] / counts["without"]}
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 else reversed(SIDES):
            times[side].append(_run(side, TIMED, 3)[0])
    ratio = statistics.median(one / other for one, other in zip(times["with"], times["without"], strict=True))
    result["us"] = {**{side: statistics.median(times[side]) for side in SIDES}, "ratio": ratio}
    return result


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
