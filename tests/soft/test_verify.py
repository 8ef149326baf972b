"""The software CPU checks its translator: everything runs twice. Sound translations pass, a damaged one is found and told."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmpy import Device
from kvmpy.errors import ConfigError, TranslatorError
from kvmpy.machine import Machine
from kvmpy.native import ffi, lib
from kvmpy.soft import SoftBackend
from kvmpy.soft.backend import VARIABLE, VERIFY_VARIABLE, verifying
from kvmpy.verdicts import GuestExit
from tests.soft.soft_guest import CODE, Guest
from tests.soft.system_guest import assemble
from tests.soft.test_translator import needs_code

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "build" / "guests"
HLT = lib.KVM_EXIT_HLT
DATA = 0x20000
Make = Callable[..., Guest]

pytestmark = needs_code


@pytest.fixture(autouse=True)
def by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all tests run interpreted, or translated at once, these do as they would anyway."""
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Guest] = []

    def build(code: str, mode: str = "long", **options: Any) -> Guest:
        guest = Guest(intel(code, 64 if mode == "long" else 32, CODE), mode, translate=1, verify=True, **options)
        made.append(guest)
        return guest

    yield build
    for guest in made:
        guest.close()


def intel(code: str, bits: int, origin: int) -> bytes:
    return assemble(f".intel_syntax noprefix; {code}", bits, origin)


def writable(host: int) -> int:
    """Where the byte of the code cache at an executable address can be written: the same memory's other mapping."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        first, end = (int(part, 16) for part in words[0].split("-"))
        ranges.append((first, end, words[1], words[2:5]))
    same = next(file for first, end, _, file in ranges if first <= host < end)
    start = next(first for first, end, _, file in ranges if first <= host < end)
    (other,) = (first for first, _, rights, file in ranges if file == same and rights.startswith("rw"))
    return other + host - start


def damage(vm: Any, rip: int, old: bytes, new: bytes) -> None:
    """Changes the host code of the block at RIP."""
    for one in vm.translations(rip):
        code = vm.host_code(one)
        if one.rip == rip and code.count(old):
            ctypes.memmove(writable(one.host + code.index(old)), new, len(new))
            return
    raise AssertionError(f"no translation at {rip:#x} has {old.hex()}")


def again(guest: Guest, **registers: int) -> int:
    """Runs the guest's program once more."""
    guest.set(rip=CODE, **registers)
    return guest.vcpu.run()


def test_a_stretch_begins_anew_where_there_was_no_room_for_a_block(make: Make) -> None:
    """More blocks than their memory holds: the interpreted run may meet its end where the translated one does not."""
    blocks = 20000
    guest = make(f"mov ecx, 2; again:\n.rept {blocks}\ninc eax; jmp 1f; 1:\n.endr\ndec ecx; jnz again; hlt")
    guest.set(rax=0)
    assert guest.vcpu.run() == HLT
    found = guest.vcpu.statistics()
    assert guest.vcpu.get_regs().rax == 2 * blocks and found["instructions"] == 1 + 2 * (2 * blocks + 2) + 1
    assert found["code_evictions"] > 1 and found["instructions_verified"] > 3 * blocks



SOUND = ("hello64.elf", "smc64.elf", "traps32.elf", "traps64.elf", "paging64.elf", "tasks.elf", "user64.elf", "vm86.elf")


@pytest.mark.parametrize("name", SOUND)
def test_guests_pass(name: str) -> None:
    with Machine("128M", clock="virtual", verify_translator=True) as machine:
        assert machine.load(GUESTS / name).run(60) == GuestExit(0)
        counts = machine.statistics["vcpus"]
    assert counts["instructions_verified"] > 0.85 * counts["instructions"]


