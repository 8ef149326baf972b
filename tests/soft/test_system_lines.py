"""System instructions that neither another CPU nor another test shows: one small program each."""

from __future__ import annotations

import pytest

from tests.soft.system_guest import CODE64, DATA0, DB, FREE, GP, LDT_SEL, OF, TSS, TSS_SEL, UD, Guest, descriptor

ZF = 0x40
DATA = 0x5000 + 0x8000  # free memory behind the code


@pytest.mark.parametrize(("name", "segment"), [("lds", "ds"), ("les", "es"), ("lss", "ss"), ("lfs", "fs"), ("lgs", "gs")])
def test_far_pointers(name: str, segment: str) -> None:
    guest = Guest(f"{name} {DATA:#x},%ebx\nhlt", "prot32")
    guest.write(DATA, (0x12345678).to_bytes(4, "little") + DATA0.to_bytes(2, "little"))
    assert guest.finish().rbx == 0x12345678
    assert getattr(guest.sregs, segment).selector == DATA0


@pytest.mark.parametrize("opcode", [0xB2, 0xB4, 0xB5])
def test_far_pointers_of_64_bits(opcode: int) -> None:
    guest = Guest(f".byte 0x48,0x0f,{opcode},0x1c,0x25\n.long {DATA}\nhlt")
    guest.write(DATA, (0x123456789ABCDEF0).to_bytes(8, "little") + DATA0.to_bytes(2, "little"))
    assert guest.finish().rbx == 0x123456789ABCDEF0


def test_lar_and_lsl() -> None:
    guest = Guest(f"mov ${DATA0},%ecx\nlar %ecx,%eax\nlsl %ecx,%ebx\nmov ${FREE},%ecx\nlar %ecx,%esi\nlsl %ecx,%edi\nhlt")
    guest.set(rsi=7, rdi=8)
    regs = guest.finish()
    assert (regs.rax, regs.rbx) == (0xCF9300, 0xFFFFFFFF)
    assert (regs.rsi, regs.rdi, regs.rflags & ZF) == (7, 8, 0)


@pytest.mark.parametrize(
    ("access", "readable", "writable"),
    [(0x93, True, True), (0x91, True, False), (0x9B, True, False), (0x99, False, False), (0x89, False, False)],
)
def test_verr_and_verw(access: int, readable: bool, writable: bool) -> None:
    guest = Guest(f"mov ${FREE},%ecx\nverr %cx\nsetz %al\nverw %cx\nsetz %bl\nhlt")
    guest.write(0x1000 + FREE, descriptor(access=access) + bytes(8))
    regs = guest.finish()
    assert (regs.rax & 0xFF, regs.rbx & 0xFF) == (readable, writable)


def test_retf_drops_arguments() -> None:
    guest = Guest(f"pushq $1\npushq $2\npushq ${CODE64}\nlea 1f(%rip),%rax\npush %rax\nlretq $16\nhlt\n1: mov %rsp,%rbx\nhlt")
    before = guest.regs.rsp
    assert guest.finish().rbx == before


def test_int1_and_into() -> None:
    guest = Guest(".byte 0xf1", "prot32")
    guest.finish()
    assert guest.vector == DB
    guest = Guest("mov $0x7f,%al\ninto\nadd $1,%al\ninto\nhlt", "prot32")
    guest.finish()
    assert guest.vector == OF
    guest = Guest(".byte 0xce")
    guest.finish()
    assert guest.vector == UD


def test_descriptor_tables_and_registers() -> None:
    source = f"sgdt {DATA}\nsidt {DATA + 16}\nmov ${LDT_SEL},%eax\nlldt %ax\nsldt %ebx\nstr %ecx\nsmsw %edx\nhlt"
    guest = Guest(source)
    regs = guest.finish()
    assert (guest.u16(DATA), guest.u64(DATA + 2)) == (0xFFF, 0x1000)
    assert (guest.u16(DATA + 16), guest.u64(DATA + 18)) == (0xFFF, 0x2000)
    assert (regs.rbx, regs.rcx, regs.rdx) == (LDT_SEL, TSS_SEL, guest.sregs.cr0)
    assert guest.sregs.tr.base == TSS


