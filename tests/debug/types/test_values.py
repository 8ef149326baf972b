"""C values out of guest memory, by DWARF of several versions and both widths."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from random import Random

import pytest
from elftools.elf.elffile import ELFFile

from kvmpy import KvmpyError, Machine, MemoryAccessError
from kvmpy.debug.symbols import Symbols
from kvmpy.debug.types.dwarf import DwarfTypes
from kvmpy.debug.types.model import Array
from kvmpy.debug.types.value import PathError, split_path
from kvmpy.debug.unwind.cfi import CallFrames
from tests.debug.build import HERE, compile_c, needs_gcc

pytestmark = needs_gcc


FORMS = [(64, "-gdwarf-5"), (64, "-gdwarf-3"), (32, "-gdwarf-2"), (32, "-gdwarf-4")]


@pytest.fixture(params=FORMS, ids=lambda param: f"{param[0]}{param[1]}", scope="module")
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    image = compile_c(HERE / "inspected.c", tmp_path_factory.mktemp("values"), *request.param)
    with Machine(memory="8M", backend="soft") as machine:
        machine.load(image)
        yield machine


def test_members_of_every_kind(machine: Machine) -> None:
    value = machine.symbols.value
    assert value("items[0].name") == "first" and value("current->name") == "second!"
    assert value("items[0].colour") == 5 and str(value("items[0].colour")) == "GREEN (5)" and value("items[1].colour") == -2
    assert value("items[0].low") == 5 and value("items[0].high") == 100 and value("items[0].negative") == -3
    assert value("items[0].both.number") == 0x64636261 and value("items[0].both.bytes[2]") == ord("c")
    assert value("items[0].pointer->inner") == 77
    assert value("items[0].anonymous") == -9 and value("items[0].yes") == True and value("items[0].ratio") == 2.5  # noqa: E712
    assert value("items[0].grid[1][2]") == 6 and value("items[0].grid") == [[1, 2, 3], [4, 5, 6]]
    assert value("greeting").string() == "hello, debugger" and '"hello, debugger"' in str(value("greeting"))
    assert value("&items[1]") == value("current") == int(value("current"))
    assert value("*current").name == "second!" and value("current").name.address == value("items[1].name").address
    plain = value("items[0]").get()
    assert plain["name"] == "first" and plain["anonymous"] == -9 and plain["both"] == {"number": 0x64636261, "bytes": "abcd"}
    assert "name = \"first\"" in str(value("items[0]")) and repr(value("items[0].low")).endswith("= 5")


def test_types_by_name_and_places_by_type(machine: Machine) -> None:
    kind = machine.symbols.type("struct item")
    assert str(kind) == "struct item" and kind.size == machine.symbol("items").symbol.size // 2
    address = machine.symbol("items")
    assert machine.symbols.value(f"{{struct item}}{address:#x}.name") == "first"
    assert machine.symbols.value(f"{{char *}}{machine.symbol('greeting'):#x}").string() == "hello, debugger"
    assert str(machine.symbols.type("word")) == "word" and machine.symbols.type("u8").size == 1
    assert [str(machine.symbols.value("current").type), machine.symbols.type("enum colour").size] == ["struct item *", 4]


def test_assignment(machine: Machine) -> None:
    value = machine.symbols.value
    for path, number in (("items[1].high", 33), ("items[1].negative", -8), ("items[1].grid[0][1]", -1), ("counter", 1 << 20)):
        value(path).set(number)
        assert value(path) == number
    assert value("items[1].low") == 0 and value("items[1].colour") == -2, "neighbours stay"
    value("items[1].high").set(0)


def test_what_cannot_be_read_says_so(machine: Machine) -> None:
    value = machine.symbols.value
    for path in (
        "nobody", "items.name", "items[0].nobody", "counter.x", "*counter", "items[x]", "", "{struct none}0", "items[0", "a b", "stub[1]",
        "1 +",
    ):  # fmt: skip
        with pytest.raises(PathError):
            value(path).get()
    with pytest.raises(MemoryAccessError):
        value("{int}0x70000000").get()
    assert str(value("{int}0x70000000")) == "<nothing mapped at 0x70000000>"
    assert split_path(" *{struct a}b.c->d[0x10] ") == ("*", "struct a", "b", ["c", "d", 16])


def test_lines_to_and_fro(machine: Machine) -> None:
    source = (HERE / "inspected.c").read_text().split("\n")
    line = next(number for number, text in enumerate(source, 1) if "asm volatile(\"ud2\")" in text)
    (address,) = machine.symbols.addresses("inspected.c", line)
    assert machine.memory.read(address, 2) == b"\x0f\x0b"
    place = machine.symbols.place(address)
    assert place.symbol == "trap" and place.line == ("tests/debug/inspected.c", line)
    assert str(place).endswith(f"(tests/debug/inspected.c:{line})")
    assert machine.symbols.addresses("debug/inspected.c", line) == [address]
    assert machine.symbols.addresses("other.c", line) == [] and machine.symbols.addresses("inspected.c", 100000) == []
    assert machine.symbols.line(0x50) is None


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed (apt-get install gdb)")
@pytest.mark.parametrize("version", ["-gdwarf-4", "-gdwarf-5"])
def test_lines_are_those_of_gdb(tmp_path: Path, version: str) -> None:
    image = compile_c(HERE / "inspected.c", tmp_path, 64, version, "-O2")
    symbols = Symbols()
    symbols.add(image)
    addresses = [one.address + at for one in symbols if one.function for at in range(0, one.size, 3)]
    words = [word for address in addresses for word in ("-ex", f"info line *{address:#x}")]
    said = subprocess.run(["gdb", "-nx", "-batch", *words, image], capture_output=True, text=True, timeout=60).stdout
    theirs = [int(line.split()[1]) if line.startswith("Line ") else None for line in said.splitlines()]
    found = map(symbols.line, addresses)
    assert len(addresses) > 50 and [None if one is None else one.line for one in found] == theirs


def test_of_many_units_only_those_with_the_name_are_read(tmp_path: Path) -> None:
    texts = {
        "one.c": "struct early { int a; }; struct early first; extern int grows[];",
        "two.c": "struct late { long b; struct early *other; } second; int grows[5];",
        "three.c": "struct early { int a; }; struct early *other; int third; void _start(void) {}",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    elf = tmp_path / "many.elf"
    command = ["gcc", "-g", "-ffreestanding", "-nostdlib", "-static", "-no-pie", "-Wl,--emit-relocs", "-o", elf, *texts]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=30)
    with Machine(memory="8M", backend="soft") as machine:
        file = machine.symbols.add(elf)
        (types,) = file.types
        assert isinstance(types, DwarfTypes)
        assert machine.symbols.type("struct late").size == 16 and len(types._seen) == 1
        grows = machine.symbols.variable_type("grows")
        assert isinstance(grows, Array) and grows.count == 5, "the definition's type, not the first declaration's"
        assert machine.symbols.variable_type("nobody") is None and len(types._seen) <= 2
        assert machine.symbols.variable_type("third") is not None and set(types.names()) >= {"struct early", "struct late"}
        assert machine.symbols.addresses("three.c", 1) == [machine.symbol("_start")]
        assert str(machine.symbols.line(machine.symbol("_start"))) == "three.c:1"


@pytest.mark.parametrize("version", ["-gdwarf-4", "-gdwarf-5"])
def test_damaged_debug_information_tells_nothing_or_something(tmp_path: Path, version: str) -> None:
    """Whatever the bytes: an answer or one of kvmpy's errors, in little time."""
    options = ("-fno-asynchronous-unwind-tables", "-fno-omit-frame-pointer")  # the frames are in .debug_frame then
    sound = compile_c(HERE / "inspected.c", tmp_path, 64, version, *options).read_bytes()
    parts = [(one["sh_offset"], one["sh_size"]) for one in ELFFile(BytesIO(sound)).iter_sections() if one.name.startswith(".debug_")]
    damaged, random = tmp_path / "damaged.elf", Random(version)
    began = time.monotonic()
    for _ in range(120):
        content = bytearray(sound)
        for _ in range(random.choice([1, 3, 20])):
            start, size = random.choice(parts)
            content[start + random.randrange(size)] = random.choice([0, 0xFF, random.randrange(256)])
        damaged.write_bytes(content)
        symbols = Symbols()
        with suppress(KvmpyError):
            file = symbols.add(damaged)
            trap = symbols.address("trap") or 0
            symbols.where(trap)
            symbols.addresses("inspected.c", 40)
            CallFrames(file).rules(trap)
            symbols.variable_type("items")
            symbols.variable_type("nobody")
            symbols.type("struct nobody")
    assert time.monotonic() - began < 60
