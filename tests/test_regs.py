"""Register dumps and the flat states."""

from __future__ import annotations

import pytest

from kvmpy import regs, x86
from kvmpy.native import ffi


@pytest.fixture
def sregs():
    return ffi.new("struct kvm_sregs *")


def test_modes_by_name(sregs) -> None:
    regs.set_real_mode(sregs, cs=0x7C0, ds=0x40)
    assert (sregs.cs.base, sregs.ds.base, sregs.cs.limit) == (0x7C00, 0x400, 0xFFFF)
    assert regs.mode_name(sregs) == "real" and regs.code_width(sregs) == 16 and regs.paging_name(sregs) == "none"
    regs.set_protected_mode(sregs)
    assert regs.mode_name(sregs) == "protected 32-bit" and regs.code_width(sregs) == 32
    assert regs.mode_name(sregs, x86.RFLAGS_VM) == "virtual-8086" and regs.cpl(sregs, x86.RFLAGS_VM) == 3
    assert sregs.cs.g == 1 and sregs.cs.limit == 0xFFFFFFFF and sregs.cs.selector == 8
    regs.set_paging32(sregs, 0x4000)
    assert regs.paging_name(sregs) == "32-bit"
    regs.set_paging32(sregs, 0x4000, pae=True)
    assert regs.paging_name(sregs) == "PAE"
    regs.set_protected_mode(sregs, width=16)
    assert regs.mode_name(sregs) == "protected 16-bit" and regs.paging_name(sregs) == "none"
    regs.set_long_mode(sregs, 0x1000, cpl=3)
    assert regs.mode_name(sregs) == "64-bit" and regs.paging_name(sregs) == "4-level" and regs.cpl(sregs) == 3
    assert sregs.cs.selector & 3 == 3 and sregs.tr.type == x86.SEG_TSS_BUSY
    regs.set_long_mode(sregs, 0x1000, compatibility=True)
    assert regs.mode_name(sregs) == "compatibility 32-bit"


def test_linear_rip(sregs) -> None:
    general = ffi.new("struct kvm_regs *", {"rip": 0xFFF0})
    regs.set_real_mode(sregs, cs=0xF000)
    assert regs.linear_rip(general, sregs) == 0xFFFF0
    regs.set_long_mode(sregs, 0x1000)
    general.rip = 0xFFFFFFFF80000000
    assert regs.linear_rip(general, sregs) == 0xFFFFFFFF80000000


def test_dump_shows_everything(sregs) -> None:
    regs.set_long_mode(sregs, 0x1000)
    general = ffi.new("struct kvm_regs *", {"rip": 0xFFFFFFFF81000000, "rflags": 0x3246, "r15": 0xABC})
    text = regs.dump(general, sregs)
    for part in ("rip ffffffff81000000", "[PF ZF IF IOPL=3]", "64-bit", "CPL 0", "4-level", "r15 0000000000000abc", "code64 readable",
                 "TSS busy", "cr3 0000000000001000", "[PE ET PG]", "[LME LMA]"):  # fmt: skip
        assert part in text
    assert all(len(line) < 120 for line in text.splitlines())
    assert regs.dump(general).count("\n") == 4


def test_flags_text() -> None:
    assert regs.flags_text(2) == "-" and regs.flags_text(0x202) == "IF"


def test_as_dict(sregs) -> None:
    regs.set_real_mode(sregs)
    plain = regs.as_dict(sregs)
    assert plain["cs"]["limit"] == 0xFFFF and plain["interrupt_bitmap"] == [0, 0, 0, 0] and plain["cr0"] == x86.CR0_ET
    assert regs.as_dict(ffi.new("struct kvm_regs *", {"rax": 5}))["rax"] == 5


def test_identity_map() -> None:
    image = regs.identity_map(0x1000, 4)
    words = [int.from_bytes(image[i : i + 8], "little") for i in range(0, len(image), 8)]
    assert len(image) == 4096 * 6 and words[0] == 0x2003
    assert words[512:517] == [0x3003, 0x4003, 0x5003, 0x6003, 0]
    assert words[1024] == 0x83 and words[1024 + 2047] == (2047 << 21) | 0x83
    assert regs.identity_map(0x1000, user=True)[0] == 7
