"""A time limit for every test: 60 s, 300 s for those marked slow. SIGALRM fails the test; a test that holds the
interpreter in native code past that ends the whole run with a traceback."""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import pytest

LIMIT, SLOW_LIMIT, GRACE = 60, 300, 30


@pytest.fixture(autouse=True)
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    limit = SLOW_LIMIT if request.node.get_closest_marker("slow") else LIMIT

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the test ran longer than {limit} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    faulthandler.dump_traceback_later(limit + GRACE, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
