"""BTF written by hand, one type of each kind, and damaged."""

from __future__ import annotations

import random
import struct

import pytest

from kvmpy.debug.types.btf import BadBtf, Btf
from kvmpy.debug.types.model import Enum, Number, Pointer, Struct, bare
from kvmpy.debug.types.value import Value

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 13, 14, 15, 16, 17, 18, 19


class Writer:
    def __init__(self) -> None:
        self.strings, self.types = bytearray(b"\0"), bytearray()

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str = "", word: int = 0, rest: bytes = b"", count: int = 0, flag: bool = False) -> None:
        self.types += struct.pack("<III", self.name(name), kind << 24 | count | flag << 31, word) + rest

    def blob(self) -> bytes:
        sizes = (0, len(self.types), len(self.types), len(self.strings))
        return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *sizes) + bytes(self.types + self.strings)


def sample() -> bytes:
    out = Writer()
    out.add(INT, "int", 4, struct.pack("<I", 1 << 24 | 32))  # 1
    out.add(INT, "char", 1, struct.pack("<I", 8))  # 2
    out.add(ARRAY, "", 0, struct.pack("<III", 2, 1, 16))  # 3: char[16]
    out.add(PTR, "", 5)  # 4: struct thing *
    members = [("name", 3, 0), ("next", 4, 128), ("low", 1, 192 | 3 << 24), ("high", 1, 195 | 5 << 24), ("", 7, 256)]
    out.add(STRUCT, "thing", 40, b"".join(struct.pack("<III", out.name(n), t, o) for n, t, o in members), len(members), True)  # 5
    out.add(ENUM, "kind", 4, struct.pack("<IiIi", out.name("NO"), -1, out.name("YES"), 1), 2, True)  # 6
    out.add(UNION, "", 8, b"".join(struct.pack("<III", out.name(n), t, 0) for n, t in (("number", 1), ("ratio", 10))), 2)  # 7
    out.add(CONST, "", 5)  # 8
    out.add(TYPEDEF, "thing_t", 8)  # 9
    out.add(FLOAT, "double", 8)  # 10
    out.add(ENUM64, "wide", 8, struct.pack("<III", out.name("HIGH"), 5, 1), 1)  # 11
    out.add(FWD, "unseen")  # 12
    out.add(PROTO, "", 1, struct.pack("<II", 0, 1), 1)  # 13
    out.add(VAR, "the_thing", 9, struct.pack("<I", 1))  # 14
    out.add(DATASEC, ".data", 40, struct.pack("<III", 14, 0, 40), 1)  # 15
    out.add(DECL_TAG, "tag", 5, struct.pack("<i", -1))  # 16
    out.add(TYPEDEF, "circle", 18)  # 17
    out.add(TYPEDEF, "round", 17)  # 18
    return out.blob()


def test_types() -> None:
    btf = Btf(sample())
    thing = btf.named("struct thing")
    assert isinstance(thing, Struct) and thing.size == 40 and btf.named("thing") is thing
    assert [(one.name, one.offset, one.bits) for one in thing.members] == [
        ("name", 0, 0), ("next", 128, 0), ("low", 192, 3), ("high", 195, 5), ("", 256, 0),
    ]  # fmt: skip
    assert thing.offset("ratio") == 32 and str(thing.members[0].type) == "char[16]" and thing.members[0].type.size == 16
    pointer = thing.members[1].type
    assert isinstance(pointer, Pointer) and pointer.target is thing and str(pointer) == "struct thing *"
    kind, wide = btf.named("enum kind"), btf.named("wide")
    assert isinstance(kind, Enum) and kind.names == {-1: "NO", 1: "YES"} and kind.signed
    assert isinstance(wide, Enum) and wide.names == {1 << 32 | 5: "HIGH"} and wide.size == 8
    number = btf.named("int")
    assert isinstance(number, Number) and number.signed and btf.named("double").size == 8
    assert str(btf.variable("the_thing")) == "thing_t" and bare(btf.variable("the_thing")) is thing
    assert str(bare(btf.named("circle"))) == "void" and btf.named("nobody") is None and btf.variable("thing") is None
    assert {"struct thing", "enum kind", "thing_t"} <= set(btf.names()) and Btf.size_of(sample()[:24]) == len(sample())


def test_damage() -> None:
    chance = random.Random(3)
    sound = sample()
    for _ in range(500):
        content = bytearray(sound[: chance.choice([len(sound), chance.randrange(len(sound))])])
        for _ in range(chance.choice([1, 3, 20])):
            if content:
                content[chance.randrange(len(content))] = chance.choice([0, 0xFF, chance.randrange(256)])
        try:
            btf = Btf(bytes(content))
        except BadBtf:
            continue
        for name in list(btf.names()):
            found = btf.named(name)
            assert found is not None
            kind = bare(found)
            if isinstance(kind, Struct):
                kind.member("number")
                assert all(len(str(one.type)) < 1000 and one.type.size >= 0 for one in kind.members)
    for kind in (PTR, ARRAY, TYPEDEF):  # of itself
        out = Writer()
        out.add(kind, "endless" if kind == TYPEDEF else "", 1, struct.pack("<III", 1, 1, 2) if kind == ARRAY else b"")
        circle = Btf(out.blob()).type(1)
        assert len(str(circle)) < 1000 and circle.size in (0, 8)
    out = Writer()  # a structure that holds itself twice without a name
    out.add(STRUCT, "self", 8, struct.pack("<IIIIII", 0, 1, 0, 0, 1, 0), 2)
    itself = Btf(out.blob()).named("struct self")
    assert isinstance(itself, Struct) and itself.member("nobody") is None

    class Zeros:
        def read(self, address: int, size: int) -> bytes:
            return bytes(size)

        def write(self, address: int, data: bytes) -> bool:
            return False

    assert Value(Zeros(), itself, 0).get() == {} and str(Value(Zeros(), itself, 0)) == "{}"
    for content in (b"", bytes(24), sound[:20]):
        with pytest.raises(BadBtf):
            Btf(content)
