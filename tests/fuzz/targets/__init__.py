"""The fuzz targets of the Python parts: each is `run(data)`, which raises for a finding."""

from __future__ import annotations

import importlib
from collections.abc import Callable

MODULES = {
    "small": ("serial", "rtc", "i8042", "hpet", "acpi_pm", "debug_ports", "biosdisk"),
    "pci": ("pci",),
    "virtio": tuple(
        f"virtio_{kind}_{carrier}" for kind in ("blk", "net", "rng", "console", "balloon", "vsock") for carrier in ("mmio", "pci")
    ),
    "disks": ("ata", "atapi"),
    "nics": ("e1000", "ne2000_isa", "ne2000_pci"),
    "files": ("qcow2", "elf", "multiboot", "linux", "pvh", "sector"),
    "wire": ("gdb", "socket_net"),
}
NAMES = tuple(name for names in MODULES.values() for name in names)


def find(name: str) -> Callable[[bytes], None]:
    """The target of that name."""
    module = next(module for module, names in MODULES.items() if name in names)
    run: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.targets.{module}").RUN[name]
    return run
