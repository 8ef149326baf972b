"""The core's trace records (struct kp_trace_record of abi/core.inc) and events, each made from the other."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

from kvmpy.trace.event import KINDS, NUMBERS, Event
from kvmpy.x86 import EXCEPTIONS, msr_name

RECORD = struct.Struct("<8QIIBBBBHH")
"""time, host, rip, data[5], guest, cost, kind, flags, vcpu, cpl, size, count"""
SIZE = RECORD.size

WRITE, RIP, SERVED, STOP, ERROR, BYTES, JSON = 1, 2, 4, 8, 16, 32, 64
NOBODY = 255
_NAMES = dict(enumerate(KINDS, 1))
_LOW = (1 << 32) - 1
_U64 = (1 << 64) - 1
_WIDE = frozenset(("block", "hypercall", "cpuid", "exception", "irq", "instruction"))

# The chips that stand in the core, by port and by address; the local and the I/O APIC where they are after a reset.
_CHIP_PORTS = {
    **dict.fromkeys((0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1), "8259"),
    **dict.fromkeys((0x40, 0x41, 0x42, 0x43, 0x61), "8254"),
}


def _io(data: tuple[int, ...], flags: int, size: int, count: int, payload: bytes) -> dict[str, Any]:
    value = int.from_bytes(payload, "little") if flags & BYTES else data[1]
    return {"port": data[0], "size": size, "count": count, "write": bool(flags & WRITE), "value": value}


def _access(data: tuple[int, ...], flags: int, size: int, count: int, payload: bytes) -> dict[str, Any]:
    if size > 8:
        # The core keeps 32 bytes, the largest vector; of an area as FXSAVE's those are the first.
        content = payload if flags & BYTES else struct.pack("<4Q", *data[1:5])[:size]
        value = int.from_bytes(content, "little")
    else:
        value = data[1]
    return {"address": data[0], "size": size, "write": bool(flags & WRITE), "value": value}


def _msr(data: tuple[int, ...], flags: int, size: int, count: int, payload: bytes) -> dict[str, Any]:
    served, write = bool(flags & SERVED), bool(flags & WRITE)
    value = data[1] if served or write else None
    return {"index": data[0], "name": msr_name(data[0]), "write": write, "value": value, "served": served}


def _cpuid(data: tuple[int, ...], flags: int, size: int, count: int, payload: bytes) -> dict[str, Any]:
    eax, ebx, ecx, edx = data[1] & _LOW, data[1] >> 32, data[2] & _LOW, data[2] >> 32
    return {"leaf": data[0], "subleaf": data[3], "eax": eax, "ebx": ebx, "ecx": ecx, "edx": edx}


def _irq(data: tuple[int, ...], flags: int, size: int, count: int, payload: bytes) -> dict[str, Any]:
    return {"vector": data[0], "soft": True} if flags & ERROR else {"vector": data[0]}


def _exception(data: tuple[int, ...], flags: int, size: int, count: int, payload: bytes) -> dict[str, Any]:
    out: dict[str, Any] = {"vector": data[0], "name": EXCEPTIONS.get(data[0], str(data[0]))}
    if flags & ERROR:
        out["error"] = data[1]
    if data[0] == 14:
        out["address"] = data[2]
    return out


_READERS: dict[str, Callable[[tuple[int, ...], int, int, int, bytes], dict[str, Any]]] = {
    "io": _io,
    "mmio": _access,
    "memory": _access,
    "msr": _msr,
    "cpuid": _cpuid,
    "irq": _irq,
    "exception": _exception,
    "hypercall": lambda data, *_: {"number": data[0], "arguments": list(data[1:5])},
    "block": lambda data, *_: {"address": data[0], "count": data[1]},
    "instruction": lambda data, *_: {"address": data[0]},
}


class BrokenRecord(Exception):
    """A record that no writer has made; its text says why."""


def event_of(fields: tuple[int, ...], payload: bytes = b"") -> Event:
    """The event of one record, as RECORD unpacks it, and the bytes that follow it. Raises BrokenRecord."""
    time, host, rip, *data, guest, cost, number, flags, vcpu, cpl, size, count = fields
    kind = _NAMES.get(number)
    if kind is None:
        raise BrokenRecord(f"no kind of event has the number {number}")
    if flags & JSON:
        try:
            read = json.loads(payload)
        except ValueError:
            read = None
        if not isinstance(read, dict):
            raise BrokenRecord("its data is no JSON object")
        content: dict[str, Any] = read
    else:
        reader = _READERS.get(kind)
        if reader is None:
            raise BrokenRecord(f"an event of kind {kind} without its data")
        content = reader(tuple(data), flags, size, count, payload)
    return Event(
        kind, -1 if vcpu == NOBODY else vcpu, time, content, rip if flags & RIP else None, host, guest, cost,
        None if cpl == NOBODY else cpl,
    )


def payload_size(fields: tuple[int, ...]) -> int:
    """Bytes that follow the record, the filling up to whole records not counted."""
    return fields[4] if fields[11] & (BYTES | JSON) else 0


def slots(size: int) -> int:
    """Records that so many bytes take."""
    return -(-size // SIZE)


def records_in(data: bytes) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Fields and following bytes of the records in whole records' bytes. Raises BrokenRecord where bytes are missing."""
    at = 0
    while at < len(data):
        fields = RECORD.unpack_from(data, at)
        at += SIZE
        size = payload_size(fields)
        if size > len(data) - at:
            raise BrokenRecord("the data that belongs to it is missing")
        yield fields, data[at : at + size]
        at += slots(size) * SIZE


