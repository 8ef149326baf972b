"""A machine with a stub, real debuggers in batch mode against it, and a client of bare packets."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvmpy import Machine
from kvmpy.verdicts import Verdict

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BLOBS = ROOT / "kvmpy" / "blobs"

needs_gdb = pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed (apt-get install gdb)")
needs_binutils = pytest.mark.skipif(shutil.which("ld") is None or shutil.which("gcc") is None, reason="gcc and ld are not installed")


def assemble(source: Path, folder: Path, origin: int) -> tuple[Path, Path]:
    """An ELF file with symbols and lines, and the same as raw bytes, linked at `origin`."""
    objects, elf, raw = folder / "guest.o", folder / "guest.elf", folder / "guest.bin"
    for command in (
        ["gcc", "-c", "-g", "-m64", "-o", objects, source],
        ["ld", "-m", "elf_x86_64", "-N", "--no-warn-rwx-segments", "-Ttext", hex(origin), "-e", hex(origin), "-o", elf, objects],
        ["objcopy", "-O", "binary", "-j", ".text", elf, raw],
    ):
        subprocess.run([str(word) for word in command], check=True, timeout=30, capture_output=True)
    return elf, raw


def gdb(
    machine: Machine, commands: Sequence[str], symbols: Path | None = None, *, timeout: float = 40, where: str = ""
) -> tuple[str, Verdict]:
    """What gdb says to the commands, each with a line "> command" before it; and the run's verdict."""
    script = ["set pagination off", "set confirm off", "set width 0", "set style enabled off"]
    server = machine.debugger or machine.debug(where or "127.0.0.1:0")
    for command in ["target remote " + server.address, *commands]:
        shown = command.replace("\\", "\\\\").replace('"', '\\"')
        script += [f'echo > {shown}\\n', command]
    words = ["gdb", "-nx", "-batch"]
    for line in script:
        words += ["-ex", line]
    if symbols is not None:
        words.append(str(symbols))
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        verdict = machine.run(timeout=timeout)
        output, _ = process.communicate(timeout=20)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return output, verdict


def answers(output: str) -> dict[str, str]:
    """Output by command; of a command given several times, the parts joined."""
    found: dict[str, str] = {}
    for part in output.split("\n> ")[0:]:
        command, _, text = part.partition("\n")
        found[command.removeprefix("> ")] = found.get(command.removeprefix("> "), "") + text + "\n"
    return found


class Client:
    """Bare packets to a machine that runs in a thread of its own."""

    def __init__(self, machine: Machine, *, timeout: float = 30) -> None:
        self.machine = machine
        self.server = machine.debugger or machine.debug("127.0.0.1:0")
        self.verdict: Verdict | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(timeout,), daemon=True)
        self._thread.start()
        host, _, port = self.server.address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self._buffer = b""
        self.ask("QStartNoAckMode")

    def _run(self, timeout: float) -> None:
        try:
            self.verdict = self.machine.run(timeout=timeout)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.socket.close()
        for _ in range(200):  # a stop before the run has begun is forgotten by it
            if not self._thread.is_alive():
                break
            self.machine.stop()
            self._thread.join(0.05)

    def end(self) -> Verdict | None:
        """Waits for the run's end."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.verdict

    def send(self, content: str | bytes) -> None:
        data = content.encode("latin-1") if isinstance(content, str) else content
        self.socket.sendall(b"$" + data + b"#%02x" % (sum(data) & 0xFF))

    def receive(self) -> bytes:
        """The next packet's content; acknowledgements are skipped."""
        while True:
            start = self._buffer.find(b"$")
            end = self._buffer.find(b"#", start)
            if start >= 0 and end >= 0 and len(self._buffer) >= end + 3:
                content = self._buffer[start + 1 : end]
                assert int(self._buffer[end + 1 : end + 3], 16) == sum(content) & 0xFF
                self._buffer = self._buffer[end + 3 :]
                return content
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._buffer += data

    def ask(self, content: str | bytes) -> str:
        """The answer to a packet, console output before it joined in front as text."""
        self.send(content)
        return self.receive().decode("latin-1")

    def monitor(self, command: str) -> str:
        """The output of a monitor command."""
        self.send("qRcmd," + command.encode().hex())
        out = ""
        while True:
            answer = self.receive()
            if answer[:1] == b"O" and answer != b"OK":
                out += bytes.fromhex(answer[1:].decode()).decode()
            else:
                assert answer == b"OK", answer
                return out

    def interrupt(self) -> None:
        self.socket.sendall(b"\x03")
