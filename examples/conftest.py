"""Builds the exercise beside the test (or --exercise FILE) and turns failures into advice."""

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser):
    parser.addoption("--exercise", metavar="FILE", help="the C file to grade, instead of exercise.c beside the test")


def pytest_collection_modifyitems(config, items):
    given = config.getoption("--exercise")
    if not given:
        return
    if not Path(given).is_file():
        raise pytest.UsageError(f"--exercise {given}: no such file")
    if len({item.path.parent for item in items}) > 1:
        raise pytest.UsageError("--exercise grades one exercise: say which, as in: pytest examples/ports --exercise=FILE")


@pytest.fixture
def boot(request, assemble):
    """boot(machine): builds the exercise, loads it, gives the machine."""

    def load(machine, *flags):
        given = request.config.getoption("--exercise")
        source = Path(given).resolve() if given else request.path.parent / "exercise.c"
        return machine.load(assemble(source, "elf64", flags=(f"-I{HERE / 'lib'}", "-Wno-unused", *flags)))

    return load


class Hint:
    """with Hint("..."): an assertion that fails inside is reported with this advice."""

    def __init__(self, text):
        self.text = text

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        __tracebackhide__ = True  # --pdb then stands in the test
        if isinstance(error, AssertionError):
            raise pytest.fail.Exception(f"{error}\n\nHint: {self.text}", pytrace=False) from None


@pytest.fixture
def hint():
    return Hint
