"""The guest's channel: kvmpy.h in every mode, and the reader against any bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.testing import channel
from kvmpy.testing.assemble import MODES
from kvmpy.testing.channel import GuestAssertion, GuestChannel, Timestamp
from kvmpy.testing.machine import GuestAssertionError

from .sources import ASM_CHECKS, CHECKS, RING3


@pytest.mark.parametrize("mode", MODES)
def test_c(machine: Any, assemble: Any, mode: str) -> None:
    machine.load(assemble(CHECKS, mode, flags=("-DFOUR=4", "-Wextra", "-Werror")))
    assert machine.exit_code == 7
    assert machine.guest_log == ["hello", "3 * 5 = 0xf"]
    assert machine.asserts == [GuestAssertion(True, "guest.c", 6, "1 + 1 == 2"), GuestAssertion(True, "guest.c", 8, "2 + 2 == FOUR")]
    assert [one.name for one in machine.timestamps] == ["start", "end"]
    assert machine.elapsed("start", "end") > 0


@pytest.mark.parametrize("mode", MODES)
def test_assembly(machine: Any, assemble: Any, mode: str) -> None:
    source = ASM_CHECKS if MODES[mode].bits != 64 else ASM_CHECKS.replace("pop     %edi", "pop     %rdi")
    if MODES[mode].bits == 16:
        source = source.replace("pop     %edi", "pop     %di")
    program = assemble(source, mode, flags=("-DFIVE=5",))
    assert b"kvmpy_text" not in Path(program.elf).read_bytes()  # the header's own names would stand for addresses of the guest
    machine.load(program)
    machine.cpu[0].registers.rsp = 0x8000 if mode != "flat16" else 0x7C00
    assert machine.exit_code == 3
    assert machine.guest_log == ["from assembly"] and len(machine.asserts) == 4 and len(machine.timestamps) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_assertion_fails_the_run(soft_machine: Any, assemble: Any, mode: str) -> None:
    soft_machine.load(assemble(CHECKS, mode, flags=("-DFOUR=5",)))
    with pytest.raises(GuestAssertionError, match=r"guest\.c:8: 2 \+ 2 == FOUR \(got 0x4, wanted 0x5\)"):
        soft_machine.run()
    assert soft_machine.exit_code == 1


def test_a_failed_assertion_of_assembly(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble(ASM_CHECKS.replace("pop     %edi", "pop %di"), flags=("-DFIVE=6",)))
    with pytest.raises(GuestAssertionError, match=r"guest\.S:17: eax == FIVE"):
        soft_machine.run()


def test_an_expectation_goes_on(soft_machine: Any, assemble: Any) -> None:
    soft_machine.load(assemble("#include <kvmpy.h>\nint main(void) { kvmpy_expect(0); kvmpy_expect(1); return kvmpy_expect_equal(1, 2); }"))
    with pytest.raises(GuestAssertionError) as caught:
        soft_machine.run()
    assert str(caught.value).count("guest assertion failed") == 2
    assert soft_machine.exit_code == 0 and len(soft_machine.asserts) == 3


def test_ring_3(machine: Any, assemble: Any) -> None:
    machine.load(assemble(RING3))
    assert machine.exit_code == 5
    assert machine.guest_log == ["in ring 3"]


def test_several_files_share_the_lock(soft_machine: Any, assemble: Any, tmp_path: Any) -> None:
    other = tmp_path / "other.S"
    other.write_text('#include <kvmpy.h>\n.globl other\nother: kvmpy_log("other")\nret\n')
    more = tmp_path / "more.c"
    more.write_text('#include <kvmpy.h>\nvoid more(void) { kvmpy_log("more"); }\n')
    source = '#include <kvmpy.h>\nvoid other(void), more(void);\nint main(void) { kvmpy_log("main"); other(); more(); return 0; }'
    soft_machine.load(assemble(source, also=[other, more]))
    assert soft_machine.exit_code == 0 and soft_machine.guest_log == ["main", "other", "more"]


CROWD = """\
#include <kvmpy.h>
        mov     $60, %ecx
1:      kvmpy_log("one line of text")
        kvmpy_time("a moment")
        test    %ecx, %ecx
        kvmpy_expect(nz, "ecx counts")
        dec     %ecx
        jnz     1b
        lock incl done
        test    %edi, %edi
        jnz     3f
2:      pause
        cmpl    $CPUS, done
        jb      2b
        kvmpy_exit(0)
3:      cli
        hlt
        jmp     3b
        .balign 4
done:   .long   0
"""


def test_messages_of_several_cpus_stay_apart(make_machine: Any, assemble: Any) -> None:
    crowd(make_machine("soft", cpus=3), assemble)


def test_messages_of_several_threads_stay_apart(make_machine: Any, assemble: Any) -> None:
    crowd(make_machine("kvm", cpus=3, timeout=30), assemble)


def crowd(machine: Any, assemble: Any) -> None:
    """All vCPUs start at once in the same code, with stacks of their own."""
    machine.load(assemble(CROWD, "flat32", flags=("-DCPUS=3",)))
    for cpu in machine.cpu:
        cpu.start_at(machine.boot_state)
        cpu.vcpu.set_mp_state(0)
        cpu.registers.rsp = 0x9000 + 0x1000 * cpu.index
        cpu.registers.rdi = cpu.index
    assert machine.exit_code == 0
    assert machine.guest_log == ["one line of text"] * 180
    assert len(machine.asserts) == 180 and {one.name for one in machine.timestamps} == {"a moment"}


def test_messages_and_text_mixed() -> None:
    one = GuestChannel()
    one.now = iter(range(100, 900, 100)).__next__
    one.write(b"plain\r\nhalf \x01@first\n")
    one.write(b"a line\n\x01+dir/a.c:12: x == y: z\n\x01-b.c:3: n\tgot 0x1, wanted 0x2\n\x01?odd\nrest")
    assert one.lines() == ["plain", "half a line", "\x01?odd", "rest"]
    assert one.timestamps == [Timestamp("first", 100)]
    assert one.asserts == [GuestAssertion(True, "dir/a.c", 12, "x == y: z"), GuestAssertion(False, "b.c", 3, "n", "got 0x1, wanted 0x2")]
    assert str(one.asserts[1]) == "b.c:3: n (got 0x1, wanted 0x2)"


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_are_taken(pieces: list[bytes]) -> None:
    apart, whole = GuestChannel(), GuestChannel()
    for piece in pieces:
        apart.write(piece)
    whole.write(b"".join(pieces))
    assert (apart.lines(), apart.asserts, apart.timestamps) == (whole.lines(), whole.asserts, whole.timestamps)


def test_a_talkative_guest_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MOST_LINES", 10)
    one = GuestChannel()
    one.write(b"x" * 100_000 + b"\n" + b"line\n" * 20 + b"\x01@t\n" * 15)
    assert len(one.log) == 10 and len(one.log[0]) == channel.LONGEST_LINE
    assert len(one.timestamps) == 10 and one.lost == 11 + 5
