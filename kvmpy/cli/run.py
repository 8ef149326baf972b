"""kvmpy run: an image from the command line to its verdict."""

from __future__ import annotations

import errno
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from kvmpy.cli import status
from kvmpy.cli.main import say, tell
from kvmpy.errors import ConfigError, HostError, KvmpyError
from kvmpy.host.chars import CharEnd
from kvmpy.host.ends import File
from kvmpy.host.terminal import Terminal
from kvmpy.machine import Machine
from kvmpy.verdicts import Crashed, GuestExit, Halted, Stopped, Verdict

if TYPE_CHECKING:
    from argparse import Namespace

    from kvmpy.backend import Backend


class Watch(Protocol):
    """Whoever looks on while a machine runs."""

    def begin(self, machine: Machine, failures: list[HostError]) -> None:
        """The machine is loaded and about to run. A failure put into the list ends the command, once the machine is stopped."""

    def end(self, machine: Machine) -> None:
        """It has run."""

    def report(self) -> None:
        """The terminal is itself again, the machine gone."""

    def result(self) -> dict[str, Any]:
        """For the object of --json."""


def run(arguments: Namespace, watch: Watch | None = None) -> int:
    """The subcommand; gives the exit status."""
    if arguments.boot == "help":
        return list_protocols()
    if arguments.image is None and not arguments.disk:
        raise ConfigError(f"an IMAGE or a --disk is wanted (see kvmpy {arguments.command} --help)")
    log = (lambda text: None) if arguments.quiet else say
    timeout = seconds(arguments.timeout)
    if arguments.until == "":
        raise ConfigError("--until: an empty text")
    if arguments.gdb is None and (not arguments.gdb_wait or arguments.gdb_arch != "auto" or arguments.gdb_python):
        raise ConfigError("--gdb-nowait, --gdb-arch and --gdb-python are about a stub: --gdb WHERE is wanted")
    ends = _ends(arguments)
    covering: str | None = getattr(arguments, "coverage", None)
    failures: list[HostError] = []
    began = time.monotonic()
    verdict: Verdict
    try:
        with make_machine(arguments, ends, log) as machine:
            _watch_ends(machine, ends, failures)
            if arguments.gdb is not None:
                server = machine.debug(arguments.gdb, wait=arguments.gdb_wait, arch=arguments.gdb_arch, python=arguments.gdb_python)
                log(f"gdb: {'waiting for' if arguments.gdb_wait else 'ready for'} target remote {server.address}")
            if covering:
                from kvmpy.cli import coverage

                coverage.begin(machine, covering)
            if watch is not None:
                watch.begin(machine, failures)
            try:
                verdict = machine.run(timeout, arguments.until)
            except KeyboardInterrupt:
                verdict = Stopped("interrupt")
            if watch is not None:
                watch.end(machine)
            if covering:
                coverage.end(machine, covering, log)
            report = _finish(machine, verdict, ends, arguments)
    finally:
        for end in ends:
            end.close()
    # The terminal is itself again from here on.
    if failures:
        if failures[0].errno == errno.EPIPE:
            raise BrokenPipeError
        raise failures[0]
    if not isinstance(verdict, Crashed):
        log(f"{verdict} after {time.monotonic() - began:.2f} s")
    code = status.of(verdict)
    for line in report:
        tell(line)
    if watch is not None:
        watch.report()
    if arguments.json:
        import json

        report_json = {**_as_json(verdict, code), **arguments.result, **({} if watch is None else watch.result())}
        print(json.dumps(report_json))
    return code


def make_machine(arguments: Namespace, ends: list[CharEnd], log: Callable[[str], None], backend: Backend | None = None) -> Machine:
    """The machine that the options tell, loaded and with its symbols, not yet run. `ends` are those of its serial ports."""
    cpus, parallel = _cpus(arguments.cpus)
    machine = Machine(
        arguments.memory, cpus, arguments.cpu, machine=arguments.machine, backend=backend or _backend(arguments, log),
        clock=arguments.clock, serial=ends, console=arguments.debugcon, devices=_devices(arguments.device), disks=arguments.disk,
        net=arguments.net, assist=not arguments.no_assist, on_reset="stop" if arguments.no_reboot else "reboot",
        translate=arguments.translate, parallel=parallel, verify_translator=arguments.verify_translator,
    )
    try:
        if arguments.dump_translation is not None or arguments.perf_map or arguments.stats:
            from kvmpy.cli.counters import begin

            begin(machine, arguments)
        modules = [(file, text) for file, _, text in (module.partition(",") for module in arguments.module)]
        machine.load(arguments.image, arguments.boot, arguments.initrd, arguments.append, modules)
        log(f"{machine.boot_state.protocol}: {machine.boot_state.summary or 'loaded'}")
        for text in arguments.symbols:
            machine.symbols.add(*symbol_file(text))
        if arguments.save_symbols is not None:
            machine.symbols.save(arguments.save_symbols)
    except BaseException:
        machine.close()
        raise
    return machine


def _devices(specs: list[str]) -> list[Any]:
    if not specs:
        return []
    from kvmpy.cli.device_spec import make_device

    return [make_device(spec) for spec in specs]


