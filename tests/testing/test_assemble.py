"""Guests built from source: every mode, what stands in them, and what is said when they cannot be built."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import kvmpy
from kvmpy.errors import ConfigError, ImageError, MissingCapability
from kvmpy.testing.assemble import MODES, build

from .sources import COUNTING


@pytest.mark.parametrize("mode", MODES)
def test_assembly_starts_at_its_first_line(machine: Any, assemble: Any, mode: str) -> None:
    machine.load(assemble("mov $42, %al\nmov $0xf4, %dx\nout %al, %dx", mode))
    assert machine.exit_code == 42


@pytest.mark.parametrize("mode", MODES)
def test_start_is_the_entry_wherever_it_stands(soft_machine: Any, assemble: Any, mode: str) -> None:
    source = "_start: jmp over\n.fill 16, 1, 0xcc\nover: mov $9, %al\nout %al, $0xf4"
    soft_machine.load(assemble(source, mode))
    assert soft_machine.exit_code == 9


def test_flat_code_goes_where_it_is_wanted(soft_machine: Any, assemble: Any) -> None:
    program = assemble("call 1f\n1: pop %ax\nmov $0xf4, %dx\nout %ax, %dx", "flat16", origin=0x2000)
    assert program.boot == "flat16@0x2000" and program.elf != program.path
    soft_machine.load(program)
    assert soft_machine.exit_code == 0x2003
    assert soft_machine.symbol("_start") == 0x2000


def test_a_file_is_built_under_its_own_name(tmp_path: Path, assemble: Any) -> None:
    source = tmp_path / "kernel.c"
    source.write_text("int main(void) { return oops; }\n")
    with pytest.raises(pytest.fail.Exception, match=r"kernel\.c:1:\d+: error: .*oops"):
        assemble(source)


def test_messages_name_the_line(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"guest\.S:2: Error: no such instruction"):
        build("nop\nfrobnicate %eax\n", tmp_path)
    with pytest.raises(ImageError, match="undefined reference to `elsewhere'"):
        build("void elsewhere(void); int main(void) { elsewhere(); return 0; }", tmp_path)
    with pytest.raises(ImageError, match="No such file"):
        build(tmp_path / "absent.S", tmp_path)


def test_wrong_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mode 'flat8': one of flat16"):
        build("nop", tmp_path, "flat8")
    with pytest.raises(ConfigError, match="lang 'rust'"):
        build("nop", tmp_path, lang="rust")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingCapability, match=r"as, ld, objcopy not found: building a guest needs binutils .*apt-get install"):
        build("nop", tmp_path)


def test_assembly_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """binutils alone will do, unless the preprocessor is wanted."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("as", "ld", "objcopy"):
        os.symlink(shutil.which(name) or name, tools / name)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.delenv("CC", raising=False)
    program = build("mov $6, %al\nout %al, $0xf4", tmp_path, "multiboot")
    with kvmpy.Machine(backend="soft", memory="4M") as machine:
        assert machine.load(program.path).run(timeout=10) == kvmpy.GuestExit(6)
    with pytest.raises(MissingCapability, match="gcc not found"):
        build("#include <kvmpy.h>\nnop", tmp_path)


def test_symbols_and_lines(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble(COUNTING, "flat32", flags=("-DLAST=3",)))
    soft_machine.run_until("done")
    assert str(soft_machine.where()) == "done (guest.S:7)"


def test_the_header_is_found() -> None:
    assert (Path(kvmpy.include_dir()) / "kvmpy.h").is_file()
