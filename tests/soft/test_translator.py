"""Translated code against the interpreter: the same programs end in the same state, to the register, the flag and the instruction."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmpy.debug.translation import Translations
from kvmpy.errors import ConfigError
from kvmpy.machine import Machine
from kvmpy.native import ffi, lib
from kvmpy.soft import SoftBackend
from kvmpy.soft.backend import THRESHOLD, VARIABLE, threshold_of
from tests.soft.soft_guest import CODE, STACK, Guest
from tests.soft.system_guest import assemble
from tests.soft.translated import needs_code, state, with_gates

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "build" / "guests"
HLT, SHUTDOWN = lib.KVM_EXIT_HLT, lib.KVM_EXIT_SHUTDOWN
DATA = 0x5000
UNMAPPED = 1 << 38
PAGE = 4096
CR4_SMAP, AC = 1 << 21, 1 << 18
Make = Callable[..., Guest]
pytestmark = needs_code


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Guest] = []

    def build(code: bytes, mode: str = "long", **options: object) -> Guest:
        guest = Guest(code, mode, **options)  # type: ignore[arg-type]
        made.append(guest)
        return guest

    yield build
    for guest in made:
        guest.close()


def both(make: Make, code: bytes, reason: int, prepare: Callable[[Guest], object] = lambda guest: None, **options: object) -> Guest:
    """Runs it interpreted and translated from the first run on; the states must be one. Gives the translated guest."""
    states = []
    for translate in (0, 1):
        guest = make(code, translate=translate, **options)
        guest.set(rax=0, rbx=0, rcx=0, rdx=0)
        prepare(guest)
        assert guest.vcpu.run() == reason
        states.append(state(guest))
        count = guest.vcpu.statistics()["instructions_translated"]
        assert count > 0 if translate else count == 0
    assert states[0] == states[1]
    return guest


def test_a_loop_that_changes_its_own_code(make: Make) -> None:
    """An instruction of the same block behind the store, and one before it: the next pass runs what was written."""
    code = bytes.fromhex(
        "b9 05000000"  # mov ecx, 5
        "b8 01000000"  # again: mov eax, 1
        "01c3"  # add ebx, eax
        "fe05 f4ffffff"  # inc byte [the 1]
        "fe05 02000000"  # inc byte [the 10h]
        "83c2 10"  # add edx, 10h
        "ffc9 75e6 f4"  # dec ecx; jnz again; hlt
    )
    guest = both(make, code, HLT)
    regs = guest.vcpu.get_regs()
    assert (regs.rbx, regs.rdx) == (15, 0x11 + 0x12 + 0x13 + 0x14 + 0x15)
    found = guest.vcpu.statistics()
    assert found["translations_dropped"] >= 5 and found["blocks_translated"] > found["translations_dropped"]


def test_code_that_another_block_is_linked_to_is_overwritten(make: Make) -> None:
    code = bytes.fromhex(
        "b9 06000000"  # mov ecx, 6
        "eb02"  # again: jmp first
        "9090"
        "83c3 01"  # first: add ebx, 1
        "eb00"  # jmp second
        "83c2 02"  # second: add edx, 2
        "83f9 03 7507"  # cmp ecx, 3; jne skip
        "c605 eeffffff 40"  # mov byte [the 1], 40h
        "ffc9 75e4 f4"  # skip: dec ecx; jnz again; hlt
    )
    regs = both(make, code, HLT).vcpu.get_regs()
    assert (regs.rbx, regs.rdx) == (4 + 2 * 0x40, 12)


@pytest.mark.parametrize("apart", [0, PAGE], ids=["inside a page", "between pages"])
def test_what_led_to_code_that_was_dropped_leads_to_the_new_one(make: Make, apart: int) -> None:
    code = assemble(
        f"""mov $1000, %ecx
        again: add $1, %ebx
        jmp second
        .org {0x40 + apart}
        second: add $2, %edx
        cmp $944, %ecx
        jne skip
        movb $3, second + 2
        skip: dec %ecx
        jnz again
        hlt""", 64, CODE,
    )  # fmt: skip
    found = both(make, code, HLT).vcpu.statistics()
    assert found["translations_dropped"] and found["exits_to_loop"] < 20, found


def test_a_return_that_was_looked_up_once_finds_its_code_from_then_on(make: Make) -> None:
    """A hundred times after each flush of the TLB, under which nothing holds that was found before."""
    code = assemble(
        """sti
        mov $1000, %esi
        outer: mov %cr3, %rax
        mov %rax, %cr3
        mov $100, %ecx
        again: call function
        dec %ecx
        jnz again
        dec %esi
        jnz outer
        out %al, $0xf4
        function: inc %edx
        ret""", 64, CODE,
    )  # fmt: skip
    found = both(make, code, lib.KVM_EXIT_IO, chips=True).vcpu.statistics()
    assert found["exits_to_handler"] < 10000, found


def test_a_fault_in_the_middle_of_a_block_behind_accesses_across_pages(make: Make) -> None:
    code = bytes.fromhex(
        "bb fd5f0000"  # mov ebx, 5ffdh
        "488b03"  # again: mov rax, [rbx]
        "480103"  # add [rbx], rax
        "4839f0"  # cmp rax, rsi
        "488b3a"  # mov rdi, [rdx]: the second time nothing is there
        "4a8d1402"  # lea rdx, [rdx + r8]
        "8d4901"  # lea ecx, [rcx + 1]
        "ebeb"  # jmp again
    )

    def prepare(guest: Guest) -> None:
        with_gates(guest)
        guest.put(0x5FFD, (3).to_bytes(8, "little"))
        guest.set(rdx=DATA, r8=UNMAPPED, rsi=6)

    guest = both(make, code, HLT, prepare)
    assert guest.vcpu.get_sregs().cr2 == DATA + UNMAPPED
    frame = [int.from_bytes(guest.get(STACK - 48 + 8 * n, 8), "little") for n in range(6)]
    regs = guest.vcpu.get_regs()
    assert frame[0] == 0 and frame[1] == CODE + 5 + 9 and frame[4] == STACK  # not present; the load's address; the stack before
    assert frame[3] & 0x8D5 == 0x44  # of the compare before it: 6 is 6, so ZF and PF
    assert (regs.rcx, regs.rax, guest.get(0x5FFD, 1)) == (1, 6, b"\x0c")


def test_a_division_by_zero_and_a_push_without_a_stack(make: Make) -> None:
    divide = bytes.fromhex("b9 03000000 31d2 b8 64000000 83e901 f7f1 ebf2 f4")  # mov ecx, 3; again: xor edx, edx; ...; div ecx; jmp
    guest = both(make, divide, HLT, with_gates)
    assert guest.vcpu.get_regs().rcx == 0 and int.from_bytes(guest.get(STACK - 40, 8), "little") == CODE + 15
    push = bytes.fromhex("b9 04000000 54 ffc9 75fb 48bc0000000000010000 83c001 50 f4")  # the last push is outside of all tables
    both(make, push, SHUTDOWN)


def test_copies_through_smap(make: Make) -> None:
    """Supervisor code on user pages: with RFLAGS.AC it may, without it may not; translated code has a table for each."""
    code = bytes.fromhex(
        "be 00500000 bf 00600000 b9 10000000"  # from 5000h to 6000h, 16 times
        "488b06 488907 488d7608 488d7f08 ffc9 75ee"
        "0f01ca"  # clac
        "488b06 f4"
    )

    def prepare(guest: Guest) -> None:
        sregs = guest.vcpu.get_sregs()
        sregs.cr4 |= CR4_SMAP
        guest.vcpu.set_sregs(sregs)
        guest.put(DATA, bytes(range(128)))
        guest.set(rflags=2 | AC)

    guest = both(make, code, SHUTDOWN, prepare)  # the fault cannot be delivered: the stack is a user page too
    assert guest.get(0x6000, 128) == bytes(range(128)) and guest.vcpu.get_regs().rsi == DATA + 128


def test_what_is_not_translated_runs_all_the_same(make: Make) -> None:
    guest = make(bytes.fromhex("b90500 40 e2fd f4"), "real", translate=1)  # 16-bit: mov cx, 5; inc ax; loop
    assert guest.vcpu.run() == HLT and guest.vcpu.get_regs().rax == 5
    found = guest.vcpu.statistics()
    assert found["blocks_untranslatable"] > 0 and found["instructions_translated"] == 0


def test_the_code_cache_is_emptied_when_it_is_full(make: Make) -> None:
    blocks, passes = 1500, 3
    code = b"\xb9" + passes.to_bytes(4, "little") + bytes.fromhex("ffc0 eb00") * blocks  # inc eax; jmp to the next
    back = 5 - (len(code) + 2 + 6)
    code += b"\xff\xc9\x0f\x85" + back.to_bytes(4, "little", signed=True) + b"\xf4"
    guest = make(code, translate=1, code_cache=lib.KP_CODE_CACHE_LEAST)
    assert guest.vcpu.run() == HLT and guest.vcpu.get_regs().rax == blocks * passes
    found = guest.vcpu.statistics()
    assert found["code_cache_evictions"] > passes and found["instructions"] == 1 + blocks * passes * 2 + passes * 2 + 1
    whole = make(code, translate=1)
    assert whole.vcpu.run() == HLT and whole.vcpu.statistics()["code_cache_evictions"] == 0


def test_counters(make: Make) -> None:
    code = bytes.fromhex("b9 e8030000 83c001 d9ee ddd8 ffc9 75f5 f4")  # a loop with two x87 instructions: handlers do those
    guest = make(code, translate=1)
    assert guest.vcpu.run() == HLT
    found = guest.vcpu.statistics()
    assert found["instructions"] == 2 + 5 * 1000
    assert 1990 <= found["handler_calls"] <= 2001  # the last is HLT
    assert found["instructions_translated"] + found["handler_calls"] in range(4980, found["instructions"] + 1)
    assert found["links"] >= 1 and found["code_bytes"] > 0
    assert not any(make(b"\xf4", translate=0).vcpu.statistics()[name] for name in ("blocks_translated", "links"))


def test_a_fault_of_a_handler_that_translated_code_calls_is_counted_exactly(make: Make) -> None:
    code = bytes.fromhex(
        "b9 03000000"  # mov ecx, 3
        "83c201 dd03 ddd8"  # again: add edx, 1; fld qword [rbx]: the second time nothing is there; fstp st0
        "4a8d1c03 ffc9 75f1 f4"  # lea rbx, [rbx + r8]; dec ecx; jnz again; hlt
    )

    def prepare(guest: Guest) -> None:
        with_gates(guest)
        guest.set(rbx=DATA, r8=UNMAPPED)

    guest = both(make, code, HLT, prepare)
    found = guest.vcpu.statistics()
    assert (found["instructions_translated"], found["handler_calls"]) == (1 + 4 + 1, 4)  # the third handler met the fault; HLT
    assert found["instructions"] == 1 + 6 + 1 + 1 and found["page_faults"] == 1


def test_the_option() -> None:
    assert threshold_of("on") == THRESHOLD and threshold_of("off") == threshold_of(0) == 0 and threshold_of("7") == threshold_of(7) == 7
    for wrong in ("fast", "-1", -1, 1 << 32, ""):
        with pytest.raises(ConfigError):
            SoftBackend(translate=wrong)
    for size in (0, lib.KP_CODE_CACHE_LEAST - 1, lib.KP_CODE_CACHE_MOST + 1):
        with pytest.raises(ConfigError):
            SoftBackend(code_cache=size)


def test_the_environment_has_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert SoftBackend().threshold == 0 and SoftBackend(translate=3).threshold == 3
    monkeypatch.setenv(VARIABLE, "sometimes")
    with pytest.raises(ConfigError, match=VARIABLE):
        SoftBackend()


# Whole guests under virtual time: interrupts come behind the same instruction, whatever runs it.

NAMES = (
    "hello32.elf", "hello64.elf", "smc32.elf", "smc64.elf", "traps32.elf", "traps64.elf", "paging32.elf", "paging64.elf",
    pytest.param("timers.elf", marks=pytest.mark.slow), "tasks.elf", "user32.elf", "user64.elf", "fpu64.elf", "smp.elf",
    "segments.elf", "vm86.elf",
)


def one_run(name: str, translate: int) -> tuple[object, ...]:
    with Machine("128M", 2 if name == "smp.elf" else 1, clock="virtual", backend="soft", translate=translate) as machine:
        machine.load(GUESTS / name)
        with machine.trace("irq", "exception") as events:
            verdict = machine.run(30)
        counts = [cpu.vcpu.statistics() for cpu in machine.cpu]
        exact = ("instructions", "page_faults", "exceptions", "interrupts", "io_exits", "mmio_exits", "halts")
        told = [tuple(event[:5]) for event in events]
        registers = [bytes(ffi.buffer(cpu.vcpu.get_regs())) + bytes(cpu.vcpu.get_xsave()) for cpu in machine.cpu]
        done = sum(count["instructions_translated"] for count in counts)
        assert (done > 0) == bool(translate)
        text = machine.serial.text
        return str(verdict), text, machine.vm.now(), [[count[key] for key in exact] for count in counts], told, registers


@pytest.mark.parametrize("name", NAMES)
def test_guests_run_the_same_to_the_instruction(name: str) -> None:
    if not (GUESTS / name).exists():
        pytest.skip(f"{name} is not built (make guests)")
    interpreted, translated = one_run(name, 0), one_run(name, 1)
    for one, other in zip(interpreted, translated, strict=True):
        assert one == other


# What a person sees of it.

def test_guest_and_host_code_side_by_side(tmp_path: Path) -> None:
    with Machine("16M", backend="soft", translate=1) as machine:
        image = tmp_path / "loop.bin"
        image.write_bytes(bytes.fromhex("b9 e8030000 83c001 ffc9 75f9 b000 e6f4"))
        machine.load(image, "flat32")
        entry = machine.cpu[0].vcpu.get_regs().rip
        machine.run(10)
        found = Translations(machine)
        blocks = found.at(entry + 5)
        assert {block.rip for block in blocks} == {entry, entry + 5}
        loop = next(block for block in blocks if block.rip == entry + 5)
        assert (loop.instructions, loop.mode, loop.bytes) == (3, 32, 7) and 0 < loop.links <= loop.exits
        assert [guest.text.split()[0] for guest, _ in loop.parts if guest] == ["add", "dec", "jne"]
        code = b"".join(line.code for _, part in loop.parts for line in part)
        assert len(code) == loop.code_size and all(line.text for _, part in loop.parts for line in part)
        assert any("<save_unlinked>" in line for line in loop.lines())
        path = tmp_path / "perf.map"
        assert found.perf_map(str(path)) > 1
        lines = [line.split() for line in path.read_text().splitlines()]
        spans = [(int(start, 16), int(size, 16)) for start, size, _ in lines]
        assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(spans))
        assert [name for *_, name in lines[:2]] == ["kvmpy:enter", "kvmpy:exit"] and "kvmpy:fallback" in {name for *_, name in lines}
        assert not found.at(0xDEAD0000)


def test_the_time_in_each_engine_is_told_where_it_is_asked_for(make: Make) -> None:
    # mov ecx, 2000000; again: dec ecx; jnz again; hlt
    for timed in (False, True):
        guest = make(bytes.fromhex("b980841e00 ffc9 75fc f4"), translate=24)
        guest.vm.set_timing(timed)
        began = time.monotonic_ns()
        assert guest.vcpu.run() == HLT
        passed = time.monotonic_ns() - began
        found = guest.vcpu.statistics()
        times = [found[name] for name in ("ns_interpreted", "ns_translating", "ns_translated")]
        assert all(times) == any(times) == timed
        assert sum(times) < 1.2 * passed + 1e6
        assert not timed or found["ns_translated"] > found["ns_translating"]


def test_slow_accesses_are_counted(make: Make) -> None:
    # mov ecx, 100; again: mov eax, [0x20ffe]; dec ecx; jnz again; hlt - over a page's end
    guest = make(bytes.fromhex("b964000000 8b0425fe0f0200 ffc9 75f5 f4"), translate=1)
    assert guest.vcpu.run() == HLT
    assert 100 <= guest.vcpu.statistics()["slow_accesses"] < 110


def test_dropped_translations_keep_their_names(tmp_path: Path) -> None:
    # mov ecx, 3; again: mov byte [there + 1], cl; there: mov al, n; dec ecx; jnz again; mov al, 0; out 0xf4, al
    image = tmp_path / "changes"
    image.write_bytes(bytes.fromhex("b903000000 880d0c001000 b005 49 75f5 b000 e6f4"))
    names = []
    for remembered in (False, True):
        with Machine("16M", backend="soft", translate=1) as machine:
            machine.load(image, "flat32@0x100000")
            if remembered:
                machine.vm.remember_translations()  # type: ignore[attr-defined]
            machine.run(10)
            Translations(machine).perf_map(str(tmp_path / "map"))
            names.append([line.split()[2] for line in (tmp_path / "map").read_text().splitlines()])
    assert names[1].count("guest:0x10000b") > names[0].count("guest:0x10000b")


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


FILTER = """
import ctypes, struct, sys
from kvmpy import Machine

