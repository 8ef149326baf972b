"""Arguments of KVM calls as plain data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmpy.errors import MemoryAccessError
from kvmpy.native import ffi, lib
from kvmpy.spy import ioctls
from kvmpy.spy.structs import decode, read_struct

ABI = Path(__file__).resolve().parent.parent.parent / "kvmpy" / "abi"
BASE = 0x7000_0000


def reader(data: bytes):
    """Memory that holds `data` at BASE and nothing else."""

    def read(address: int, size: int) -> bytes:
        at = address - BASE
        if at < 0 or at + size > len(data):
            raise MemoryAccessError(address, size)
        return data[at : at + size]

    return read


def arguments(request: int, data: bytes, result: int = 0) -> dict:
    return ioctls.arguments(request, BASE, result, reader(data))


def test_every_request_has_its_name_and_no_other_constant_passes_for_one() -> None:
    declared = dict(re.findall(r"^#define (\w+) (0x\w+)$", (ABI / "ioctls.inc").read_text(), re.M))
    assert {int(value, 16): name for name, value in declared.items()} == ioctls.NAMES
    assert ioctls.name_of(0xAE80) == "KVM_RUN" and ioctls.name_of(0xAEFF) == "0xaeff"


@pytest.mark.parametrize("name", sorted(ioctls.STRUCTS))
def test_structs_have_the_size_that_the_request_says(name: str) -> None:
    size = getattr(lib, name) >> 16 & 0x3FFF
    if name == "KVM_REINJECT_CONTROL":  # declared by _IO, without a size
        assert size == 0
    else:
        assert size == ffi.sizeof(f"struct {ioctls.STRUCTS[name]}")


def test_a_table_says_what_each_argument_is_once() -> None:
    kinds = [set(ioctls.STRUCTS), set(ioctls.NUMBERS), set(ioctls.POINTERS), set(ioctls.PLAIN)]
    assert sum(map(len, kinds)) == len(set().union(*kinds)) and set().union(*kinds) <= set(ioctls.NAMES.values())


def test_numbers_and_pointers() -> None:
    assert ioctls.arguments(lib.KVM_CHECK_EXTENSION, lib.KVM_CAP_IRQCHIP, 1, reader(b"")) == {"cap": "KVM_CAP_IRQCHIP"}
    assert ioctls.arguments(lib.KVM_CHECK_EXTENSION, 0xFFFF, 0, reader(b"")) == {"cap": 0xFFFF}
    assert ioctls.arguments(lib.KVM_CREATE_VCPU, 3, 9, reader(b"")) == {"id": 3}
    assert ioctls.arguments(lib.KVM_RUN, 0, 0, reader(b"")) == {}
    assert arguments(lib.KVM_SET_IDENTITY_MAP_ADDR, (0xFEFFC000).to_bytes(8, "little")) == {"address": 0xFEFFC000}


def test_what_cannot_be_read_or_is_not_known_is_shown_as_an_address() -> None:
    assert ioctls.arguments(lib.KVM_SET_REGS, 0x1234, -14, reader(b"")) == {"argument": 0x1234}
    assert ioctls.arguments(0xAEFF, 5, -25, reader(b"")) == {"argument": 5}


def test_registers() -> None:
    regs = ffi.new("struct kvm_regs *", {"rax": 1, "rip": 0xFFF0})
    found = arguments(lib.KVM_SET_REGS, bytes(ffi.buffer(regs)))
    assert (found["rax"], found["rip"], found["rbx"], len(found)) == (1, 0xFFF0, 0, 18)


def test_msrs_by_name() -> None:
    table = ffi.new("struct kvm_msrs *", {"nmsrs": 2, "entries": 2})
    table.entries[0].index, table.entries[0].data = 0xC0000080, 0x500
    table.entries[1].index, table.entries[1].data = 0x12345, 7
    data = bytes(ffi.buffer(table, ffi.sizeof("struct kvm_msrs") + 2 * ffi.sizeof("struct kvm_msr_entry")))
    assert arguments(lib.KVM_SET_MSRS, data) == {"nmsrs": 2, "entries": {"EFER": 0x500, "0x12345": 7}}


def test_a_count_that_lies_reads_nothing_beyond_memory() -> None:
    head = (0xFFFFFFFF).to_bytes(8, "little")
    assert arguments(lib.KVM_SET_MSRS, head + bytes(64)) == {"argument": BASE}
    found = arguments(lib.KVM_SET_MSRS, head + bytes(2 << 16))
    assert found["nmsrs"] == ioctls.MOST_TAIL // 16


def test_a_list_that_was_too_small_has_no_entries() -> None:
    head = (75).to_bytes(4, "little") + bytes(4)
    assert arguments(lib.KVM_GET_SUPPORTED_CPUID, head, -7)["entries"] == []
    assert len(arguments(lib.KVM_GET_SUPPORTED_CPUID, head + bytes(75 * 40), 0)["entries"]) == 75


def test_unions_show_the_member_that_counts() -> None:
    routing = ffi.new("struct kvm_irq_routing *", {"nr": 2, "entries": 2})
    routing.entries[0].type, routing.entries[0].u.irqchip.pin = lib.KVM_IRQ_ROUTING_IRQCHIP, 5
    routing.entries[1].type, routing.entries[1].u.msi.data = lib.KVM_IRQ_ROUTING_MSI, 0x41
    data = bytes(ffi.buffer(routing, ffi.sizeof("struct kvm_irq_routing") + 2 * ffi.sizeof("struct kvm_irq_routing_entry")))
    chip, message = arguments(lib.KVM_SET_GSI_ROUTING, data)["entries"]
    assert chip["u"] == {"irqchip": 0, "pin": 5}
    assert message["u"] == {"address_lo": 0, "address_hi": 0, "data": 0x41, "devid": 0}
    found = ffi.new("struct kvm_irqchip *", {"chip_id": lib.KVM_IRQCHIP_IOAPIC})
    found.chip.ioapic.redirtbl[1].bits = 0x10020
    ioapic = arguments(lib.KVM_GET_IRQCHIP, bytes(ffi.buffer(found)))
    assert ioapic["chip_id"] == "IOAPIC" and ioapic["chip"]["redirtbl"][1] == 0x10020
    assert "irq_base" in arguments(lib.KVM_GET_IRQCHIP, bytes(520))["chip"]
    assert arguments(lib.KVM_IRQ_LINE, bytes((4, 0, 0, 0, 1, 0, 0, 0))) == {"irq": 4, "level": 1}


def test_flags_and_pointers() -> None:
    region = ffi.new("struct kvm_userspace_memory_region *", {"slot": 2, "flags": 3, "memory_size": 4096})
    assert arguments(lib.KVM_SET_USER_MEMORY_REGION, bytes(ffi.buffer(region)))["flags"] == "LOG_DIRTY_PAGES|READONLY"
    log = ffi.new("struct kvm_dirty_log *", {"slot": 1})
    log.padding2 = 0x7F00_0000_1000
    assert read_struct(log[0]) == {"slot": 1, "dirty_bitmap": 0x7F00_0000_1000}


def test_bytes_are_text_and_short_data_are_refused() -> None:
    mask = (8).to_bytes(4, "little") + bytes(range(8))
    assert arguments(lib.KVM_SET_SIGNAL_MASK, mask) == {"len": 8, "sigset": "00 01 02 03 04 05 06 07"}
    with pytest.raises(ValueError):
        decode("kvm_regs", bytes(8))


@pytest.mark.parametrize("struct", sorted(set(ioctls.STRUCTS.values())))
def test_every_struct_is_plain_data(struct: str) -> None:
    import json

    data = bytes(range(256)) * 24
    size = ffi.sizeof(f"struct {struct}")
    assert json.loads(json.dumps(decode(struct, data[:size] + data)))
