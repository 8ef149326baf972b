"""The text of --disk: FILE[,format=raw|qcow2][,bus=virtio|ata|cdrom|bios][,readonly=on][,snapshot=on][,serial=S]."""

from __future__ import annotations

import os

from kvmpy.errors import ConfigError
from kvmpy.record import Record

FORMATS = ("raw", "qcow2")
BUSES = ("virtio", "ata", "cdrom", "bios")
KEYS = ("format", "bus", "readonly", "snapshot", "serial")
MOST_SERIAL = 20


class DiskSpec(Record, frozen=True):
    """A disk as it was asked for; an empty `format` or `bus` leaves the choice to the program."""

    path: str
    format: str = ""
    bus: str = ""
    readonly: bool = False
    snapshot: bool = False
    serial: str = ""


def parse_disk(text: str | os.PathLike[str]) -> DiskSpec:
    """A comma in the file's name is doubled. An option that only says its name is on. ConfigError says what is wrong."""
    if not isinstance(text, str):
        return DiskSpec(os.fspath(text))
    path, *options = _parts(text)
    if not path:
        raise ConfigError(f"--disk {text}: the file is missing")
    values: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        key = "readonly" if key == "ro" else key
        if key not in KEYS:
            raise ConfigError(f"--disk {text}: unknown option {key!r}: one of {', '.join(KEYS)} (a comma in a file's name is doubled)")
        if key in values:
            raise ConfigError(f"--disk {text}: {key} is given twice")
        values[key] = value if equals else "on" if key in ("readonly", "snapshot") else ""
    for key, known in (("format", FORMATS), ("bus", BUSES), ("readonly", ("on", "off")), ("snapshot", ("on", "off"))):
        if key in values and values[key] not in known:
            raise ConfigError(f"--disk {text}: {key}={values[key]}: one of {', '.join(known)}")
    serial = values.get("serial", "")
    if len(serial) > MOST_SERIAL or not all(" " <= letter <= "~" for letter in serial):
        raise ConfigError(f"--disk {text}: a serial number has at most {MOST_SERIAL} letters, digits and signs of ASCII")
    readonly = values.get("readonly") == "on" or values.get("bus") == "cdrom"
    return DiskSpec(path, values.get("format", ""), values.get("bus", ""), readonly, values.get("snapshot") == "on", serial)


def _parts(text: str) -> list[str]:
    """The text parted at single commas; doubled ones become one."""
    parts = [""]
    at = 0
    while at < len(text):
        if text[at] == "," and text[at + 1 : at + 2] == ",":
            parts[-1] += ","
            at += 2
        elif text[at] == ",":
            parts.append("")
            at += 1
        else:
            parts[-1] += text[at]
            at += 1
    return parts
