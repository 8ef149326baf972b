"""/dev/kvm itself: version, extensions, CPUID and MSR lists, and the errors of opening it."""

from __future__ import annotations

import errno
import gc
import os

import pytest

from kvmpy.backends import Choice, choose_backend, open_backend
from kvmpy.errors import ConfigError, HostError, MissingCapability
from kvmpy.kvm import KvmBackend, probe
from kvmpy.native import check, lib
from kvmpy.x86 import MSR_LSTAR, MSR_STAR


def test_version_and_sizes(kvm: KvmBackend) -> None:
    assert kvm.api_version() == 12
    assert kvm.vcpu_mmap_size() >= 3 * 4096
    assert kvm.check_extension(lib.KVM_CAP_USER_MEMORY) == 1
    assert kvm.check_extension(lib.KVM_CAP_NR_MEMSLOTS) >= 32
    assert kvm.check_extension(9999) == 0


def test_supported_cpuid_has_the_basic_leaves(kvm: KvmBackend) -> None:
    leaves = {entry.function for entry in kvm.supported_cpuid()}
    assert {0, 1, 0x80000000, 0x80000001, lib.KVM_CPUID_SIGNATURE} <= leaves
    vendor = next(entry for entry in kvm.supported_cpuid() if entry.function == 0)
    assert vendor.ebx and vendor.ecx and vendor.edx


def test_emulated_cpuid_is_a_table(kvm: KvmBackend) -> None:
    assert all(entry.function <= 0xFFFFFFFF for entry in kvm.emulated_cpuid())


def test_msr_lists(kvm: KvmBackend) -> None:
    indices = kvm.msr_indices()
    assert MSR_STAR in indices and MSR_LSTAR in indices and len(indices) == len(set(indices))
    features = kvm.feature_msrs()
    assert set(features) <= set(kvm.msr_feature_indices())


def test_open_errors_name_the_remedy(tmp_path) -> None:
    with pytest.raises(HostError, match="No such file") as caught:
        KvmBackend(str(tmp_path / "kvm"))
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(HostError) as not_kvm:
        KvmBackend("/dev/null")
    assert not_kvm.value.errno in (errno.ENOTTY, errno.EINVAL)
    assert "KVM_GET_API_VERSION" in str(not_kvm.value)


def test_permission_is_explained() -> None:
    with pytest.raises(HostError, match=r"usermod -aG kvm") as caught:
        check("/dev/kvm", -errno.EACCES)
    assert str(caught.value).startswith("/dev/kvm: Permission denied: add yourself to group kvm")
    with pytest.raises(HostError, match="modprobe"):
        check("/dev/kvm", -errno.ENOENT)
    assert check("KVM_RUN", 5) == 5


def test_other_api_version_is_refused(monkeypatch, kvm: KvmBackend) -> None:
    monkeypatch.setattr(KvmBackend, "api_version", lambda self: 11)
    with pytest.raises(MissingCapability, match="version 11"):
        KvmBackend()


def test_closing_twice_is_harmless_and_leaks_nothing(kvm: KvmBackend) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        vm = kvm.create_vm()
        vm.create_vcpu(0)
        vm.statistics()
        vm.vcpus[0].statistics()
        vm.close()
        vm.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_probe_is_consistent(kvm: KvmBackend) -> None:
    host = probe.probe()
    assert host.available and not host.why and "kvm" in host.modules
    assert host.real_mode and host.long_mode
    assert host.capabilities["memory_slots"] >= 32
    if host.cpl0_on_hardware:
        assert host.paging32 and host.syscall_from_user and host.sse_at_cpl0 and host.int_n_at_cpl0
    assert set(host.as_dict()) >= set(probe.PROBES)
    assert probe.probe() is host


def test_choice_follows_the_probe(kvm: KvmBackend) -> None:
    assert choose_backend().name == ("kvm" if probe.ask("cpl0_on_hardware") else "soft")
    assert choose_backend("soft") == Choice("soft", "asked for by name")
    assert open_backend("kvm").name == "kvm"
    with pytest.raises(ConfigError, match="qemu"):
        choose_backend("qemu")


def test_choice_without_kvm_says_why(monkeypatch) -> None:
    monkeypatch.setattr(probe, "unavailable", lambda: "/dev/kvm: Permission denied: add yourself to group kvm")
    choice = choose_backend()
    assert choice.name == "soft" and "Permission denied" in choice.why
