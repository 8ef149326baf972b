"""kvmpy: a hypervisor in Python, on /dev/kvm or on its own software CPU.

    from kvmpy import Machine
    verdict = Machine(memory="16M").load("guest.elf").run(timeout=10)

Names are loaded when they are first used, so that importing kvmpy costs little.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "kvmpy.machine": ("Machine",),
    "kvmpy.memory": ("GuestMemory",),
    "kvmpy.devices.base": ("Device", "Platform"),
    "kvmpy.irq": ("Line",),
    "kvmpy.host.chars": ("CharEnd",),
    "kvmpy.host.capture": ("Capture",),
    "kvmpy.verdicts": ("Verdict", "Halted", "Reset", "PowerOff", "GuestExit", "Crashed", "Stopped"),
    "kvmpy.errors": ("KvmpyError", "HostError", "MissingCapability", "ConfigError", "FilterError", "MemoryAccessError", "ImageError"),
    "kvmpy.backends": ("open_backend", "choose_backend"),
    "kvmpy.trace": ("Event",),
    "kvmpy.testing.include_dir": ("include_dir",),
    "kvmpy.trace.answers": ("Fault", "Interrupt", "Nmi", "Step", "Stop"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Capture", "CharEnd", "ConfigError", "Crashed", "Device", "Event", "GuestExit", "GuestMemory", "Halted", "HostError", "ImageError",
    "KvmpyError", "Line", "Machine", "MemoryAccessError", "MissingCapability", "Platform", "PowerOff", "Reset", "Stopped", "Verdict",
    "choose_backend", "include_dir", "open_backend",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'kvmpy' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from kvmpy.backends import choose_backend, open_backend
    from kvmpy.devices.base import Device, Platform
    from kvmpy.errors import ConfigError, HostError, ImageError, KvmpyError, MemoryAccessError, MissingCapability
    from kvmpy.host.capture import Capture
    from kvmpy.host.chars import CharEnd
    from kvmpy.irq import Line
    from kvmpy.machine import Machine
    from kvmpy.memory import GuestMemory
    from kvmpy.testing.include_dir import include_dir
    from kvmpy.trace import Event
    from kvmpy.verdicts import Crashed, GuestExit, Halted, PowerOff, Reset, Stopped, Verdict
