"""The kvmpy command. What a subcommand needs is imported when it runs, so that --help is quick."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from kvmpy import __version__
from kvmpy.cli import status
from kvmpy.errors import ConfigError, HostError, ImageError, KvmpyError, MissingCapability


class Parser(argparse.ArgumentParser):
    """Ends with status 64 on wrong usage, as the table says."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(status.USAGE)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(prog="kvmpy", description="A hypervisor that a person can script.")
    parser.add_argument("--version", action="version", version=f"kvmpy {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    _add_run(commands)
    info = commands.add_parser("info", help="what this host can do, and which backend runs guests", description=(
        "Asks this host's KVM by running small guests; tells which backend --backend auto takes and why, and the CPU models."
    ))
    info.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run", help="boot an image", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Boots IMAGE with its first serial port on the terminal; log and verdict go to standard error.", epilog=status.TABLE,
    )
    run.add_argument("image", nargs="?", metavar="IMAGE", help="kernel (ELF, multiboot, PVH, bzImage), boot sector, disk or raw code")
    run.add_argument("--boot", metavar="P", help="boot protocol instead of the one recognised; P@ADDRESS for raw code; '--boot help' lists them")
    run.add_argument("--initrd", metavar="FILE", help="initial RAM disk, or first module")
    run.add_argument("--module", action="append", default=[], metavar="FILE[,TEXT]", help="a further module with its command line (repeatable)")
    run.add_argument("--append", default="", metavar="TEXT", help="command line for the guest")
    run.add_argument("--disk", action="append", default=[], metavar="FILE[,readonly]", help="a disk image (repeatable)")
    machine = run.add_argument_group("machine")
    machine.add_argument("--memory", "-m", default="128M", metavar="SIZE", help="RAM, for instance 64M, 2G (default 128M)")
    machine.add_argument("--cpus", default="1", metavar="N", help="number of vCPUs (default 1)")
    machine.add_argument("--cpu", default="max", metavar="MODEL", help="max, x86-64-v1, -v2 or -v3, then ,+feature or ,-feature (default max)")
    machine.add_argument("--backend", default="auto", metavar="B", help="auto, kvm or soft (default auto)")
    machine.add_argument("--clock", default="host", metavar="C", help="host, or virtual: time counted in instructions (soft only)")
    machine.add_argument("--device", action="append", default=[], metavar="M:CLASS[,k=v]", help="a device of your own from module M (repeatable)")
    machine.add_argument("--no-assist", action="store_true", help="an instruction that KVM cannot emulate is a crash")
    machine.add_argument("--no-reboot", action="store_true", help="a reset ends the run")
    output = run.add_argument_group("input and output")
    output.add_argument(
        "--serial", action="append", metavar="END", help="stdio (Ctrl-A x quits, Ctrl-A h helps), file:F, pty, unix:F or none; "
        "again for COM2 to COM4 (default stdio)",
    )
    output.add_argument("--debugcon", default="none", metavar="END", help="the same for the debug console at port 0xE9 (default none)")
    output.add_argument("--timeout", metavar="S", help="seconds after which the run ends with status 124")
    output.add_argument("--until", metavar="TEXT", help="end with status 0 when TEXT has been seen on the first serial port")
    output.add_argument("--json", action="store_true", help="one JSON object on standard output at the end, with the serial output in it")
    output.add_argument("--quiet", "-q", action="store_true", help="no log on standard error, only errors and crash reports")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and gives its exit status."""
    try:
        arguments = build_parser().parse_args(argv)
        if arguments.command == "run":
            from kvmpy.cli.run import run as command
        else:
            from kvmpy.cli.info import info as command
        code = command(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return status.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; nothing more may be written, not even by the interpreter's own flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return status.BROKEN_PIPE
    except KvmpyError as error:
        say(f"error: {error}")
        return status_of_error(error)


def status_of_error(error: KvmpyError) -> int:
    """Exit status for an error that ends the command."""
    if isinstance(error, ConfigError):
        return status.USAGE
    if isinstance(error, ImageError):
        return status.BAD_IMAGE
    if isinstance(error, (HostError, MissingCapability)):
        return status.UNAVAILABLE
    return 1


def say(text: str) -> None:
    """One line of log on standard error; silent when there is nobody to read it."""
    try:
        if sys.stderr is not None:
            print(f"kvmpy: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


if __name__ == "__main__":
    sys.exit(main())
