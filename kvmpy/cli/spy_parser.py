"""The arguments of kvmpy spy."""

from __future__ import annotations

import argparse
from typing import Any

from kvmpy.trace.formats import FORMATS

EPILOG = """\
examples:
  kvmpy spy -- qemu-system-x86_64 -accel kvm ...   all KVM calls and exits of QEMU, on standard error
  kvmpy spy -p 4711 -c                             of a VMM that runs, until Ctrl-C: tables of what took how long
  kvmpy spy -e io,mmio --regs -o vm.jsonl -- ...   exits with registers, to keep; kvmpy trace vm.jsonl shows them

exit status of kvmpy spy:
  the command's, or 128 + the signal that killed it
  0    with -p: detached, or the process has ended
  64   wrong usage, or no such process
  69   ptrace is not allowed, the process does not use KVM, the command cannot be run, python-ptrace is missing
"""


def add_parser(commands: Any) -> None:
    """The subcommand."""
    from kvmpy.cli.main import RawFormatter

    spy = commands.add_parser(
        "spy", help="show how another program uses KVM", formatter_class=RawFormatter, epilog=EPILOG,
        usage="kvmpy spy [options] (-p PID | -- COMMAND ...)",
        description="Traces the KVM calls and exits of any program, by ptrace: as strace shows system calls.",
    )  # fmt: skip
    add = spy.add_argument
    add("command_line", nargs=argparse.REMAINDER, metavar="COMMAND", help="a command to run, with its arguments")
    add("-p", dest="pid", metavar="PID", help="attach to a process; Ctrl-C detaches, and it goes on")
    add("-f", dest="follow", action="store_true", help="child processes too")
    add("-e", dest="events", action="append", default=[], metavar="EXPR",
        help="only these events: KIND[:WHAT][[CONDITION,...]], as io:0x3f8-0x3ff[write], ioctl:KVM_IRQ_*, !exit:intr (repeatable)")
    add("--exits", action="store_true", help="exits only, no calls")
    add("--all-ioctls", action="store_true", help="KVM_RUN as a call, too")
    add("--rip", action="store_true", help="the address of the guest's instruction at every exit (--regs and --symbols imply it)")
    add("--regs", action="store_true", help="the guest's registers and its instruction at every exit")
    add("--symbols", action="append", default=[], metavar="FILE[@OFFSET]",
        help="names of the guest's addresses: ELF file, kernel or System.map (repeatable)")
    add("-o", dest="output", metavar="FILE", help="write the trace to FILE; its name's end tells the format")
    add("--format", choices=tuple(FORMATS), help="; ".join(f"{name}: {about}" for name, about in FORMATS.items()))
    add("-c", dest="count", action="store_true", help="tables at the end: by kind, place and instruction; without -o nothing else")
    add("--top", default="20", metavar="N", help="lines of each table (default 20)")