def list_protocols() -> int:
    """--boot help."""
    from kvmpy.boot import PROTOCOLS

    for protocol in PROTOCOLS:
        print(f"{protocol.name:12}  {protocol.about}")
    return status.OK


def seconds(text: str | None) -> float | None:
    """Of --timeout."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ConfigError(f"--timeout {text}: a number of seconds is wanted")
    return seconds


def symbol_file(text: str) -> tuple[str, int | None]:
    """Of --symbols: the file, and how far its addresses are moved; None: to be found out."""
    path, at, offset = text.rpartition("@")
    if not at:
        return text, None
    try:
        return path, int(offset, 0)
    except ValueError:
        raise ConfigError(f"--symbols {text}: FILE or FILE@OFFSET is wanted") from None


def _cpus(text: str) -> tuple[int, bool]:
    """Number of vCPUs, and whether they run in parallel: of N or N,parallel."""
    number, comma, how = text.partition(",")
    if comma and how != "parallel":
        raise ConfigError(f"--cpus {text}: N or N,parallel is wanted")
    try:
        return int(number), bool(comma)
    except ValueError:
        raise ConfigError(f"--cpus {text}: a number is wanted") from None


def _backend(arguments: Namespace, log: Callable[[str], None]) -> str:
    """The backend's name; one line of log says why."""
    from kvmpy.backends import choose_backend

    if arguments.backend == "auto" and arguments.clock == "virtual":
        log("backend soft: virtual time is counted by the software CPU")
        return "soft"
    if arguments.backend == "auto" and arguments.verify_translator:
        log("backend soft: the software CPU's translator is to be verified")
        return "soft"
    if arguments.backend == "auto" and getattr(arguments, "coverage", None):
        log("backend soft: coverage is recorded by the software CPU")
        return "soft"
    choice = choose_backend(arguments.backend)
    log(f"backend {choice.name}: {choice.why}")
    return choice.name


def _ends(arguments: Namespace) -> list[CharEnd]:
    """Ends of COM1 and on. Under --json standard output belongs to the object: what the guest says is kept for it."""
    from kvmpy.host.ends import open_end

    names = arguments.serial or ["stdio"]
    if names.count("stdio") > 1:
        raise ConfigError("--serial stdio can be given once")
    if len(names) > 4:
        raise ConfigError("--serial: a machine has at most four serial ports")
    ends: list[CharEnd] = []
    try:
        for name in names:
            if name != "stdio":
                ends.append(open_end(name, say))
            elif arguments.json:
                from kvmpy.host.capture import Capture

                ends.append(Capture())
            else:
                ends.append(Terminal())
    except KvmpyError:
        for end in ends:
            end.close()
        raise
    return ends


def _watch_ends(machine: Machine, ends: list[CharEnd], failures: list[HostError]) -> None:
    """An end that cannot be written any more ends the run; Ctrl-A x does."""
    for end in ends:
        if isinstance(end, (Terminal, File)):
            name = end.path if isinstance(end, File) else "standard output"

            def broken(number: int, name: str = name) -> None:
                failures.append(HostError(f"write {name}", number))
                machine.stop(Stopped("output"))

            end.output.on_broken = broken
        if isinstance(end, Terminal):
            end.on_quit = lambda: machine.stop(Stopped("quit"))


def _finish(machine: Machine, verdict: Verdict, ends: list[CharEnd], arguments: Namespace) -> list[str]:
    """Everything that must be asked before the machine goes: the autopsy, and the data for --json."""
    result: dict[str, Any] = {}
    if arguments.json:
        from kvmpy.host.capture import Capture

        result["statistics"] = machine.statistics
        for number, end in enumerate(ends, 1):
            if isinstance(end, Capture):
                result["serial" if number == 1 else f"serial{number}"] = end.text
    lines: list[str] = []
    if isinstance(verdict, Crashed):
        lines = [f"kvmpy: {verdict}"]
    shown = not arguments.no_autopsy and _is_failure(verdict) and (isinstance(verdict, Crashed) or not arguments.quiet)
    wanted = _is_failure(verdict) or verdict == Stopped("interrupt")
    if shown or (arguments.autopsy is not None and wanted):
        from kvmpy.cli.autopsy import page, save

        found = machine.autopsy(verdict)
        if shown:
            lines += page(found, sys.stderr)
        if arguments.autopsy is not None:
            save(found, arguments.autopsy)
        result["autopsy"] = found.as_dict()
    arguments.result = result
    if arguments.stats or arguments.perf_map or arguments.dump_translation is not None:
        from kvmpy.cli.counters import lines_of

        lines += lines_of(machine, arguments)
    return lines


def _is_failure(verdict: Verdict) -> bool:
    """It crashed, hangs, or did not come to an end in its time."""
    return isinstance(verdict, (Crashed, Halted)) or verdict == Stopped("timeout")


def _as_json(verdict: Verdict, code: int) -> dict[str, Any]:
    data: dict[str, Any] = {"verdict": type(verdict).__name__, "text": str(verdict), "status": code}
    if isinstance(verdict, GuestExit):
        data["code"] = verdict.code
    elif isinstance(verdict, Stopped):
        data["why"] = verdict.why
    elif isinstance(verdict, Crashed):
        data["why"], data["rip"] = verdict.why, verdict.rip
    return data
