"""kvmpy spy: how another program uses KVM."""

from __future__ import annotations

import errno
import sys
from argparse import Namespace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kvmpy.cli import status
from kvmpy.cli.main import say, tell
from kvmpy.cli.run import symbol_file
from kvmpy.cli.trace import Output, positive, read_filter
from kvmpy.errors import ConfigError, MissingCapability
from kvmpy.trace.event import Event
from kvmpy.trace.formats import Format
from kvmpy.trace.summary import TRACED, Summary
from kvmpy.trace.text import TextFormat

if TYPE_CHECKING:
    from kvmpy.debug.symbols import Symbols
    from kvmpy.spy.session import Spy



def spy(arguments: Namespace) -> int:
    """The subcommand; gives the exit status."""
    command = arguments.command_line
    command = command[1:] if command[:1] == ["--"] else command
    top = positive("--top", arguments.top)
    if bool(command) == (arguments.pid is not None):
        raise ConfigError("either -p PID or a command is wanted: kvmpy spy -- COMMAND ...")
    if arguments.format not in (None, "text") and arguments.output is None and arguments.count:
        raise ConfigError("--format without -o, where only the tables are shown")
    pid = 0 if arguments.pid is None else positive("-p", arguments.pid, "the number of a process")
    session_type = _session()
    symbols = _symbols(arguments.symbols)
    chosen = read_filter(arguments.events, symbols)
    summary = Summary()
    takers: list[Format] = [summary] if arguments.count else []
    output = None
    if arguments.output or not arguments.count:
        traced = f"process {pid}" if pid else " ".join(command)
        about = {"image": command[0] if command else traced, "traced": traced}
        output = Output(arguments, sys.stderr, symbols, about)
        takers.append(output.format)
        if arguments.regs and isinstance(output.format, TextFormat):
            takers.append(_Registers(output.format))

    def listen(event: Event) -> None:
        if chosen is None or chosen.matches(event):
            for taker in takers:
                taker(event)

    addresses = arguments.rip or bool(arguments.symbols)
    try:
        with session_type(
            listen, follow=arguments.follow, addresses=addresses, registers=arguments.regs, calls=not arguments.exits,
            runs=arguments.all_ioctls, say=say,
        ) as session:  # fmt: skip
            if pid:
                session.attach(pid)
            else:
                session.start(command)
            code = session.run()
    except OSError as error:
        if error.errno == errno.EPIPE or output is None:
            raise
        raise output.failure(error) from None
    finally:
        if output is not None:
            output.close()
    if not pid and not session.kvm_used:
        say("the command made no KVM call" + ("" if arguments.follow else "; if a child of it runs the VM: -f follows child processes"))
    if arguments.count:
        for line in summary.lines(symbols, top, TRACED):
            tell(line)
    return status.OK if code is None else code


def _session() -> type[Spy]:
    try:
        from kvmpy.spy.session import Spy
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "ptrace":
            raise
        raise MissingCapability("kvmpy spy needs the package python-ptrace: pip install 'kvmpy[spy]'") from None
    return Spy


def _symbols(files: list[str]) -> Symbols | None:
    if not files:
        return None
    from kvmpy.debug.symbols import Symbols

    symbols = Symbols()
    for text in files:
        symbols.add(*symbol_file(text))
    symbols.where(0)  # reads the files now, not at the first event
    return symbols


class _Registers:
    """The lines of --regs below an exit's own."""

    def __init__(self, text: TextFormat) -> None:
        self._write = text.write

    def __call__(self, event: Event) -> None:
        found: dict[str, Any] | None = event.data.get("registers")
        if found is None:
            return
        from kvmpy.regs import CONTROL, dump

        lines = dump(SimpleNamespace(**found)).splitlines()
        lines.append("  ".join(f"{name} {found[name]:x}" for name in CONTROL))
        if "code" in event.data:
            lines.append(f"=> {event.rip:x}: {event.data['code']}")
        self._write("".join(f"    {line}\n" for line in lines))

    def close(self) -> None:
        """The text format's own."""
