"""Loaded modules of a running Linux, and their symbols (include/linux/module.h)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvmpy.debug.pagetable import size_text
from kvmpy.debug.table import Table
from kvmpy.debug.types.model import Enum, Struct, bare
from kvmpy.debug.types.value import Value
from kvmpy.errors import KvmpyError

if TYPE_CHECKING:
    from kvmpy.debug.linux.kernel import Linux

_SYMBOL = struct.Struct("<IBBHQQ")
_MOST_SYMBOLS = 1 << 16
_MOST_STRINGS = 4 << 20


@dataclass(frozen=True)
class Module:
    """`address` and `size` are of its code and data in memory, `users` how often it is held."""

    name: str
    address: int
    size: int
    users: int
    state: str
    module: Value = field(repr=False, compare=False)


_COLUMNS = (
    ("MODULE", lambda one: one.name), ("ADDRESS", lambda one: f"{one.address:x}"), (">SIZE", lambda one: size_text(one.size)),
    (">USERS", lambda one: one.users), ("STATE", lambda one: one.state),
)  # fmt: skip


def read_modules(linux: Linux) -> Table[Module]:
    """What is damaged is left out."""
    found: list[Module] = []
    for module in linux.entries(linux.variable("struct list_head", "modules").address, "struct module", "list"):
        try:
            found.append(_module(module))
        except KvmpyError:
            continue
    return Table(found, _COLUMNS, "no modules")


def _module(module: Value) -> Module:
    kind = bare(module.type)
    assert isinstance(kind, Struct)
    if kind.member("mem"):  # since 6.4: one piece for each kind of memory, the code first
        pieces = list(module.member("mem"))
        address, size = int(pieces[0].member("base")), sum(int(piece.member("size")) for piece in pieces)
    else:
        layout = module.member("core_layout")
        address, size = int(layout.member("base")), int(layout.member("size"))
    state = module.member("state")
    names = bare(state.type)
    name = names.names.get(int(state), "?") if isinstance(names, Enum) else "?"
    # The kernel itself holds one reference as long as the module is there.
    users = int(module.member("refcnt").member("counter")) - 1 if kind.member("refcnt") else 0
    return Module(module.member("name").string(), address, size, users, name.removeprefix("MODULE_STATE_").lower(), module)


def module_symbols(linux: Linux) -> list[tuple[str, str, int]]:
    """Names, nm's letters and addresses of the symbols that the kernel keeps for each module."""
    found: list[tuple[str, str, int]] = []
    for one in read_modules(linux):
        try:
            table = one.module.member("kallsyms")
            count = min(int(table.member("num_symtab")), _MOST_SYMBOLS)
            symbols = linux.read(int(table.member("symtab")), count * _SYMBOL.size)
            strings_at = int(table.member("strtab"))
        except KvmpyError:
            continue
        entries = list(_SYMBOL.iter_unpack(symbols[: len(symbols) // _SYMBOL.size * _SYMBOL.size]))
        last = max((entry[0] for entry in entries), default=0)
        strings = linux.read(strings_at, min(last + 512, _MOST_STRINGS))
        for name_at, info, _, section, value, _ in entries:
            name = strings[name_at : strings.find(b"\0", name_at)].decode("ascii", "replace")
            if name and section and value:
                found.append((name, "t" if info & 15 == 2 else "d", value))
    return found
