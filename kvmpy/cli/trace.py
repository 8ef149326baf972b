"""kvmpy trace: what a guest does to its machine, live or from a file."""

from __future__ import annotations

import errno
import os
import sys
from argparse import Namespace
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from kvmpy.cli import status
from kvmpy.cli.main import say, tell
from kvmpy.cli.run import run, symbol_file
from kvmpy.errors import ConfigError, HostError, ImageError, TraceError
from kvmpy.trace.event import Event
from kvmpy.trace.formats import Format, Saved, about_machine, format_of, is_trace, make_format, open_trace
from kvmpy.trace.summary import PARTS, TRACED, Summary
from kvmpy.trace.text import TextFormat
from kvmpy.trace.tracer import SERVED
from kvmpy.trace.words import Symbols
from kvmpy.verdicts import Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmpy.machine import Machine
    from kvmpy.trace.filters import Filter

BUFFER = 1 << 18


def trace(arguments: Namespace) -> int:
    """The subcommand; gives the exit status."""
    top = positive("--top", arguments.top)
    if arguments.format not in (None, "text") and arguments.output is None and (arguments.count or arguments.json):
        raise ConfigError("--format without -o, where only the tables are shown")
    if arguments.image is not None and is_trace(arguments.image):
        return _show(arguments, top)
    watch = _Live(arguments, top)
    try:
        return run(arguments, watch)
    finally:
        watch.close()


def read_filter(texts: list[str], symbols: Any) -> Filter | None:
    """Of -e: events that one of the texts chooses; None for all."""
    if not texts:
        return None
    from kvmpy.trace.filters import parse

    return parse(",".join(texts), symbols)


def open_saved(path: str, stack: ExitStack) -> Saved:
    """The trace in a file that the stack closes."""
    try:
        file = _open(path, "rb")
        stack.callback(file.close)
        return open_trace(file, path)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None


class Names:
    """Symbol files that were asked for; else what the trace says itself, and the image that was traced, where it is still the same."""

    def __init__(self, files: list[str], saved: Saved, path: str) -> None:
        from kvmpy.debug.symbols import Symbols, has_symbols

        self.table = Symbols()
        self._saved = saved
        self._asked = bool(files)
        for text in files:
            self.table.add(*symbol_file(text))
        image = str(saved.about.get("image") or "")
        if not files and _older(image, path) and has_symbols(image):
            try:
                self.table.add(image)
            except ImageError:
                pass  # nobody asked for this file's

    def where(self, address: int) -> str:
        """As Symbols.where."""
        told = self._saved.where(address)
        if self.table.find(address) is None or (not self._asked and told != f"{address:#x}"):
            return told
        return self.table.where(address)


def output_format(arguments: Namespace) -> str:
    """What --format says, else the name of the file."""
    return arguments.format or (format_of(arguments.output) if arguments.output else "text")


class Output:
    """Where events go: a file, or the given standard stream."""

    def __init__(self, arguments: Namespace, stream: Any, symbols: Symbols | None, about: dict[str, Any]) -> None:
        self.path = arguments.output or "standard output or error"
        self._file: BinaryIO | None = None
        kind = output_format(arguments)
        try:
            if arguments.output:
                self._file = _open(arguments.output)
                self.format: Format = make_format(kind, self._file, symbols, about)
            elif kind == "text":
                self.format = TextFormat(stream.write, symbols, colour=colourful(stream))
            elif stream.isatty():
                raise ConfigError(f"--format {kind} is not for a terminal; write it to a file with -o")
            else:
                self._file = _open(os.dup(stream.fileno()))
                self.format = make_format(kind, self._file, symbols, about)
        except OSError as error:
            raise self.failure(error) from None

    def failure(self, error: OSError) -> HostError:
        """What to say of one."""
        return HostError(f"write {self.path}", error.errno or errno.EIO)

    def close(self) -> None:
        """Raises HostError where the end of the trace cannot be written."""
        try:
            self.format.close()
        except OSError as error:
            raise self.failure(error) from None
        finally:
            if self._file is not None:
                try:
                    self._file.close()
                except OSError as error:
                    raise self.failure(error) from None


def _open(where: str | int, mode: str = "wb") -> BinaryIO:
    """A file that whoever asks for it closes."""
    return cast("BinaryIO", open(where, mode, buffering=BUFFER))


