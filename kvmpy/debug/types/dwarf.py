"""C types and variables out of DWARF, of the units alone that name what is asked for."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from kvmpy.debug.damage import DAMAGE
from kvmpy.debug.types.model import Alias, Array, CType, Enum, Function, Member, Number, Pointer, Struct, Void

_STRUCTS = {"DW_TAG_structure_type": "struct", "DW_TAG_union_type": "union", "DW_TAG_class_type": "struct"}
_PREFIX = {
    "DW_TAG_structure_type": "struct ", "DW_TAG_union_type": "union ", "DW_TAG_class_type": "struct ", "DW_TAG_enumeration_type": "enum ",
    "DW_TAG_typedef": "", "DW_TAG_base_type": "",
}  # fmt: skip
_ALIASES = frozenset((
    "DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type", "DW_TAG_atomic_type", "DW_TAG_packed_type", "DW_TAG_shared_type",
))  # fmt: skip
# DW_ATE_*: boolean, float, signed, signed char, unsigned char, UTF
_ENCODINGS = {2: ("bool", False), 4: ("float", True), 5: ("int", True), 6: ("char", True), 8: ("char", False), 16: ("char", False)}


_MOST_PLACES = 64
"""Places of one name among the strings, above which every unit may have it."""


class DwarfTypes:
    """The types of one file. What is damaged in it is void, or not there."""

    def __init__(self, dwarf: Any, address_of: Callable[[str], int | None] = lambda name: None) -> None:
        """`address_of`: a symbol's address in the file, which finds the unit that defines a variable."""
        self._dwarf = dwarf
        self._address_of = address_of
        self._types: dict[str, Any] = {}
        self._variables: dict[str, Any] = {}
        self._made: dict[int, CType] = {}
        self._seen: set[int] = set()
        self._units: tuple[list[int], list[Any]] | None = None

    # Units.

    def _all_units(self) -> tuple[list[int], list[Any]]:
        """Where they begin in .debug_info, and themselves."""
        if self._units is None:
            found: list[Any] = []
            try:
                found.extend(self._dwarf.iter_CUs())
            except DAMAGE:
                pass
            self._units = [unit.cu_offset for unit in found], found
        return self._units

    def _search(self, pattern: bytes) -> Iterator[Any]:
        """The units whose bytes have a pattern; a unit may come several times."""
        starts, units = self._all_units()
        with self._dwarf.debug_info_sec.stream.getbuffer() as data:
            places = [match.start() for match in re.finditer(pattern, data, re.DOTALL)]
        for place in places:
            at = bisect_right(starts, place) - 1
            if at >= 0:
                yield units[at]

    def _defining(self, name: str) -> Iterator[Any]:
        """The unit that puts a variable where the symbol of its name stands: DW_OP_addr, as a block of one operation."""
        address = self._address_of(name)
        starts, units = self._all_units()
        if address is None or not starts:
            return
        size = units[0]["address_size"]
        if size in (4, 8) and address < 1 << 8 * size:
            yield from self._search(re.escape(bytes((size + 1, 3)) + address.to_bytes(size, "little")))

    def _naming(self, name: str) -> Iterator[Any]:
        """The units that have a name: in place, or by its offset in .debug_str (of which the end of a longer string may serve)."""
        text = name.encode() + b"\0"
        patterns = [re.escape(text)]
        strings = self._dwarf.debug_str_sec
        if strings is not None:
            with strings.stream.getbuffer() as data:
                for match in re.finditer(b"(?=%s)" % re.escape(text), data):
                    patterns.append(re.escape(match.start().to_bytes(4, "little")))
                    if len(patterns) > _MOST_PLACES:
                        break
        if len(patterns) <= _MOST_PLACES:
            yield from self._search(b"|".join(patterns))
        if len(patterns) > _MOST_PLACES or self._dwarf.debug_str_offsets_sec is not None:
            yield from self._all_units()[1]

    def _index(self, unit: Any) -> bool:
        """Takes the names of a unit; False where that was done before."""
        if unit.cu_offset in self._seen:
            return False
        self._seen.add(unit.cu_offset)
        try:
            for die in _onwards(unit.iter_DIE_children(unit.get_top_DIE())):
                self._take(die)
        except DAMAGE:
            pass
        return True

    def _take(self, die: Any) -> None:
        named = die
        if die.tag == "DW_TAG_variable" and "DW_AT_specification" in die.attributes:
            named = die.get_DIE_from_attribute("DW_AT_specification")
        name_at = named.attributes.get("DW_AT_name")
        if name_at is None:
            return
        name = _text(name_at.value)
        prefix = _PREFIX.get(die.tag)
        if prefix is not None:
            if "DW_AT_declaration" not in die.attributes:
                self._types.setdefault(prefix + name, die)
        elif die.tag == "DW_TAG_variable" and ("DW_AT_location" in die.attributes or name not in self._variables):
            self._variables[name] = die

    def _find(self, table: dict[str, Any], names: tuple[str, ...], units: Iterator[Any]) -> Any:
        """What the table has by one of the names, once the units that may tell are in it."""
        fresh = True
        while fresh:
            for name in names:
                if name in table:
                    return table[name]
            fresh = any(self._index(unit) for unit in units)
        return None

    def _find_type(self, *names: str) -> Any:
        bare = names[0].partition(" ")[2] if names[0].startswith(("struct ", "union ", "enum ")) else names[0]
        return self._find(self._types, names, self._naming(bare))

    # TypeSource.

    def named(self, name: str) -> CType | None:
        """By C name; a bare name may be a structure's too."""
        die = self._find_type(name, f"struct {name}", f"union {name}", f"enum {name}")
        return None if die is None else self._type(die)

    def variable(self, name: str) -> CType | None:
        """The type of a global variable."""
        die = self._find(self._variables, (name,), chain(self._defining(name), self._naming(name)))
        return None if die is None else self._target(die)

    def names(self) -> Iterator[str]:
        """All names that `named` knows."""
        for unit in self._all_units()[1]:
            self._index(unit)
        return iter(self._types)

    # Making.

    def _type(self, die: Any) -> CType:
        made = self._made.get(die.offset)
        if made is None:
            try:
                made = self._make(die)
            except DAMAGE:
                made = Void()
            self._made[die.offset] = made
        return made

    def _target(self, die: Any) -> CType:
        try:
            for name in ("DW_AT_type", "DW_AT_specification", "DW_AT_abstract_origin"):
                if name in die.attributes:
                    other = die.get_DIE_from_attribute(name)
                    return self._type(other) if name == "DW_AT_type" else self._target(other)
        except DAMAGE:
            pass
        return Void()

    def _make(self, die: Any) -> CType:
        attributes = die.attributes
        name = _text(attributes["DW_AT_name"].value) if "DW_AT_name" in attributes else ""
        size = int(attributes["DW_AT_byte_size"].value) if "DW_AT_byte_size" in attributes else 0
        find = partial(self._target, die)
        if die.tag == "DW_TAG_base_type":
            kind, signed = _ENCODINGS.get(attributes["DW_AT_encoding"].value, ("int", False))
            return Number(name, size, signed, kind)
        if die.tag in _STRUCTS:
            if "DW_AT_declaration" in attributes and name:  # its members stand in another unit
                found = self._find_type(f"{_STRUCTS[die.tag]} {name}")
                if found is not None and found.offset != die.offset:
                    return self._type(found)
            members = [self._member(one) for one in _onwards(die.iter_children()) if one.tag == "DW_TAG_member"]
            return Struct(_STRUCTS[die.tag], name, size, members)
        if die.tag == "DW_TAG_enumeration_type":
            entries = [one for one in _onwards(die.iter_children()) if one.tag == "DW_TAG_enumerator"]
            names = {int(one.attributes["DW_AT_const_value"].value): _text(one.attributes["DW_AT_name"].value) for one in entries}
            return Enum(name, size, names, any(value < 0 for value in names))
        if die.tag == "DW_TAG_pointer_type":
            return Pointer(find, size or int(die.cu["address_size"]))
        if die.tag == "DW_TAG_array_type":
            counts = [_count(one) for one in _onwards(die.iter_children()) if one.tag == "DW_TAG_subrange_type"]
            return _array(find, counts or [0])
        if die.tag == "DW_TAG_typedef" or die.tag in _ALIASES:
            return Alias(name if die.tag == "DW_TAG_typedef" else "", find)
        if die.tag in ("DW_TAG_subroutine_type", "DW_TAG_subprogram"):
            return Function(name)
        return Void()

    def _member(self, die: Any) -> Member:
        attributes = die.attributes
        name = _text(attributes["DW_AT_name"].value) if "DW_AT_name" in attributes else ""
        at = attributes["DW_AT_data_member_location"].value if "DW_AT_data_member_location" in attributes else 0
        offset = 8 * (at if isinstance(at, int) else _plus_constant(at))
        bits = int(attributes["DW_AT_bit_size"].value) if "DW_AT_bit_size" in attributes else 0
        if "DW_AT_data_bit_offset" in attributes:
            offset = int(attributes["DW_AT_data_bit_offset"].value)
        elif "DW_AT_bit_offset" in attributes:  # to DWARF 3: counted from the unit's most significant bit
            unit = int(attributes["DW_AT_byte_size"].value) if "DW_AT_byte_size" in attributes else self._target(die).size
            offset += 8 * unit - int(attributes["DW_AT_bit_offset"].value) - bits
        return Member(name, offset, partial(self._target, die), bits)


def _onwards(dies: Iterator[Any]) -> Iterator[Any]:
    """Entries as long as each lies behind the one before: where one's sibling is said to be may lead back."""
    last = -1
    for die in dies:
        if die.offset <= last:
            return
        last = die.offset
        yield die


def _array(find: Any, counts: list[int]) -> Array:
    if len(counts) == 1:
        return Array(find, counts[0])
    return Array(partial(_array, find, counts[1:]), counts[0])


def _count(die: Any) -> int:
    for name, more in (("DW_AT_count", 0), ("DW_AT_upper_bound", 1)):
        if name in die.attributes:
            value = die.attributes[name].value
            if isinstance(value, int) and 0 <= value + more < 1 << 32:
                return value + more
    return 0


def _plus_constant(expression: list[int]) -> int:
    """What DW_OP_plus_uconst adds: DWARF 2 has members' places as expressions. 0 for any other."""
    if not expression or expression[0] != 0x23:
        return 0
    return sum((byte & 0x7F) << 7 * index for index, byte in enumerate(expression[1:]))


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
