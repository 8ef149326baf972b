"""Machines that boot a sector of assembly with the BIOS, on every backend that this host has."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from kvmpy.boot import firmware
from kvmpy.machine import Machine
from tests.firmware.bios_guest import DONE, assemble


def _backends():
    from kvmpy.kvm.probe import unavailable

    why = unavailable()
    yield pytest.param("kvm", marks=pytest.mark.skipif(bool(why), reason=f"no KVM: {why}"))
    missing = not hasattr(importlib.import_module("kvmpy.soft"), "SoftBackend")
    yield pytest.param("soft", marks=pytest.mark.skipif(missing, reason="the software CPU is not built"))


@pytest.fixture(params=_backends())
def boot(request, tmp_path):
    """boot(code) runs a boot sector to its end; boot(..., run=False) gives the machine before it runs."""
    if not Path(firmware.BLOB).exists():
        pytest.skip("the BIOS is not built: make firmware")
    made = []

    def make(code="", *, run=True, image=None, size=512, timeout=20, want=DONE, boot=None, **options):
        machine = Machine(options.pop("memory", "64M"), backend=request.param, **options)
        made.append(machine)
        machine.load(image or assemble(tmp_path, code, size=size), boot)
        if run:
            assert machine.run(timeout) == want, machine.serial.data
        return machine

    yield make
    for machine in made:
        machine.close()
