"""CPUID tables: features by name, CPU models, and what makes one vCPU's table differ from the next one's.

A model is a subset of what the backend can show. Names of features are those of /proc/cpuinfo (SDM 2A CPUID, AMD APM 3 appendix E).
"""

from __future__ import annotations

import re

from kvmpy.backend import CData
from kvmpy.errors import ConfigError, MissingCapability
from kvmpy.native import ffi


def _bits(leaf: int, subleaf: int, register: str, names: str) -> dict[str, tuple[int, int, str, int]]:
    """`names` are "bit:name" pairs."""
    pairs = (pair.split(":") for pair in names.split())
    return {name: (leaf, subleaf, register, int(bit)) for bit, name in pairs}


FEATURES: dict[str, tuple[int, int, str, int]] = {
    **_bits(1, 0, "edx", "0:fpu 1:vme 2:de 3:pse 4:tsc 5:msr 6:pae 7:mce 8:cx8 9:apic 11:sep 12:mtrr 13:pge 14:mca 15:cmov 16:pat "
            "17:pse36 19:clflush 23:mmx 24:fxsr 25:sse 26:sse2 27:ss 28:ht"),
    **_bits(1, 0, "ecx", "0:sse3 1:pclmulqdq 3:monitor 9:ssse3 12:fma 13:cx16 17:pcid 19:sse4_1 20:sse4_2 21:x2apic 22:movbe 23:popcnt "
            "24:tsc_deadline_timer 25:aes 26:xsave 28:avx 29:f16c 30:rdrand 31:hypervisor"),
    **_bits(7, 0, "ebx", "0:fsgsbase 1:tsc_adjust 3:bmi1 4:hle 5:avx2 7:smep 8:bmi2 9:erms 10:invpcid 11:rtm 16:avx512f 17:avx512dq "
            "18:rdseed 19:adx 20:smap 21:avx512ifma 23:clflushopt 24:clwb 28:avx512cd 29:sha_ni 30:avx512bw 31:avx512vl"),
    **_bits(7, 0, "ecx", "1:avx512vbmi 2:umip 3:pku 5:waitpkg 6:avx512_vbmi2 7:shstk 8:gfni 9:vaes 10:vpclmulqdq 11:avx512_vnni "
            "12:avx512_bitalg 14:avx512_vpopcntdq 16:la57 22:rdpid 25:cldemote 27:movdiri 28:movdir64b"),
    **_bits(7, 0, "edx", "4:fsrm 8:avx512_vp2intersect 10:md_clear 14:serialize 20:ibt 22:amx_bf16 23:avx512_fp16 24:amx_tile "
            "25:amx_int8 26:spec_ctrl 29:arch_capabilities 31:ssbd"),
    **_bits(7, 1, "eax", "4:avx_vnni 5:avx512_bf16 23:avx_ifma"),
    **_bits(0xD, 1, "eax", "0:xsaveopt 1:xsavec 2:xgetbv1 3:xsaves"),
    **_bits(0x80000001, 0, "ecx", "0:lahf_lm 5:lzcnt 6:sse4a 8:3dnowprefetch 11:xop 16:fma4 21:tbm"),
    **_bits(0x80000001, 0, "edx", "11:syscall 20:nx 25:fxsr_opt 26:pdpe1gb 27:rdtscp 29:lm"),
}

ALIASES = {
    "pni": "sse3", "abm": "lzcnt", "pclmul": "pclmulqdq", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "sha": "sha_ni", "cmpxchg16b": "cx16",
}

_V1 = frozenset(("fpu", "cx8", "cmov", "mmx", "fxsr", "sse", "sse2", "syscall", "lm"))
_V2 = _V1 | frozenset(("cx16", "lahf_lm", "popcnt", "sse3", "ssse3", "sse4_1", "sse4_2"))
_V3 = _V2 | frozenset(("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"))

