"""Events in words: what happened with its payload, the place that it happened at, the symbol of its instruction."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

from kvmpy.trace.event import Event
from kvmpy.trace.places import address_name, port_name
from kvmpy.x86 import EFER_NAMES, MSR_EFER, bit_names, msr_name

MOST_KEPT = 1 << 16
"""Entries of a cache; a trace has no bound."""
MOST_BYTES = 24
"""Bytes shown of a string instruction's data."""
MOST_ITEMS = 32
"""Elements shown of an array in a call's arguments."""
MOST_TEXT = 96
"""Characters shown of a text there."""

_WIDTH = {1: "b", 2: "w", 4: "l", 8: "q"}
_PF = {0: "present", 1: "write", 2: "user", 3: "reserved bit", 4: "fetch", 5: "protection key", 6: "shadow stack", 15: "SGX"}
_PCI_ADDRESS = 0xCF8
_TEXT_PORTS = frozenset((0x3F8, 0x2F8, 0x3E8, 0x2E8, 0xE9, 0x402))
"""Data of serial ports and debug consoles."""


class Symbols(Protocol):
    """Whoever knows names of guest addresses, for instance kvmpy.debug.symbols.Symbols."""

    def where(self, address: int) -> str:
        """ "main+0x4 (hello.c:12)", or the bare address."""


class Names:
    """`symbols.where` for instructions, each asked once."""

    def __init__(self, symbols: Symbols | None) -> None:
        self._symbols = symbols
        self._kept: dict[int, str] = {}

    def __call__(self, rip: int | None) -> str:
        """Empty for None."""
        if rip is None:
            return ""
        name = self._kept.get(rip)
        if name is None:
            if len(self._kept) >= MOST_KEPT:
                self._kept.clear()
            name = self._kept[rip] = f"{rip:#x}" if self._symbols is None else printable(self._symbols.where(rip))
        return name


def describe(event: Event) -> str:
    """What happened, in one line: "outb 0x3f8 <- 0x41 'A' (serial)"."""
    data = event.data
    try:
        words = _WORDS.get(event.what)
        if words is not None:
            return words(data)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass  # an event with other keys than its kind has: it is shown as it is
    return f"{event.what} {_pairs(data)}".rstrip()


def place(event: Event) -> str:
    """Where it happened, without the values that came by: "out 0x3f8 (serial)", "wrmsr EFER"; what a summary counts by."""
    data = event.data
    try:
        where = _PLACES.get(event.what)
        if where is not None:
            return where(data)
    except (KeyError, TypeError, ValueError):
        pass
    return ""


def _hex(value: Any) -> str:
    return f"{value:#x}" if isinstance(value, int) and not isinstance(value, bool) else "?" if value is None else str(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if -1024 < value < 1024 else f"{value:#x}"
    if isinstance(value, dict):
        more = " ..." if len(value) > MOST_ITEMS else ""
        return "{" + _pairs(dict(islice(value.items(), MOST_ITEMS))) + more + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_plain, value[:MOST_ITEMS])) + (", ..." if len(value) > MOST_ITEMS else "") + "]"
    text = str(value)
    return printable(text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}...")