def run():
    with Machine("16M", backend="soft", translate=1) as machine:
        machine.load(sys.argv[1], "flat32")
        print(machine.run(10), machine.vm.translating)

run()  # everything is loaded now
libc = ctypes.CDLL(None, use_errno=True)
steps = [  # (code, if true, if false, k): mmap and mprotect that ask for execution are refused
    (0x20, 0, 0, 0), (0x15, 2, 0, 9), (0x15, 1, 0, 10), (0x06, 0, 0, 0x7FFF0000),
    (0x20, 0, 0, 32), (0x45, 0, 1, 4), (0x06, 0, 0, 0x0005000D), (0x06, 0, 0, 0x7FFF0000),
]
program = b"".join(struct.pack("HBBI", *step) for step in steps)
kept = ctypes.create_string_buffer(program)
header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(kept)))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header):
    sys.exit(77)
run()
run()
"""

MDWE = FILTER[: FILTER.index("steps =")] + """
if libc.prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    sys.exit(77)
run()
"""


@pytest.fixture
def leaving(tmp_path: Path) -> Path:
    image = tmp_path / "leave.bin"
    image.write_bytes(bytes.fromhex("b9 64000000 ffc9 75fc b000 e6f4"))
    return image


def test_where_executable_memory_is_refused_the_interpreter_runs_and_says_so(leaving: Path) -> None:
    done = child(FILTER, leaving)
    if done.returncode == 77:
        pytest.skip("this kernel has no seccomp filters")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["guest exit, status 0 True"] + ["guest exit, status 0 False"] * 2
    assert done.stderr.count("forbids executable memory") == 1 and len(done.stderr.splitlines()) == 1


def test_where_memory_may_not_become_executable_it_is_so_from_the_beginning(leaving: Path) -> None:
    done = child(MDWE, leaving)
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["guest exit, status 0 True"] * 2 and not done.stderr
