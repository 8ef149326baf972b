"""The host's KVM, and guests on it. Without a usable /dev/kvm every test that needs one is skipped with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from kvmpy.kvm import KvmBackend, probe
from tests.kvm.guest import Guest


@pytest.fixture
def kvm() -> Iterator[KvmBackend]:
    if why := probe.unavailable():
        pytest.skip(why)
    with KvmBackend() as backend:
        yield backend


@pytest.fixture
def guest(kvm: KvmBackend) -> Iterator[Callable[..., Guest]]:
    """A factory of guests, all closed at the end."""
    made: list[Guest] = []

    def make(*arguments: object, **options: object) -> Guest:
        made.append(Guest(kvm, *arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def need() -> Callable[[str], None]:
    """Skips where a probe (kvmpy.kvm.probe.PROBES) or a capability (CAPABILITIES) of this host's KVM says no."""

    def check(name: str) -> None:
        found = probe.ask(name) if name in probe.PROBES else probe.probe().capabilities[name]
        if not found:
            pytest.skip(f"this host's KVM lacks {name}")

    return check
