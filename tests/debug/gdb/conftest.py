"""The guest that goes from the reset vector's mode through all others, and a machine that boots it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmpy import Machine
from tests.debug.gdb.stub import HERE, assemble


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return assemble(HERE / "modes.S", tmp_path_factory.mktemp("modes"), 0x7C00)


@pytest.fixture
def machine(modes: tuple[Path, Path]) -> Iterator[Machine]:
    with Machine(memory="16M", backend="soft", disks=[f"{modes[1]},readonly"]) as machine:
        machine.load(None)
        machine.symbols.add(modes[0])
        yield machine
