"""Threads that take no signals: they are for the main thread, whose system calls they must interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


def start_thread(target: Callable[..., None], name: str, *arguments: Any) -> threading.Thread:
    """A running daemon thread with every signal blocked from its first instruction on."""
    thread = threading.Thread(target=target, name=name, args=arguments, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread
