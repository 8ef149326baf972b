"""What a process takes beside its guest's RAM: kvmpy's and QEMU's by the same rule."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+) *(.*)")
TOTAL = "total"


def by_kind(smaps: str, ram: int) -> dict[str, float]:
    """MiB of a process's resident pages by kind of mapping, from the text of its `smaps`; guest RAM, `ram` bytes, is left out.

    A page of a file counts whole, whoever else has the file mapped: the figure must not depend on what runs beside.
    Shared memory of the process itself counts by its proportional size: mapped twice, it is there once.
    """
    kib: Counter[str] = Counter()
    kind, field = "", ""
    for line in smaps.splitlines():
        if found := _MAPPING.match(line):
            start, end, inode, name = found.groups()
            anonymous = name.startswith(("/dev/zero", "/memfd:", "/SYSV"))
            if int(end, 16) - int(start, 16) == ram:
                kind = ""
            elif anonymous:
                kind = "shared"
            elif inode != "0":
                kind = "files"
            else:
                kind = {"[heap]": "heap", "[stack]": "stack"}.get(name, "anonymous")
            field = "Pss" if anonymous else "Rss"
        elif kind and line.startswith(f"{field}:"):
            kib[kind] += int(line.split()[1])
    return {TOTAL: kib.total() / 1024, **{kind: n / 1024 for kind, n in sorted(kib.items())}}


def of_process(pid: int, ram: int) -> dict[str, float]:
    return by_kind(Path(f"/proc/{pid}/smaps").read_text(), ram)
