"""Hooks that the plugin offers to conftest files and other plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from kvmpy.testing.machine import GuestMachine


def pytest_kvmpy_machine_made(item: pytest.Item, machine: GuestMachine) -> None:
    """A test's machine was made; nothing is loaded yet."""


def pytest_kvmpy_machine_ends(item: pytest.Item, machine: GuestMachine) -> None:
    """A test is over; its machine is at rest and will be closed."""