def test_the_run_is_the_one_without_it(make: Make) -> None:
    """Registers, memory and the count of instructions, through faults in mid-block and repeated string instructions."""
    code = "mov rdi, 0x20000; mov ecx, 5000; mov eax, 7; rep stosb; lea rsi, [rdi-64]; mov ecx, 9; rep movsq; push rdi; pop rbx; hlt"
    guest, plain = make(code), Guest(intel(code, 64, CODE), "long", translate=0, verify=False)
    try:
        assert guest.vcpu.run() == plain.vcpu.run() == HLT
        assert guest.get(DATA, 8192) == plain.get(DATA, 8192)
        assert bytes(ffi.buffer(guest.vcpu.get_regs())) == bytes(ffi.buffer(plain.vcpu.get_regs()))
        assert guest.vcpu.statistics()["instructions"] == plain.vcpu.statistics()["instructions"]
        assert guest.vcpu.statistics()["instructions_verified"] == plain.vcpu.statistics()["instructions"] - 1  # HLT is not repeated
    finally:
        plain.close()


def test_undefined_flags_are_no_difference(make: Make) -> None:
    """Not where they stand, and not where they are saved."""
    guest = make("mov ecx, 3; mov eax, 0x1234567; 1: imul edx, eax, 77; shl eax, cl; pushfq; pop rbx; bsf esi, eax; pushfq; pop rdi;"
                 "shrd edx, eax, 7; pushfq; pop rbp; mul ecx; sar edx, 5; dec ecx; jnz 1b; hlt")
    assert guest.vcpu.run() == HLT
    assert guest.vcpu.statistics()["instructions_translated"] > 30


def test_a_wrong_register_is_told(make: Make) -> None:
    guest = make("mov ebx, 0x12345678; mov ecx, ebx; hlt")
    assert guest.vcpu.run() == HLT
    damage(guest.vm, CODE, bytes.fromhex("78563412"), bytes.fromhex("79563412"))
    assert again(guest, rbx=0, rcx=0) == lib.KP_EXIT_DIFFERS
    error = guest.vm.difference()
    found = {name: (int.from_bytes(left, "little"), int.from_bytes(right, "little")) for name, _, left, right in error.differences}
    assert found == {"rbx": (0x12345678, 0x12345679), "rcx": (0x12345678, 0x12345679)}
    assert (error.start, error.rip, error.again, error.retired) == (CODE, CODE, True, (2, 2))
    assert guest.vcpu.get_regs().rip == CODE and guest.vcpu.get_regs().rbx == 0, "the vCPU stands where they began"


def test_a_wrong_byte_of_memory_is_told(make: Make) -> None:
    guest = make("mov edi, 0x20000; mov byte ptr [rdi + 3], 0x5a; hlt")
    assert guest.vcpu.run() == HLT
    guest.put(DATA, bytes(8))
    damage(guest.vm, CODE, b"\x5a", b"\xa5")
    assert again(guest) == lib.KP_EXIT_DIFFERS
    zeros = bytes(8)
    assert guest.vm.difference().differences == [("memory", DATA, zeros[:3] + b"\x5a" + zeros[4:], zeros[:3] + b"\xa5" + zeros[4:])]
    assert guest.get(DATA, 8) == zeros


def test_a_store_elsewhere_is_told(make: Make) -> None:
    """Even one that changes nothing there."""
    guest = make("mov edi, 0x21000; mov byte ptr [rdi], 1; mov edi, 0x21000; hlt")
    assert guest.vcpu.run() == HLT
    guest.put(DATA + 0x2000, b"\x01")
    guest.put(DATA + 0x1000, bytes(8))
    damage(guest.vm, CODE, b"\x00\x10\x02\x00", b"\x00\x20\x02\x00")
    assert again(guest) == lib.KP_EXIT_DIFFERS
    assert [(name, gpa) for name, gpa, _, _ in guest.vm.difference().differences] == [("memory", DATA + 0x1000), ("stored", DATA + 0x2000)]


def test_an_address_that_emitted_code_gets_wrong_is_told(make: Make) -> None:
    guest = make("mov edi, 0x20000; mov dword ptr [rdi + 0x44], 0x11111111; hlt")
    assert guest.vcpu.run() == HLT
    guest.put(DATA, bytes(256))
    damage(guest.vm, CODE, b"\x4f\x44", b"\x4f\x4c")
    assert again(guest) == lib.KP_EXIT_DIFFERS
    assert [(name, gpa) for name, gpa, _, _ in guest.vm.difference().differences] == [("memory", DATA + 0x40), ("memory", DATA + 0x48)]


