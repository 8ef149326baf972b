"""The package's public names: all there, loaded only when used."""

import subprocess
import sys

import pytest

import kvmpy


@pytest.mark.parametrize("name", kvmpy.__all__)
def test_every_public_name_is_there(name):
    assert getattr(kvmpy, name).__name__ == name
    assert name in dir(kvmpy)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        kvmpy.Nothing


def test_importing_the_package_loads_nothing_else():
    code = "import sys, kvmpy; print(sorted(name for name in sys.modules if name.startswith('kvmpy')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert out.stdout == "['kvmpy']\n"
