"""The text screen of a machine under test."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from kvmpy import ConfigError, GuestExit
from kvmpy.debug.textscreen import readable
from kvmpy.testing.machine import GuestError

LINUX = Path(__file__).resolve().parents[2] / ".cache" / "guests" / "vmlinuz"

COUNTER = """
#include <kvmpy.h>
static volatile unsigned short *const screen = (unsigned short *)0xB8000;
static void put(int row, int column, const char *text) { while (*text) screen[80 * row + column++] = 0x0700 | (unsigned char)*text++; }
int main(void) {
    put(0, 0, "My kernel 1.0");
    put(24, 76, "\\x02\\x80 |");
    for (volatile unsigned n = 0; n < WAIT; n++) ;
    put(2, 3, "42 files");
    for (;;) if (*(volatile unsigned char *)0xB8002 == 'Z') return 3;
}
"""


@pytest.mark.parametrize("clock", ["host", "virtual"])
def test_text_is_waited_for(make_machine: Any, assemble: Any, clock: str) -> None:
    machine = make_machine("soft", clock=clock)
    machine.load(assemble(COUNTER, flags=("-DWAIT=3000000",)))
    assert machine.screen.text == "" and machine.screen.rows == [""] * 25
    found = machine.screen.wait_for_text(r"^ +(\d+) (?P<what>files)$")
    assert found[1] == "42" and found["what"] == "files" and machine.verdict is None
    assert machine.screen.rows[0] == "My kernel 1.0" and machine.screen.rows[24] == " " * 76 + "☻Ç |"
    assert machine.screen.wait_for_text("kernel")[0] == "kernel"  # it still stands there
    machine.memory.write(0xB8002, b"Z")
    assert machine.run() == GuestExit(3)
    assert machine.screen.wait_for_text("MZ kernel")
    with pytest.raises(GuestError, match=r"no match for 'login' on the screen: the guest ended \(guest exit.*\nit shows:\nMZ kernel"):
        machine.screen.wait_for_text("login")


def test_on_every_backend(machine: Any, assemble: Any) -> None:
    machine.load(assemble("movl $0x076B074F, 0xB8000; 1: jmp 1b", "flat32"))
    began = time.monotonic()
    assert machine.screen.wait_for_text(re.compile("ok", re.IGNORECASE))[0] == "Ok"
    assert time.monotonic() - began < 5
    with pytest.raises(GuestError, match=r"timeout after 0\.2 s"):
        machine.screen.wait_for_text("never", timeout=0.2)


def test_an_empty_screen_says_so(make_machine: Any, assemble: Any) -> None:
    for memory in ("8M", "512K"):
        machine = make_machine("soft", memory=memory).load(assemble("cli; hlt"))
        with pytest.raises(GuestError, match="it is empty: nothing is written to text memory"):
            machine.screen.wait_for_text("x")
    with pytest.raises(ConfigError, match="'x\\[' is no regular expression"):
        machine.screen.wait_for_text("x[")


def test_other_data_is_not_shown_as_a_screen(soft_machine: Any) -> None:
    assert readable(soft_machine.memory) == ""
    soft_machine.memory.write(0xB8000, bytes(range(256)) * 8)
    assert readable(soft_machine.memory) == "" and "☻♦" in soft_machine.screen.text
    soft_machine.memory.write(0xB8000, b"".join(bytes((code, 7)) for code in b"ok".ljust(2000)))
    assert readable(soft_machine.memory) == "ok"


def test_the_bios_writes_there(soft_machine: Any, assemble: Any) -> None:
    source = "mov $0x0E, %ah; mov $'A', %al; int $0x10; mov $'!', %al; int $0x10; cli; hlt; .org 510; .word 0xAA55"
    soft_machine.load(assemble(source), "bios-memory")
    assert soft_machine.screen.wait_for_text(r"A!$")


@pytest.mark.slow
@pytest.mark.guest(memory="256M", timeout=40)
@pytest.mark.skipif(not LINUX.exists(), reason="make linux fetches it")
def test_linux_writes_its_screen(soft_machine: Any) -> None:
    soft_machine.load(LINUX, append="console=tty0 panic=-1")
    soft_machine.screen.wait_for_text(r"Linux version|Kernel panic|VFS: ")