@pytest.mark.parametrize("source", [f"sgdt {DATA}", f"sidt {DATA}", "sldt %eax", "str %eax", "smsw %eax"])
def test_user_mode_instruction_prevention(source: str) -> None:
    guest = Guest(source + "\nhlt", cpl=3)
    guest.set_system(cr4=guest.sregs.cr4 | 0x800)
    assert guest.fault() == (GP, 0)


def test_fs_and_gs_bases() -> None:
    guest = Guest("rdfsbase %rax\nmov $0x2000,%ebx\nwrfsbase %rbx\nrdfsbase %rcx\nwrgsbase %rbx\nrdgsbase %edx\nhlt")
    guest.set_system(cr4=guest.sregs.cr4 | 0x10000)
    regs = guest.finish()
    assert (regs.rax, regs.rcx, regs.rdx) == (0, 0x2000, 0x2000)
    guest = Guest("rdfsbase %rax\nhlt")
    guest.finish()
    assert guest.vector == UD


def test_extended_control_register() -> None:
    source = "xor %ecx,%ecx\nmov $7,%eax\nxor %edx,%edx\nxsetbv\nxor %eax,%eax\nxgetbv\nmov %eax,%ebx\nmov $5,%eax\nxsetbv\nhlt"
    guest = Guest(source)
    guest.set_system(cr4=guest.sregs.cr4 | 0x40000)
    assert guest.fault() == (GP, 0)  # AVX without SSE
    assert guest.regs.rbx == 7


def test_clac_and_stac() -> None:
    guest = Guest("stac\npushf\npop %rax\nclac\npushf\npop %rbx\nhlt")
    regs = guest.finish()
    assert (regs.rax >> 18 & 1, regs.rbx >> 18 & 1) == (1, 0)


def test_processor_number_and_time() -> None:
    guest = Guest("rdtscp\nmov %ecx,%ebx\nmov %eax,%esi\nrdpid %rdi\nrdtscp\nhlt")
    guest.set_msr(0xC0000103, 0x1234)
    regs = guest.finish()
    assert (regs.rbx, regs.rdi, regs.rcx) == (0x1234, 0x1234, 0x1234)
    assert regs.rax > regs.rsi


@pytest.mark.parametrize("name", ["rdrand", "rdseed"])
def test_random_numbers(name: str) -> None:
    guest = Guest(f"{name} %rax\nsetc %bl\n{name} %rcx\nhlt")
    regs = guest.finish()
    assert regs.rbx & 0xFF == 1 and regs.rax != regs.rcx


def test_rdpmc_has_no_counters() -> None:
    guest = Guest("xor %ecx,%ecx\nrdpmc\nhlt")
    assert guest.fault() == (GP, 0)


@pytest.mark.parametrize("name", ["monitor", "mwait"])
def test_monitor_and_mwait(name: str) -> None:
    """Either both wait for nothing, or, where CPUID denies them, both are no instructions."""
    guest = Guest(f"xor %ecx,%ecx\nxor %edx,%edx\nmov ${DATA},%eax\n{name}\nmov $1,%ebx\nhlt")
    guest.set(rbx=0)
    if guest.finish().rbx != 1:
        assert guest.vector == UD


@pytest.mark.parametrize("name", ["vmcall", "vmmcall"])
def test_hypercalls_answer(name: str) -> None:
    guest = Guest(f"mov $12345,%eax\n{name}\nhlt")
    assert guest.finish().rax & 0xFFFFFFFFFFFFFFFF == (1 << 64) - 1000  # -KVM_ENOSYS


def test_sysret_needs_syscall_and_cpl_0() -> None:
    guest = Guest("sysretq\nhlt", cpl=3)
    assert guest.fault() == (GP, 0)
    guest = Guest("sysretq\nhlt")
    guest.set_system(efer=0xD00)
    guest.finish()
    assert guest.vector == UD


def test_sysexit() -> None:
    guest = Guest("sysexit\nhlt", "prot32")
    assert guest.fault() == (GP, 0)  # IA32_SYSENTER_CS is 0
    guest = Guest("mov $1f,%edx\nmov $0x6f00,%ecx\nsysexit\n1: mov %cs,%eax\nud2", "prot32")
    guest.set_msr(0x174, 0x08)
    guest.finish()
    assert guest.vector == UD and guest.regs.rax & 3 == 3
