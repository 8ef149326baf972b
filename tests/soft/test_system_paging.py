"""Paging of the software CPU: rights and error codes, A and D bits, large pages, reserved bits, TLB maintenance."""

from __future__ import annotations

import pytest

from kvmpy.native import ffi, lib
from tests.soft.system_guest import GP, PF, TABLES, Guest

PAGE = 0x200000  # not used by the guest itself
P, W, U, A, D, PS, G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100
NX = 1 << 63
READ, WRITE = f"mov {PAGE:#x},%eax\nmov $1,%ebx\nhlt", f"movl $7,{PAGE:#x}\nmov $1,%ebx\nhlt"
FETCH = f"mov ${PAGE:#x},%eax\njmp *%{{r}}ax"
MODES = ("paging32", "pae", "long", "compat")


def prepare(guest: Guest, entry: int, at: int = PAGE) -> None:
    put = guest.put32 if guest.mode == "paging32" else guest.put64
    put(guest.pte(at), at | entry)


def entry(guest: Guest) -> int:
    at = guest.pte(PAGE)
    return guest.u32(at) if guest.mode == "paging32" else guest.u64(at)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cpl", (0, 3))
@pytest.mark.parametrize("wp", (0, 1))
@pytest.mark.parametrize("bits", (0, P, P | W, P | U, P | W | U))
@pytest.mark.parametrize("write", (False, True))
def test_rights(mode: str, cpl: int, wp: int, bits: int, write: bool) -> None:
    guest = Guest((WRITE if write else READ).replace("hlt", "int $0x80"), mode, cpl=cpl)
    guest.set_gate(0x80, 0x4800, dpl=3)
    cr0 = guest.sregs.cr0 & ~0x10000 | wp << 16
    guest.set_system(cr0=cr0)
    prepare(guest, bits)
    allowed = bool(bits & P) and (cpl == 0 or bool(bits & U))
    if write:
        allowed = allowed and (bool(bits & W) or (cpl == 0 and not wp))
    guest.finish()
    if allowed:
        assert guest.vector == 0x80
        assert entry(guest) & (A | D) == (A | D if write else A)
        assert not write or guest.u32(PAGE) == 7
    else:
        error = bits & P | (2 if write else 0) | (4 if cpl == 3 else 0)
        assert (guest.vector, guest.frame(1)[0], guest.sregs.cr2) == (PF, error, PAGE)
        assert entry(guest) & (A | D) == 0 and guest.u32(PAGE) == 0
        assert guest.frame(2)[1] == 0x8000


@pytest.mark.parametrize("mode", ("pae", "long", "compat"))
@pytest.mark.parametrize("nxe", (0, 1))
def test_no_execute(mode: str, nxe: int) -> None:
    guest = Guest(FETCH.format(r="r" if mode == "long" else "e"), mode)
    guest.set_system(efer=guest.sregs.efer & ~0x800 | nxe << 11)
    guest.write(PAGE, b"\xf4")
    prepare(guest, P | W | U | NX)
    guest.finish()
    if nxe:
        assert (guest.vector, guest.frame(2)) == (PF, [0x11, PAGE])
    else:  # the bit is reserved then
        assert (guest.vector, guest.frame(1)) == (PF, [0x9])


@pytest.mark.parametrize("mode", MODES)
def test_smep(mode: str) -> None:
    source = FETCH.format(r="r" if mode == "long" else "e")
    guest = Guest(source, mode)
    for page in range(0, 0x20000, 0x1000):
        prepare(guest, P | W, page)
    guest.set_system(cr4=guest.sregs.cr4 | 0x100000)
    assert guest.fault() == (PF, 0x11)
    guest = Guest(source, mode)
    guest.write(PAGE, b"\xf4")
    guest.finish()
    assert guest.regs.rip == PAGE + 1


@pytest.mark.parametrize("mode", MODES)
def test_smap(mode: str) -> None:
    source = f"stac\nmov {PAGE:#x},%ebx\nmovl $9,{PAGE:#x}\nclac\nmov {PAGE:#x},%ecx\nhlt"
    guest = Guest(source, mode)
    for page in [*range(0, 0x20000, 0x1000), *range(TABLES, TABLES + 0x8000, 0x1000)]:
        prepare(guest, P | W, page)
    guest.put32(PAGE, 5)
    guest.set_system(cr4=guest.sregs.cr4 | 0x200000)
    assert guest.fault() == (PF, 1)
    assert guest.regs.rbx == 5 and guest.u32(PAGE) == 9 and guest.sregs.cr2 == PAGE


@pytest.mark.parametrize("mode", ("long", "prot32"))
def test_clac_is_undefined_for_users(mode: str) -> None:
    guest = Guest("clac", mode, cpl=3)
    guest.finish()
    assert guest.vector == 6


