"""Records behave as dataclasses of the same declaration do."""

from __future__ import annotations

import copy
import pickle
from typing import ClassVar

import pytest

from kvmpy.record import Record, field


class Point(Record, frozen=True):
    unit: ClassVar[str] = "mm"
    x: int
    y: int = 2


class Named(Point, frozen=True):
    name: str = ""
    notes: dict[str, int] = field(default_factory=dict, compare=False)


class Box(Record):
    items: list[int] = field(default_factory=list)


class Thing(Record, eq=False):
    size: int


def test_fields_by_place_by_name_and_by_default() -> None:
    assert (Point(1).x, Point(1).y, Point(1, 3).y, Point(y=4, x=1).y) == (1, 2, 3, 4)
    assert repr(Named(1, name="a")) == "Named(x=1, y=2, name='a', notes={})"


@pytest.mark.parametrize("values, named", [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})])
def test_wrong_fields_are_refused(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Point"):
        Point(*values, **named)


def test_equality_and_hash() -> None:
    assert Point(1) == Point(1, 2) != Point(1, 3)
    assert Point(1) != Named(1)
    assert Named(1, notes={"a": 1}) == Named(1)
    assert len({Point(1), Point(1), Named(1), Named(1, notes={"a": 1})}) == 2
    assert Thing(1) != Thing(1)
    assert len({Thing(1), Thing(1)}) == 2
    with pytest.raises(TypeError):
        hash(Box())


def test_a_frozen_record_stays() -> None:
    for change in (lambda point: setattr(point, "x", 2), lambda point: delattr(point, "x"), lambda point: setattr(point, "new", 2)):
        with pytest.raises(AttributeError, match="cannot be changed"):
            change(Point(1))
    box = Box()
    box.items = [1]
    assert Box().items == []


def test_copies_and_patterns() -> None:
    for record in (Point(1), Named(1, 3, "n", {"a": 1}), Box([1])):
        assert copy.deepcopy(record) == record
    assert pickle.loads(pickle.dumps(Point(5))) == Point(5)
    match Point(1, 7):
        case Point(1, y):
            assert y == 7
        case _:
            raise AssertionError
