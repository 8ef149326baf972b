"""The options of pytest that measure the coverage of guests, and what they may say."""

from __future__ import annotations

from typing import Any

REPORTS = ("term", "html", "lcov")


def add(group: Any) -> None:
    """--guest-cov and --guest-cov-report."""
    group.addoption(
        "--guest-cov", action="append", nargs="?", const="", default=None, metavar="PATH",
        help="measure which source lines of guests are executed on the software CPU; only of the image (ELF) or the sources at or below "
        "PATH (repeatable)",
    )
    group.addoption(
        "--guest-cov-report", action="append", default=[], metavar="KIND", type=_report,
        help="term, html:DIR or lcov:FILE (repeatable; default term)",
    )  # fmt: skip


def _report(text: str) -> tuple[str, str]:
    """Kind and place of a report."""
    from argparse import ArgumentTypeError

    kind, colon, place = text.partition(":")
    if kind not in REPORTS or (kind == "term") == bool(colon) or (colon and not place):
        raise ArgumentTypeError(f"{text!r}: one of term, html:DIR, lcov:FILE")
    return kind, place