@pytest.mark.parametrize("mode", ("pae", "long"))
@pytest.mark.parametrize("bit", (46, 50, 51))
def test_reserved_address_bits(mode: str, bit: int) -> None:
    guest = Guest(WRITE, mode)
    prepare(guest, P | W | U | 1 << bit)
    assert guest.fault() == (PF, 0xB)


def test_ignored_bits_of_4_level_entries_are_reserved_in_pae() -> None:
    guest = Guest(READ, "long")
    prepare(guest, P | W | U | 1 << 58)
    guest.finish()
    assert guest.regs.rbx == 1
    guest = Guest(READ, "pae")
    prepare(guest, P | W | U | 1 << 58)
    assert guest.fault() == (PF, 9)


@pytest.mark.parametrize("mode", ("pae", "long"))
def test_2m_page(mode: str) -> None:
    guest = Guest("mov 0x403004,%eax\nmovl $3,0x403008\nhlt", mode)
    guest.put32(0x203004, 0x1234)
    guest.put64(TABLES + 0x2010, 0x200000 | P | W | U | PS)
    assert guest.finish().rax == 0x1234
    assert guest.u32(0x203008) == 3
    assert guest.u64(TABLES + 0x2010) & (A | D) == A | D
    guest = Guest("mov 0x403004,%eax\nhlt", mode)
    guest.put64(TABLES + 0x2010, 0x202000 | P | W | U | PS)
    assert guest.fault() == (PF, 9)


def test_1g_page() -> None:
    guest = Guest("mov 0x40203004,%eax\nhlt", "long")
    guest.put32(0x203004, 0x1234)
    guest.put64(TABLES + 0x1008, P | W | U | PS)
    assert guest.finish().rax == 0x1234


def test_4m_page() -> None:
    guest = Guest("mov 0xa03004,%eax\nhlt", "paging32")
    guest.put32(0x203004, 0x1234)
    guest.set_system(cr4=0x10)
    guest.put32(TABLES + 8, P | W | U | PS)
    assert guest.finish().rax == 0x1234
    assert guest.u32(TABLES + 8) & A
    guest = Guest("mov 0xa03004,%eax\nhlt", "paging32")
    guest.set_system(cr4=0x10)
    guest.put32(TABLES + 8, P | W | U | PS | 1 << 21)
    assert guest.fault() == (PF, 9)


@pytest.mark.parametrize("mode", MODES)
def test_invlpg_and_global_pages(mode: str) -> None:
    """An entry changed behind the TLB's back shows after INVLPG, and for a global page not after MOV CR3."""
    low = "mov %eax,%cr3" if mode != "long" else "mov %rax,%cr3"
    read = "mov %cr3,%eax" if mode != "long" else "mov %cr3,%rax"
    at = "0x{:x}".format(TABLES + (0x1000 if mode == "paging32" else 0x3000) + (PAGE >> 12) * (4 if mode == "paging32" else 8))
    source = f"""
        mov {PAGE:#x},%ebx
        movl ${PAGE + 0x1000 + 0x107:#x},{at}
        {read}
        {low}
        mov {PAGE:#x},%ecx
        invlpg {PAGE:#x}
        mov {PAGE:#x},%edx
        hlt"""
    guest = Guest(source, mode)
    guest.set_system(cr4=guest.sregs.cr4 | 0x80)
    guest.put32(PAGE, 1)
    guest.put32(PAGE + 0x1000, 2)
    prepare(guest, P | W | U | G)
    regs = guest.finish()
    assert (regs.rbx, regs.rcx, regs.rdx) == (1, 1, 2)
    guest = Guest(source, mode)
    guest.put32(PAGE, 1)
    guest.put32(PAGE + 0x1000, 2)
    prepare(guest, P | W | U)
    regs = guest.finish()
    assert (regs.rbx, regs.rcx, regs.rdx) == (1, 2, 2)


def test_invlpg_drops_all_of_a_large_page() -> None:
    guest = Guest(
        f"mov 0x400000,%ebx\nmov 0x401000,%ecx\nmovq $0xe7,{TABLES + 0x2010:#x}\ninvlpg 0x5ff000\nmov 0x401000,%edx\nhlt", "long"
    )
    guest.put64(TABLES + 0x2010, 0x200000 | P | W | U | PS)
    guest.put32(0x201000, 11)
    guest.put32(0x1000, 12)
    regs = guest.finish()
    assert (regs.rcx, regs.rdx) == (11, 12)


