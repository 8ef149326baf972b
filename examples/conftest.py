"""Builds the exercise beside the test (or --exercise FILE) and turns failures into advice."""

import contextlib
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser):
    parser.addoption("--exercise", metavar="FILE", help="the C file to grade, instead of exercise.c beside the test")


@pytest.fixture
def boot(request, assemble):
    """boot(machine): builds the exercise, loads it, gives the machine."""

    def load(machine, *flags):
        given = request.config.getoption("--exercise")
        source = Path(given).resolve() if given else request.path.parent / "exercise.c"
        return machine.load(assemble(source, "elf64", flags=(f"-I{HERE / 'lib'}", "-Wno-unused", *flags)))

    return load


@pytest.fixture
def hint():
    """with hint("..."): what fails inside is reported with this advice."""

    @contextlib.contextmanager
    def advise(text):
        __tracebackhide__ = True
        failed = None
        try:
            yield
        except AssertionError as error:
            failed = str(error)
        if failed is not None:
            pytest.fail(f"{failed}\n\nHint: {text}", pytrace=False)

    return advise
