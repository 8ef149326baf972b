"""Function names in autopsies, from ELF symbol tables."""

import contextlib
import subprocess
from random import Random

import pytest

from kvmpy.debug.symbols import Symbols
from kvmpy.errors import ImageError
from kvmpy.machine import Machine
from kvmpy.verdicts import Crashed

SOURCE = """
.globl _start
.type faulty, @function
.size faulty, 4
_start: jmp faulty
.skip 16
faulty: nop
nop
ud2
.skip 32
label:
"""


@pytest.fixture(params=[32, 64])
def image(request, tmp_path):
    source, object_, image = (tmp_path / name for name in ("a.s", "a.o", "a.elf"))
    source.write_text(SOURCE)
    subprocess.run(["as", f"--{request.param}", "-o", object_, source], check=True, timeout=20)
    emulation = "elf_x86_64" if request.param == 64 else "elf_i386"
    subprocess.run(["ld", "-m", emulation, "-Ttext=0x200000", "-o", image, object_], check=True, timeout=20)
    return image


def test_the_report_names_the_function(image):
    with Machine("4M", backend="soft") as machine:
        verdict = machine.load(image).run(10)
        assert isinstance(verdict, Crashed)
        page = machine.autopsy(verdict)
        (line,) = [line for line in page.lines() if line.startswith("  =>")]
        assert "<faulty+0x2>: 0f0b" in line
        assert page.as_dict()["vcpus"][0]["symbol"] == "faulty+0x2"


def test_damaged_files_are_refused_or_read(image, tmp_path):
    """Whatever the bytes: ImageError or symbols, never the host's memory or another exception."""
    sound = image.read_bytes()
    damaged = tmp_path / "damaged"
    random = Random(1)
    for _ in range(300):
        content = bytearray(sound[: random.choice([len(sound), random.randrange(len(sound))])])
        for _ in range(random.choice([0, 1, 3, 20])):
            if content:
                content[random.randrange(len(content))] = random.choice([0, 0xFF, random.randrange(256)])
        damaged.write_bytes(content)
        with contextlib.suppress(ImageError):
            Symbols().add(damaged)


def test_a_function_that_the_compiler_has_changed_answers_to_its_name(tmp_path):
    names = tmp_path / "System.map"
    names.write_text("0000000000001000 t work.isra.0\n0000000000002000 t both.part.0.constprop.1\n0000000000003000 t plain\n"
                     "0000000000004000 t plain.isra.0\n0000000000005000 t only.cold\n")
    symbols = Symbols()
    symbols.add(names)
    assert symbols.address("work") == 0x1000 and symbols.address("both") == 0x2000 and symbols.address("plain") == 0x3000
    assert symbols.address("only") is None and symbols.address("") is None
