"""Disk images: what is behind a disk device (kvmpy.devices.blockend.BlockEnd). docs/disks.md tells the design.

Names are loaded when they are first used: a machine without disks needs none of the formats.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmpy.host.images.image import Image
    from kvmpy.host.images.magic import is_qcow2
    from kvmpy.host.images.opening import open_image
    from kvmpy.host.images.qcow2_create import create_qcow2
    from kvmpy.host.images.raw import create_raw
    from kvmpy.host.images.spec import DiskSpec, parse_disk

__all__ = ["DiskSpec", "Image", "create_qcow2", "create_raw", "is_qcow2", "open_image", "parse_disk"]

_HOMES = {
    "DiskSpec": "spec", "Image": "image", "create_qcow2": "qcow2_create", "create_raw": "raw", "is_qcow2": "magic",
    "open_image": "opening", "parse_disk": "spec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
