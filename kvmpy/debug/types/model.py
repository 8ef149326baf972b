"""C types as a debugger needs them. Targets are found when they are asked for, so that types may point in circles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

_DEEPEST = 32
"""Types come from files and from guests: what refers to itself without end is cut here."""


class CType:
    """Base of all types: `size` in bytes, 0 where there is none."""

    name: str
    size: int

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False)
class Void(CType):
    name: str = "void"
    size: int = 0

    __str__ = CType.__str__


@dataclass(eq=False)
class Number(CType):
    """`kind` is "int", "char", "bool" or "float"."""

    name: str
    size: int
    signed: bool = False
    kind: str = "int"

    __str__ = CType.__str__


@dataclass(eq=False)
class Enum(CType):
    name: str
    size: int
    names: dict[int, str]
    signed: bool = False

    def __str__(self) -> str:
        return f"enum {self.name}"


@dataclass(eq=False)
class Pointer(CType):
    find: Callable[[], CType]
    size: int = 8

    @property
    def target(self) -> CType:
        return self.find()

    def __str__(self) -> str:
        return spell(self)


@dataclass(eq=False)
class Array(CType):
    find: Callable[[], CType]
    count: int

    @property
    def element(self) -> CType:
        return self.find()

    @property
    def size(self) -> int:  # type: ignore[override]
        total, kind = self.count, bare(self.element)
        for _ in range(_DEEPEST):
            if not isinstance(kind, Array):
                return total * kind.size
            total, kind = total * kind.count, bare(kind.element)
        return 0

    def __str__(self) -> str:
        return spell(self)


@dataclass(eq=False)
class Alias(CType):
    """A typedef, or a type with `const`, `volatile` and the like (then without a name of its own)."""

    name: str
    find: Callable[[], CType]

    @property
    def target(self) -> CType:
        return self.find()

    @property
    def size(self) -> int:  # type: ignore[override]
        return bare(self).size

    def __str__(self) -> str:
        return spell(self)


@dataclass(eq=False)
class Member:
    """`bits` is the width of a bit field, 0 for any other member; `offset` counts bits from the structure's start."""

    name: str
    offset: int
    find: Callable[[], CType]
    bits: int = 0

    @property
    def type(self) -> CType:
        return self.find()


@dataclass(eq=False)
class Struct(CType):
    """A structure or union (`kind`)."""

    kind: str
    name: str
    size: int
    members: list[Member] = field(default_factory=list)

    def member(self, name: str) -> tuple[Member, int] | None:
        """A member and its offset in bits, also one of an unnamed structure inside."""
        return self._member(name, set())

    def _member(self, name: str, seen: set[int]) -> tuple[Member, int] | None:
        seen.add(id(self))
        for one in self.members:
            if one.name == name:
                return one, one.offset
        for one in self.members:
            inner = bare(one.type) if not one.name else None
            if isinstance(inner, Struct) and id(inner) not in seen:
                found = inner._member(name, seen)
                if found is not None:
                    return found[0], one.offset + found[1]
        return None

    def offset(self, name: str) -> int:
        """Offset of a member in bytes. KeyError where there is none of that name."""
        found = self.member(name)
        if found is None:
            raise KeyError(f"{self} has no member {name}")
        return found[1] // 8

    def __str__(self) -> str:
        return f"{self.kind} {self.name or '{...}'}"


@dataclass(eq=False)
class Function(CType):
    name: str = ""
    size: int = 0

    def __str__(self) -> str:
        return self.name or "function"


def spell(type: CType, depth: int = 0) -> str:
    """The C name of a type; damaged types that run in a circle end in "..."."""
    if depth > _DEEPEST:
        return "..."
    if isinstance(type, Alias):
        return type.name or spell(type.target, depth + 1)
    if isinstance(type, Pointer):
        return f"{spell(type.target, depth + 1)} *"
    if isinstance(type, Array):
        return f"{spell(type.element, depth + 1)}[{type.count}]"
    return str(type)


def bare(type: CType) -> CType:
    """The type behind typedefs and qualifiers; damaged types that run in a circle are void."""
    for _ in range(_DEEPEST):
        if not isinstance(type, Alias):
            return type
        type = type.target
    return Void()


class TypeSource(Protocol):
    """Where types come from."""

    def named(self, name: str) -> CType | None:
        """By C name: "struct list_head", "enum pid_type", a typedef or base type's bare name; a bare name may be a structure's too."""

    def variable(self, name: str) -> CType | None:
        """The type of a global variable."""

    def names(self) -> Iterator[str]:
        """The names that `named` knows."""
