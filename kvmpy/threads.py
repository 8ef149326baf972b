"""Threads that take no signals: they are for the main thread, whose system calls they must interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class HelperThread(threading.Thread):
    """A daemon thread with every signal blocked from its first instruction on."""

    def __init__(self, target: Callable[..., None], name: str, *arguments: Any) -> None:
        super().__init__(target=target, name=name, args=arguments, daemon=True)

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            super().start()  # the new thread inherits the mask
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_thread(target: Callable[..., None], name: str, *arguments: Any) -> threading.Thread:
    """A HelperThread that runs already."""
    thread = HelperThread(target, name, *arguments)
    thread.start()
    return thread
