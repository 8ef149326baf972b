"""The prompt on a paused machine, through a terminal as a person has it, and through a pipe."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELLO = ROOT / "kvmpy" / "blobs" / "hello64.elf"


class Terminal:
    """kvmpy repl on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        self.before = termios.tcgetattr(slave)
        self.seen = ""
        words = [sys.executable, "-m", "kvmpy.cli.main", "repl", "--plain", "--backend", "soft", *arguments]
        self.process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True,
            env={**os.environ, "TERM": "dumb", "PYTHON_BASIC_REPL": "1"}, preexec_fn=_control_terminal,
        )  # fmt: skip

    def expect(self, text: str, seconds: float = 20) -> str:
        """Everything up to a text, which is then past."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(end - time.monotonic(), 0))
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.master, 4096).decode("utf-8", "replace").replace("\r\n", "\n")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ask(self, text: str) -> str:
        """What a line at the prompt gives."""
        self.type(text + "\n")
        self.expect(text + "\n")
        return self.expect(">>> ")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.master)
        os.close(self.slave)


def _control_terminal() -> None:
    import fcntl

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Terminal]:
    image = tmp_path / "endless.bin"
    image.write_bytes(b"\x40\xeb\xfd")  # 1: inc ax; jmp 1b
    terminal = Terminal("--boot", "flat16@0x7c00", str(image))
    yield terminal
    terminal.close()


def test_control_c_comes_back_to_the_prompt(endless: Terminal) -> None:
    first = endless.expect(">>> ")
    assert "paused before its first instruction" in first and "until(place)" in first and "=> 0x7c00" in first
    for _ in range(2):
        endless.type("cont()\n")
        time.sleep(0.3)
        endless.type("\x03")
        assert "[interrupted]" in endless.expect(">>> ")
        assert "KeyboardInterrupt" not in endless.seen
    assert int(endless.ask("cpu.registers.rip")) in (0x7C00, 0x7C01)
    assert "[stopped: timeout]" in endless.ask("cont(0.05)")
    endless.ask("cpu.registers.rip = 0x7c00; cpu.registers.rax = 5")
    assert "=> 0x7c01" in endless.ask("step()") and endless.ask("cpu.registers.rax").strip() == "6"
    assert "breakpoint" in endless.ask("until('0x7c00')")
    assert "NoLinux: no Linux runs" in endless.ask("ps()")
    endless.type("exit()\n")
    assert endless.process.wait(10) == 0
    assert termios.tcgetattr(endless.slave) == endless.before


def test_a_guest_through_a_pipe() -> None:
    lines = [
        "until('guest_main')", "bt()", "regs()", "disasm(n=2)", "x(symbol('guest_main'), 16)", "symbol('guest_main')", "walk('guest_main')",
        "tables()", "point('guest_main')", "points()", "clear(); points()", "value('nobody')", "x(0x700000000000)", "use(0)",
        "where()", "reset()", "cont()", "send('text')", "until('nobody')", "machine.serial.text.count('Goodbye')", "help_()",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "kvmpy.cli.main", "repl", "--backend", "soft", "-q", str(HELLO)], input="\n".join(lines) + "\n",
        capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    out = done.stdout
    assert done.returncode == 0, done.stderr
    assert "[breakpoint]\nCPU 0: guest_main\n=> 0x" in out and "#0  0x" in out and "64-bit, CPL 0, paging 4-level" in out
    assert re.search(r"<guest_main = 0x[0-9a-f]+>", out) and "page walk of" in out and "LINEAR" in out and "no points" in out
    assert "nothing mapped at 0x700000000000" in out and "[guest exit, status 0]" in out and "Hello from 64-bit mode!" in out
    assert ">>> 1\n" in out
    assert "PathError: no symbol 'nobody' is known\n" in done.stderr and "Traceback" not in done.stderr


def test_what_a_word_cannot_do_is_a_line(tmp_path: Path) -> None:
    image = tmp_path / "off.bin"
    image.write_bytes(bytes.fromhex("ba0406 b80034 ef f4"))  # mov dx, 604h; mov ax, 3400h; out dx, ax: S5 at PM1a_CNT
    lines = ["symbol('nobody')", "use(7)", "cont()", "cont()", "step()", "reset()", "machine.ended is None", "step()"]
    done = subprocess.run(
        [sys.executable, "-m", "kvmpy.cli.main", "repl", "--backend", "soft", "-q", "--boot", "flat16@0x7c00", str(image)],
        input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert "[powered off]" in done.stdout and done.stdout.count("ConfigError") == 0
    assert done.stderr.count("ConfigError: the guest has switched the machine off: reset() switches it on again\n") == 2
    assert "PathError: no symbol 'nobody' is known\n" in done.stderr and "CPU 7: this machine has 1" in done.stderr
    assert ">>> True\n" in done.stdout and "=> 0x7c03" in done.stdout and "Traceback" not in done.stderr


def test_what_makes_no_sense(tmp_path: Path) -> None:
    for words, status in ((["repl"], 64), (["repl", "--timeout", "3", str(HELLO)], 64), (["repl", str(tmp_path / "none")], 65)):
        command = [sys.executable, "-m", "kvmpy.cli.main", *words]
        done = subprocess.run(command, input="", capture_output=True, text=True, timeout=30, cwd=ROOT)
        assert done.returncode == status and "Traceback" not in done.stderr


def test_help_names_what_the_prompt_takes() -> None:
    from kvmpy.cli.main import REPL_LACKS

    command = [sys.executable, "-m", "kvmpy.cli.main", "repl"]
    text = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=30, cwd=ROOT).stdout
    assert "--symbols" in text and "--cpus" in text and not [option for option in (*REPL_LACKS, "--gdb-wait") if option in text]
    done = subprocess.run([*command, "--stats", str(HELLO)], input="", capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.returncode == 64 and "--stats is for kvmpy run" in done.stderr
