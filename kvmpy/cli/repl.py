"""kvmpy repl: a Python prompt on a paused machine."""

from __future__ import annotations

import code
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from types import TracebackType
from typing import Any

from kvmpy.cli import status
from kvmpy.cli.main import REPL_LACKS, say
from kvmpy.cli.run import list_protocols, make_machine
from kvmpy.debug.prompt import HELP, Prompt
from kvmpy.errors import ConfigError, KvmpyError
from kvmpy.host.capture import Capture
from kvmpy.host.chars import CharEnd


class Echo(Capture):
    """The guest's first serial port at a prompt: what it says is kept and shown, what it is to read comes from `send`."""

    def write(self, data: bytes) -> None:
        super().write(data)
        try:
            os.write(1, data)
        except OSError:
            pass  # nobody reads; the prompt will see to that


def repl(arguments: Namespace) -> int:
    """The subcommand; gives the exit status."""
    if arguments.boot == "help":
        return list_protocols()
    if arguments.image is None and not arguments.disk:
        raise ConfigError("an IMAGE or a --disk is wanted (see kvmpy repl --help)")
    for option in REPL_LACKS:
        if getattr(arguments, option[2:].replace("-", "_")):
            raise ConfigError(f"{option} is for kvmpy run: at the prompt there are words for it")
    ends = _ends(arguments.serial or [])
    try:
        with make_machine(arguments, ends, (lambda text: None) if arguments.quiet else say) as machine:
            prompt = Prompt(machine)
            names = prompt.names()
            first = f"{_title(arguments)}, paused before its first instruction.\n\n{HELP}\n{prompt.where()}"
            try:
                _shell(arguments.plain)(names, first)
            finally:
                prompt.close()
    finally:
        for end in ends:
            end.close()
    return status.OK


def _title(arguments: Namespace) -> str:
    return f"kvmpy {sys.modules['kvmpy'].__version__}: {arguments.image or arguments.disk[0]}"


def _ends(names: list[str]) -> list[CharEnd]:
    from kvmpy.host.ends import open_end

    ends: list[CharEnd] = []
    try:
        for name in names or ["stdio"]:
            ends.append(Echo() if name == "stdio" else open_end(name, say))
    except KvmpyError:
        for end in ends:
            end.close()
        raise
    return ends


def _shell(plain: bool) -> Callable[[dict[str, Any], str], None]:
    if not plain and sys.stdin is not None and sys.stdin.isatty():
        try:
            from IPython.terminal.embed import InteractiveShellEmbed  # type: ignore[import-not-found,unused-ignore]

            return lambda names, first: _ipython(InteractiveShellEmbed, names, first)
        except ImportError:
            pass
    return _plain


def _ipython(embedded: Any, names: dict[str, Any], first: str) -> None:
    from traitlets.config import Config  # type: ignore[import-not-found,unused-ignore]

    config = Config()
    config.TerminalInteractiveShell.banner1 = first + "\n"
    config.HistoryManager.enabled = False
    shell = embedded(config=config, user_ns=names)
    shell.set_custom_exc((KvmpyError,), lambda self, kind, error, trace, tb_offset=None: print(f"{kind.__name__}: {error}"))
    shell()


class _Console(code.InteractiveConsole):
    """Errors that kvmpy raises on purpose are a line: they are the user's, not the program's."""

    def showtraceback(self) -> None:
        kind, error, _ = sys.exc_info()
        if kind is not None and issubclass(kind, KvmpyError):
            self.write(f"{kind.__name__}: {error}\n")
        else:
            super().showtraceback()


def _plain(names: dict[str, Any], first: str) -> None:
    interactive = sys.stdin is not None and sys.stdin.isatty()
    if interactive:
        _complete(names)
    hook: Callable[[type[BaseException], BaseException, TracebackType | None], Any] = sys.excepthook
    try:
        _Console(names, "<prompt>").interact(first, "")
    except SystemExit:
        pass
    finally:
        sys.excepthook = hook


def _complete(names: dict[str, Any]) -> None:
    """Tab completes names and their attributes."""
    try:
        import readline
        import rlcompleter
    except ImportError:
        return
    readline.set_completer(rlcompleter.Completer(names).complete)
    readline.parse_and_bind("tab: complete")
