"""File descriptors of KVM, recognised from outside; and the filter that stops a program at its KVM calls."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from kvmpy.errors import MissingCapability
from kvmpy.kvm import KvmBackend, probe
from kvmpy.native import ffi
from kvmpy.spy.fds import FdTable, Kvm, Vcpu, Vm
from kvmpy.spy.memory import ProcessMemory

pytest.importorskip("ptrace", reason="python-ptrace is not installed")


@pytest.fixture
def table() -> Iterator[FdTable]:
    memory = ProcessMemory(os.getpid())
    yield FdTable(os.getpid(), memory)
    memory.close()


@pytest.fixture
def backend() -> Iterator[KvmBackend]:
    if why := probe.unavailable():
        pytest.skip(why)
    with KvmBackend() as one:
        yield one


def _links() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass
    return found


def test_what_each_is(table: FdTable, backend: KvmBackend) -> None:
    with backend.create_vm() as vm:
        made = [vm.create_vcpu(index) for index in range(2)]
        table.scan()
        vms = [owner for owner in table if isinstance(owner, Vm)]
        vcpus = {owner.index: owner for owner in table if isinstance(owner, Vcpu)}
        assert len(vms) == 1 and set(vcpus) == {0, 1} and any(isinstance(owner, Kvm) for owner in table)
        assert all(vcpu.vm is vms[0] for vcpu in vcpus.values())
        for vcpu in vcpus.values():
            table.locate(vcpu)
        assert [vcpus[index].record for index in range(2)] == [int(ffi.cast("uintptr_t", one.record)) for one in made]
        fd = next(fd for fd, link in _links().items() if link == "anon_inode:kvm-vcpu:1")
        copy = os.dup(fd)
        try:
            table.forget(copy)  # the number of the directory that the scan had open
            assert table.find(copy) is vcpus[1]
            assert table.forget(copy) == []
            assert table.forget(fd) == [vcpus[1]]
            os.dup2(os.open(os.devnull, os.O_RDONLY), copy)
            assert table.find(copy) is None
        finally:
            os.close(copy)


def test_records_of_two_vms_are_not_mixed_up(table: FdTable, backend: KvmBackend) -> None:
    with backend.create_vm() as one, backend.create_vm() as two:
        kept = [one.create_vcpu(0), two.create_vcpu(0)]
        table.scan()
        vcpu = next(owner for owner in table if isinstance(owner, Vcpu))
        with pytest.raises(MissingCapability, match="another VM"):
            table.locate(vcpu)
        assert len(kept) == 2 and vcpu.vm is None and table.many_vms


def test_none_of_kvm(table: FdTable) -> None:
    read, write = os.pipe()
    try:
        assert table.find(read) is None and table.find(10_000) is None
    finally:
        os.close(read)
        os.close(write)
    table.new_vm(20)
    table.new_vcpu(21, table.find(20), 3)
    vcpu = table.find(21)
    assert isinstance(vcpu, Vcpu) and vcpu.index == 3 and vcpu.vm is table.find(20)
    assert table.forget(21, 0xFFFFFFFF) == [vcpu]
    assert table.find(21) is None and isinstance(table.find(20), Vm)


def _verdict(rules: bytes, number: int, arguments: tuple[int, ...] = (), arch: int = 0xC000003E) -> str:
    """What a seccomp filter says, by the rules of classic BPF."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *(0,) * (6 - len(arguments)))
    at = accumulator = 0
    while True:
        code, true, false, value = struct.unpack_from("=HBBI", rules, at * 8)
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == 0x54:
            accumulator &= value
        elif code == 0x15:
            at += true if accumulator == value else false
        else:
            assert code == 0x06
            return {0x7FF00000: "trace", 0x7FFF0000: "allow"}[value]


def test_the_filter_stops_at_what_counts_and_nothing_else() -> None:
    from kvmpy.spy.start import seccomp_rules

    rules = seccomp_rules()
    shared, private = 1, 2
    assert _verdict(rules, 16, (5, 0xAE80, 0)) == "trace"
    assert _verdict(rules, 16, (5, 0x4020AE46, 1)) == "trace"
    assert _verdict(rules, 16, (0, 0x5401)) == "allow"  # TCGETS
    assert _verdict(rules, 16, (0, 0xAE5401)) == "allow"
    assert _verdict(rules, 9, (0, 4096, 3, shared, 5, 0)) == "trace"
    assert _verdict(rules, 9, (0, 4096, 3, private, 5, 0)) == "allow"
    assert [_verdict(rules, number) for number in (3, 33, 292, 436)] == ["trace"] * 4
    assert [_verdict(rules, number) for number in (0, 1, 202, 231, 435, 437, 16 | 1 << 30)] == ["allow"] * 7
    assert _verdict(rules, 16, (5, 0xAE80), arch=0x40000003) == "allow"
