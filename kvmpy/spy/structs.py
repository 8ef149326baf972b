"""C structs of the KVM interface as plain data: dicts by member name, numbers, bytes as text in hexadecimal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmpy.native import CData, ffi, lib

_UNIONS: dict[tuple[str, str], Callable[[CData], str]] = {
    ("struct kvm_irq_routing_entry", "u"): lambda s: "msi" if s.type == lib.KVM_IRQ_ROUTING_MSI else "irqchip",
    ("struct kvm_irqchip", "chip"): lambda s: "ioapic" if s.chip_id == lib.KVM_IRQCHIP_IOAPIC else "pic",
}
"""Which member of a union counts. Of every other union it is the first."""

_PADDING = ("pad", "reserved", "padding")
_COUNTS = ("nmsrs", "nent", "nr", "len", "nevents", "nr_xcrs")
"""Members that tell how many elements the struct's last array has."""


def read_struct(struct: CData) -> dict[str, Any]:
    """All members of a struct (not a pointer to one) but its padding."""
    out: dict[str, Any] = {}
    kind = ffi.typeof(struct)
    count = _count(struct, kind)
    end = 0
    for name, field in kind.fields:
        if name.rstrip("0123456789") in _PADDING:
            continue
        if field.bitsize < 0:
            if field.offset < end:
                continue  # members of an anonymous union lie over one another: the first stands for all
            end = field.offset + (0 if field.type.kind == "array" and field.type.length is None else ffi.sizeof(field.type))
        if field.type.kind == "union":
            member = _UNIONS.get((kind.cname, name), lambda _: "")(struct) or field.type.fields[0][0]
            out[name] = _plain(getattr(getattr(struct, name), member))
        elif field.type.kind == "array" and count is not None and _last(kind, name):
            items = getattr(struct, name)
            kept = count if field.type.length is None else min(count, field.type.length)
            out[name] = _array(items, kept, field.type)
        else:
            out[name] = _plain(getattr(struct, name))
    return out


def _last(kind: Any, name: str) -> bool:
    """True for the array that a count belongs to: the last member that is no padding."""
    members = [member for member, _ in kind.fields if member and member.rstrip("0123456789") not in _PADDING]
    return bool(members) and members[-1] == name


def _count(struct: CData, kind: Any) -> int | None:
    first = kind.fields[1 if kind.cname == "struct kvm_pmu_event_filter" else 0][0]
    return int(getattr(struct, first)) if first in _COUNTS else None


def _array(items: CData, count: int, kind: Any) -> Any:
    if kind.item.kind == "primitive" and ffi.sizeof(kind.item) == 1:
        return bytes(ffi.buffer(items, count)).hex(" ")
    return [_plain(items[index]) for index in range(count)]


def _plain(value: Any) -> Any:
    if isinstance(value, int):
        return value
    if isinstance(value, bytes):
        return value[0]
    kind = ffi.typeof(value)
    if kind.kind == "array":
        return _array(value, kind.length or 0, kind)
    if kind.kind == "pointer":
        return int(ffi.cast("uintptr_t", value))
    if kind.kind == "union":
        return _plain(getattr(value, kind.fields[0][0]))
    return read_struct(value)


def flexible(name: str) -> tuple[str, int] | None:
    """(count member, size of an element) of a struct that ends in an array without length; None for any other."""
    kind = ffi.typeof(f"struct {name}")
    _, field = kind.fields[-1]
    if field.type.kind != "array" or field.type.length is not None:
        return None
    return next(member for member, _ in kind.fields if member in _COUNTS), ffi.sizeof(field.type.item)


def decode(name: str, data: bytes) -> dict[str, Any]:
    """The struct that `data` holds. A flexible array has as many elements as its count says, but none that `data` has not.

    Raises ValueError when the data are too short for the struct itself.
    """
    size = ffi.sizeof(f"struct {name}")
    if len(data) < size:
        raise ValueError(f"struct {name} has {size} bytes, not {len(data)}")
    tail = flexible(name)
    room = ffi.new("uint8_t[]", max(len(data), 1))
    ffi.memmove(room, data, len(data))
    struct = ffi.cast(f"struct {name} *", room)
    if tail is not None:
        member, item = tail
        setattr(struct, member, min(int(getattr(struct, member)), (len(data) - size) // item))
    return read_struct(struct[0])
