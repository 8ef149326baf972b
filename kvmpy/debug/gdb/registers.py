"""Values of a stopped vCPU's registers as the debugger sees them, read once per stop and written through."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from kvmpy import x86
from kvmpy.backend import Vcpu
from kvmpy.debug.gdb.fields import FROM_32, MSRS, SEGMENTS, X87_CONTROL, Field, features
from kvmpy.debug.gdb.packets import BadPacket
from kvmpy.regs import code_width

_ALL = (1 << 64) - 1
_VECTOR = re.compile(r"(k|xmm|ymm(?=\d+h)|zmm(?=\d+h))(\d+)h?")
_TABLES = ("gdt", "idt")
_SYSTEM_SEGMENTS = {"tr": "tr", "ldtr": "ldt"}
# The XSAVE area's legacy region (SDM 1 10.5.1) and header (13.4.2), and the AVX part of the standard format.
_FCW, _FSW, _FTW, _FOP, _FIP, _FDP, _MXCSR, _ST, _XMM, _XSTATE_BV, _YMM = 0, 2, 4, 6, 8, 16, 24, 32, 160, 512, 576
_X87, _SSE, _AVX, _MASKS, _ZMM_HIGH, _HIGH_ZMM = 1, 2, 4, 1 << 5, 1 << 6, 1 << 7
_SIZES = {_SSE: 256, _AVX: 256, _MASKS: 64, _ZMM_HIGH: 512, _HIGH_ZMM: 1024}
_CPUID_XSAVE = 0xD
"""Subleaf n tells in EBX where state component n lies in the standard format (SDM 2A, CPUID)."""


class Registers:
    """One vCPU's registers. `linear` shows the instruction pointer as a linear address wherever CS.base is not zero."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.linear = True
        self._kept: dict[str, Any] = {}

    def forget(self) -> None:
        """The vCPU runs: nothing that was read holds any more."""
        self._kept.clear()

    def _get(self, what: str) -> Any:
        kept = self._kept.get(what)
        if kept is None:
            kept = self._kept[what] = getattr(self.vcpu, f"get_{what}")()
        return kept

    def _put(self, what: str) -> None:
        getattr(self.vcpu, f"set_{what}")(self._kept[what])
        self.forget()

    @property
    def regs(self) -> Any:
        return self._get("regs")

    @property
    def sregs(self) -> Any:
        return self._get("sregs")

    @property
    def vectors(self) -> str:
        """What the vCPU's CPUID table has beyond SSE: "avx512" (leaf 7: EBX.AVX512F), "avx" (leaf 1: ECX.AVX), or nothing."""
        table = self.vcpu.get_cpuid()
        if any(entry.function == 7 and not entry.index and entry.ebx & 1 << 16 for entry in table) and _HIGH_ZMM in self._places:
            return "avx512"
        return "avx" if any(entry.function == 1 and entry.ecx & 1 << 28 for entry in table) else ""

    @cached_property
    def _places(self) -> dict[int, int]:
        """By component: where it lies in the XSAVE area, for those that have no fixed place."""
        return {
            1 << entry.index: int(entry.ebx)
            for entry in self.vcpu.get_cpuid()
            if entry.function == _CPUID_XSAVE and 5 <= entry.index <= 7 and entry.eax
        }

    def _vector_place(self, name: str) -> tuple[int, int, int] | None:
        """State component, place in the XSAVE area and size of a part of a vector or mask register; None for any other name."""
        found = _VECTOR.fullmatch(name)
        if found is None:
            return None
        kind, number = found[1], int(found[2])
        if kind == "k":
            return _MASKS, self._places[_MASKS] + 8 * number, 8
        if number < 16:
            if kind == "zmm":
                return _ZMM_HIGH, self._places[_ZMM_HIGH] + 32 * number, 32
            return (_SSE, _XMM + 16 * number, 16) if kind == "xmm" else (_AVX, _YMM + 16 * number, 16)
        inside, size = {"xmm": (0, 16), "ymm": (16, 16), "zmm": (32, 32)}[kind]
        return _HIGH_ZMM, self._places[_HIGH_ZMM] + 64 * (number - 16) + inside, size

    def code_base(self) -> int:
        """What is added to the instruction pointer to make it linear."""
        return int(self.sregs.cs.base) if code_width(self.sregs) != 64 else 0

    def linear_pc(self) -> int:
        base = self.code_base()
        rip = int(self.regs.rip)
        return rip if not base and code_width(self.sregs) == 64 else rip + base & 0xFFFFFFFF

    # By field.

    def read(self, field: Field) -> bytes:
        """Little-endian bytes of the register."""
        value = self.value(field.name)
        if isinstance(value, bytes):
            return value
        return (value & (1 << field.bits) - 1).to_bytes(field.size, "little")

    def value(self, name: str) -> int | bytes:
        """A number, or the bytes of a vector or x87 register."""
        name = FROM_32.get(name, name)
        if name == "rip" and self.linear:
            return self.linear_pc()
        if name == "eflags":
            name = "rflags"
        if name == "ip":
            return int(self.regs.rip)
        if hasattr(self.regs, name):
            return int(getattr(self.regs, name))
        if name in SEGMENTS:
            return int(getattr(self.sregs, name).selector)
        if name in _SYSTEM_SEGMENTS:
            return int(getattr(self.sregs, _SYSTEM_SEGMENTS[name]).selector)
        head, _, tail = name.partition("_")
        if tail == "base" and (head in SEGMENTS or head in _SYSTEM_SEGMENTS):
            return int(getattr(self.sregs, _SYSTEM_SEGMENTS.get(head, head)).base)
        if head in _TABLES:
            return int(getattr(getattr(self.sregs, head), tail))
        if name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"):
            return int(getattr(self.sregs, name))
        if name in MSRS:
            return self.vcpu.get_msrs([MSRS[name]]).get(MSRS[name], 0)
        if name.startswith("dr"):
            debug = self._get("debugregs")
            return int(debug.db[int(name[2:])]) if int(name[2:]) < 4 else int(getattr(debug, name))
        if name == "xcr0":
            xcrs = self._get("xcrs")
            return next((int(entry.value) for entry in xcrs.xcrs[0 : xcrs.nr_xcrs] if entry.xcr == 0), 0)
        return self._vector(name)

    def _part(self, at: int, size: int, component: int) -> bytes:
        area = self._get("xsave")
        present = int.from_bytes(area[_XSTATE_BV : _XSTATE_BV + 8], "little") & component
        if not present and component == _X87:  # initial state: FCW 37F, everything else zero
            return b"\x7f\x03"[:size] if at == _FCW else bytes(size)
        return bytes(area[at : at + size]) if present else bytes(size)

    def _vector(self, name: str) -> int | bytes:
        place = self._vector_place(name)
        if place is not None:
            return self._part(place[1], place[2], place[0])
        if name == "mxcsr":  # restored whenever SSE or AVX is asked for (SDM 1 13.8.1)
            return int.from_bytes(self._get("xsave")[_MXCSR : _MXCSR + 4], "little")
        if name.startswith("st"):
            return self._part(_ST + 16 * int(name[2:]), 10, _X87)
        assert name in X87_CONTROL, name
        wide = code_width(self.sregs) == 64
        where = {
            "fctrl": (_FCW, 2), "fstat": (_FSW, 2), "fop": (_FOP, 2), "fioff": (_FIP, 4), "fiseg": (_FIP + 4, 2),
            "fooff": (_FDP, 4), "foseg": (_FDP + 4, 2),
        }  # fmt: skip
        if name == "ftag":
            return self._tag_word()
        if wide and name in ("fiseg", "foseg"):
            return 0
        return int.from_bytes(self._part(*where[name], _X87), "little")

    def _tag_word(self) -> int:
        """Two bits per physical register from the one of the XSAVE area (SDM 1 8.1.7, 10.5.1.1)."""
        full = self._part(_FTW, 1, _X87)[0]
        top = int.from_bytes(self._part(_FSW, 2, _X87), "little") >> 11 & 7
        word = 0
        for physical in range(8):
            if not full >> physical & 1:
                tag = 3
            else:
                st = self._part(_ST + 16 * ((physical - top) & 7), 10, _X87)
                exponent = int.from_bytes(st[8:], "little") & 0x7FFF
                mantissa = int.from_bytes(st[:8], "little")
                if exponent == 0 and mantissa == 0:
                    tag = 1
                else:
                    tag = 0 if 0 < exponent < 0x7FFF and mantissa >> 63 else 2
            word |= tag << 2 * physical
        return word

    def write(self, field: Field, data: bytes) -> None:
        """Sets the register from little-endian bytes. BadPacket for one that cannot be set; HostError where the backend refuses."""
        if len(data) != field.size:
            raise BadPacket(f"{field.name} has {field.size} bytes")
        value = int.from_bytes(data, "little")
        name = FROM_32.get(field.name, field.name)
        if name == "eflags":
            name = "rflags"
        if name in ("rip", "ip"):
            base = self.code_base() if name == "rip" and self.linear else 0
            self.regs.rip = (value - base) & _ALL if not base else (value - base) & 0xFFFFFFFF
            self._put("regs")
        elif hasattr(self.regs, name):
            if field.bits < 64 and name != "rflags":  # what a 32-bit description does not show stays
                value |= int(getattr(self.regs, name)) & ~0xFFFFFFFF
            setattr(self.regs, name, value)
            self._put("regs")
        elif not self._write_system(name, value):
            self._write_vector(name, data)

    def _write_system(self, name: str, value: int) -> bool:
        head, _, tail = name.partition("_")
        if name in SEGMENTS or name in _SYSTEM_SEGMENTS:
            self._write_selector(_SYSTEM_SEGMENTS.get(name, name), value)
        elif tail == "base" and (head in SEGMENTS or head in _SYSTEM_SEGMENTS):
            getattr(self.sregs, _SYSTEM_SEGMENTS.get(head, head)).base = value
            self._put("sregs")
        elif head in _TABLES:
            setattr(getattr(self.sregs, head), tail, value & 0xFFFF if tail == "limit" else value)
            self._put("sregs")
        elif name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"):
            setattr(self.sregs, name, value)
            self._put("sregs")
        elif name in MSRS:
            if self.vcpu.set_msrs({MSRS[name]: value}):
                raise BadPacket(f"{name} refused {value:#x}")
            self.forget()
        elif name.startswith("dr"):
            debug = self._get("debugregs")
            if name in ("dr6", "dr7"):
                setattr(debug, name, value)
            else:
                debug.db[int(name[2:])] = value
            self._put("debugregs")
        elif name == "xcr0":
            xcrs = self._get("xcrs")
            xcrs.nr_xcrs = 1
            xcrs.xcrs[0].xcr, xcrs.xcrs[0].value = 0, value
            self._put("xcrs")
        else:
            return False
        return True

    def _write_selector(self, name: str, value: int) -> None:
        """In real mode the base follows; elsewhere the descriptor stays as it is, as no instruction loads it."""
        segment = getattr(self.sregs, name)
        segment.selector = value & 0xFFFF
        if not self.sregs.cr0 & x86.CR0_PE or self.regs.rflags & x86.RFLAGS_VM:
            segment.base = (value & 0xFFFF) << 4
        self._put("sregs")

    def _write_vector(self, name: str, data: bytes) -> None:
        area = self._get("xsave")
        component, at = _X87, -1
        place = self._vector_place(name)
        if place is not None:
            component, at, _ = place
        elif name == "mxcsr":
            component, at = _SSE, _MXCSR
        elif name.startswith("st"):
            at = _ST + 16 * int(name[2:])
        elif name in ("fctrl", "fstat", "fop"):
            at, data = {"fctrl": _FCW, "fstat": _FSW, "fop": _FOP}[name], data[:2]
        elif name in ("fioff", "fooff"):
            at = {"fioff": _FIP, "fooff": _FDP}[name]
        elif name in ("fiseg", "foseg"):
            if code_width(self.sregs) == 64:
                return
            at, data = {"fiseg": _FIP + 4, "foseg": _FDP + 4}[name], data[:2]
        elif name == "ftag":
            word = int.from_bytes(data[:2], "little")
            at, data = _FTW, bytes((sum(1 << n for n in range(8) if word >> 2 * n & 3 != 3),))
        present = int.from_bytes(area[_XSTATE_BV : _XSTATE_BV + 8], "little")
        if not present & component:  # the part was in its initial state: it must not show what lay there before
            if component == _X87:
                area[0:_MXCSR] = b"\x7f\x03" + bytes(_MXCSR - 2)
                area[_ST:_XMM] = bytes(_XMM - _ST)
            else:
                start = {_SSE: _XMM, _AVX: _YMM, **self._places}[component]
                size = _SIZES[component]
                area[start : start + size] = bytes(size)
        area[at : at + len(data)] = data
        area[_XSTATE_BV : _XSTATE_BV + 8] = (present | component).to_bytes(8, "little")
        self._put("xsave")


class Layout:
    """The order of registers in packets, for one architecture."""

    def __init__(self, arch: str, vectors: str = "") -> None:
        self.arch = arch
        self.fields = [field for feature in features(arch, vectors) for field in feature.fields]
        self.numbers = {field.name: number for number, field in enumerate(self.fields)}
        self.size = sum(field.size for field in self.fields)

    def read_all(self, registers: Registers) -> bytes:
        """The content of a `g` packet's answer."""
        return b"".join(registers.read(field) for field in self.fields)

    def write_all(self, registers: Registers, data: bytes) -> None:
        """A `G` packet: registers that differ are set, in order; fewer bytes leave the rest alone."""
        at = 0
        for field in self.fields:
            part = data[at : at + field.size]
            if len(part) < field.size:
                break
            if part != registers.read(field):
                registers.write(field, part)
            at += field.size
