"""CPU models on the software CPU: its own table cut down, in force on a vCPU, and seen by CPUID in the guest."""

from __future__ import annotations

import pytest

from kvmpy.cpuid import MODELS, entries_for, features_of
from kvmpy.native import lib
from kvmpy.soft import SoftBackend
from tests.soft.soft_guest import Guest

CPUID = b"\x0f\xa2\xf4"  # cpuid; hlt


def cpuid(guest: Guest, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    guest.set(rip=0x8000, rax=leaf, rcx=subleaf)
    assert guest.vcpu.run() == lib.KVM_EXIT_HLT
    regs = guest.vcpu.get_regs()
    return regs.rax, regs.rbx, regs.rcx, regs.rdx


def test_the_core_has_all_that_version_3_asks_for() -> None:
    has = features_of(SoftBackend().supported_cpuid())
    assert {"avx2", "bmi2", "fma", "f16c", "movbe", "lzcnt", "aes", "sha_ni", "pclmulqdq", "adx", "rdrand", "xsave", "smep", "smap"} <= has
    assert not {"avx512f", "hle", "rtm", "la57", "pku"} & has


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_model_is_what_the_guest_sees(model: str) -> None:
    guest = Guest(CPUID, "protected")
    entries = entries_for(model, guest.backend.supported_cpuid(), 0, 1)
    guest.vcpu.set_cpuid(entries)
    wanted = features_of(entries)
    edx, ecx = cpuid(guest, 1)[3], cpuid(guest, 1)[2]
    assert edx >> 26 & 1, "SSE2"
    assert bool(ecx >> 23 & 1) == ("popcnt" in wanted) and bool(ecx >> 28 & 1) == ("avx" in wanted)
    assert bool(cpuid(guest, 7)[1] >> 5 & 1) == ("avx2" in wanted)
    guest.close()


def test_a_feature_that_is_taken_away_is_an_invalid_opcode() -> None:
    guest = Guest(b"\xf3\x0f\xb8\xc3\xf4", "real")  # popcnt ax, bx; hlt
    guest.put(6 * 4, b"\x00\x90\x00\x00")  # vector 6: 0000:9000
    guest.put(0x9000, b"\xe7\x66")  # out 66h, ax
    guest.vcpu.set_cpuid(entries_for("x86-64-v2,-popcnt", guest.backend.supported_cpuid(), 0, 1))
    assert guest.vcpu.run() == lib.KVM_EXIT_IO and guest.vcpu.record.io.port == 0x66
    guest.close()


def test_places_in_the_package() -> None:
    guest = Guest(CPUID, "protected", cpus=2)
    supported = guest.backend.supported_cpuid()
    guest.vcpu.set_cpuid(entries_for("max", supported, 0, 2))
    guest.vcpus[1].set_cpuid(entries_for("max", supported, 1, 2))
    first = {(e.function, e.index): e for e in guest.vcpu.get_cpuid()}
    second = {(e.function, e.index): e for e in guest.vcpus[1].get_cpuid()}
    assert first[1, 0].ebx >> 24 == 0 and second[1, 0].ebx >> 24 == 1
    assert (first[1, 0].ebx >> 16 & 0xFF) == 2
    if (0xB, 0) in first:
        assert (first[0xB, 0].edx, second[0xB, 0].edx) == (0, 1)
    guest.close()
