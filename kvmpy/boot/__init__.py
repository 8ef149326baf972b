"""Boot protocols: from an image file to guest memory and the state of the first vCPU.

Names are loaded when they are first used; the modules of the protocols when an image is asked for one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmpy.boot.hardware import Hardware
    from kvmpy.boot.image import Image, read_image
    from kvmpy.boot.layout import Range, memory_map
    from kvmpy.boot.loader import PROTOCOLS, identify, load, parse_boot, protocol_of
    from kvmpy.boot.state import BootState, Segment, Table

__all__ = [
    "PROTOCOLS", "BootState", "Hardware", "Image", "Range", "Segment", "Table", "identify", "load", "memory_map", "parse_boot",
    "protocol_of", "read_image",
]

_HOMES = {
    "Hardware": "hardware", "Image": "image", "read_image": "image", "Range": "layout", "memory_map": "layout", "PROTOCOLS": "loader",
    "identify": "loader", "load": "loader", "parse_boot": "loader", "protocol_of": "loader", "BootState": "state", "Segment": "state",
    "Table": "state",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
