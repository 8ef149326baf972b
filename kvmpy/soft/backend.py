"""The way to VMs of the software CPU; it needs nothing of the host."""

from __future__ import annotations

import os

from kvmpy.errors import ConfigError
from kvmpy.native import CData, check, ffi, lib
from kvmpy.soft.vm import SoftVm

CLOCKS = ("host", "virtual")
MOST_ENTRIES = 256
THRESHOLD = 128
"""Runs of a block before it is translated, where nobody says otherwise (KVMPY_TRANSLATE in the environment does)."""
VARIABLE = "KVMPY_TRANSLATE"
VERIFY_THRESHOLD = 2
"""The same where everything is verified: at the second run a block's successors have run too, and may become part of its region."""
VERIFY_VARIABLE = "KVMPY_VERIFY_TRANSLATOR"
_U32 = (1 << 32) - 1


def threshold_of(translate: int | str | None) -> int:
    """Runs of a block before it is translated, 0 for never: of "on", "off", a number or its text. None: as KVMPY_TRANSLATE in the
    environment says, else "on". Raises ConfigError."""
    told, where = translate, "translate"
    if told is None:
        told, where = os.environ.get(VARIABLE, "on"), VARIABLE
    if told in ("on", "off"):
        return THRESHOLD if told == "on" else 0
    try:
        count = int(told)
    except ValueError:
        count = -1
    if not 0 <= count <= _U32:
        raise ConfigError(f"{where} {told!r}: on, off, or how often a block runs before it is translated")
    return count


def verifying(verify: bool | None) -> bool:
    """Does everything run twice? None: as KVMPY_VERIFY_TRANSLATOR in the environment says (1, or 0 and nothing). Raises ConfigError."""
    if verify is not None:
        return verify
    told = os.environ.get(VERIFY_VARIABLE, "")
    if told not in ("", "0", "1"):
        raise ConfigError(f"{VERIFY_VARIABLE} {told!r}: 0 or 1")
    return told == "1"


def supported_cpuid() -> list[CData]:
    """Owned `struct kvm_cpuid_entry2` entries of everything that the core can do."""
    table = ffi.new("struct kvm_cpuid_entry2[]", MOST_ENTRIES)
    count = check("kp_supported_cpuid", lib.kp_supported_cpuid(table, MOST_ENTRIES))
    return [ffi.new("struct kvm_cpuid_entry2 *", table[n]) for n in range(count)]


class SoftBackend:
    """`clock`: "host" runs timers and TSC on the host's clock; "virtual" counts 1 ns per instruction, the same on every run.

    `tsc_khz` is the TSC's frequency; 0 takes the core's own (1 GHz). `translate`: blocks that have run so often are translated to
    host code, 0 or "off": everything is interpreted, None: as `threshold_of` says. `code_cache`: bytes for the translations of one
    VM, which are all dropped when it is full. `parallel`: each vCPU runs in a thread of its own, beside the others, else they take
    turns. `verify_translator`: everything runs twice, interpreted and translated (soon, unless `translate` has a number), and a
    difference ends the run; None: as `verifying` says. Raises ConfigError.
    """

    name = "soft"

    def __init__(
        self, clock: str = "host", tsc_khz: int = 0, translate: int | str | None = None, code_cache: int = lib.KP_CODE_CACHE,
        parallel: bool = False, verify_translator: bool | None = None,
    ) -> None:
        if clock not in CLOCKS:
            raise ConfigError(f"clock {clock!r}: one of {', '.join(CLOCKS)}")
        if parallel and clock == "virtual":
            raise ConfigError("parallel: virtual time counts instructions of vCPUs in turns; leave one of the two out")
        if parallel and os.uname().machine != "x86_64":
            raise ConfigError("parallel: only an x86-64 host keeps the guest's memory order; leave parallel out")
        if not 0 <= tsc_khz < 1 << 32:
            raise ConfigError(f"a TSC of {tsc_khz} kHz")
        self.clock = clock
        self.tsc_khz = tsc_khz
        if not lib.KP_CODE_CACHE_LEAST <= code_cache <= lib.KP_CODE_CACHE_MOST:
            raise ConfigError(f"a code cache of {code_cache} bytes: {lib.KP_CODE_CACHE_LEAST} to {lib.KP_CODE_CACHE_MOST}")
        self.threshold = threshold_of(translate)
        self.verify = verifying(verify_translator)
        if self.verify and not self.threshold and verify_translator:
            raise ConfigError("verify_translator: nothing is translated")
        if self.verify and parallel:
            if verify_translator:
                raise ConfigError("verify_translator: vCPUs in parallel do not run twice; leave parallel out")
            self.verify = False
        if self.verify and translate is None:
            self.threshold = min(self.threshold, VERIFY_THRESHOLD)
        self.code_cache = code_cache
        self.parallel = parallel

    def create_vm(self) -> SoftVm:
        """A VM without memory and vCPUs; one that interprets where the host forbids executable memory (`SoftVm.translating`)."""
        vm = SoftVm(self.clock == "virtual", self.tsc_khz, self.parallel)
        if self.threshold:
            vm.translate(self.threshold, self.code_cache)
            if self.verify and vm.translating:
                vm.verify_translator()
        return vm

    def supported_cpuid(self) -> list[CData]:
        return supported_cpuid()

    def close(self) -> None:
        """Nothing to let go of: its VMs close themselves."""
