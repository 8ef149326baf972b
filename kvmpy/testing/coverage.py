"""Coverage of guests in a run of pytest: every machine of a fixture on the software CPU records, and the sum is reported at the end."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from kvmpy.coverage.data import Coverage
from kvmpy.coverage.sources import tracefile
from kvmpy.coverage.tracefile import Tracefile
from kvmpy.errors import KvmpyError

if TYPE_CHECKING:
    from kvmpy.debug.symbol_file import SymbolFile
    from kvmpy.testing.machine import GuestMachine

SHOWN = 5
HEADER = "kvmpy/testing/include/kvmpy.h"
"""Of whatever kvmpy the guest was built with."""
_Key = tuple[str, int, int, int]
"""Path, time and size of an image: a test may build another one in its place; how far it is moved."""


class GuestCoverage:
    """Under xdist each worker sends its sum to the controller, which reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._only = [path for path in config.getoption("--guest-cov") or () if path]
        paths = [os.path.abspath(path) for path in self._only]
        self._images = {path for path in paths if _is_elf(path)}
        self._sources = [path for path in paths if path not in self._images]
        self._found: dict[_Key, tuple[SymbolFile, Coverage]] = {}
        self._sum = Tracefile()
        self._counts = {"kvm": 0, "blind": 0}

    def pytest_kvmpy_machine_made(self, machine: GuestMachine) -> None:
        if machine.vm.name != "soft":
            self._counts["kvm"] += 1
            return
        machine.coverage.collect = lambda recorded: self._collect(machine, recorded)
        machine.coverage.start()

    def _collect(self, machine: GuestMachine, recorded: Coverage) -> None:
        if not recorded:
            return
        told = False
        for file in machine.symbols.files:
            if file.lines is None or not os.path.isfile(file.path):
                continue
            told = True
            path = os.path.abspath(file.path)
            if self._images and path not in self._images:
                continue
            about = os.stat(path)
            key = path, about.st_mtime_ns, about.st_size, file.offset
            self._found.setdefault(key, (file, Coverage()))[1].merge(recorded)
        self._counts["blind"] += not told

    def pytest_sessionfinish(self) -> None:
        for file, recorded in self._found.values():
            self._sum.merge(tracefile(recorded, [file]))
        self._found.clear()
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            output["kvmpy_guest_cov"] = self._sum.text(), self._counts

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of xdist has ended; one that crashed has sent nothing."""
        sent = getattr(node, "workeroutput", {}).get("kvmpy_guest_cov")
        if sent:
            self._sum.merge(Tracefile.parse(sent[0]))
            for name, count in sent[1].items():
                self._counts[name] += count

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        found = self._sum.only(self._sources).once()
        if not self._sources:
            found.leave_out(HEADER)
        terminalreporter.section("coverage of guests")
        write = terminalreporter.write_line
        for kind, place in self._config.getoption("--guest-cov-report") or [("term", "")]:
            try:
                self._report(found, kind, place, write)
            except KvmpyError as error:
                write(f"--guest-cov-report {kind}:{place}: {error}", red=True)
        if not found.files and self._sum.files:
            write(f"no source of a guest lies at or below {', '.join(self._only)}; there are {', '.join(_some(self._sum.files))}")
        elif not found.files and self._images and not self._counts["blind"]:
            write(f"no test on the software CPU has run {', '.join(self._only)}")
        elif not found.files:
            write("no source line of a guest is known: guests need debug information (-g)")
        if self._counts["blind"]:
            write(f"guests without debug information are not in it: {self._counts['blind']}")
        if self._counts["kvm"]:
            write(f"machines on KVM are not in it: {self._counts['kvm']}; only the software CPU records")

    def _report(self, found: Tracefile, kind: str, place: str, write: Any) -> None:
        if kind == "lcov":
            found.save(place)
            write(f"tracefile written to {place}")
        elif kind == "html":
            from kvmpy.coverage.html import write_pages

            write(f"pages written to {write_pages(found, place)}")
        elif found.files:
            from kvmpy.coverage.table import by_file

            for line in by_file(found):
                write(line)


def _some(paths: Iterable[str]) -> list[str]:
    """A few of them, as short as they can be said here."""
    short = sorted(min(path, os.path.relpath(path), key=len) for path in paths)
    return short[:SHOWN] + ["..."] * (len(short) > SHOWN)


def _is_elf(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False
