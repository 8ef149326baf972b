"""The arguments of kvmpy diff."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

TEXT = """\
a SIDE is soft, kvm, or soft,translate=N: the software CPU whose blocks are translated after N runs

exit status of kvmpy diff:
  0    no difference: both came to the same end, or --count records were equal
  1    a difference, told on standard output
  124  --timeout came first; the records until then were equal
  64, 65, 69, 130, 141  as kvmpy run
"""


def add_parser(commands: Any, add_run_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """kvmpy diff: its own options first, then those of kvmpy run."""
    from kvmpy.cli.main import RawFormatter

    diff = commands.add_parser(
        "diff", help="run a guest on two CPUs in lock step, or compare two traces", formatter_class=RawFormatter, description=(
            "Runs IMAGE on both sides record by record, and tells the first in which they differ: registers, what came before, the code.\n"
            "With two FILEs: compares traces that kvmpy trace -o saved, event by event."
        ), epilog=TEXT,
    )  # fmt: skip
    add = diff.add_argument_group("comparison").add_argument
    add("--left", default="soft", metavar="SIDE", help="the side that is right where something is left open (default soft)")
    add("--right", metavar="SIDE", help="the other side (default kvm, or soft,translate=2 where this host has no KVM)")
    add("--by", choices=("exit", "instruction"), default="exit", help="a record is an access of a device, or an instruction (default exit)")
    add("--stride", default="1", metavar="N",
        help="--by instruction on the software CPU: N instructions a record, fewer at a difference")
    add("--count", metavar="N", help="stop after N equal records")
    add("--ignore", action="append", default=[], metavar="REG,...", help="registers that are not compared; of traces: rip (repeatable)")
    add_run_options(diff)
    diff.add_argument("other", nargs="?", metavar="FILE", help="with a trace as IMAGE: the other trace")
