"""Machines of both backends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from trace_guests import BACKENDS, Maker, makers


@pytest.fixture(params=BACKENDS)
def machine(request: pytest.FixtureRequest) -> Iterator[Maker]:
    yield from makers(request.param)


@pytest.fixture
def soft() -> Iterator[Maker]:
    yield from makers("soft")


@pytest.fixture
def kvm(request: pytest.FixtureRequest) -> Iterator[Maker]:
    from kvmpy.kvm.probe import unavailable

    if unavailable():
        pytest.skip(f"no KVM: {unavailable()}")
    yield from makers("kvm")
