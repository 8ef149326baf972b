"""The kvmpy command. What a subcommand needs is imported when it runs, so that --help is quick."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from kvmpy.cli import status
from kvmpy.errors import ConfigError, HostError, ImageError, KvmpyError, MissingCapability, TraceError, TranslatorError


class Formatter(argparse.HelpFormatter):
    """Help as wide as the terminal. argparse makes a formatter for every argument, to check it, and asks for the width each time
    by way of shutil, which imports every compressor of the library."""

    def __init__(self, prog: str) -> None:
        try:
            columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(1).columns
        except (OSError, ValueError):
            columns = 80
        super().__init__(prog, width=(columns or 80) - 2)


class RawFormatter(Formatter, argparse.RawDescriptionHelpFormatter):
    """The same with descriptions line by line as they are."""


class Parser(argparse.ArgumentParser):
    """Ends with status 64 on wrong usage, as the table says."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": Formatter, **options})

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(status.USAGE)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Of a subcommand: what it does not know is told with its own usage, not with that of kvmpy."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The whole command line, or, where the first word is known to name a `command`, what that one needs."""
    parser = Parser(prog="kvmpy", description="A hypervisor that a person can script.", formatter_class=RawFormatter, epilog=status.COMMON)
    parser.add_argument("--version", action="version", version=f"kvmpy {sys.modules['kvmpy'].__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    add = {
        "run": _add_run, "trace": _add_trace, "report": _add_report, "diff": _add_diff, "autopsy": _add_autopsy, "spy": _add_spy,
        "repl": _add_repl, "info": _add_info, "image": _add_image, "coverage": _add_coverage,
    }  # fmt: skip
    for one in [add[command]] if command in add else add.values():
        one(commands)
    return parser


def _add_info(commands: Any) -> None:
    info = commands.add_parser("info", help="what this host can do, and which backend runs guests", description=(
        "Asks this host's KVM by running small guests; tells which backend --backend auto takes and why, and the CPU models."
    ))
    info.add_argument("--json", action="store_true", help="one JSON object on standard output")
    info.add_argument("--include", action="store_true", help="only the directory of kvmpy.h, for gcc -I")


def _add_image(commands: Any) -> None:
    from kvmpy.cli.image_parser import add_parser

    add_parser(commands)


def _add_trace(commands: Any) -> None:
    from kvmpy.cli.trace_parser import add_parser

    add_parser(commands, add_run_options)


def _add_report(commands: Any) -> None:
    from kvmpy.cli.trace_parser import add_report

    add_report(commands)


def _add_diff(commands: Any) -> None:
    from kvmpy.cli.diff_parser import add_parser

    add_parser(commands, add_run_options)


def _add_autopsy(commands: Any) -> None:
    autopsy = commands.add_parser("autopsy", help="what a guest did last, as --autopsy kept it", description=(
        "Prints the page that kvmpy run --autopsy FILE has kept: why the guest crashed, hung or did not come to an end."
    ))
    autopsy.add_argument("file", metavar="FILE", help="a file of kvmpy run --autopsy")
    autopsy.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _add_spy(commands: Any) -> None:
    from kvmpy.cli.spy_parser import add_parser

    add_parser(commands)


def _add_coverage(commands: Any) -> None:
    from kvmpy.cli.coverage_parser import add_parser

    add_parser(commands)


REPL_LACKS = ("--gdb", "--timeout", "--until", "--json", "--stats", "--dump-translation", "--perf-map", "--autopsy")
"""What is for a run to its end: at the prompt there are words for it."""


def _add_repl(commands: Any) -> None:
    repl = commands.add_parser(
        "repl", help="boot an image by hand, at a Python prompt", formatter_class=RawFormatter,
        description="Loads IMAGE and gives a Python prompt on the paused machine: step, run, look, change.",
    )
    repl.add_argument("--plain", action="store_true", help="Python's own prompt, also where IPython is installed")
    add_run_options(repl, [*REPL_LACKS, "--gdb-wait", "--gdb-nowait", "--gdb-arch", "--gdb-python", "--no-autopsy"])


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run", help="boot an image", formatter_class=RawFormatter,
        description="Boots IMAGE with its first serial port on the terminal; log and verdict go to standard error.", epilog=status.TABLE,
    )
    add_run_options(run)
    run.add_argument("--coverage", metavar="FILE", help="record which code the guest executes (soft only): by source line for lcov in "
        "FILE.info, for disassemblers in FILE.drcov, else by address for kvmpy coverage")


