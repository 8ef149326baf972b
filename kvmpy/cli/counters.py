"""What kvmpy run shows of a machine's inside at the end: counters, translations, the names that perf reads."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any, cast

from kvmpy.errors import ConfigError, HostError

if TYPE_CHECKING:
    from kvmpy.machine import Machine


def check(machine: Machine, arguments: Namespace) -> None:
    """Before the run: ConfigError where --dump-translation or --perf-map can have nothing to show."""
    for option, given in (("--dump-translation", arguments.dump_translation is not None), ("--perf-map", arguments.perf_map)):
        if given and machine.vm.name != "soft":
            raise ConfigError(f"{option}: only the software CPU translates, and the backend is {machine.vm.name}")
    if arguments.perf_map:
        cast("Any", machine.vm).remember_translations()


def lines_of(machine: Machine, arguments: Namespace) -> list[str]:
    """The lines that --stats, --dump-translation and --perf-map ask for; what goes wrong with them is told in their place."""
    lines: list[str] = []
    if arguments.stats:
        lines += statistics_lines(machine)
    if arguments.dump_translation is not None or arguments.perf_map:
        from kvmpy.debug.translation import Translations

        found = Translations(machine)
        for text in arguments.dump_translation.split(",") if arguments.dump_translation is not None else []:
            address = _address(machine, text)
            if address is None:
                lines.append(f"kvmpy: error: --dump-translation {text}: neither an address nor a symbol of the guest")
                continue
            lines += [line for block in found.at(address) for line in block.lines()] or [f"kvmpy: no code has run at {text}"]
        if arguments.perf_map:
            try:
                lines.append(f"kvmpy: {found.perf_map()} translated blocks named for perf")
            except HostError as error:
                lines.append(f"kvmpy: error: {error}")
    return lines


def _address(machine: Machine, text: str) -> int | None:
    """An address in any notation, or SYMBOL, or either with +OFFSET."""
    name, plus, offset = text.partition("+")
    try:
        inside = int(offset, 0) if plus else 0
        return int(name, 0) + inside if name[:1].isdigit() else machine.symbols.address(name) + inside
    except (TypeError, ValueError):
        return None


def statistics_lines(machine: Machine) -> list[str]:
    """machine.statistics, a line each; the share of the instructions that ran as translated code is told with them."""
    lines: list[str] = []
    for title, value in machine.statistics.items():
        if not isinstance(value, dict):
            lines.append(f"{title:20} {value}")
            continue
        lines += [f"{title:20} {name:28} {count:>16}{_share(name, value)}" for name, count in value.items()]
    return lines


def _share(name: str, counts: dict[str, int]) -> str:
    if name != "instructions_translated" or not counts.get("instructions"):
        return ""
    return f"  ({100 * counts[name] / counts['instructions']:.1f} %)"
