"""Records: classes of named fields, declared as dataclasses are.

The machine's start makes some twenty of them. The module dataclasses imports `inspect` and compiles methods for every class, which
is a fifth of the time that the start may take; here one set of methods serves all classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, dataclass_transform


class _Made:
    """A default that is made anew for each record."""

    __slots__ = ("compare", "make")

    def __init__(self, make: Callable[[], Any], compare: bool) -> None:
        self.make = make
        self.compare = compare


def field(*, default_factory: Callable[[], Any], compare: bool = True) -> Any:
    """A field whose default is what `default_factory` gives; without `compare` it counts neither for == nor for hash()."""
    return _Made(default_factory, compare)


def _refuse(record: Record, name: str, value: object = None) -> None:
    raise AttributeError(f"{type(record).__name__}.{name} cannot be changed")


@dataclass_transform(field_specifiers=(field,))
class Record:
    """A subclass declares its fields as annotations, with defaults last; fields of its bases come before its own.

    Records of one class are equal when their fields are (`eq=False`: when they are the same object). A `frozen` one cannot be
    changed and can be hashed.
    """

    __match_args__: ClassVar[Any] = ()
    _fields: ClassVar[tuple[str, ...]] = ()
    _compared: ClassVar[tuple[str, ...]] = ()
    _made: ClassVar[dict[str, Callable[[], Any]]] = {}

    def __init_subclass__(cls, *, frozen: bool = False, eq: bool = True) -> None:
        own = tuple(name for name in cls.__annotations__ if not cls.__annotations__[name].startswith("ClassVar"))
        made = {name: cls.__dict__[name] for name in own if isinstance(cls.__dict__.get(name), _Made)}
        cls._fields = cls._fields + own
        cls.__match_args__ = cls._fields  # type: ignore[misc]
        cls._made = cls._made | {name: default.make for name, default in made.items()}
        cls._compared += tuple(name for name in own if name not in made or made[name].compare)
        for name in made:
            delattr(cls, name)
        if frozen:
            cls.__setattr__ = cls.__delattr__ = _refuse  # type: ignore[method-assign, assignment]
        if not eq:
            cls.__eq__, cls.__hash__ = object.__eq__, object.__hash__  # type: ignore[method-assign, assignment]
        elif frozen:
            cls.__hash__ = _hash  # type: ignore[method-assign, assignment]

    def __init__(self, *values: Any, **named: Any) -> None:
        names = self._fields
        if len(values) > len(names):
            raise TypeError(f"{type(self).__name__} has {len(names)} fields, not {len(values)}")
        fields = dict(zip(names, values, strict=False))
        for name, value in named.items():
            if name in fields or name not in names:
                raise TypeError(f"{type(self).__name__}: field {name!r} is {'given twice' if name in fields else 'unknown'}")
            fields[name] = value
        for name in names:
            if name not in fields:
                if name in self._made:
                    fields[name] = self._made[name]()
                elif hasattr(type(self), name):
                    fields[name] = getattr(type(self), name)
                else:
                    raise TypeError(f"{type(self).__name__}: field {name!r} is missing")
        self.__dict__.update(fields)  # also where __setattr__ refuses

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._fields)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _compared(self) == _compared(other)  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]


def _compared(record: Record) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in record._compared)


def _hash(record: Record) -> int:
    return hash(_compared(record))
