"""Memory slots, dirty log, dirty ring."""

from __future__ import annotations

import errno

import pytest

from kvmpy.errors import HostError, KvmpyError
from kvmpy.exits import MmioExit, decode
from kvmpy.native import lib
from tests.kvm.guest import CODE, HLT, MMIO

STORE = b"\x88\x07\xf4"  # mov [rdi], al; hlt
LOAD = b"\x8a\x07\xf4"


def _again(one, **regs) -> None:
    one.set(rip=CODE, **regs)
    assert one.run() == HLT


def test_add_move_delete(guest) -> None:
    one = guest(LOAD, "long")
    one.put(0x20000, b"\x77")
    one.vm.set_memory(1, 0x400000, one.host + 0x20000, 0x1000)
    _again(one, rdi=0x400000)
    assert one.vcpu.get_regs().rax & 0xFF == 0x77
    one.vm.set_memory(1, 0x500000, one.host + 0x20000, 0x1000)
    _again(one, rdi=0x500000, rax=0)
    assert one.vcpu.get_regs().rax & 0xFF == 0x77
    one.set(rip=CODE, rdi=0x400000)
    assert one.run() == MMIO
    one.run()
    one.vm.set_memory(1, 0x500000, one.host + 0x20000, 0)
    one.set(rip=CODE, rdi=0x500000)
    assert one.run() == MMIO


def test_errors_name_the_call_and_the_remedy(guest) -> None:
    one = guest()
    with pytest.raises(HostError, match="overlaps another slot") as overlap:
        one.vm.set_memory(1, 0x1000, one.host, 0x1000)
    assert overlap.value.call == "KVM_SET_USER_MEMORY_REGION" and overlap.value.errno == errno.EEXIST
    with pytest.raises(HostError, match="page aligned"):
        one.vm.set_memory(1, 0x400001, one.host, 0x1000)
    with pytest.raises(HostError, match="cannot be resized"):
        one.vm.set_memory(0, 0, one.host, 0x2000)


def test_read_only_slot_reads_direct_and_writes_exit(guest, need) -> None:
    need("readonly_memory")
    one = guest(LOAD + STORE, "long")
    one.put(0x20000, b"\x77")
    one.vm.set_memory(1, 0x400000, one.host + 0x20000, 0x1000, readonly=True)
    _again(one, rdi=0x400000)
    assert one.vcpu.get_regs().rax & 0xFF == 0x77
    one.set(rip=CODE + len(LOAD), rax=0x55)
    assert one.run() == MMIO
    assert decode(one.vcpu.record) == MmioExit(0x400000, 1, True, b"\x55")
    assert one.run() == HLT and one.memory[0x20000] == 0x77


def _pages(log: bytes) -> set[int]:
    return {8 * i + bit for i, byte in enumerate(log) for bit in range(8) if byte >> bit & 1}


def test_dirty_log_tells_guest_and_host_writes_once(guest) -> None:
    one = guest(STORE, "long")
    one.vm.set_memory(1, 0x400000, one.host + 0x20000, 0x40000, log_dirty=True)
    assert one.vm.dirty_log(1) == bytes(8)
    _again(one, rdi=0x403000)
    one.vm.memory_written(0x405FFF, 2)
    one.vm.memory_written(0x100000000, 1 << 20)
    assert _pages(one.vm.dirty_log(1)) == {3, 5, 6}
    assert _pages(one.vm.dirty_log(1)) == set()
    _again(one, rdi=0x403000)
    assert _pages(one.vm.dirty_log(1)) == {3}
    with pytest.raises(KvmpyError, match="slot 9"):
        one.vm.dirty_log(9)
    with pytest.raises(HostError, match="KVM_GET_DIRTY_LOG"):
        one.vm.dirty_log(0)


def test_manual_clear(guest, need) -> None:
    need("manual_dirty_log")
    one = guest(STORE, "long", before_vcpu=lambda vm: vm.enable_manual_dirty_clear(initially_set=True))
    one.vm.set_memory(1, 0x400000, one.host + 0x20000, 0x40000, log_dirty=True)
    assert _pages(one.vm.dirty_log(1)) == set(range(64))
    assert _pages(one.vm.dirty_log(1)) == set()
    _again(one, rdi=0x407000)
    assert _pages(one.vm.dirty_log(1)) == {7}
    assert _pages(one.vm.dirty_log(1)) == set()


def test_dirty_ring(guest, need) -> None:
    need("dirty_ring")
    one = guest(STORE, "long", before_vcpu=lambda vm: vm.enable_dirty_ring(4096))
    one.vm.set_memory(1, 0x400000, one.host + 0x20000, 0x40000, log_dirty=True)
    for page in (2, 9):
        _again(one, rdi=0x400000 + page * 4096)
    pages = one.vcpu.dirty_pages()
    assert {page for slot, page in pages if slot == 1} == {2, 9}
    assert one.vm.reset_dirty_rings() == len(pages)
    assert one.vcpu.dirty_pages() == []
    _again(one, rdi=0x402000)
    assert (1, 2) in one.vcpu.dirty_pages()


def test_full_dirty_ring_exits(guest, need) -> None:
    need("dirty_ring")
    # mov [rdi], al; add rdi, 4096; jmp
    one = guest(b"\x88\x07\x48\x81\xc7\x00\x10\x00\x00\xeb\xf5", "long", before_vcpu=lambda vm: vm.enable_dirty_ring(1024))
    import mmap

    from kvmpy.native import ffi

    memory = mmap.mmap(-1, 16 << 20)
    view = ffi.from_buffer(memory)
    one.vm.set_memory(1, 0x1000000, int(ffi.cast("uintptr_t", view)), 16 << 20, log_dirty=True)
    one.set(rdi=0x1000000)
    assert one.run(20) == lib.KVM_EXIT_DIRTY_RING_FULL
    assert str(decode(one.vcpu.record)) == "DIRTY_RING_FULL"
    assert len(one.vcpu.dirty_pages()) > 100
    one.vm.close()
    ffi.release(view)
    memory.close()