def add_run_options(run: argparse.ArgumentParser, lacks: Sequence[str] = ()) -> None:
    """What every command that boots an image takes. Those that it lacks are known, but its help does not name them."""

    def to(group: Any) -> Callable[..., Any]:
        return lambda *names, **how: group.add_argument(*names, **{**how, **({"help": argparse.SUPPRESS} if names[0] in lacks else {})})

    add = to(run)
    add("image", nargs="?", metavar="IMAGE", help="kernel (ELF, multiboot, PVH, bzImage), boot sector, disk or raw code")
    add("--boot", metavar="P", help="boot protocol, P@ADDRESS for raw code; by default it is recognised; 'help' lists them")
    add("--initrd", metavar="FILE", help="initial RAM disk, or first module")
    add("--module", action="append", default=[], metavar="FILE[,TEXT]", help="a further module with its command line (repeatable)")
    add("--append", default="", metavar="TEXT", help="command line for the guest")
    add("--disk", action="append", default=[], metavar="FILE[,OPTION=VALUE...]",
        help="a disk image: format=raw|qcow2, bus=virtio|ata|cdrom|bios, readonly=on, snapshot=on, serial=S (repeatable)")
    add(
        "--net", action="append", default=[], metavar="KIND[,NAME=VALUE...]",
        help="a NIC on user, tap, socket or hub, with model=virtio|e1000|ne2000, mac=, hostfwd=, ifname=, path=, pcap=, mtu= (repeatable)",
    )
    add = to(run.add_argument_group("machine"))
    add("--machine", default="pc", metavar="TYPE", help="pc (PCI, BIOS) or micro (serial ports and virtio-mmio only) (default pc)")
    add("--memory", "-m", default="128M", metavar="SIZE", help="RAM, for instance 64M, 2G (default 128M)")
    add("--cpus", "--smp", default="1", metavar="N[,parallel]",
        help="number of vCPUs (default 1); parallel: each in a thread of its own, not in turns (always so on KVM)")
    add("--cpu", default="max", metavar="MODEL", help="max, x86-64-v1, -v2, -v3, then ,+feature ,-feature (default max)")
    add("--backend", default="auto", metavar="B", help="auto, kvm or soft (default auto)")
    add("--clock", default="host", metavar="C", help="host, or virtual: time counted in instructions (soft only)")
    add("--translate", metavar="T", help="hot blocks become host code: on, off, or after how many runs (soft only; default on)")
    add("--verify-translator", action="store_true", default=None,
        help="run everything twice, interpreted and translated; a difference is shown and ends the run with status 76 (soft only)")
    add("--device", action="append", default=[], metavar="M:CLASS[,k=v]", help="a device of your own from module M (repeatable)")
    add("--no-assist", action="store_true", help="an instruction that KVM cannot emulate is a crash")
    add("--no-reboot", action="store_true", help="a reset ends the run")
    add = to(run.add_argument_group("input and output"))
    add(
        "--serial", action="append", metavar="END", help="stdio (Ctrl-A x quits, Ctrl-A h helps), file:F, pty, unix:F or none; "
        "again for COM2 to COM4 (default stdio)",
    )
    add("--debugcon", default="none", metavar="END", help="the same for the debug console at port 0xE9 (default none)")
    add("--timeout", metavar="S", help="seconds after which the run ends with status 124")
    add("--until", metavar="TEXT", help="end with status 0 when TEXT has been seen on the first serial port")
    add = to(run.add_argument_group("debugging"))
    add("--gdb", metavar="WHERE", help="a stub for GDB at :PORT, HOST:PORT or unix:PATH; the guest waits for it")
    add("--gdb-wait", dest="gdb_wait", action="store_true", default=True, help="the guest waits for GDB (the default)")
    add("--gdb-nowait", dest="gdb_wait", action="store_false", help="the guest runs until GDB connects")
    add("--gdb-arch", default="auto", metavar="A", help="registers shown to GDB: auto, x86-64, i386 or i8086 (default auto)")
    add("--gdb-python", action="store_true", help="monitor py evaluates Python in this process: trust whoever reaches the port")
    add("--symbols", action="append", default=[], metavar="FILE[@OFFSET]",
        help="more symbols: ELF file, System.map, vmlinux (whose KASLR offset is found) (repeatable)")
    add("--dump-translation", metavar="WHERE[,...]", help="at the end, the translations of blocks at addresses or symbols (soft only)")
    add("--perf-map", action="store_true", help="write /tmp/perf-PID.map, by which perf names translated blocks (soft only)")
    add("--save-symbols", metavar="FILE", help="write all symbols known to an ELF file, for a debugger's symbol-file")
    add = to(run.add_argument_group("output"))
    add("--json", action="store_true", help="one JSON object on standard output at the end, with the serial output in it")
    add("--stats", action="store_true", help="what was counted, on standard error at the end")
    add("--quiet", "-q", action="store_true", help="no log on standard error, only errors and autopsies of crashes")
    add("--autopsy", metavar="FILE", help="keep what the guest did last as JSON, after a crash, a hang, --timeout or Ctrl-C")
    add("--no-autopsy", action="store_true", help="the verdict alone after a crash, a hang or --timeout")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and gives its exit status."""
    _open_standard_files()
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        arguments = build_parser(words[0] if words else "").parse_args(words)
        command = _command(arguments.command)
        code = command(arguments)
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
        if isinstance(error, TranslatorError):
            for line in error.report:
                tell(line)
        return status_of_error(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        say(f"error: write standard output: {error.strerror}")
        return status.UNAVAILABLE


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """What a subcommand calls: the function of its name in the module of its name."""
    import importlib

    call: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(f"kvmpy.cli.{name}"), name)
    return call


def _open_standard_files() -> None:
    """Closed ones become /dev/null. Left closed, the next file that is opened takes the number: guest memory would be read as keys.
    Python has None where one was closed at its start."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            break
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", errors="replace", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", errors="replace", closefd=False)


def status_of_error(error: KvmpyError) -> int:
    """Exit status for an error that ends the command."""
    if isinstance(error, ConfigError):
        return status.USAGE
    if isinstance(error, (ImageError, TraceError)):
        return status.BAD_IMAGE
    if isinstance(error, (HostError, MissingCapability)):
        return status.UNAVAILABLE
    return status.TRANSLATOR if isinstance(error, TranslatorError) else 1


def say(text: str) -> None:
    """One line of log."""
    tell(f"kvmpy: {text}")


def tell(text: str) -> None:
    """A line on standard error; silent when there is nobody to read it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


if __name__ == "__main__":
    sys.exit(main())