def test_the_block_is_found_among_many(make: Make) -> None:
    guest = make("mov ebx, 1; jmp 1f; 1: add ebx, 2; jmp 2f; 2: add ebx, 0x11223344; jmp 3f; 3: add ebx, 4; jmp 4f; 4: add ebx, 5; hlt")
    assert guest.vcpu.run() == HLT
    block = next(one.rip for one in guest.vm.translations() if b"\x44\x33\x22\x11" in guest.vm.host_code(one))
    damage(guest.vm, block, b"\x44\x33\x22\x11", b"\x44\x33\x22\x12")
    while (reason := again(guest)) == HLT:  # where a stretch ends is not said
        pass
    assert reason == lib.KP_EXIT_DIFFERS
    assert guest.vm.difference().rip == block


class Saboteur(Device):
    """Port 0x99: a write changes the translation of `mov ebx, 0x12345678` wherever there is one."""

    ports = 0x99, 1

    def write(self, offset: int, size: int, value: int) -> None:
        vm: Any = self.platform.vm  # type: ignore[attr-defined]
        for one in vm.translations():
            if bytes.fromhex("78563412") in vm.host_code(one):
                damage(vm, one.rip, bytes.fromhex("78563412"), bytes.fromhex("79563412"))


PROGRAM = "1: mov ebx, 0x12345678; mov ecx, ebx; out 0x99, al; jmp 1b"


def test_python_gets_the_report_with_the_exception(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(intel(PROGRAM, 32, 0x100000))
    with Machine("16M", devices=[Saboteur()], verify_translator=True) as machine:
        machine.load(image, boot="flat32")
        with pytest.raises(TranslatorError, match="the translator is wrong about the block at 0x100000: rcx, rbx differ") as caught:
            machine.run(30)
    report = caught.value.report
    assert caught.value.__notes__ == ["\n".join(report)]
    assert report[2:4] == [
        "rcx: interpreted 0x12345678, translated 0x12345679",
        "rbx: interpreted 0x12345678, translated 0x12345679",
    ]
    assert any("mov    ebx,0x12345678" in line for line in report) and any("0x12345679" in line for line in report[4:])


def test_the_command_shows_it_and_ends_with_76(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(intel(PROGRAM, 32, 0x100000))
    command = [sys.executable, "-m", "kvmpy.cli.main", "run", "-q", "--verify-translator", "--boot", "flat32", "--timeout", "60"]
    done = subprocess.run(
        [*command, "--device", "tests.soft.test_verify:Saboteur", str(image)], capture_output=True, text=True, timeout=90, cwd=ROOT,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 76, done.stderr
    assert done.stderr.startswith("kvmpy: error: the translator is wrong about the block at 0x100000: ")
    assert "rbx: interpreted 0x12345678, translated 0x12345679" in done.stderr and "block 0x100000" in done.stderr


def test_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SoftBackend(verify_translator=True).threshold == 2 and SoftBackend(translate=9, verify_translator=True).threshold == 9
    with pytest.raises(ConfigError, match="nothing is translated"):
        SoftBackend(translate="off", verify_translator=True)
    with pytest.raises(ConfigError, match="in parallel"):
        SoftBackend(parallel=True, verify_translator=True)
    with pytest.raises(ConfigError, match="made already"):
        Machine(backend=SoftBackend(), verify_translator=True)
    monkeypatch.delenv(VERIFY_VARIABLE, raising=False)
    assert not verifying(None) and verifying(True)
    monkeypatch.setenv(VERIFY_VARIABLE, "1")
    assert verifying(None) and not verifying(False) and SoftBackend().verify and SoftBackend(translate="off").threshold == 0
    monkeypatch.setenv(VERIFY_VARIABLE, "often")
    with pytest.raises(ConfigError, match=VERIFY_VARIABLE):
        SoftBackend()