def colourful(stream: Any) -> bool:
    """Is it a terminal that shows colours?"""
    return bool(stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb")


class _Live:
    """Looks on while a machine runs."""

    def __init__(self, arguments: Namespace, top: int) -> None:
        self._arguments = arguments
        self._top = top
        self._count = arguments.count or arguments.json
        self.summary = Summary()
        self._symbols: Symbols | None = None
        self._output: Output | None = None
        self._end: Callable[[], None] | None = None

    def begin(self, machine: Machine, failures: list[HostError]) -> None:
        arguments = self._arguments
        self._symbols = machine.symbols
        machine.symbols.where(0)  # reads the files now, not at the first event
        chosen = read_filter(arguments.events, machine.symbols)
        if chosen is not None and not arguments.quiet:
            lacking = chosen.kinds - chosen.named - SERVED - machine.vm.traceable - {"ioctl"}
            if lacking:
                say(f"{machine.vm.name} does not tell of {', '.join(sorted(lacking))}; --backend soft does")
        if not self._count and arguments.output and output_format(arguments) == "binary":
            self._end = machine.trace_file(arguments.output, *([chosen] if chosen else [])).close  # without Python, where it can
            return
        takers: list[Format] = [self.summary] if self._count else []
        if arguments.output or not self._count:
            about = about_machine(machine, arguments.clock)
            self._output = Output(arguments, sys.stderr, self._symbols, about)
            takers.append(self._output.format)
        first, *rest = takers

        def listen(event: Event) -> None:
            try:
                first(event)
                for other in rest:
                    other(event)
            except OSError as error:
                assert self._output is not None
                failures.append(self._output.failure(error))
                machine.stop(Stopped("output"))

        self._end = machine.trace(listen) if chosen is None else machine.trace(chosen, listen, observe=True)

    def end(self, machine: Machine) -> None:
        end, self._end = self._end, None
        if end is not None:
            end()
        wanted = self._count or self._arguments.save_symbols is not None
        if wanted and machine.boot_state.protocol.startswith("linux") and not len(machine.symbols):
            try:
                machine.symbols.add_kernel(machine.memory)  # where the image has none, and wherever KASLR has put it
            except ImageError:
                return
            if self._arguments.save_symbols is not None:
                machine.symbols.save(self._arguments.save_symbols)

    def close(self) -> None:
        """The file is whole after this. Harmless when called again."""
        output, self._output = self._output, None
        if output is not None:
            output.close()

    def report(self) -> None:
        self.close()
        if self._arguments.count and not self._arguments.json:
            for line in self.summary.lines(self._symbols, self._top):
                tell(line)

    def result(self) -> dict[str, Any]:
        return {"trace": self.summary.data(self._symbols)}


def _show(arguments: Namespace, top: int) -> int:
    """A saved trace: on standard output, since no guest speaks there."""
    summary = Summary()
    code = status.OK
    with ExitStack() as stack:
        saved = open_saved(arguments.image, stack)
        names = Names(arguments.symbols, saved, arguments.image)
        chosen = read_filter(arguments.events, names.table)
        count = arguments.count or arguments.json
        takers: list[Format] = [summary] if count else []
        output = None
        if arguments.output or not count:
            if arguments.output and same_file(arguments.output, arguments.image):
                raise ConfigError(f"-o {arguments.output}: that is the trace itself")
            output = Output(arguments, sys.stdout, names, saved.about)
            takers.append(output.format)
        broken = None
        try:
            for event in saved:
                if chosen is None or chosen.matches(event):
                    for taker in takers:
                        taker(event)
        except KeyboardInterrupt:
            code = status.INTERRUPTED
        except TraceError as error:
            broken = error  # what was whole is shown first
        except OSError as error:
            if error.errno == errno.EPIPE or output is None:
                raise
            raise output.failure(error) from None
        if output is not None:
            output.close()
        if arguments.json:
            import json

            print(json.dumps({"trace": summary.data(names)}))
        elif arguments.count:
            print("\n".join(summary.lines(names, top, TRACED if "traced" in saved.about else PARTS)))
    if broken is not None:
        sys.stdout.flush()
        raise broken
    return code


def _older(image: str, trace: str) -> bool:
    """Is the image a file that was there before the trace?"""
    try:
        return os.path.isfile(image) and os.path.getmtime(image) <= os.path.getmtime(trace)
    except (OSError, ValueError):
        return False


def same_file(one: str, other: str) -> bool:
    """Are both names of one file?"""
    return os.path.exists(one) and os.path.samefile(one, other)


def positive(option: str, text: str, wanted: str = "a number from 1 on") -> int:
    """The value of an option that takes such a number. ConfigError."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ConfigError(f"{option} {text}: {wanted} is wanted")
    return number
