"""The Python fuzz targets: stored inputs, and some that hypothesis makes, the same in every run. `make fuzz` searches with coverage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.fuzz.ops import Input
from tests.fuzz.targets.small import SerialWorld
from tests.fuzz.world import World, drive

ROOT = Path(__file__).resolve().parents[2]
CORPUS = Path(__file__).resolve().parent / "corpus"


@pytest.mark.parametrize("name", targets.NAMES)
@settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(min_size=30, max_size=500))
def test_any_input(name: str, data: bytes) -> None:
    targets.find(name)(data)


@pytest.mark.parametrize("name", [name for name in targets.NAMES if (CORPUS / name).is_dir()])
def test_stored_inputs(name: str) -> None:
    run, files = targets.find(name), sorted((CORPUS / name).iterdir())
    assert files
    for file in files:
        run(file.read_bytes())


def test_an_input_is_read_to_its_end_and_beyond() -> None:
    source = Input(bytes((1, 2, 3, 0, 7, 1 | 4 << 2, 2)))
    assert (source.byte(), source.number(2), source.value(4), source.value(4)) == (1, 0x302, 7, 16)
    assert bool(source) and source.value(1) == 0xFF and not source
    assert (source.byte(), source.number(8), source.bytes(9), source.rest()) == (0, 0, b"", b"")


class Forgetful(SerialWorld):
    """A device whose state leaves something out."""

    def twin(self) -> World:
        other = super().twin()
        other.devices[0].write(7, 1, 0x55)  # the scratch register
        return other


def test_a_wrong_restored_state_is_found() -> None:
    with pytest.raises(AssertionError, match="another one"):
        drive(Forgetful, bytes((1,)) + bytes(40))


def test_the_runner_knows_its_targets() -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tests.fuzz", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)

    listed = run("--list")
    assert set(targets.NAMES) <= set(listed.stdout.split())
    wrong = run("floppy")
    assert wrong.returncode == 2 and wrong.stderr.startswith("no such fuzz target: floppy; there are ")
