"""What the software CPU's translator has made: guest and host code of a block side by side, and names of host code for perf."""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from kvmpy.debug.code import disassemble
from kvmpy.errors import ConfigError, HostError, MemoryAccessError

if TYPE_CHECKING:
    from kvmpy.machine import Machine

_KEY_COMPARE = bytes.fromhex("483b05")  # cmp rax, [rip + n]: the key of a link between pages stands there, among the code
_KEY_SIZE = 8
_GUEST_WIDTH = 40


@dataclass(frozen=True)
class Line:
    """An instruction: `offset` from the block's first byte for the guest's, from the beginning of the code for the host's."""

    offset: int
    code: bytes
    text: str


@dataclass
class Translation:
    """A block and what became of it; `parts` has for each guest instruction (None: the entry, and the stubs) its host code: for those of
    the block, then for those of the same page that it goes on to (`translated` in all)."""

    rip: int
    phys: int
    name: str
    mode: int
    user: bool
    instructions: int
    bytes: int
    runs_left: int
    host: int
    code_size: int
    exits: int
    links: int
    translated: int
    parts: list[tuple[Line | None, list[Line]]] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """A head, then guest code at the left and host code at the right."""
        name = f" <{self.name}>" if self.name else ""
        who = "user" if self.user else "supervisor"
        head = f"block {self.rip:#x}{name}: {self.mode}-bit, {who}, {self.instructions} instructions, {self.bytes} bytes"
        if not self.code_size:
            return [f"{head}; interpreted" + (f", to be translated in {self.runs_left} runs" if self.runs_left else "")]
        if self.translated > self.instructions:
            head += f", translated with {self.translated - self.instructions} that follow"
        out = [f"{head}; {self.code_size} bytes of host code at {self.host:#x}, {self.links} of {self.exits} exits linked"]
        for number, (guest, host) in enumerate(self.parts):
            left = f"{self.rip + guest.offset:x}  {guest.text}" if guest else "stubs" if number else "entry"
            for line in host:
                out.append(f"  {left:{_GUEST_WIDTH}} | {line.offset:4x}  {line.code.hex():22} {line.text}".rstrip())
                left = ""
            if not host:
                out.append(f"  {left:{_GUEST_WIDTH}} |")
        return out


class Translations:
    """All blocks of a machine's software CPU, which must be at rest. Raises ConfigError where the backend is another."""

    def __init__(self, machine: Machine) -> None:
        if machine.vm.name != "soft":
            raise ConfigError(f"only the software CPU translates, and the backend is {machine.vm.name}")
        self._machine = machine
        self._vm = cast("Any", machine.vm)
        self._all = self._vm.translations()
        self._thunks = self._vm.thunks()
        done = sorted((int(one.host), one) for one in self._all if one.code_size)
        self._hosts = [host for host, _ in done]
        self._translated = [one for _, one in done]

    def at(self, rip: int) -> list[Translation]:
        """Those with an instruction byte at an address, as the guest's RIP has it."""
        return [self._look(one) for one in self._vm.translations(rip)]

    def perf_map(self, path: str | None = None) -> int:
        """Writes what perf reads names of host code from, by default /tmp/perf-PID.map; gives the number of blocks. Raises HostError.

        Blocks of the guest are "guest:SYMBOL", the translator's common pieces "kvmpy:NAME". Translations that were dropped have a name if
        `machine.vm.remember_translations()` was called before the run, until the code cache is full and begun anew.
        """
        path = path or f"/tmp/perf-{os.getpid()}.map"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "w") as file:
                for host, size, name in self._named():
                    file.write(f"{host:x} {size:x} {name}\n")
        except OSError as error:
            raise HostError(f"write {path}", error.errno or errno.EIO) from None
        return len(self._translated)

    def _named(self) -> list[tuple[int, int, str]]:
        """(address, size, name), by address."""
        blocks = {host: (rip, size) for rip, host, size in self._vm.remembered()}
        blocks |= {int(one.host): (int(one.rip), int(one.code_size)) for one in self._translated}
        names = [(host, size, f"guest:{self._name(rip)}") for host, (rip, size) in blocks.items()]
        return sorted([*names, *((host, size, f"kvmpy:{name}") for host, size, name in self._vm.thunks())])

    def _name(self, rip: int) -> str:
        return self._machine.symbols.text(rip) or f"{rip:#x}"

    def _look(self, one: Any) -> Translation:
        found = Translation(
            one.rip, one.phys, self._machine.symbols.text(one.rip), one.mode, bool(one.user), one.instructions, one.bytes, one.runs_left,
            one.host, one.code_size, one.exits, one.links, one.translated,
        )
        code = self._vm.host_code(one) if one.code_size else b""
        if code:
            guest = self._guest(one)
            host = self._host(code, one.host)
            starts = [*one.start[0 : one.translated + 1], len(code)]
            found.parts.append((None, [line for line in host if line.offset < starts[0]]))
            for number, (first, end) in enumerate(pairwise(starts)):
                part = [line for line in host if first <= line.offset < end]
                found.parts.append((guest[number] if number < len(guest) else None, part))
        return found

    def _guest(self, one: Any) -> list[Line]:
        """The translated instructions. One over a page's end is read from the first page alone: it is shown without its text."""
        page, first = one.phys & ~0xFFF, one.phys & 0xFFF
        try:
            code = self._machine.memory.read(page, 0x1000)
        except MemoryAccessError:
            return []
        out: list[Line] = []
        for place in one.place[0 : one.translated]:
            offset = place - first
            text, length = disassemble(code[place : place + 15], one.mode, one.rip + offset) or ("(over the end of the page)", 0)
            out.append(Line(offset, code[place : place + length], text))
        return out

    def _host(self, code: bytes, host: int) -> list[Line]:
        out: list[Line] = []
        keys: set[int] = set()
        at = 0
        while at < len(code):
            if at in keys:
                length, text = _KEY_SIZE, "(key of the link)"
            else:
                text, length = disassemble(code[at : at + 15], 64, host + at) or (f"(byte {code[at]:#04x})", 1)
                if code[at : at + 3] == _KEY_COMPARE:
                    keys.add(at + 7 + int.from_bytes(code[at + 3 : at + 7], "little", signed=True))
                text = self._target(text, host, len(code))
            out.append(Line(at, code[at : at + length], text))
            at += length
        return out

    def _target(self, text: str, host: int, size: int) -> str:
        """Names where a jump or call leads: an offset in the same code, a common piece, another block."""
        mnemonic, _, operand = text.partition(" ")
        operand = operand.lstrip()
        if not (mnemonic.startswith("j") or mnemonic == "call") or not operand.startswith("0x"):
            return text
        to, mnemonic = int(operand, 16), f"{mnemonic:6}"
        if host <= to < host + size:
            return f"{mnemonic} +{to - host:x}"
        for at, length, name in self._thunks:
            if at <= to < at + length:
                return f"{mnemonic} <{name}>"
        at = bisect_right(self._hosts, to) - 1
        if at >= 0 and to < self._hosts[at] + self._translated[at].code_size:
            return f"{mnemonic} -> {self._name(self._translated[at].rip)}"
        return text
