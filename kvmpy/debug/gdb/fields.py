"""The registers that a debugger is shown, by architecture: names, sizes and types in the order of the target description.

GDB wants the standard features whole and by their names (GDB manual, appendix G.5.6); all else is this stub's own feature.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvmpy import x86

ARCHITECTURES = {"x86-64": "i386:x86-64", "i386": "i386", "i8086": "i8086"}
"""Names that `monitor arch` takes, with GDB's own names of them."""

SYSTEM_FEATURE = "org.kvmpy.i386.system"
SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
X87_CONTROL = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_GENERAL_64 = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_GENERAL_32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
FROM_32 = {name: "r" + name[1:] for name in (*_GENERAL_32, "eip")} | {"eflags": "rflags"}
"""The member of struct kvm_regs behind a register of the 32-bit description."""

FLAGS = {"kvmpy_cr0": x86.CR0_NAMES, "kvmpy_cr4": x86.CR4_NAMES, "kvmpy_efer": x86.EFER_NAMES}
MSRS = {
    "k_gs_base": x86.MSR_KERNEL_GS_BASE, "star": x86.MSR_STAR, "lstar": x86.MSR_LSTAR, "cstar": x86.MSR_CSTAR, "sfmask": x86.MSR_SFMASK,
    "sysenter_cs": x86.MSR_SYSENTER_CS, "sysenter_esp": x86.MSR_SYSENTER_ESP, "sysenter_eip": x86.MSR_SYSENTER_EIP,
}


@dataclass(frozen=True)
class Field:
    """One register: `bits` wide, `type` as in the description's XML."""

    name: str
    bits: int
    type: str
    group: str = ""

    @property
    def size(self) -> int:
        return self.bits // 8


@dataclass(frozen=True)
class Feature:
    """Registers that belong together, under the feature's name."""

    name: str
    fields: tuple[Field, ...]
    vectors: tuple[str, ...] = ()
    """Types that the feature needs, as XML."""


_VEC128 = (
    '<vector id="v8bf16" type="bfloat16" count="8"/>', '<vector id="v4f" type="ieee_single" count="4"/>',
    '<vector id="v2d" type="ieee_double" count="2"/>', '<vector id="v16i8" type="int8" count="16"/>',
    '<vector id="v8i16" type="int16" count="8"/>', '<vector id="v4i32" type="int32" count="4"/>',
    '<vector id="v2i64" type="int64" count="2"/>',
    '<union id="vec128"><field name="v8_bfloat16" type="v8bf16"/><field name="v4_float" type="v4f"/>'
    '<field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/>'
    '<field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>',
)


def _flags_xml(name: str, size: int, bits: dict[int, str]) -> str:
    fields = "".join(f'<field name="{text}" start="{bit}" end="{bit}"/>' for bit, text in bits.items())
    return f'<flags id="{name}" size="{size}">{fields}</flags>'


def _core(arch: str) -> Feature:
    if arch == "x86-64":
        pointers = {"rbp": "data_ptr", "rsp": "data_ptr"}
        general = [Field(name, 64, pointers.get(name, "int64")) for name in _GENERAL_64] + [Field("rip", 64, "code_ptr")]
    else:
        pointers = {"ebp": "data_ptr", "esp": "data_ptr"}
        general = [Field(name, 32, pointers.get(name, "int32")) for name in _GENERAL_32] + [Field("eip", 32, "code_ptr")]
    fields = [*general, Field("eflags", 32, "i386_eflags")]
    fields += [Field(name, 32, "int32") for name in SEGMENTS]
    fields += [Field(f"st{n}", 80, "i387_ext") for n in range(8)]
    fields += [Field(name, 32, "int", "float") for name in X87_CONTROL]
    return Feature("org.gnu.gdb.i386.core", tuple(fields), (_flags_xml("i386_eflags", 4, {**x86.RFLAGS_NAMES, 1: ""}),))


