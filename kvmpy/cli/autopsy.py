"""kvmpy autopsy: a kept autopsy as a page; and how kvmpy run shows and keeps one."""

from __future__ import annotations

import errno
import json
from argparse import Namespace
from typing import Any, TextIO

from kvmpy.cli import status
from kvmpy.cli.main import say
from kvmpy.errors import HostError, ImageError

_RED, _BOLD, _PLAIN = "\x1b[1;31m", "\x1b[1m", "\x1b[0m"


def autopsy(arguments: Namespace) -> int:
    """The subcommand; gives the exit status."""
    import sys

    from kvmpy.debug.autopsy.page import read

    try:
        with open(arguments.file, encoding="utf-8", errors="replace") as file:
            found = read(file.read(), arguments.file)
    except OSError as error:
        raise ImageError(f"{arguments.file}: {error.strerror}") from None
    if arguments.json:
        print(json.dumps(found.as_dict()))
    else:
        for line in page(found, sys.stdout):
            print(line)
    return status.OK


def page(found: Any, stream: TextIO | None) -> list[str]:
    """The lines; with colours where they go to a terminal: the cause red, titles bold."""
    lines: list[str] = found.lines()
    if stream is None or not stream.isatty():
        return lines
    colours = (_RED if number == 0 else "" if line.startswith(" ") else _BOLD for number, line in enumerate(lines))
    return [f"{colour}{line}{_PLAIN}" if colour else line for colour, line in zip(colours, lines, strict=True)]


def save(found: Any, path: str) -> None:
    """Keeps it as JSON. A file that cannot be written is told; the run has had its end already."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(found.as_dict(), file)
    except OSError as error:
        say(f"error: {HostError(f'write {path}', error.errno or errno.EIO)}")
