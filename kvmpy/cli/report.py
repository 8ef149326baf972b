"""kvmpy report: a page of a saved trace."""

from __future__ import annotations

import errno
from argparse import Namespace
from contextlib import ExitStack

from kvmpy.cli import status
from kvmpy.cli.main import say
from kvmpy.cli.trace import Names, open_saved, read_filter, same_file
from kvmpy.errors import ConfigError, HostError, TraceError
from kvmpy.trace.page import Report


def report(arguments: Namespace) -> int:
    """The subcommand; gives the exit status."""
    out = arguments.output or f"{arguments.file.removesuffix('.jsonl').removesuffix('.trace')}.html"
    if same_file(out, arguments.file):
        raise ConfigError(f"-o {out}: that is the trace itself")
    made = Report()
    with ExitStack() as stack:
        saved = open_saved(arguments.file, stack)
        names = Names(arguments.symbols, saved, arguments.file)
        chosen = read_filter(arguments.events, names.table)
        broken = None
        try:
            for event in saved:
                if chosen is None or chosen.matches(event):
                    made(event)
        except TraceError as error:
            if not made.summary.events:
                raise
            broken = error
        page = made.page(saved.about, names)
    try:
        with open(out, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise HostError(f"write {out}", error.errno or errno.EIO) from None
    say(f"{out}: {made.summary.events} events")
    if broken is not None:
        raise broken
    return status.OK
