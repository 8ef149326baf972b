"""The arguments of kvmpy coverage."""

from __future__ import annotations

from typing import Any

EXAMPLES = """\
examples:
  kvmpy run kernel.elf --coverage run1.info      source lines, functions and branches, as lcov has them
  kvmpy run bzImage --coverage run2.cov          addresses, for a kernel without line information
  kvmpy coverage run1.info                       a table
  kvmpy coverage run*.info --html coverage       pages of several runs together
  kvmpy coverage run2.cov --functions            functions, and how much of each was executed
  kvmpy coverage run2.cov --drcov run2.drcov     for Lighthouse and its like
"""


def add_parser(commands: Any) -> None:
    """kvmpy coverage."""
    from kvmpy.cli.main import RawFormatter

    coverage = commands.add_parser(
        "coverage", help="show and merge coverage that runs have recorded", formatter_class=RawFormatter, epilog=EXAMPLES,
        description="Shows which code was executed: FILEs of kvmpy run --coverage, or tracefiles of lcov. Several are added.",
    )  # fmt: skip
    add = coverage.add_argument
    add("files", nargs="+", metavar="FILE", help="what kvmpy run --coverage has written, or an lcov tracefile")
    add("--html", metavar="DIR", help="pages of all source files, below DIR/index.html")
    add("--lcov", metavar="OUT", help="an lcov tracefile of all")
    add("--drcov", metavar="OUT", help="executed code in drcov format (not from tracefiles)")
    add("--save", metavar="OUT", help="executed code of all runs in one file (not from tracefiles)")
    add("--functions", action="store_true", help="a line for each function that was executed (not from tracefiles)")
    add("--source", action="append", default=[], metavar="PATH", help="only source files at or below PATH (repeatable)")
    add("--symbols", action="append", default=[], metavar="FILE[@OFFSET]", help="more symbols: ELF file or System.map (repeatable)")
