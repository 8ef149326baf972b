"""The software CPU as a backend: KVM's record format and register structs, without a KVM."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmpy.soft.backend import SoftBackend
    from kvmpy.soft.vcpu import SoftVcpu
    from kvmpy.soft.vm import SoftVm

__all__ = ["SoftBackend", "SoftVcpu", "SoftVm"]

_HOMES = {"SoftBackend": "backend", "SoftVm": "vm", "SoftVcpu": "vcpu"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
