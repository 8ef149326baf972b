"""Call stacks of guests in every width, by every method, across an exception; and stacks that mean harm."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kvmpy import Halted, Machine
from tests.debug.build import HERE, assemble_16, compile_c, needs_gcc

pytestmark = needs_gcc
NAMES = ["stop_here", "handler", "stub", "trap", "recurse", "recurse", "recurse", "recurse", "_start"]
CFI = ("-fomit-frame-pointer", "-fasynchronous-unwind-tables")
DEBUG_FRAME = ("-fomit-frame-pointer", "-fno-asynchronous-unwind-tables")
POINTER = ("-fno-omit-frame-pointer", "-mno-omit-leaf-frame-pointer", "-fno-asynchronous-unwind-tables", "-g0")
NEITHER = ("-fomit-frame-pointer", "-fno-asynchronous-unwind-tables", "-g0")


def halted(image: Path, **options: str) -> Machine:
    machine = Machine(memory="8M", backend="soft")
    assert isinstance(machine.load(image, **options).run(timeout=20), Halted)
    return machine


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("options, how", [(CFI, "cfi"), (DEBUG_FRAME, "cfi"), (POINTER, "frame pointer"), (NEITHER, "call")])
def test_across_an_exception(tmp_path: Path, bits: int, options: tuple[str, ...], how: str) -> None:
    with halted(compile_c(HERE / "inspected.c", tmp_path, bits, *options)) as machine:
        frames = machine.backtrace()
        assert [frame.place.symbol for frame in frames] == NAMES, f"{frames}\n{frames.end}"
        assert [frame.interrupted for frame in frames[:8]] == [False] * 3 + [True] + [False] * 4
        assert frames[2].how == frames[6].how == how
        assert frames[2].sure == (how != "call")
        code = machine.memory.read(frames[3].address, 2)
        assert code == b"\x0f\x0b", "the exception's frame stands at its instruction"
        assert len(machine.backtrace(limit=3)) == 3
        if how == "cfi":
            assert frames[0].place.line is not None and frames[0].place.line.file == "tests/debug/inspected.c"
            source = (HERE / "inspected.c").read_text().split("\n")
            assert "stop_here();" in source[frames[1].place.line.line - 1], "the line of the call, not of what comes after"
        assert str(frames).split("\n")[0].startswith("#0  0x0000000000200")


def test_the_first_and_last_instructions_of_a_function(tmp_path: Path) -> None:
    """The caller is found at every instruction of a function that keeps a frame pointer."""
    from kvmpy.debug.control import Control
    from kvmpy.debug.points import Point

    image = compile_c(HERE / "inspected.c", tmp_path, 64, *POINTER)
    with Machine(memory="8M", backend="soft") as machine:
        machine.load(image)
        control = Control(machine)
        control.points.add(Point("software", machine.symbol("trap")))
        assert control.run(timeout=10).hit is not None
        for _ in range(5):
            frames = machine.backtrace()
            assert [frame.place.symbol for frame in frames] == NAMES[3:], f"{frames}\n{frames.end}"
            control.run(frozenset((0,)), timeout=10)
            if machine.where().symbol != "trap":
                break
        control.release()


def test_real_mode(tmp_path: Path) -> None:
    elf, raw = assemble_16("""
        .code16
        .macro function name
        .globl \\name
        .type \\name, @function
        \\name:
        .endm
        function start
            call outer
            hlt
        function outer
            push %bp
            mov %sp, %bp
            sub $6, %sp
            call inner
            leave
            ret
        function inner
            push %bp
            mov %sp, %bp
            cli
            hlt
            leave
            ret
    """, tmp_path)  # fmt: skip
    with halted(raw, boot="flat16@0x7c00") as machine:
        machine.symbols.add(elf)
        frames = machine.backtrace()
        assert [frame.place.symbol for frame in frames] == ["inner", "outer", "start"], f"{frames}\n{frames.end}"


@pytest.mark.parametrize("options", [CFI, POINTER, NEITHER])
def test_stacks_that_mean_harm(tmp_path: Path, options: tuple[str, ...]) -> None:
    chance = random.Random(5)
    with halted(compile_c(HERE / "inspected.c", tmp_path, 64, *options)) as machine:
        registers = machine.cpu[0].registers
        good = registers.as_dict()
        top = (good["rsp"] & ~0xFFF) + 0x1000
        base = good["rsp"] - 64
        image = machine.memory.read(base, top - base)
        inside = machine.symbol("recurse") + 20
        interesting = [0, 1, 8, 0x10, 0x202, base, base + 8, good["rip"], (1 << 64) - 1, 1 << 63, 0x7FFFFF, 0x800000, inside]
        for _ in range(150):
            stack = bytearray(image)
            for _ in range(chance.choice([1, 3, 40])):
                at = chance.randrange(0, len(stack) - 8, 8)
                word = chance.choice([chance.choice(interesting), chance.getrandbits(64), base + chance.randrange(512)])
                stack[at : at + 8] = word.to_bytes(8, "little")
            machine.memory.write(base, bytes(stack))
            registers.rsp = chance.choice([good["rsp"], base, chance.choice(interesting), good["rsp"] + 1])
            registers.rbp = chance.choice([good["rbp"], base + 16, chance.choice(interesting)])
            registers.rip = chance.choice([good["rip"], chance.choice(interesting), machine.symbol("recurse") + chance.randrange(40)])
            frames = machine.backtrace()
            assert 1 <= len(frames) <= 64 and str(frames) and frames.end
        registers.rsp, registers.rbp, registers.rip = base, base, good["rip"]
        for at in range(base, top - 16, 16):  # a chain that bites its tail
            machine.memory.write_u64(at, base)
            machine.memory.write_u64(at + 8, machine.symbol("recurse") + 20)
        assert len(machine.backtrace()) <= 64