def test_access_across_pages_checks_both() -> None:
    guest = Guest(f"movq $-1,{PAGE - 4:#x}\nhlt", "long")
    guest.put64(guest.pte(PAGE), 0)
    assert guest.fault() == (PF, 2)
    assert guest.sregs.cr2 == PAGE and guest.u32(PAGE - 4) == 0


def test_pae_pdptes_are_read_when_cr3_is_written() -> None:
    guest = Guest(f"movl $0,{TABLES:#x}\nmov 0x9000,%ebx\nmov %cr3,%eax\nmov $7,%ecx\nmov %eax,%cr3\nhlt", "pae")
    assert guest.run() == 8  # without a PDPTE nothing can be delivered
    assert guest.regs.rcx == 7
    guest = Guest(f"movl $0x101021,{TABLES:#x}\nmov %cr3,%eax\nmov %eax,%cr3\nhlt", "pae")
    assert guest.fault() == (GP, 0)


def test_entering_long_mode() -> None:
    source = f"""
        mov ${TABLES:#x},%eax
        mov %eax,%cr3
        mov %cr4,%eax
        or $0x20,%eax
        mov %eax,%cr4
        mov $0xc0000080,%ecx
        rdmsr
        or $0x100,%eax
        wrmsr
        mov %cr0,%eax
        or $0x80000000,%eax
        mov %eax,%cr0
        ljmp $0x50,$long
        .code64
long:   mov $0x123456789abcdef,%rdx
        mov $0xc0000080,%ecx
        rdmsr
        hlt"""
    guest = Guest(source, "prot32")
    guest.put64(TABLES, TABLES + 0x1000 | 7)
    guest.put64(TABLES + 0x1000, PS | 7)
    guest.finish()
    assert guest.regs.rax == 0x500 and guest.sregs.cs.l == 1


@pytest.mark.parametrize(
    ("source", "ok"),
    [
        ("mov %cr4,%eax\nand $~0x20,%eax\nmov %eax,%cr4", False), ("mov %cr0,%eax\nand $0x7fffffff,%eax\nmov %eax,%cr0", False),
        ("mov %cr4,%eax\nor $0x20000,%eax\nmov %eax,%cr4", True),
        ("mov $0x100003,%eax\nmov %eax,%cr3\nmov %cr4,%eax\nor $0x20000,%eax\nmov %eax,%cr4", False),
        ("mov $1,%rax\nshl $63,%rax\nmov %rax,%cr3", False), ("mov $1,%rax\nshl $50,%rax\nmov %rax,%cr3", False),
        ("mov %cr0,%eax\nor $0x20000000,%eax\nmov %eax,%cr0", False),
        ("mov $16,%eax\nmov %eax,%cr8", False), ("mov $5,%eax\nmov %eax,%cr8", True),
        ("mov $0xc0000080,%ecx\nrdmsr\nand $~0x100,%eax\nwrmsr", False), ("mov $0x277,%ecx\nxor %edx,%edx\nmov $2,%eax\nwrmsr", False),
        ("mov %eax,%cr5", None), ("mov %cr1,%eax", None),
    ],
)  # fmt: skip
def test_control_register_rules(source: str, ok: bool | None) -> None:
    guest = Guest(source + "\nhlt", "long")
    guest.finish()
    if ok:
        assert guest.regs.rip < 0x9000 and guest.regs.rip > 0x8000
    elif ok is None:
        assert guest.vector == 6
    else:
        assert (guest.vector, guest.frame(1)) == (GP, [0])


def test_pcid() -> None:
    source = f"""
        mov %cr4,%eax
        or $0x20000,%eax
        mov %eax,%cr4
        mov ${TABLES + 5:#x},%eax
        bts $63,%rax
        mov %rax,%cr3
        mov %cr3,%rbx
        mov $0,%eax
        pushq ${PAGE:#x}
        pushq $5
        invpcid (%rsp),%rax
        mov $4,%eax
        invpcid (%rsp),%rax
        hlt"""
    guest = Guest(source, "long")
    assert guest.fault() == (GP, 0)
    assert guest.regs.rbx == TABLES + 5 and guest.regs.rax == 4


def test_tables_outside_memory_read_as_ones() -> None:
    guest = Guest(READ, "long")
    guest.put64(TABLES + 0x2000 + 8, 0x40000000 | 7)
    assert guest.fault() == (PF, 9)


def test_translate_leaves_no_trace() -> None:
    guest = Guest("hlt", "long")
    answer = ffi.new("struct kvm_translation *")
    answer.linear_address = PAGE + 0x123
    prepare(guest, P | U)
    assert lib.kp_vcpu_translate(guest.cpu, answer) == 0
    assert (answer.valid, answer.physical_address, answer.writeable, answer.usermode) == (1, PAGE + 0x123, 0, 1)
    assert entry(guest) & A == 0
