"""BTF, the Linux kernel's own description of its types (Documentation/bpf/btf.rst), in vmlinux and in the memory of a running kernel."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial

from kvmpy.debug.types.model import Alias, Array, CType, Enum, Function, Member, Number, Pointer, Struct, Void

MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
(_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT,
 _DECL_TAG, _TYPE_TAG, _ENUM64) = range(1, 20)  # fmt: skip
# Bytes after the common part: a fixed number, and so many for each of vlen.
_FIXED = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_PREFIX = {_STRUCT: "struct ", _UNION: "union ", _ENUM: "enum ", _ENUM64: "enum ", _TYPEDEF: "", _INT: "", _FLOAT: ""}
_MODIFIERS = frozenset((_VOLATILE, _CONST, _RESTRICT, _TYPE_TAG))


class BadBtf(ValueError):
    """The data is not BTF, or damaged."""


class Btf:
    """The types of one BTF blob; types are made when they are asked for."""

    def __init__(self, data: bytes) -> None:
        """Raises BadBtf."""
        if len(data) < _HEADER.size:
            raise BadBtf("too short for BTF")
        magic, version, _, size, types_at, types_size, strings_at, strings_size = _HEADER.unpack_from(data)
        if magic != MAGIC or version != 1:
            raise BadBtf("no BTF of version 1")
        self._types = data[size + types_at : size + types_at + types_size]
        self._strings = data[size + strings_at : size + strings_at + strings_size]
        if len(self._types) != types_size or len(self._strings) != strings_size:
            raise BadBtf("BTF is cut short")
        self._offsets = [0]
        self._made: dict[int, CType] = {0: Void()}
        self._names: dict[str, int] = {}
        self._variables: dict[str, int] = {}
        self._index()

    @staticmethod
    def size_of(head: bytes) -> int:
        """Bytes of the whole blob that begins with `head`. Raises BadBtf."""
        if len(head) < _HEADER.size:
            raise BadBtf("too short for BTF")
        magic, _, _, size, types_at, types_size, strings_at, strings_size = _HEADER.unpack_from(head)
        if magic != MAGIC:
            raise BadBtf("no BTF")
        return int(size + max(types_at + types_size, strings_at + strings_size))

    def _index(self) -> None:
        types, unpack, offsets = self._types, _TYPE.unpack_from, self._offsets
        at, end = 0, len(types)
        wanted: list[tuple[int, int, int]] = []
        try:
            while at < end:
                name, info, _ = unpack(types, at)
                kind = info >> 24 & 0x1F
                if name and (kind in _PREFIX or kind == _VAR):
                    wanted.append((kind, name, len(offsets)))
                offsets.append(at)
                at += 12 + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)
        except struct.error:
            raise BadBtf("BTF is cut short") from None
        for kind, name, number in wanted:
            if kind == _VAR:
                self._variables.setdefault(self._text(name), number)
            else:
                self._names.setdefault(_PREFIX[kind] + self._text(name), number)

    def _text(self, at: int) -> str:
        end = self._strings.find(b"\0", at)
        return self._strings[at:end].decode("utf-8", "replace") if 0 <= at < end else ""

    def __len__(self) -> int:
        return len(self._offsets)

    def type(self, number: int) -> CType:
        """The type of a number; void where there is none such."""
        made = self._made.get(number)
        if made is None:
            if not 0 < number < len(self._offsets):
                return self._made[0]
            try:
                made = self._make(number)
            except struct.error:
                made = Void()
            self._made[number] = made
        return made

    def _make(self, number: int) -> CType:
        at = self._offsets[number]
        name_at, info, word = _TYPE.unpack_from(self._types, at)
        name, kind, count, flag = self._text(name_at), info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
        at += 12
        find = partial(self.type, word)
        if kind == _INT:
            (detail,) = struct.unpack_from("<I", self._types, at)
            encoding = detail >> 24 & 15
            what = "bool" if encoding & 4 else "char" if encoding & 2 or name in ("char", "signed char", "unsigned char") else "int"
            return Number(name, word, bool(encoding & 1), what)
        if kind == _FLOAT:
            return Number(name, word, True, "float")
        if kind == _PTR:
            return Pointer(find)
        if kind == _ARRAY:
            element, _, length = _TYPE.unpack_from(self._types, at)
            return Array(partial(self.type, element), length)
        if kind in (_STRUCT, _UNION):
            return Struct("struct" if kind == _STRUCT else "union", name, word, list(self._members(at, count, flag)))
        if kind == _FWD:
            return Struct("union" if flag else "struct", name, 0)
        if kind == _ENUM:
            pairs = struct.iter_unpack("<Ii" if flag else "<II", self._types[at : at + 8 * count])
            return Enum(name, word, {value: self._text(text) for text, value in pairs}, flag)
        if kind == _ENUM64:
            triples = struct.iter_unpack("<III", self._types[at : at + 12 * count])
            return Enum(name, word, {low | high << 32: self._text(text) for text, low, high in triples}, flag)
        if kind == _TYPEDEF or kind in _MODIFIERS:
            return Alias(name if kind == _TYPEDEF else "", find)
        if kind == _VAR:
            return self.type(word)
        if kind in (_FUNC, _FUNC_PROTO):
            return Function(name)
        return Void()

    def _members(self, at: int, count: int, bit_fields: bool) -> Iterator[Member]:
        for name, number, offset in struct.iter_unpack("<III", self._types[at : at + 12 * count]):
            bits = offset >> 24 if bit_fields else 0
            yield Member(self._text(name), offset & 0xFFFFFF if bit_fields else offset, partial(self.type, number), bits)

    # TypeSource.

    def named(self, name: str) -> CType | None:
        """By C name; a bare name may be a structure's too."""
        for prefix in ("", "struct ", "union ", "enum "):
            number = self._names.get(prefix + name)
            if number is not None:
                return self.type(number)
        return None

    def variable(self, name: str) -> CType | None:
        """The type of a variable: the kernel's BTF has those of per-CPU ones."""
        number = self._variables.get(name)
        return None if number is None else self.type(number)

    def names(self) -> Iterator[str]:
        """All names that `named` knows."""
        return iter(self._names)
