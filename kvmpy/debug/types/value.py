"""Values of C types in guest memory: members, elements, pointers, as Python values and as text."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from kvmpy.debug.types.model import Array, CType, Enum, Number, Pointer, Struct, bare
from kvmpy.errors import KvmpyError, MemoryAccessError, NotMappedError

MOST_ELEMENTS = 1 << 16
_MOST_BYTES = 16 << 20
_SHOWN = 16
_DEEPEST = 8
_LAST = (1 << 64) - 1


class PathError(KvmpyError):
    """A path does not fit the types: an unknown name, a member of what is no structure."""


class Space(Protocol):
    """Memory that values are read from; reads end early where nothing is mapped."""

    def read(self, address: int, size: int) -> bytes: ...
    def write(self, address: int, data: bytes) -> bool: ...


class _Budget:
    """So many values are read at once at most: structures out of damaged debug information can hold each other over and over."""

    def __init__(self) -> None:
        self.left = MOST_ELEMENTS

    def spent(self) -> bool:
        """Takes one; true when there is none."""
        self.left -= 1
        return self.left < 0


class Value:
    """A value at an address. `value.member`, `value["member"]`, `value[3]`, `value.deref()`; int(), str(), ==.

    Nothing is read before a plain value is asked for. Reading where nothing is mapped raises MemoryAccessError.
    """

    __slots__ = ("_bits", "_shift", "_space", "address", "type")

    def __init__(self, space: Space, type: CType, address: int, *, shift: int = 0, bits: int = 0) -> None:
        self._space = space
        self._shift, self._bits = shift, bits
        self.type = type
        self.address = address & _LAST

    # Ways on.

    def member(self, name: str) -> Value:
        """A member of a structure, or of the structure that a pointer points to."""
        kind = bare(self.type)
        if isinstance(kind, Pointer):
            return self.deref().member(name)
        found = kind.member(name) if isinstance(kind, Struct) else None
        if found is None:
            raise PathError(f"{self.type} has no member {name}")
        one, offset = found
        if one.bits:
            return Value(self._space, one.type, self.address + offset // 8, shift=offset % 8, bits=one.bits)
        return Value(self._space, one.type, self.address + offset // 8)

    def deref(self) -> Value:
        """What a pointer points to."""
        kind = bare(self.type)
        if not isinstance(kind, Pointer):
            raise PathError(f"{self.type} is no pointer")
        return Value(self._space, kind.target, int(self))

    def cast(self, type: CType) -> Value:
        """The same place as another type."""
        return Value(self._space, type, self.address)

    def element(self, index: int) -> Value:
        """An element of an array, or of the memory that a pointer points to."""
        kind = bare(self.type)
        if isinstance(kind, Array):
            return Value(self._space, kind.element, self.address + index * kind.element.size)
        if isinstance(kind, Pointer):
            return Value(self._space, kind.target, int(self) + index * kind.target.size)
        raise PathError(f"{self.type} has no elements")

    def __getattr__(self, name: str) -> Value:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self.member(name)
        except PathError as error:
            raise AttributeError(str(error)) from None

    def __getitem__(self, key: int | str) -> Value:
        return self.member(key) if isinstance(key, str) else self.element(key)

    def __iter__(self) -> Iterator[Value]:
        kind = bare(self.type)
        if not isinstance(kind, Array):
            raise TypeError(f"{self.type} is no array")
        return (self.element(index) for index in range(min(kind.count, MOST_ELEMENTS)))

    # Reading.

    def bytes(self, size: int | None = None) -> bytes:
        """The bytes of it. Raises MemoryAccessError."""
        wanted = self.type.size if size is None else size
        if wanted > _MOST_BYTES:
            raise PathError(f"{self.type} has {wanted} bytes: too many to read at once")
        data = self._space.read(self.address, wanted)
        if len(data) < wanted:
            raise NotMappedError(self.address + len(data), wanted - len(data))
        return data

    def __int__(self) -> int:
        kind = bare(self.type)
        if self._bits:
            raw = int.from_bytes(self.bytes(-(-(self._shift + self._bits) // 8)), "little") >> self._shift & (1 << self._bits) - 1
            signed = getattr(kind, "signed", False)
            return raw - (1 << self._bits) if signed and raw >> self._bits - 1 else raw
        if isinstance(kind, Number) and kind.kind == "float":
            return int(self._float())
        if isinstance(kind, (Number, Enum)):
            return int.from_bytes(self.bytes(), "little", signed=kind.signed)
        if isinstance(kind, Pointer):
            return int.from_bytes(self.bytes(), "little")
        raise PathError(f"{self.type} is no number")

    __index__ = __int__

    def _float(self) -> float:
        form = {4: "<f", 8: "<d"}.get(self.type.size)
        if form is None:
            raise PathError(f"{self.type} cannot be shown as a number")
        return float(struct.unpack(form, self.bytes())[0])

    def string(self, limit: int = 4096) -> str:
        """Text up to a zero byte: of a character array, or behind a pointer to characters."""
        kind = bare(self.type)
        at, left = (self.address, kind.size) if isinstance(kind, Array) else (int(self), limit)
        return self._space.read(at, min(left, limit)).partition(b"\0")[0].decode("utf-8", "replace")

    def get(self, depth: int = 4) -> Any:
        """A plain Python value: int, float, bool, str for character arrays, lists, dicts; what lies deeper than `depth` is "..."."""
        return self._get(depth, _Budget())

    def _get(self, depth: int, budget: _Budget) -> Any:
        kind = bare(self.type)
        if budget.spent():
            return "..."
        if isinstance(kind, Number) and not self._bits:
            if kind.kind == "float":
                return self._float()
            return bool(int(self)) if kind.kind == "bool" else int(self)
        if isinstance(kind, (Number, Enum, Pointer)):
            return int(self)
        if isinstance(kind, Array):
            if _is_char(kind.element):
                return self.string()
            return [one._get(depth - 1, budget) for one in self] if depth > 0 else "..."
        if isinstance(kind, Struct):
            return self._fields(lambda value: value._get(depth - 1, budget)) if depth > 0 else "..."
        return self.address

    def _fields(self, take: Callable[[Value], Any], inside: int = 0) -> dict[str, Any]:
        kind = bare(self.type)
        assert isinstance(kind, Struct)
        out: dict[str, Any] = {}
        for one in kind.members:
            if one.name:
                out[one.name] = take(self.member(one.name))
            else:
                inner = Value(self._space, one.type, self.address + one.offset // 8)
                if isinstance(bare(inner.type), Struct) and inside < _DEEPEST:
                    out |= inner._fields(take, inside + 1)
        return out

    def set(self, value: int) -> None:
        """Writes a number, enumerator or pointer. Raises MemoryAccessError where memory cannot be written."""
        kind = bare(self.type)
        if isinstance(kind, Number) and kind.kind == "float":
            data = struct.pack({4: "<f", 8: "<d"}[kind.size], value)
        elif isinstance(kind, (Number, Enum, Pointer)):
            size = -(-(self._shift + self._bits) // 8) if self._bits else kind.size
            width = self._bits or 8 * size
            old = int.from_bytes(self.bytes(size), "little") if self._bits else 0
            mask = (1 << width) - 1 << self._shift
            data = (old & ~mask | value << self._shift & mask).to_bytes(size, "little")
        else:
            raise PathError(f"{self.type} cannot be assigned")
        if not self._space.write(self.address, data):
            raise NotMappedError(self.address, len(data))

    # As text.

    def __str__(self) -> str:
        try:
            return self._show(3, _Budget())
        except MemoryAccessError as error:
            return f"<nothing mapped at {error.address:#x}>"
        except KvmpyError as error:
            return f"<{error}>"

    def _show(self, depth: int, budget: _Budget) -> str:
        kind = bare(self.type)
        if budget.spent():
            return "..."
        if isinstance(kind, Enum):
            number = int(self)
            return f"{kind.names[number]} ({number})" if number in kind.names else str(number)
        if isinstance(kind, Pointer):
            target = bare(kind.target)
            text = f"{int(self):#x}"
            return f'{text} "{self.string(80)}"' if _is_char(target) and int(self) else text
        if isinstance(kind, Array):
            if _is_char(kind.element):
                return f'"{self.string()}"'
            if not depth:
                return "[...]"
            shown = [self.element(index)._show(depth - 1, budget) for index in range(min(kind.count, _SHOWN))]
            return "[" + ", ".join(shown + ["..."] * (kind.count > _SHOWN)) + "]"
        if isinstance(kind, Struct):
            if not depth:
                return "{...}"
            fields = self._fields(lambda value: value._show(depth - 1, budget))
            return "{" + ", ".join(f"{name} = {text}" for name, text in fields.items()) + "}"
        if isinstance(kind, Number):
            return str(self.get())
        return f"<{self.type} at {self.address:#x}>"

    def __repr__(self) -> str:
        return f"({self.type}) {self.address:#x} = {self}"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Value):
            return (self.address, str(self.type)) == (other.address, str(other.type))
        return bool(self.get() == other)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return bool(self.get())


def _is_char(type: CType) -> bool:
    kind = bare(type)
    return isinstance(kind, Number) and kind.size == 1 and (kind.kind == "char" or "char" in kind.name)


# Paths: "init_task.comm", "{struct task_struct}0xffff888003000000.pid", "*head->next", "&table[3]".

_TOKEN = re.compile(r"\s*(?:(->|\.)\s*([A-Za-z_]\w*)|\[\s*(-?\w+)\s*\])")
_BASE = re.compile(r"\s*(?:\{([^}]*)\}\s*)?(0[xX][0-9a-fA-F]+|\d+|[A-Za-z_$][\w.$]*?(?=\s*(?:->|\.[A-Za-z_]|\[|$)))")


def split_path(path: str) -> tuple[str, str, str, list[str | int]]:
    """Operators before it ("*", "&"), the type in braces, the first name or number, and the steps after it. Raises PathError."""
    text = path.strip()
    prefix = text[: len(text) - len(text.lstrip("*&"))]
    match = _BASE.match(text, len(prefix))
    if match is None:
        raise PathError(f"{path!r}: NAME.member, NAME[3], *NAME, &NAME or {{TYPE}}ADDRESS is wanted")
    at, steps = match.end(), list[str | int]()
    while at < len(text):
        step = _TOKEN.match(text, at)
        if step is None:
            raise PathError(f"{path!r}: {text[at:]!r} is not understood")
        try:
            steps.append(step[2] or int(step[3], 0))
        except ValueError:
            raise PathError(f"{path!r}: [{step[3]}] is no number") from None
        at = step.end()
    return prefix, (match[1] or "").strip(), match[2], steps


def follow(value: Value, prefix: str, steps: list[str | int]) -> Value | int:
    """Takes the steps of a path from its first value; an address where "&" comes first."""
    for step in steps:
        value = value[step]
    for operator in reversed(prefix):
        if operator == "&":
            return value.address
        value = value.deref()
    return value
