"""kvmpy diff: one guest on two CPUs in lock step, or two saved traces."""

from __future__ import annotations

import json
from argparse import Namespace
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from kvmpy.cli import status
from kvmpy.cli.main import say
from kvmpy.cli.run import make_machine, seconds
from kvmpy.errors import ConfigError, MissingCapability

if TYPE_CHECKING:
    from kvmpy.debug.lockstep.compare import Lockstep, Result
    from kvmpy.debug.lockstep.side import Side

DIFFERENT = 1


def diff(arguments: Namespace) -> int:
    """The subcommand; gives the exit status."""
    ignored = _ignored(arguments.ignore)
    if arguments.other is not None:
        return _traces(arguments, ignored)
    if arguments.net:
        raise ConfigError("--net: packets come when they come; a comparison has no networks")
    if arguments.image is None and not arguments.disk:
        raise ConfigError("an IMAGE or a --disk is wanted (see kvmpy diff --help)")
    left, right = arguments.left, arguments.right or _default_right()
    stride, count = _number("--stride", arguments.stride), None if arguments.count is None else _number("--count", arguments.count)
    alike = _kind(left)[0] == _kind(right)[0] == "soft"
    if stride > 1 and not (alike and arguments.by == "instruction"):
        raise ConfigError("--stride: only --by instruction on the software CPU goes further at once")
    timeout = seconds(arguments.timeout)
    with ExitStack() as stack:

        def make(stride: int) -> Lockstep:
            from kvmpy.debug.lockstep.compare import Lockstep

            stack.close()
            stepped = arguments.by == "instruction" and not alike
            sides = [_side(spec, arguments, stack, stepped) for spec in (left, right)]
            return Lockstep(*sides, by=arguments.by, stride=stride, ignore=ignored)

        if stride > 1 and count is None:
            from kvmpy.debug.lockstep.compare import narrowed

            result = narrowed(make, stride, timeout)
        else:
            result = make(stride).run(count, timeout)
        return _tell(arguments, result, left, right)


def _tell(arguments: Namespace, result: Result, left: str, right: str) -> int:
    found = result.difference
    late = found is None and result.end == "stopped: timeout"
    code = DIFFERENT if found is not None else status.TIMEOUT if late else status.OK
    if arguments.json:
        data: dict[str, Any] = {"left": left, "right": right, "by": arguments.by, "records": result.records}
        data |= {"status": code, "end": result.end}
        if found is not None:
            values = [{"name": name, "left": one, "right": other} for name, one, other in found.values]
            data["difference"] = {"record": found.number, "what": found.what, "address": found.address, "values": values}
        print(json.dumps(data))
    elif found is not None:
        print(found)
    if not arguments.quiet:
        say(f"{left} and {right}: " + ("they differ" if found is not None else f"no difference in {result.records} records; {result.end}"))
    return code


def _traces(arguments: Namespace, ignored: list[str]) -> int:
    from kvmpy.cli.trace import open_saved
    from kvmpy.debug.lockstep.traces import compare_traces

    if arguments.image == arguments.other:
        raise ConfigError(f"{arguments.image}: the same file twice")
    with ExitStack() as stack:
        left, right = open_saved(arguments.image, stack), open_saved(arguments.other, stack)
        count, lines = compare_traces(left, right, (arguments.image, arguments.other), rip="rip" not in ignored)
    if arguments.json:
        print(json.dumps({"left": arguments.image, "right": arguments.other, "events": count, "equal": not lines, "text": lines}))
    else:
        for line in lines:
            print(line)
    if not arguments.quiet:
        say(f"{count} equal events" + (", then a difference" if lines else ""))
    return DIFFERENT if lines else status.OK


# The sides.


def _kind(spec: str) -> tuple[str, int | None]:
    """Backend, and the translator's threshold where one is given."""
    name, _, rest = spec.partition(",")
    threshold = None
    if rest:
        key, _, value = rest.partition("=")
        if name != "soft" or key != "translate" or not value.isdecimal():
            raise ConfigError(f"{spec}: a side is soft, soft,translate=N or kvm")
        threshold = int(value)
    if name not in ("soft", "kvm"):
        raise ConfigError(f"{spec}: a side is soft, soft,translate=N or kvm")
    return name, threshold


def _default_right() -> str:
    from kvmpy.backends import choose_backend

    try:
        choose_backend("kvm")
    except MissingCapability:
        say("this host has no KVM: the other side is soft,translate=2")
        return "soft,translate=2"
    return "kvm"


def _side(spec: str, arguments: Namespace, stack: ExitStack, stepped: bool) -> Side:
    from kvmpy.debug.lockstep.side import Side
    from kvmpy.host.capture import Capture

    name, threshold = _kind(spec)
    own = Namespace(**{**vars(arguments), "backend": name, "clock": "virtual" if name == "soft" else "host"})
    own.disk = [_snapshot(disk) for disk in arguments.disk]
    if _is_disk(arguments):
        own.image, own.disk = None, [_snapshot(f"{arguments.image},bus=bios"), *own.disk]
    backend = None
    if name == "soft":
        from kvmpy.soft.backend import SoftBackend

        backend = SoftBackend(clock="virtual", translate=threshold or 0)
    machine = make_machine(own, [Capture() for _ in arguments.serial or ["stdio"]], lambda text: None, backend)
    stack.callback(machine.close)
    return Side(spec, machine, stepped=stepped)


def _is_disk(arguments: Namespace) -> bool:
    """The image is what a BIOS boots: both sides have it as a disk of their own, whose writes are forgotten."""
    from kvmpy.boot import protocol_of

    return arguments.image is not None and protocol_of(arguments.image, arguments.boot or "auto") == "bios"


def _snapshot(disk: str) -> str:
    return disk if "snapshot=" in disk else f"{disk},snapshot=on"


def _ignored(words: list[str]) -> list[str]:
    from kvmpy.debug.lockstep.compare import IGNORABLE

    names = [name for word in words for name in word.split(",") if name]
    for name in names:
        if name not in IGNORABLE:
            raise ConfigError(f"--ignore {name}: one of {', '.join(IGNORABLE)}")
    return names


def _number(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{option} {text}: a number from 1 is wanted")
    return int(text)
