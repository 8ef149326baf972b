"""ACPI and MP tables: checksums, contents, and iasl's opinion of them."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from kvmpy.boot import Hardware, bios_area
from kvmpy.boot.acpi import aml
from kvmpy.boot.hardware import Pci
from kvmpy.boot.layout import Layout
from kvmpy.boot.mptable import config_table
from kvmpy.errors import ConfigError
from kvmpy.memory import GuestMemory


def acpi_tables(memory: GuestMemory, hardware: Hardware) -> dict[str, bytes]:
    """All tables by signature, found as a guest finds them, checksums verified."""
    rsdp = bios_area.install(Layout(memory), hardware)
    found = list(memory.search(b"RSD PTR ", 0xE0000, 0x100000, step=16))
    assert found == [rsdp]
    pointer = memory.read(rsdp, 36)
    assert sum(pointer[:20]) % 256 == 0 and sum(pointer) % 256 == 0 and pointer[15] == 2
    (rsdt,) = struct.unpack_from("<I", pointer, 16)
    (xsdt,) = struct.unpack_from("<Q", pointer, 24)

    def table(at: int) -> bytes:
        data = memory.read(at, memory.read_u32(at + 4))
        assert data[:4] == b"FACS" or sum(data) % 256 == 0
        return data

    tables = {"RSDT": table(rsdt), "XSDT": table(xsdt)}
    short = struct.unpack(f"<{(len(tables['RSDT']) - 36) // 4}I", tables["RSDT"][36:])
    wide = struct.unpack(f"<{(len(tables['XSDT']) - 36) // 8}Q", tables["XSDT"][36:])
    assert short == wide
    for at in wide:
        data = table(at)
        tables[data[:4].decode()] = data
    fadt = tables["FACP"]
    tables["FACS"] = table(struct.unpack_from("<I", fadt, 36)[0])
    dsdt = struct.unpack_from("<I", fadt, 40)[0]
    assert struct.unpack_from("<Q", fadt, 140)[0] == dsdt
    tables["DSDT"] = table(dsdt)
    return tables


def test_fadt(memory: GuestMemory) -> None:
    fadt = acpi_tables(memory, Hardware())["FACP"]
    assert len(fadt) == 268 and fadt[8] == 5
    assert struct.unpack_from("<H", fadt, 46) == (9,)
    assert struct.unpack_from("<I", fadt, 48) == (0,), "an SMI command would mean that ACPI must be switched on"
    assert struct.unpack_from("<I", fadt, 56) == (0x600,) and struct.unpack_from("<I", fadt, 64) == (0x604,)
    assert struct.unpack_from("<I", fadt, 76) == (0x608,)
    assert fadt[116:128] == struct.pack("<BBBBQ", 1, 8, 0, 1, 0xCF9) and fadt[128] == 6


@pytest.mark.parametrize("cpus", [1, 4, 255, 300])
def test_madt(memory: GuestMemory, cpus: int) -> None:
    madt = acpi_tables(memory, Hardware(cpus=cpus))["APIC"]
    entries, at = [], 44
    while at < len(madt):
        entries.append((madt[at], madt[at : at + madt[at + 1]]))
        at += madt[at + 1]
    assert at == len(madt)
    kinds = [kind for kind, _ in entries]
    assert kinds.count(0) == min(cpus, 255) and kinds.count(9) == max(0, cpus - 255)
    assert [e for k, e in entries if k == 1] == [struct.pack("<BBBBII", 1, 12, 0, 0, 0xFEC00000, 0)]
    assert [e for k, e in entries if k == 2] == [struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0xD)]


PCI = Pci(ecam=0xE0000000, memory=(0xC0000000, 0x20000000), pirq_gsis=tuple(range(16, 24)), isa_bridge=1)
MICRO = Hardware(rtc=False, i8042=False, isa_chips=False, virtio_mmio=((0xFEB00000, 0x200, 5), (0xFEB01000, 0x200, 6)))


def test_pci_and_hpet(memory: GuestMemory) -> None:
    tables = acpi_tables(memory, Hardware(pci=PCI, hpet=0xFED00000))
    assert tables["MCFG"][44:] == struct.pack("<QHBB4x", 0xE0000000, 0, 0, 0)
    assert struct.unpack_from("<I", tables["HPET"], 36)[0] == 0x80862201 and struct.unpack_from("<Q", tables["HPET"], 44)[0] == 0xFED00000
    route = aml.package(aml.integer(5 << 16 | 0xFFFF), aml.integer(2), aml.integer(0), aml.integer(16 + 7))
    assert route in tables["DSDT"] and aml.name("_PRT", b"")[1:5] in tables["DSDT"]


def test_virtio_mmio(memory: GuestMemory) -> None:
    tables = acpi_tables(memory, MICRO)
    assert aml.resources(aml.memory32(0xFEB01000, 0x200), aml.interrupt(6)) in tables["DSDT"]
    assert tables["DSDT"].count(b"LNRO0005") == 2 and "MCFG" not in tables and "HPET" not in tables
    overrides = [struct.pack("<BBBBIH", 2, 10, 0, irq, irq, 0xD) for irq in (5, 6, 9)]
    assert b"".join(overrides) in tables["APIC"]


def test_mp_table_with_pci(memory: GuestMemory) -> None:
    table = config_table(Hardware(pci=PCI))
    entries, at = [], 44
    while at < len(table):
        entries.append(table[at : at + (20 if table[at] == 0 else 8)])
        at += len(entries[-1])
    assert at == len(table) and struct.unpack_from("<H", table, 34)[0] == len(entries)
    assert struct.pack("<BB6s", 1, 0, b"PCI   ") in entries and struct.pack("<BB6s", 1, 1, b"ISA   ") in entries
    assert struct.pack("<BBHBBBB", 3, 0, 0, 0, 3 << 2 | 1, 1, 16 + 4) in entries
    assert struct.pack("<BBHBBBB", 3, 0, 0, 1, 4, 1, 4) in entries


def test_too_many_cpus(memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        bios_area.install(Layout(memory), Hardware(cpus=4000))


@pytest.mark.parametrize("cpus", [1, 16])
def test_mp_tables(memory: GuestMemory, cpus: int) -> None:
    bios_area.install(Layout(memory), Hardware(cpus=cpus))
    ebda = memory.read_u16(0x40E) << 4
    (at,) = memory.search(b"_MP_", ebda, ebda + 1024, step=16)
    pointer = memory.read(at, 16)
    assert sum(pointer) % 256 == 0
    (config,) = struct.unpack_from("<I", pointer, 4)
    table = memory.read(config, memory.read_u16(config + 4))
    assert table[:4] == b"PCMP" and sum(table) % 256 == 0
    count, at, kinds = struct.unpack_from("<H", table, 34)[0], 44, []
    for _ in range(count):
        kinds.append(table[at])
        at += 20 if table[at] == 0 else 8
    assert at == len(table)
    assert kinds.count(0) == cpus and kinds.count(3) == 15 and kinds == sorted(kinds)


def test_package_length() -> None:
    for size in (0, 62, 63, 64, 4000, 4093, 4094, 4095, 70000, 1 << 20, (1 << 28) - 6):
        raw = aml.package_length(size)
        extra = raw[0] >> 6
        value = raw[0] & 0x3F if not extra else raw[0] & 0xF | int.from_bytes(raw[1:], "little") << 4
        assert len(raw) == extra + 1 and value == size + len(raw)


def test_names() -> None:
    assert aml.name_string("\\") == b"\\\0"
    assert aml.name_string("\\_SB.ISA") == b"\\\x2e_SB_ISA_"
    assert aml.name_string("A.B.C") == b"\x2f\x03A___B___C___"
    assert aml.eisa_id("PNP0501") == b"\x0c\x41\xd0\x05\x01"


@pytest.mark.parametrize("hardware", [Hardware(), Hardware(cpus=64, mouse=True), Hardware(i8042=False, rtc=False, com_ports=()),
                                      Hardware(pci=PCI, hpet=0xFED00000), MICRO])  # fmt: skip
def test_iasl_accepts_the_tables(memory: GuestMemory, tmp_path: Path, hardware: Hardware) -> None:
    if shutil.which("iasl") is None:
        pytest.skip("iasl is not installed (Debian: acpica-tools)")
    for name, data in acpi_tables(memory, hardware).items():
        path = tmp_path / f"{name}.aml"
        path.write_bytes(data)
        done = subprocess.run(["iasl", "-d", path], capture_output=True, text=True, timeout=60, check=False)
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "Error" not in said and "Warning" not in said and "Invalid" not in said, said
        if name == "DSDT":
            again = tmp_path / "again"
            done = subprocess.run(
                ["iasl", "-oa", "-p", again, path.with_suffix(".dsl")], capture_output=True, text=True, timeout=60, check=False
            )
            assert "0 Errors, 0 Warnings" in done.stdout, done.stdout
