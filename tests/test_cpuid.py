"""CPU models: what is cut out of a CPUID table, and where a vCPU stands in the package."""

import pytest

from kvmpy.cpuid import FEATURES, MODELS, entries_for, features_of, parse_model
from kvmpy.errors import ConfigError, MissingCapability
from kvmpy.native import ffi

EVERYTHING = set(FEATURES)


def full_table():
    """Every feature that has a name here, with XSAVE components and caches."""
    leaves = {(0, 0): {"eax": 0x1F}, (0x80000008, 0): {"eax": 0x3028}, (0x1F, 0): {}, (4, 0): {"eax": 0x121}, (4, 3): {"eax": 0x163}}
    for leaf, subleaf, register, bit in FEATURES.values():
        entry = leaves.setdefault((leaf, subleaf), {})
        entry[register] = entry.get(register, 0) | 1 << bit
    leaves[0xD, 0] = {"eax": 0x602E7, "ebx": 11008, "ecx": 11008}
    for number, (size, offset) in {2: (256, 576), 5: (64, 1088), 6: (512, 1152), 7: (1024, 1664), 9: (8, 2688), 18: (8192, 2816)}.items():
        leaves[0xD, number] = {"eax": size, "ebx": offset}
    return [ffi.new("struct kvm_cpuid_entry2 *", {"function": f, "index": i, **values}) for (f, i), values in leaves.items()]


def entry(table, leaf, subleaf=0):
    return next((one for one in table if (one.function, one.index) == (leaf, subleaf)), None)


def test_features_are_read_from_a_table():
    assert features_of(full_table()) == EVERYTHING
    assert len(set(FEATURES.values())) == len(FEATURES), "two names for one bit"


def test_max_is_everything():
    assert features_of(entries_for("max", full_table(), 0, 2)) == EVERYTHING - {"monitor"}
    assert features_of(entries_for("max,+monitor", full_table(), 0, 2)) == EVERYTHING


def test_levels_grow():
    one, two, three = (parse_model(f"x86-64-v{n}", EVERYTHING) for n in (1, 2, 3))
    assert one < two < three < EVERYTHING
    assert {"sse2", "nx", "apic", "smep"} <= one and not {"sse3", "popcnt", "avx", "xsave"} & one
    assert {"sse4_2", "cx16", "popcnt"} <= two and "avx" not in two
    assert {"avx2", "bmi2", "fma", "xsave"} <= three and "avx512f" not in three


def test_changes():
    has = parse_model("x86-64-v2,+aes,-sse4.2", EVERYTHING)
    assert "aes" in has and "sse4_2" not in has
    assert not {"avx", "avx2", "fma", "avx512f", "xsavec"} & parse_model("max,-xsave", EVERYTHING)


@pytest.mark.parametrize("model", ["z80", "max,warp", "max,+warp", "max,*sse", "max,", ""])
def test_unknown_names(model):
    with pytest.raises(ConfigError):
        parse_model(model, EVERYTHING)


def test_close_names_are_told():
    with pytest.raises(ConfigError, match=r"did you mean .*avx2"):
        parse_model("max,+avx22", EVERYTHING)


def test_what_the_backend_lacks():
    with pytest.raises(MissingCapability, match="aes"):
        parse_model("max,+aes", EVERYTHING - {"aes"})
    with pytest.raises(MissingCapability, match="popcnt"):
        parse_model("x86-64-v2", EVERYTHING - {"popcnt"})


def test_xsave_follows():
    table = entries_for("x86-64-v3", full_table(), 0, 1)
    assert entry(table, 0xD).eax == 7 and entry(table, 0xD).ecx == 832
    assert entry(table, 0xD, 5) is None and entry(table, 0xD, 2) is not None
    assert entry(entries_for("x86-64-v1", full_table(), 0, 1), 0xD) is None


def test_the_place_in_the_package():
    table = entries_for("max", full_table(), 2, 3)
    assert entry(table, 1).ebx >> 16 == 2 << 8 | 4
    assert (entry(table, 0xB).edx, entry(table, 0xB, 1).eax, entry(table, 0xB, 1).ebx) == (2, 2, 3)
    assert entry(table, 4, 3).eax >> 14 == 3 << 12 | 3 and entry(table, 4, 0).eax >> 14 == 3 << 12
    assert entry(table, 0x1F) is None
    assert entry(table, 0x80000008).ecx == 2 << 12 | 2
    assert "ht" not in features_of(entries_for("max", full_table(), 0, 1))


def test_the_table_given_is_not_changed():
    table = full_table()
    before = [bytes(ffi.buffer(one)) for one in table]
    for model in MODELS:
        entries_for(model, table, 1, 4)
    assert [bytes(ffi.buffer(one)) for one in table] == before
