"""What kvmpy run shows of a machine's inside at the end: counters, translations, the names that perf reads."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any, cast

from kvmpy.errors import ConfigError, HostError

if TYPE_CHECKING:
    from kvmpy.machine import Machine


def begin(machine: Machine, arguments: Namespace) -> None:
    """Before the run: asks for what is counted only where somebody wants it. ConfigError where --dump-translation or --perf-map can have
    nothing to show."""
    for option, given in (("--dump-translation", arguments.dump_translation is not None), ("--perf-map", arguments.perf_map)):
        if given and machine.vm.name != "soft":
            raise ConfigError(f"{option}: only the software CPU translates, and the backend is {machine.vm.name}")
    if arguments.perf_map:
        cast("Any", machine.vm).remember_translations()
    if arguments.stats and machine.vm.name == "soft":
        cast("Any", machine.vm).set_timing(True)


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
    """machine.statistics, a line each, and what a number means beside others: a share, or one in how many."""
    lines: list[str] = []
    for title, value in machine.statistics.items():
        if not isinstance(value, dict):
            lines.append(f"{title:20} {value}")
            continue
        lines += [f"{title:20} {name:28} {count:>16}{_share(name, value)}" for name, count in value.items()]
    return lines


_ENGINES = ("ns_interpreted", "ns_translating", "ns_translated")
_OF = {
    "tlb_fills": "instructions", "slow_accesses": "instructions", "exits_unlinked": "instructions_translated",
    "exits_to_loop": "instructions_translated", "exits_to_handler": "instructions_translated", "handler_calls": "instructions_translated",
}  # fmt: skip
"""What a counter is one of: accesses and jumps themselves are not counted, since that would cost as much as they do."""


def _share(name: str, counts: dict[str, int]) -> str:
    count, all_of = counts[name], counts.get("instructions", 0)
    if name == "instructions_translated" and all_of:
        return f"  ({100 * count / all_of:.1f} %)"
    if name in _ENGINES:
        return f"  ({100 * count / sum(counts.get(engine, 0) for engine in _ENGINES):.1f} %)"
    if name in _OF and count:
        return f"  (one in {counts.get(_OF[name], 0) // count} {_OF[name].replace('_', ' ')})"
    return ""
