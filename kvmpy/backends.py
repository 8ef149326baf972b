"""Which backend runs a machine, and why. The packages of the backends are loaded by name when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from kvmpy.backend import Backend
from kvmpy.errors import ConfigError
from kvmpy.record import Record

NAMES = ("auto", "kvm", "soft")


class Choice(Record, frozen=True):
    """A backend's name and one line that says why it was taken."""

    name: str
    why: str


def probe_kvm() -> Any:
    """What this host's KVM does (kvmpy.kvm.probe.HostKvm); asked once per process."""
    return importlib.import_module("kvmpy.kvm.probe").probe()


def choose_backend(request: str = "auto") -> Choice:
    """ "auto" takes KVM where CPL 0 code runs on hardware, else the software CPU; a name is taken as it is."""
    if request not in NAMES:
        raise ConfigError(f"unknown backend {request!r}: one of {', '.join(NAMES)}")
    if request != "auto":
        return Choice(request, "asked for by name")
    probe = importlib.import_module("kvmpy.kvm.probe")
    why = probe.unavailable()
    if why:
        return Choice("soft", why)
    if not probe.ask("cpl0_on_hardware"):
        return Choice("soft", "this host's KVM runs kernel code in the instruction emulator, not on the processor")
    return Choice("kvm", "/dev/kvm runs kernel code on the processor")


def open_backend(request: str = "auto", **options: Any) -> Backend:
    """The backend that `choose_backend` names. A named one that cannot be had raises; there is no falling back.

    `options` go to the software backend (its clock, its CPU model); KVM has none.
    """
    name = choose_backend(request).name
    if name == "kvm":
        kvm: Backend = importlib.import_module("kvmpy.kvm").KvmBackend()
        return kvm
    soft: Backend = importlib.import_module("kvmpy.soft").SoftBackend(**options)
    return soft
