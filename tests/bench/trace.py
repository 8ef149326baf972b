"""What tracing costs an exit to a device in Python: off, on for something else, to a binary file, to a listener in Python."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvmpy import Machine
from kvmpy.errors import KvmpyError
from tests.bench.exits import ACCESSES, Sink

COUNT = 20000


def _nothing(event: Any) -> None:
    """A listener."""


# What a machine is asked before it runs, by the name of the row.
WAYS: dict[str, Callable[[Machine, Path], Any]] = {
    "off": lambda machine, file: None,
    "a filter that chooses other ports": lambda machine, file: machine.trace("io:0x1f0", _nothing),
    "binary file": lambda machine, file: machine.trace_file(file, "io"),
    "listener in Python": lambda machine, file: machine.trace("io", _nothing, observe=True),
    "listener that may answer": lambda machine, file: machine.trace("io", _nothing),
}


def microseconds(backend: str, way: Callable[[Machine, Path], Any], count: int = COUNT) -> float:
    """One port write and its part of the loop."""
    code = b"\xb9" + count.to_bytes(4, "little") + ACCESSES["port write"] + b"\x49\x75\xfb\x31\xc0\xe6\xf4\xf4"
    with tempfile.TemporaryDirectory() as directory, Machine("2M", backend=backend, devices=[Sink()]) as machine:
        image = Path(directory, "loop.bin")
        image.write_bytes(code)
        machine.load(image, boot="flat32")
        way(machine, Path(directory, "trace"))
        start = time.perf_counter()
        verdict = machine.run(60)
        took = time.perf_counter() - start
        assert getattr(verdict, "code", None) == 0, verdict
    return took / count * 1e6


def core_nanoseconds(what: str, count: int = 200000) -> float:
    """One event of the core in a binary file: what the loop takes longer with it, by instruction."""
    code = b"\xb9" + count.to_bytes(4, "little") + b"\x90\x49\x75\xfc\x31\xc0\xe6\xf4\xf4"  # nop; dec ecx; jnz
    took = []
    for chosen in (None, what):
        best = float("inf")
        for _ in range(3):
            with tempfile.TemporaryDirectory() as directory, Machine("2M", backend="soft") as machine:
                image = Path(directory, "loop.bin")
                image.write_bytes(code)
                machine.load(image, boot="flat32")
                if chosen is not None:
                    machine.trace_file(Path(directory, "trace"), chosen)
                start = time.perf_counter()
                machine.run(60)
                best = min(best, time.perf_counter() - start)
        took.append(best)
    return (took[1] - took[0]) / count / {"instruction": 3, "block": 1}[what] * 1e9


def measure(backends: list[str], runs: int) -> dict[str, dict[str, float]]:
    """us by way and backend, the best of `runs`, the ways by turns so that a busy host slows all of them alike."""
    result: dict[str, dict[str, float]] = {name: {} for name in WAYS}
    for backend in backends:
        for _ in range(runs):
            for name, way in WAYS.items():
                try:
                    row = result[name]
                    row[backend] = min(row.get(backend, float("inf")), microseconds(backend, way))
                except KvmpyError:
                    continue
    return result