# What programs use without the kernel's help; everything else is for kernels and stays with every model.
_INSTRUCTIONS = frozenset((
    "cmov", "mmx", "fxsr", "sse", "sse2", "sse3", "pclmulqdq", "ssse3", "fma", "cx16", "sse4_1", "sse4_2", "movbe", "popcnt", "aes",
    "xsave", "avx", "f16c", "rdrand", "bmi1", "hle", "avx2", "bmi2", "rtm", "avx512f", "avx512dq", "rdseed", "adx", "avx512ifma", "clwb",
    "avx512cd", "sha_ni", "avx512bw", "avx512vl", "avx512vbmi", "waitpkg", "avx512_vbmi2", "gfni", "vaes", "vpclmulqdq", "avx512_vnni",
    "avx512_bitalg", "avx512_vpopcntdq", "rdpid", "cldemote", "movdiri", "movdir64b", "avx512_vp2intersect", "serialize", "amx_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "avx_vnni", "avx512_bf16", "avx_ifma", "lahf_lm", "lzcnt", "sse4a", "3dnowprefetch", "xop",
    "fma4", "tbm", "pku",
))

MODELS: dict[str, str] = {
    "max": "everything that the backend has, but monitor",
    "x86-64-v1": "the first x86-64 processors: SSE2",
    "x86-64-v2": "about 2009: CX16, POPCNT, SSE4.2",
    "x86-64-v3": "about 2013: AVX2, BMI1, BMI2, FMA, F16C, LZCNT, MOVBE, XSAVE",
}
_LEVELS = {"x86-64-v1": _V1, "x86-64-v2": _V2, "x86-64-v3": _V3}

# What no model has unless it is named: /dev/kvm's guests have no MONITOR, and those of both backends shall see one CPU.
_ASKED_FOR = {"monitor"}

# Features that cannot be without another one.
_NEEDS = {
    "avx": "xsave", "xsaveopt": "xsave", "xsavec": "xsave", "xgetbv1": "xsave", "xsaves": "xsave", "avx2": "avx",
    "fma": "avx", "f16c": "avx",
    "vaes": "avx", "vpclmulqdq": "avx", "avx_vnni": "avx2", "avx512f": "avx2", "pku": "xsave", "amx_tile": "xsave", "amx_int8": "amx_tile",
    "amx_bf16": "amx_tile", "xop": "avx", "fma4": "avx", "avx_ifma": "avx2",
    **{name: "avx512f" for name in FEATURES if name.startswith("avx512") and name != "avx512f"},
}

# XCR0 components (SDM 1 13.1) and the feature that brings each.
_COMPONENTS = {2: "avx", 5: "avx512f", 6: "avx512f", 7: "avx512f", 9: "pku", 17: "amx_tile", 18: "amx_tile"}
_LEGACY_AREA = 576


def _find(entries: list[CData], leaf: int, subleaf: int = 0) -> CData | None:
    for entry in entries:
        if entry.function == leaf and entry.index == subleaf:
            return entry
    return None


def features_of(entries: list[CData]) -> set[str]:
    """Names of the features that a table shows."""
    found = set()
    for name, (leaf, subleaf, register, bit) in FEATURES.items():
        entry = _find(entries, leaf, subleaf)
        if entry is not None and getattr(entry, register) >> bit & 1:
            found.add(name)
    return found


