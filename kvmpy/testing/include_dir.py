"""Where the C header for guests lies."""

from __future__ import annotations

from pathlib import Path


def include_dir() -> str:
    """Directory of `kvmpy.h`, for the compiler's -I."""
    return str(Path(__file__).resolve().parent / "include")
