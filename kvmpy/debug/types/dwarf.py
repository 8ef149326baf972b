"""C types and variables out of DWARF, unit by unit until what is asked for has been seen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
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


class DwarfTypes:
    """The types of one file. What is damaged in it is void, or not there."""

    def __init__(self, dwarf: Any) -> None:
        self._dwarf = dwarf
        self._types: dict[str, Any] = {}
        self._variables: dict[str, Any] = {}
        self._made: dict[int, CType] = {}
        self._units = self._read()

    def _read(self) -> Iterator[None]:
        """One unit more is in the index after each step."""
        try:
            for unit in self._dwarf.iter_CUs():
                try:
                    for die in unit.iter_DIE_children(unit.get_top_DIE()):
                        self._take(die)
                except DAMAGE:
                    pass
                yield
        except DAMAGE:
            return

    def _take(self, die: Any) -> None:
        name_at = die.attributes.get("DW_AT_name")
        if name_at is None:
            return
        name = _text(name_at.value)
        prefix = _PREFIX.get(die.tag)
        if prefix is not None:
            if "DW_AT_declaration" not in die.attributes:
                self._types.setdefault(prefix + name, die)
        elif die.tag == "DW_TAG_variable" and ("DW_AT_location" in die.attributes or name not in self._variables):
            self._variables[name] = die

    def _find(self, table: dict[str, Any], *names: str) -> Any:
        while True:
            for name in names:
                if name in table:
                    return table[name]
            if next(self._units, self) is self:
                return None

    # TypeSource.

    def named(self, name: str) -> CType | None:
        """By C name; a bare name may be a structure's too."""
        die = self._find(self._types, name, f"struct {name}", f"union {name}", f"enum {name}")
        return None if die is None else self._type(die)

    def variable(self, name: str) -> CType | None:
        """The type of a global variable."""
        die = self._find(self._variables, name)
        return None if die is None else self._target(die)

    def names(self) -> Iterator[str]:
        """All names that `named` knows."""
        for _ in self._units:
            pass
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
        if "DW_AT_type" not in die.attributes:
            origin = "DW_AT_specification" if "DW_AT_specification" in die.attributes else "DW_AT_abstract_origin"
            if origin in die.attributes:
                return self._target(die.get_DIE_from_attribute(origin))
            return Void()
        return self._type(die.get_DIE_from_attribute("DW_AT_type"))

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
                found = self._find(self._types, f"{_STRUCTS[die.tag]} {name}")
                if found is not None and found.offset != die.offset:
                    return self._type(found)
            members = [self._member(one) for one in die.iter_children() if one.tag == "DW_TAG_member"]
            return Struct(_STRUCTS[die.tag], name, size, members)
        if die.tag == "DW_TAG_enumeration_type":
            entries = [one for one in die.iter_children() if one.tag == "DW_TAG_enumerator"]
            names = {int(one.attributes["DW_AT_const_value"].value): _text(one.attributes["DW_AT_name"].value) for one in entries}
            return Enum(name, size, names, any(value < 0 for value in names))
        if die.tag == "DW_TAG_pointer_type":
            return Pointer(find, size or int(die.cu["address_size"]))
        if die.tag == "DW_TAG_array_type":
            counts = [_count(one) for one in die.iter_children() if one.tag == "DW_TAG_subrange_type"]
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
