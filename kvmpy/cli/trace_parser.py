"""The arguments of kvmpy trace and kvmpy report."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from kvmpy.cli import status
from kvmpy.trace.formats import FORMATS

EXAMPLES = """\
examples:
  kvmpy trace kernel.elf                          a line for every exit on standard error, the guest's serial port on standard output
  kvmpy trace kernel.elf -e io:0x3f8-0x3ff[write]  writes to COM1 alone
  kvmpy trace kernel.elf -c                       tables of what took how long
  kvmpy trace kernel.elf -o boot.trace            a trace to keep; then kvmpy trace boot.trace -e mmio, kvmpy report boot.trace
  kvmpy trace kernel.elf -o boot.pftrace          for ui.perfetto.dev

"""


def add_parser(commands: Any, add_run_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """kvmpy trace: its own options first, then those of kvmpy run."""
    from kvmpy.cli.main import RawFormatter

    trace = commands.add_parser(
        "trace", help="boot an image and show its exits, or show a trace that was saved", formatter_class=RawFormatter, description=(
            "Boots IMAGE as kvmpy run does and shows what happens, on standard error or in a file.\n"
            "Where IMAGE is a trace saved in a file, shows that one, on standard output or in another file."
        ), epilog=EXAMPLES + status.TABLE.replace("kvmpy run", "kvmpy trace (of a saved trace: 0, 64, 65, 69, 130, 141)"),
    )  # fmt: skip
    add = trace.add_argument_group("trace").add_argument
    add("-e", dest="events", action="append", default=[], metavar="EXPR",
        help="only these events: KIND[:WHAT][[CONDITION,...]], as io:0x3f8-0x3ff[write], mmio, exception:14, !device (repeatable)")
    add("-o", dest="output", metavar="FILE", help="write the trace to FILE; its name's end tells the format")
    add("--format", choices=tuple(FORMATS), help="; ".join(f"{name}: {about}" for name, about in FORMATS.items()))
    add("-c", dest="count", action="store_true", help="tables at the end: by kind, place and instruction; without -o nothing else")
    add("--top", default="20", metavar="N", help="lines of each table (default 20)")
    add_run_options(trace)
    for group in trace._action_groups:
        for action in group._group_actions:
            if action.dest == "json":
                action.help = "as kvmpy run's, with the tables of -c as \"trace\"; of a saved trace, these alone"

def add_report(commands: Any) -> None:
    """kvmpy report."""
    report = commands.add_parser("report", help="an HTML page of a saved trace", description=(
        "Makes a page of a trace that kvmpy trace -o saved: where the time went, by kind, place and instruction. "
        "The page is one file and asks for nothing else; it is read offline."
    ))  # fmt: skip
    add = report.add_argument
    add("file", metavar="FILE", help="a saved trace")
    add("-o", dest="output", metavar="OUT", help="the page (default: FILE's name with .html)")
    add("-e", dest="events", action="append", default=[], metavar="EXPR", help="only these events, as kvmpy trace takes them (repeatable)")
    add("--symbols", action="append", default=[], metavar="FILE[@OFFSET]", help="symbols and lines: ELF file or System.map (repeatable)")