def printable(text: str) -> str:
    """Without control characters: what a guest says must not speak to the terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _pairs(data: dict[str, Any]) -> str:
    return " ".join(f"{key}={_plain(value)}" for key, value in data.items())


def _owner(name: str) -> str:
    return f" ({printable(name)})" if name else ""


def _port_owner(data: dict[str, Any]) -> str:
    return _owner(data.get("device") or port_name(data["port"]))


def _address_owner(data: dict[str, Any]) -> str:
    return _owner(data.get("device") or address_name(data["address"]))


def _io(data: dict[str, Any]) -> str:
    port, size, count, write, value = data["port"], data["size"], data.get("count", 1), data["write"], data.get("value")
    width = _WIDTH.get(size, str(size))
    arrow = "<-" if write else "->"
    if count != 1:
        return f"{'outs' if write else 'ins'}{width} {port:#x} {arrow} {count} x {_string(value, size, count)}{_port_owner(data)}"
    note = ""
    if value is None:
        shown = "?"
    else:
        shown = f"{value:#x}"
        if size == 1 and 32 <= value < 127 and port in _TEXT_PORTS:
            note = f" {chr(value)!r}"
        elif size == 4 and port == _PCI_ADDRESS and value >> 31:
            note = f" [{value >> 16 & 0xFF:02x}:{value >> 11 & 31:02x}.{value >> 8 & 7} reg {value & 0xFC:#x}]"
    return f"{'out' if write else 'in'}{width} {port:#x} {arrow} {shown}{note}{_port_owner(data)}"


def _string(value: Any, size: int, count: int) -> str:
    if value is None:
        return "?"
    data = value.to_bytes(size * count, "little")
    head, more = data[:MOST_BYTES], "..." if len(data) > MOST_BYTES else ""
    if size == 1 and all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head):
        return repr(head.decode("ascii")) + more
    return " ".join(f"{int.from_bytes(head[at : at + size], 'little'):0{2 * size}x}" for at in range(0, len(head), size)) + more


def _mmio(data: dict[str, Any]) -> str:
    write = data["write"]
    arrow = "write{} {:#x} <- {}{}" if write else "read{} {:#x} -> {}{}"
    return "mmio " + arrow.format(data["size"], data["address"], _hex(data.get("value")), _address_owner(data))


def _memory(data: dict[str, Any]) -> str:
    if data["write"]:
        return f"write{data['size']} {data['address']:#x} <- {_hex(data.get('value'))}"
    return f"read{data['size']} {data['address']:#x} -> {_hex(data.get('value'))}"


def _msr_name(data: dict[str, Any]) -> str:
    return str(data.get("name") or msr_name(data["index"]))


def _msr(data: dict[str, Any]) -> str:
    value, refused = data.get("value"), " (#GP)" if data.get("served") is False else ""
    shown = _hex(value)
    if value and data["index"] == MSR_EFER:
        shown += f" [{bit_names(value, EFER_NAMES)}]"
    if data["write"]:
        return f"wrmsr {_msr_name(data)} = {shown}{refused}"
    return f"rdmsr {_msr_name(data)}{refused}" if refused else f"rdmsr {_msr_name(data)} -> {shown}"


def _cpuid(data: dict[str, Any]) -> str:
    answer = " ".join(f"{name}={data[name]:#x}" for name in ("eax", "ebx", "ecx", "edx") if name in data)
    return f"cpuid {data['leaf']:#x}.{data.get('subleaf', 0):#x}" + (f" -> {answer}" if answer else "")


def _exception_name(data: dict[str, Any]) -> str:
    return str(data.get("name") or f"{data['vector']:#x}")


def _exception(data: dict[str, Any]) -> str:
    error, address, name = data.get("error"), data.get("address"), _exception_name(data)
    text = f"exception {name}"
    if error is not None:
        text += f" error {error:#x}"
        if name == "#PF" and error:
            text += f" [{bit_names(error, _PF)}]"
    return text if address is None else f"{text} at {address:#x}"


def _hypercall(data: dict[str, Any]) -> str:
    return f"hypercall {_hex(data['number'])} ({', '.join(map(_hex, data.get('arguments', ())))})"


def _line(data: dict[str, Any]) -> str:
    if "gsi" in data:
        return f"line gsi {data['gsi']} {'high' if data['level'] else 'low'}"
    return f"message {data['address']:#x} data {data['data']:#x}"


def _exit(data: dict[str, Any]) -> str:
    reason, text = str(data["reason"]), printable(str(data.get("text") or ""))
    return f"exit {reason}" if text.lower() in ("", reason.lower()) else f"exit {reason}: {text}"


def _assist(data: dict[str, Any]) -> str:
    return f"assist {data['instruction']}"


def _unclaimed(data: dict[str, Any]) -> str:
    where = f"port {data['port']:#x}" if "port" in data else f"address {data['address']:#x}"
    return f"unclaimed {'write' if data['write'] else 'read'}{data['size']} {where}"


def _device(data: dict[str, Any]) -> str:
    rest = {key: value for key, value in data.items() if key not in ("device", "event")}
    return printable(f"device {data['device']}: {data['event']}") + (f" {_pairs(rest)}" if rest else "")


def _block(data: dict[str, Any]) -> str:
    return f"block {data['address']:#x}" + (f" ({data['count']} instructions)" if "count" in data else "")


def _ioctl(data: dict[str, Any]) -> str:
    arguments, result = data.get("arguments"), data.get("result")
    inner = "" if arguments in (None, {}, [], "") else f", {_plain(arguments)}"
    error = f" {data['error']}" if "error" in data else ""
    return f"ioctl({data['fd']}, {data['name']}{inner}) = {'?' if result is None else _plain(result)}{error}"


_WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "io": _io, "mmio": _mmio, "msr": _msr, "cpuid": _cpuid, "irq": lambda data: f"irq {data['vector']:#x}", "exception": _exception,
    "hypercall": _hypercall, "line": _line, "exit": _exit, "assist": _assist, "unclaimed": _unclaimed, "device": _device, "block": _block,
    "instruction": lambda data: f"instruction {data['address']:#x}", "memory": _memory, "ioctl": _ioctl,
    "verdict": lambda data: printable(f"verdict: {data['verdict']}"),
}  # fmt: skip


def _io_place(data: dict[str, Any]) -> str:
    return f"{'out' if data['write'] else 'in'} {data['port']:#x}{_port_owner(data)}"


def _mmio_place(data: dict[str, Any]) -> str:
    return f"{'write' if data['write'] else 'read'} {data['address']:#x}{_address_owner(data)}"


def _unclaimed_place(data: dict[str, Any]) -> str:
    return f"{'write' if data['write'] else 'read'} {data['port' if 'port' in data else 'address']:#x}"


_PLACES: dict[str, Callable[[dict[str, Any]], str]] = {
    "io": _io_place, "mmio": _mmio_place, "unclaimed": _unclaimed_place,
    "msr": lambda data: f"{'wrmsr' if data['write'] else 'rdmsr'} {_msr_name(data)}",
    "cpuid": lambda data: f"{data['leaf']:#x}.{data.get('subleaf', 0):#x}",
    "irq": lambda data: f"vector {data['vector']:#x}",
    "exception": _exception_name,
    "hypercall": lambda data: f"number {_hex(data['number'])}",
    "line": lambda data: f"gsi {data['gsi']}" if "gsi" in data else f"message {data['address']:#x}",
    "exit": lambda data: str(data["reason"]),
    "assist": lambda data: str(data["instruction"]),
    "device": lambda data: printable(f"{data['device']}: {data['event']}"),
    "memory": lambda data: f"{'write' if data['write'] else 'read'} {data['address']:#x}",
    "block": lambda data: f"{data['address']:#x}",
    "ioctl": lambda data: str(data["name"]),
    "verdict": lambda data: printable(str(data["verdict"])),
}  # fmt: skip
