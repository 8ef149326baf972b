"""Sizes as people write them ("128M", "1.5G", "0x1000", 4096), and durations."""

from __future__ import annotations

import re

from kvmpy.errors import ConfigError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096

_POWERS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE = re.compile(r"(0x[0-9a-f_]+|[0-9][0-9_]*(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """Bytes of a size; suffixes K, M, G, T (also KiB, KB, ...) are powers of 1024. ConfigError when it is none."""
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        raise ConfigError(f"a size is a number or a text such as 128M, not {text!r}")
    if isinstance(text, int):
        if text < 0:
            raise ConfigError(f"size {text} is negative")
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is not a size (write for instance 64K, 128M, 1.5G)")
    number, suffix = match[1].replace("_", ""), match[2].lower()
    shift = _POWERS[suffix]
    if number[:2].lower() == "0x":
        if len(number) == 2:
            raise ConfigError(f"{text!r} is not a size (write for instance 64K, 128M, 1.5G)")
        return int(number, 16) << shift
    whole, _, fraction = number.partition(".")
    if not fraction:
        return int(whole) << shift
    scaled = int(whole + fraction) << shift
    divisor: int = 10 ** len(fraction)
    if scaled % divisor:
        raise ConfigError(f"{text!r} is not a whole number of bytes")
    return scaled // divisor


def format_size(size: int) -> str:
    """Shortest exact text of a size: 134217728 -> "128M", 1536 -> "1536"."""
    for suffix, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{suffix}"
    return str(size)


def format_ns(time: int) -> str:
    """A duration given in ns, in three digits: 950 -> "950 ns", 12345 -> "12.3 us", 3000000000 -> "3.00 s"."""
    if time < 1000:
        return f"{time} ns"
    for unit, size in (("us", 1000), ("ms", 1000_000), ("s", 1000_000_000)):
        value = time / size
        if value < 999.5 or unit == "s":
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def parse_number(text: str) -> int:
    """An integer in the notations of Python (0x, 0o, 0b, decimal, underscores). ConfigError when it is none."""
    try:
        return int(text, 0)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number") from None
