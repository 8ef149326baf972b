"""The way to VMs of the software CPU; it needs nothing of the host."""

from __future__ import annotations

import os

from kvmpy.errors import ConfigError
from kvmpy.native import CData, check, ffi, lib
from kvmpy.soft.vm import SoftVm

CLOCKS = ("host", "virtual")
MOST_ENTRIES = 256
THRESHOLD = 24
"""Runs of a block before it is translated, where nobody says otherwise (KVMPY_TRANSLATE in the environment does)."""


def supported_cpuid() -> list[CData]:
    """Owned `struct kvm_cpuid_entry2` entries of everything that the core can do."""
    table = ffi.new("struct kvm_cpuid_entry2[]", MOST_ENTRIES)
    count = check("kp_supported_cpuid", lib.kp_supported_cpuid(table, MOST_ENTRIES))
    return [ffi.new("struct kvm_cpuid_entry2 *", table[n]) for n in range(count)]


class SoftBackend:
    """`clock`: "host" runs timers and TSC on the host's clock; "virtual" counts 1 ns per instruction, the same on every run.

    `tsc_khz` is the TSC's frequency; 0 takes the core's own (1 GHz). `translate`: blocks that have run so often are translated to
    host code; 0: everything is interpreted. Raises ConfigError.
    """

    name = "soft"

    def __init__(self, clock: str = "host", tsc_khz: int = 0, translate: int | None = None) -> None:
        if clock not in CLOCKS:
            raise ConfigError(f"clock {clock!r}: one of {', '.join(CLOCKS)}")
        if not 0 <= tsc_khz < 1 << 32:
            raise ConfigError(f"a TSC of {tsc_khz} kHz")
        self.clock = clock
        self.tsc_khz = tsc_khz
        self.threshold = int(os.environ.get("KVMPY_TRANSLATE", THRESHOLD)) if translate is None else translate

    def create_vm(self) -> SoftVm:
        """A VM without memory and vCPUs."""
        vm = SoftVm(self.clock == "virtual", self.tsc_khz)
        if self.threshold:
            vm.translate(self.threshold)
        return vm

    def supported_cpuid(self) -> list[CData]:
        return supported_cpuid()

    def close(self) -> None:
        """Nothing to let go of: its VMs close themselves."""
