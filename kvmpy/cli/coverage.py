"""kvmpy coverage, and what kvmpy run --coverage does."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from kvmpy.cli import status
from kvmpy.cli.main import say
from kvmpy.coverage import drcov
from kvmpy.coverage.data import Coverage, is_coverage
from kvmpy.coverage.sources import functions, tracefile
from kvmpy.coverage.table import by_file, by_function
from kvmpy.coverage.tracefile import Tracefile
from kvmpy.debug.symbol_file import SymbolFile
from kvmpy.errors import ConfigError, HostError, ImageError

if TYPE_CHECKING:
    from kvmpy.machine import Machine


def coverage(arguments: Namespace) -> int:
    """The subcommand; gives the exit status."""
    from kvmpy.cli.run import symbol_file

    more = [SymbolFile(path, offset or 0) for path, offset in map(symbol_file, arguments.symbols)]
    found = Tracefile()
    runs: list[tuple[str, Coverage, list[SymbolFile]]] = []
    for path in arguments.files:
        if is_coverage(path):
            run = Coverage.load(path)
            symbols = [*more, *(SymbolFile(name, offset) for name, offset in run.images if all(name != one.path for one in more))]
            symbols += [SymbolFile(name, 0, table) for name, table in run.tables.items()]
            runs.append((path, run, symbols))
            found.merge(tracefile(run, symbols))
        else:
            found.merge(Tracefile.load(path))
    found = found.only(arguments.source)
    if not runs and (wanted := [f"--{name}" for name in ("drcov", "save", "functions") if getattr(arguments, name)]):
        raise ConfigError(f"{wanted[0]}: tracefiles have lines, not addresses; kvmpy run --coverage FILE.cov records those")
    if found.files:
        print(*by_file(found), sep="\n")
    if runs and (arguments.functions or not found.files):
        merged, symbols = _merged(runs)
        known = functions(merged, symbols)
        print(*by_function(known, each=arguments.functions), sep="\n")
    if arguments.lcov:
        found.save(arguments.lcov)
    if arguments.html:
        from kvmpy.coverage.html import write_pages

        if not found.files:
            raise ImageError(f"--html: {arguments.files[0]} has no source lines; --symbols names a file with DWARF")
        say(str(write_pages(found, arguments.html)))
    if arguments.drcov:
        drcov.save(arguments.drcov, *_merged(runs))
    if arguments.save:
        _merged(runs)[0].save(arguments.save)
    return status.OK


def _merged(runs: Sequence[tuple[str, Coverage, list[SymbolFile]]]) -> tuple[Coverage, list[SymbolFile]]:
    """All runs in one, by address."""
    merged, symbols, places = Coverage(), list[SymbolFile](), dict[str, tuple[tuple[int, int], str]]()
    for name, run, files in runs:
        merged.merge(run)
        for file in files:
            place = file.offset, file.symbols[0].address if file.symbols else 0
            known, before = places.setdefault(file.path, (place, name))
            if known != place:
                raise ConfigError(f"{name}: {file.path} lies elsewhere than in {before} (KASLR): their addresses cannot be added")
            if all(file.path != one.path for one in symbols):
                symbols.append(file)
    return merged, symbols


def begin(machine: Machine, path: str) -> None:
    """Before the run: the file can be written, and recording is on."""
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise HostError(f"write {path}", error.errno or 0) from None
    # Jumps matter where there are lines to tell them by; code runs slower while they are recorded.
    machine.coverage.start(branches=any(file.lines is not None for file in machine.symbols.files))


def end(machine: Machine, path: str, log: Callable[[str], None]) -> None:
    """Behind the run: writes the file that its name's end tells."""
    if not machine.symbols.files:
        with suppress(ImageError):
            machine.symbols.add_kernel(machine.memory)
    recorded: Coverage = machine.coverage.read()
    files = machine.symbols.files
    if machine.coverage.lost:
        say("coverage: the guest has executed more pages than are recorded")
    if path.endswith(".info"):
        found = tracefile(recorded, files)
        found.save(path)
        if not found.files:
            say(f"coverage: no line information for this guest: {path} is empty; --coverage FILE.cov records addresses")
            return
        totals = found.totals
        log(f"coverage: {path}: {totals.lines_hit} of {totals.lines} lines, {totals.functions_hit} of {totals.functions} functions")
    elif path.endswith(".drcov"):
        drcov.save(path, recorded, files)
        log(f"coverage: {path}: {len(recorded)} instructions")
    else:
        recorded.save(path)
        log(f"coverage: {path}: {len(recorded)} instructions")
        if files:
            log(f"coverage: {by_function(functions(recorded, files), each=False)[-1]}")