def parse_model(model: str, has: set[str]) -> set[str]:
    """Features of "NAME,+feature,-feature" out of those that the backend has. ConfigError, MissingCapability."""
    if not isinstance(model, str):
        raise ConfigError(f"CPU model {model!r}: a name is wanted, one of {', '.join(MODELS)} (how many CPUs there are is cpus=)")
    name, *changes = (part.strip() for part in model.lower().split(","))
    if name not in MODELS:
        raise ConfigError(f"CPU model {name!r}: one of {', '.join(MODELS)}, then +feature or -feature, separated by commas")
    level = _LEVELS.get(name)
    offered = has - _ASKED_FOR
    wanted = offered if level is None else {feature for feature in offered if feature not in _INSTRUCTIONS or feature in level}
    if level is not None and not level <= has:
        raise MissingCapability(f"CPU model {name}: the backend lacks {', '.join(sorted(level - has))}")
    for change in changes:
        match = re.fullmatch(r"([+-])(.+)", change)
        feature = ALIASES.get(match[2], match[2]) if match else ""
        if match is None or feature not in FEATURES:
            import difflib  # for the message alone

            near = difflib.get_close_matches(feature, [*FEATURES, *ALIASES], 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see kvmpy info"
            raise ConfigError(f"{change!r} is not +feature or -feature of a CPU that kvmpy knows: {hint}")
        if match[1] == "-":
            wanted.discard(feature)
        elif feature in has:
            wanted.add(feature)
        else:
            raise MissingCapability(f"the backend cannot show the CPU feature {feature}")
    missing = True
    while missing:
        missing = any(needed in FEATURES and feature in wanted and needed not in wanted for feature, needed in _NEEDS.items())
        wanted -= {feature for feature, needed in _NEEDS.items() if needed not in wanted}
    return wanted


def entries_for(model: str, supported: list[CData], apic_id: int, cpus: int) -> list[CData]:
    """The table of one vCPU: `supported` cut down to the model, with the vCPU's place in the package."""
    has = features_of(supported)
    wanted = parse_model(model, has)
    entries = [ffi.new("struct kvm_cpuid_entry2 *", entry[0]) for entry in supported]
    for name in has - wanted:
        leaf, subleaf, register, bit = FEATURES[name]
        entry = _find(entries, leaf, subleaf)
        assert entry is not None
        setattr(entry, register, getattr(entry, register) & ~(1 << bit) & 0xFFFFFFFF)
    entries = _cut_xsave(entries, wanted)
    return _topology(entries, apic_id, cpus)


def _cut_xsave(entries: list[CData], wanted: set[str]) -> list[CData]:
    """Leaf 0Dh without the state components of features that are not shown."""
    gone = {number for number, name in _COMPONENTS.items() if name not in wanted}
    first = _find(entries, 0xD)
    if first is None:
        return entries
    if "xsave" not in wanted:
        return [entry for entry in entries if entry.function != 0xD]
    kept = [entry for entry in entries if entry.function != 0xD or entry.index not in gone]
    for number in gone:
        first.eax &= ~(1 << number) & 0xFFFFFFFF
    # Sizes: of a component in EAX, its offset in EBX; ECX bit 0 marks supervisor components, which lie elsewhere.
    sizes = [entry.ebx + entry.eax for entry in kept if entry.function == 0xD and entry.index >= 2 and not entry.ecx & 1]
    first.ebx = first.ecx = max([_LEGACY_AREA, *sizes])
    return kept


def _topology(entries: list[CData], apic_id: int, cpus: int) -> list[CData]:
    """One package with `cpus` cores of one thread each (SDM 3A 8.9)."""
    width = (cpus - 1).bit_length()
    basic = max((entry.eax for entry in entries if entry.function == 0), default=0)
    for entry in entries:
        if entry.function == 1:
            entry.ebx = entry.ebx & 0xFFFF | (min(1 << width, 255) << 16) | apic_id << 24
            entry.edx = entry.edx | 1 << 28 if cpus > 1 else entry.edx & ~(1 << 28)
        elif entry.function == 4 and entry.eax & 0x1F:
            level = entry.eax >> 5 & 7
            shared = (1 << width) - 1 if level >= 3 else 0
            entry.eax = entry.eax & 0x3FFF | shared << 14 | min((1 << width) - 1, 63) << 26
        elif entry.function == 0x80000008:
            entry.ecx = entry.ecx & ~0xF0FF | (cpus - 1 & 0xFF) | width << 12
    entries = [entry for entry in entries if entry.function not in (0xB, 0x1F)]
    if basic >= 0xB:
        # (bits to shift the x2APIC id by, logical processors at this level, level number | type << 8): threads, cores.
        for index, (shift, count, kind) in enumerate(((0, 1, 0x100), (width, cpus, 0x201), (0, 0, 2))):
            values = {"function": 0xB, "index": index, "flags": 1, "eax": shift, "ebx": count, "ecx": kind, "edx": apic_id}
            entries.append(ffi.new("struct kvm_cpuid_entry2 *", values))
    return entries
