"""Source lines, functions and branches; lcov and genhtml judge the files, and the pages are looked at."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from kvmpy import Machine
from kvmpy.coverage.drcov import drcov
from kvmpy.coverage.html import write_pages
from kvmpy.coverage.sources import functions, tracefile
from kvmpy.coverage.table import by_file, by_function
from kvmpy.coverage.tracefile import Tracefile
from kvmpy.debug.symbol_file import SymbolFile
from kvmpy.errors import ImageError
from kvmpy.testing.assemble import build, missing_tools
from tests.coverage.sources import HIT, MISSED, PROGRAM, run_program

pytestmark = pytest.mark.skipif(bool(missing_tools(c=True)), reason="gcc and binutils build the guests")


def test_lines_functions_and_branches_of_c(tmp_path: Path) -> None:
    _, recorded, trace = run_program(tmp_path)
    file = trace.files[str(tmp_path / "program.c")]
    assert {line for line, count in file.lines.items() if count} >= HIT
    assert {line for line, count in file.lines.items() if not count} >= MISSED
    assert {name: bool(count) for name, (_, count) in file.functions.items()} == {"never": False, "sign": True, "main": True}
    assert all(abs(file.functions[name][0] - line) <= 1 for name, line in (("never", 1), ("sign", 6), ("main", 13)))
    ways = {line: [taken for (at, _, _), taken in sorted(file.branches.items()) if at == line] for line in (8, 16, 18)}
    assert sorted(ways[8]) == [0, 1] and ways[16] == [1, 1] and sorted(ways[18]) == [0, 1]
    assert all(one is not None for one in recorded.jumps().values())


def test_a_branch_that_was_never_reached_is_told(tmp_path: Path) -> None:
    text = PROGRAM.replace("return x * 3;", "return x > 7 ? x : 9;")
    _, _, trace = run_program(tmp_path, text)
    file = trace.files[str(tmp_path / "program.c")]
    assert [taken for (line, _, _), taken in file.branches.items() if line == 3] == [None, None]


@pytest.mark.parametrize("mode", ["flat16", "flat32", "flat64"])
def test_assembly_in_every_mode(tmp_path: Path, mode: str) -> None:
    text = "_start: mov $3, %cl\n1: dec %cl\njnz 1b\nxor %al, %al\njz 2f\nnop\n2: out %al, $0xf4\nhlt\ncmp $0x1234, %ax\njz 1b\n"
    program = build(text, tmp_path, mode, lang="asm")
    with Machine(backend="soft").load(program.path, program.boot) as machine:
        machine.symbols.add(program.elf)
        with machine.coverage:
            machine.run(10)
        trace = tracefile(machine.coverage.read(), machine.symbols.files)
    (file,) = trace.files.values()
    assert file.lines == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 0, 7: 1, 8: 0, 9: 0, 10: 0}
    assert file.branches == {(3, 0, 0): 1, (3, 0, 1): 1, (5, 0, 0): 1, (5, 0, 1): 0, (10, 0, 0): None, (10, 0, 1): None}


def test_a_tracefile_is_read_back_and_merged(tmp_path: Path) -> None:
    _, _, trace = run_program(tmp_path)
    back = Tracefile.parse(trace.text())
    assert back.text() == trace.text() and back.totals == trace.totals
    back.merge(trace)
    assert back.totals == trace.totals and "DA:17,2" in back.text() and "FNDA:2,main" in back.text()
    assert not back.only([str(tmp_path / "prog")]).files and back.only([str(tmp_path)]).files == back.files


@pytest.mark.parametrize("text", ["hello\n", "SF:x\nDA:1\nend_of_record\n", "DA:1,1\nend_of_record\n", "SF:x\nDA:a,b\n", "\x00\x01"])
def test_what_is_no_tracefile(text: str) -> None:
    with pytest.raises(ImageError, match=r"x\.info:[0-9]"):
        Tracefile.parse(text, "x.info")


@pytest.mark.skipif(shutil.which("lcov") is None or shutil.which("genhtml") is None, reason="lcov is not installed")
def test_lcov_and_genhtml_take_the_tracefile(tmp_path: Path) -> None:
    _, _, trace = run_program(tmp_path)
    path = tmp_path / "x.info"
    trace.save(path)
    n = trace.totals.numbers
    summary = _tool(tmp_path, "lcov", "--summary", path)
    for hit, all, what in ((n[1], n[0], "lines"), (n[3], n[2], "functions"), (n[5], n[4], "branches")):
        assert f"({hit} of {all} {what})" in summary
    _tool(tmp_path, "lcov", "-a", path, "-a", path, "-o", tmp_path / "sum.info")
    ours, theirs = Tracefile.load(path).merge(trace), Tracefile.load(tmp_path / "sum.info")
    assert [vars(file) for file in theirs.files.values()] == [vars(file) for file in ours.files.values()]
    page = _tool(tmp_path, "genhtml", "-o", tmp_path / "html", path)
    assert f"({n[1]} of {n[0]} lines)" in page and "ERROR" not in page


def _tool(directory: Path, *command: str | Path) -> str:
    version = subprocess.run(["lcov", "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    branches = "lcov_branch_coverage=1" if " 1." in version else "branch_coverage=1"
    done = subprocess.run([*command, "--rc", branches], cwd=directory, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_pages_stand_by_themselves(tmp_path: Path) -> None:
    text = PROGRAM.replace("return x * 3;", 'return x * 3; /* <script>alert("&")</script> */')
    _, _, trace = run_program(tmp_path, text)
    trace.file("/nowhere/program.c").lines[7] = 0
    trace.file(str(tmp_path / "index")).lines[1] = 1
    index = write_pages(trace, tmp_path / "html")
    pages = {path.name: path.read_text() for path in index.parent.iterdir()}
    assert len(pages) == 4
    for name, page in pages.items():
        assert "<script" not in page and "default-src 'none'" in page, name
        links = re.findall(r'(?:href|src)="([^"]+)"', page)
        assert all(link.startswith("#") or link in pages for link in links), links
    source = next(page for name, page in pages.items() if "return x * 3" in page)
    lines = dict(re.findall(r'<span id="L(\d+)" class="(\w*)"', source))
    assert [lines[str(n)] for n in (2, 3, 8, 16, 17)] == ["miss" if lines["2"] else "", "miss", "half", "hit", "hit"]
    assert "&lt;script&gt;" in source
    assert any("No such file" in page for page in pages.values())


def test_tables(tmp_path: Path) -> None:
    image, recorded, trace = run_program(tmp_path)
    table = by_file(trace)
    assert table[1].startswith("program.c ") and re.search(r"66.7% +2/3", table[1]) and len(table) == 3
    found = functions(recorded, [SymbolFile(image)])
    by_name = {one.name: one for one in found}
    main = by_name["main"]
    executed = {start + n for start, size in recorded.blocks() for n in range(size)}
    assert by_name["never"].hit == 0 and 0 < main.hit < main.size
    assert main.hit == len(executed & set(range(main.address, main.address + main.size)))
    assert "main" in "\n".join(by_function(found, each=True)) and "never" not in "\n".join(by_function(found, each=True))


def test_drcov_holds_every_piece(tmp_path: Path) -> None:
    image, recorded, _ = run_program(tmp_path)
    data = drcov(recorded, [SymbolFile(image)])
    head, _, rest = data.partition(b" bbs\n")
    lines = head.decode().splitlines()
    assert lines[:2] == ["DRCOV VERSION: 2", "DRCOV FLAVOR: kvmpy"] and lines[2] == "Module Table: version 2, count 1"
    number, base, end, _, path = (field.strip() for field in lines[4].split(","))
    assert (number, path) == ("0", image) and int(base, 16) < int(end, 16)
    pieces = [(int(base, 16) + start, size) for start, size, module in struct.iter_unpack("<IHH", rest) if module == 0]
    assert pieces == recorded.blocks() and lines[5] == f"BB Table: {len(pieces)}"
