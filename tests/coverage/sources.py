"""A guest whose lines are known one by one."""

from __future__ import annotations

from pathlib import Path

from kvmpy import Machine
from kvmpy.coverage import Coverage
from kvmpy.coverage.sources import tracefile
from kvmpy.coverage.tracefile import Tracefile
from kvmpy.testing.assemble import build
from kvmpy.verdicts import GuestExit

PROGRAM = """\
__attribute__((noinline)) int never(int x)
{
    return x * 3;
}

__attribute__((noinline)) int sign(int x)
{
    if (x < 0)
        return -1;
    return 1;
}

int main(void)
{
    volatile int n = 5, sum = 0;
    for (int i = 0; i < n; i++)
        sum += sign(i);
    if (sum > 100)
        sum = never(sum);
    return sum;
}
"""
HIT, MISSED = {8, 10, 15, 16, 17, 18, 20}, {3, 9, 19}
"""Lines; which have the code of a function's beginning and end is the compiler's choice."""


def run_program(directory: Path, text: str = PROGRAM, code: int = 5) -> tuple[str, Coverage, Tracefile]:
    """Path of the image, what was executed, and its lines."""
    source = directory / "program.c"
    source.write_text(text)
    program = build(source, directory, name="program", flags=("-O0",))
    with Machine(backend="soft").load(program.path, program.boot) as machine:
        machine.coverage.start()
        assert machine.run(10) == GuestExit(code)
        recorded = machine.coverage.read()
        return program.path, recorded, tracefile(recorded, machine.symbols.files)