_FIXED = {
    "io": {"port", "size", "count", "write", "value"},
    "mmio": {"address", "size", "write", "value"},
    "memory": {"address", "size", "write", "value"},
    "block": {"address", "count"},
    "instruction": {"address"},
}


def record_of(event: Event) -> bytes:
    """The record of an event and what follows it; events whose data has other keys than a record's fields carry it as JSON.
    `device` of a port or MMIO access is left out: a reader knows it by the address."""
    data, kind = event.data, event.what
    flags = RIP if event.rip is not None else 0
    first = second = size = 0
    count, payload = 1, b""
    fixed = _FIXED.get(kind)
    value = data.get("value", 0)
    if fixed is not None and data.keys() - {"device"} == fixed and isinstance(value, int) and value >= 0:
        first = data.get("address", data.get("port", 0))
        size, count = data.get("size", 0), data.get("count", 1)
        flags |= WRITE if data.get("write") else 0
        second = data["count"] if kind == "block" else value
        if kind == "block":
            count = 1
        elif value > _U64 or (kind == "io" and size * count > 8):
            payload = value.to_bytes(size * count if kind == "io" else size, "little")
            second, flags = len(payload), flags | BYTES
    elif kind == "msr" and isinstance(data["index"], int) and data.keys() == {"index", "name", "write", "value", "served"}:
        first, second, size = data["index"], data["value"] or 0, 8
        flags |= (WRITE if data["write"] else 0) | (SERVED if data["served"] else 0)
    else:
        payload = json.dumps(data, separators=(",", ":"), default=str).encode()
        second, flags = len(payload), flags | JSON
    head = RECORD.pack(
        event.time & _U64, event.host, event.rip or 0, first, second, 0, 0, 0, min(event.guest, _LOW), min(event.cost, _LOW),
        NUMBERS[kind], flags, NOBODY if event.vcpu < 0 else event.vcpu, NOBODY if event.cpl is None else event.cpl, size, count,
    )
    return head + payload.ljust(slots(len(payload)) * SIZE, b"\0")


def chip_name(kind: str, data: dict[str, Any]) -> str | None:
    """The chip of the core that serves a port or an address."""
    if kind == "io":
        return _CHIP_PORTS.get(data["port"])
    page = data["address"] >> 12
    return "local APIC" if page == 0xFEE00 else "I/O APIC" if page == 0xFEC00 else None