def _sse(arch: str) -> Feature:
    count = 16 if arch == "x86-64" else 8
    exceptions = ("IE", "DE", "ZE", "OE", "UE", "PE")
    names = {**dict(enumerate(exceptions)), 6: "DAZ", **{7 + n: name[0] + "M" for n, name in enumerate(exceptions)}, 15: "FZ"}
    fields = [Field(f"xmm{n}", 128, "vec128") for n in range(count)] + [Field("mxcsr", 32, "i386_mxcsr", "vector")]
    return Feature("org.gnu.gdb.i386.sse", tuple(fields), (*_VEC128, _flags_xml("i386_mxcsr", 4, names)))


def _avx(arch: str) -> Feature:
    count = 16 if arch == "x86-64" else 8
    return Feature("org.gnu.gdb.i386.avx", tuple(Field(f"ymm{n}h", 128, "uint128") for n in range(count)))


def _avx512(arch: str) -> Feature:
    wide = arch == "x86-64"
    fields = [Field(f"xmm{n}", 128, "vec128") for n in range(16, 32 if wide else 16)]
    fields += [Field(f"ymm{n}h", 128, "uint128") for n in range(16, 32 if wide else 16)]
    fields += [Field(f"k{n}", 64, "uint64") for n in range(8)]
    fields += [Field(f"zmm{n}h", 256, "v2ui128") for n in range(32 if wide else 8)]
    vectors = (*_VEC128, '<vector id="v2ui128" type="uint128" count="2"/>')
    return Feature("org.gnu.gdb.i386.avx512", tuple(fields), vectors)


def _system(arch: str) -> Feature:
    group = "system"
    fields = [] if arch == "x86-64" else [Field("fs_base", 64, "int64", group), Field("gs_base", 64, "int64", group)]
    fields += [Field(f"{name}_base", 64, "int64", group) for name in ("cs", "ss", "ds", "es")]
    fields += [Field(name, 32, "int32", group) for name in ("tr", "ldtr")]
    fields += [Field(f"{name}_base", 64, "int64", group) for name in ("tr", "ldtr", "gdt", "idt")]
    fields += [Field(name, 32, "int32", group) for name in ("gdt_limit", "idt_limit")]
    fields += [Field("cr0", 64, "kvmpy_cr0", group), Field("cr2", 64, "data_ptr" if arch == "x86-64" else "int64", group)]
    fields += [Field("cr3", 64, "int64", group), Field("cr4", 64, "kvmpy_cr4", group), Field("cr8", 64, "int64", group)]
    fields += [Field("efer", 64, "kvmpy_efer", group), Field("xcr0", 64, "int64", group), Field("apic_base", 64, "int64", group)]
    fields += [Field(name, 64, "int64", group) for name in ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7")]
    fields += [Field(name, 64, "int64", group) for name in MSRS]
    fields += [Field("ip", 64, "int64", group)]
    return Feature(SYSTEM_FEATURE, tuple(fields), tuple(_flags_xml(name, 8, bits) for name, bits in FLAGS.items()))


def features(arch: str, vectors: str = "") -> tuple[Feature, ...]:
    """The features of an architecture's description, in order; `vectors` beyond SSE: "avx", "avx512" or none."""
    found = [_core(arch), _sse(arch)]
    if vectors:
        found.append(_avx(arch))
    if vectors == "avx512":
        found.append(_avx512(arch))
    if arch == "x86-64":
        found.append(Feature("org.gnu.gdb.i386.segments", (Field("fs_base", 64, "int"), Field("gs_base", 64, "int"))))
    return (*found, _system(arch))


def target_xml(arch: str, vectors: str = "") -> str:
    """The target description."""
    out = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', '<target version="1.0">']
    out.append(f"<architecture>{ARCHITECTURES[arch]}</architecture>")
    for feature in features(arch, vectors):
        out.append(f'<feature name="{feature.name}">')
        out += feature.vectors
        for field in feature.fields:
            group = f' group="{field.group}"' if field.group else ""
            out.append(f'<reg name="{field.name}" bitsize="{field.bits}" type="{field.type}"{group}/>')
        out.append("</feature>")
    out.append("</target>")
    return "\n".join(out) + "\n"
