"""One debugger's session: packets in, answers out, while the machine is at rest (GDB manual, appendix E)."""

from __future__ import annotations

import binascii
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvmpy.debug.control import Control, Stop
from kvmpy.debug.gdb.fields import ARCHITECTURES, target_xml
from kvmpy.debug.gdb.monitor import Monitor
from kvmpy.debug.gdb.packets import PACKET_SIZE, BadPacket, Connection, Gone, escape, number, unescape, unhex
from kvmpy.debug.gdb.registers import Layout, Registers
from kvmpy.debug.guest_memory import AddressSpace
from kvmpy.debug.points import KINDS, Hit, Point, PointError
from kvmpy.errors import KvmpyError
from kvmpy.native import lib
from kvmpy.threads import HelperThread
from kvmpy.verdicts import Crashed, GuestExit, Halted, Stopped

OK = b"OK"
UNKNOWN = b""
E_PACKET, E_MEMORY, E_POINT, E_HOST = b"E01", b"E14", b"E1c", b"E05"

SIGNAL_TRAP, SIGNAL_INT, SIGNAL_SEGV, SIGNAL_STOP = 5, 2, 11, 17
"""In the protocol's own numbers (include/gdb/signals.def)."""

FEATURES = (
    b"PacketSize=%x;qXfer:features:read+;qXfer:threads:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+;binary-upload+"
    % PACKET_SIZE
)
_WATCH_NAMES = {"write": b"watch", "read": b"rwatch", "access": b"awatch"}
_READ_LIMIT = PACKET_SIZE // 2 - 8
_SEARCH_CHUNK = 1 << 16
_PATIENCE = 1.0
"""Seconds."""
STOPPED_BY_DEBUGGER = Stopped("debugger")


@dataclass(frozen=True)
class Resume:
    """The debugger lets the machine run: which vCPUs step, which run at all (None: all), a range to step through."""

    steps: frozenset[int] = frozenset()
    only: frozenset[int] | None = None
    inside: tuple[int, int] | None = None


class _Patience:
    """Console output of no characters now and then while a command works: GDB waits two seconds for an answer, and complains."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._over = threading.Event()
        self._thread = HelperThread(self._wait, "kvmpy-gdb-patience")

    def _wait(self) -> None:
        while not self._over.wait(_PATIENCE):
            try:
                self._connection.send(b"O")
            except Gone:
                return

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@dataclass
class Outcome:
    """What a packet leads to: an answer, and perhaps an end of the debugger's turn."""

    reply: bytes | None = None
    resume: Resume | None = None
    end: str = ""
    """ "detach" or "kill"."""


class Session:
    """Understands packets. Knows no sockets but the one that console output goes to."""

    def __init__(self, control: Control, connection: Connection, arch: str = "auto", *, python: bool = False) -> None:
        self.control = control
        self.machine = control.machine
        self.connection = connection
        self.registers = [Registers(cpu.vcpu) for cpu in self.machine.cpu]
        self.extended = False
        self.swbreak = self.hwbreak = False
        self.physical = False
        self.last = b""
        """The stop reply that stands."""
        self.ended: Any = None
        """The verdict of a run that has ended for good."""
        self._final: Any = None
        self._layout: Layout | None = None
        self._thread_info: list[int] = []
        self.arch = "x86-64"
        self.set_arch(arch)
        self.monitor = Monitor(self, python=python)
        self.last = self._stopped(SIGNAL_TRAP, 0)

    # Architecture.

    def set_arch(self, name: str) -> None:
        """ "auto" is i386 for an ELF image of that class on a CPU that is not in long mode, else x86-64."""
        if name == "auto":
            long_mode = self.registers[0].sregs.efer & 1 << 10
            name = "i386" if self._image_is_32() and not long_mode else "x86-64"
        if name not in ARCHITECTURES:
            raise BadPacket(f"architecture {name!r}: one of auto, {', '.join(ARCHITECTURES)}")
        self.arch = name
        self._layout = None

    def _image_is_32(self) -> bool:
        path = getattr(self.machine, "image", None)
        if path is None:
            return False
        try:
            with open(path, "rb") as file:
                head = file.read(20)
        except OSError:
            return False
        return head[:5] == b"\x7fELF\x01" and head[18:20] == b"\x03\x00"

    @property
    def layout(self) -> Layout:
        if self._layout is None:
            self._layout = Layout(self.arch, self.registers[0].vectors)
        return self._layout

    # State of a stop.

    @property
    def thread(self) -> int:
        """Index of the vCPU that packets mean."""
        return self.control.current

    @property
    def current(self) -> Registers:
        return self.registers[self.control.current]

    def space(self) -> AddressSpace:
        """Memory as packets mean it."""
        space = AddressSpace(self.machine.memory, lambda: self.current.sregs)
        space.physical = self.physical
        return space

    def forget(self) -> None:
        """What was read of the machine holds no longer."""
        for registers in self.registers:
            registers.forget()

    def read(self, address: int, size: int) -> bytes:
        """Memory, without the breakpoint instructions that are ours."""
        space = self.space()
        data = space.read(address, size)
        if not len(self.control.points):
            return data
        out = bytearray()
        while len(out) < len(data):
            at = address + len(out)
            part = min(len(data) - len(out), 0x1000 - at % 0x1000)
            gpa = space.to_physical(at & (1 << 64) - 1)
            chunk = data[len(out) : len(out) + part]
            out += chunk if gpa is None else self.control.points.hide(gpa, chunk)
        return bytes(out)

    def stop_reply(self, stop: Stop) -> bytes:
        """Tells the debugger of a stop; one that nothing can follow is told as the process's end when the machine is resumed again."""
        self.forget()
        verdict = stop.verdict
        self.control.current = stop.vcpu
        if stop.hit is not None:
            self._final = None
            self.last = self._stopped(SIGNAL_TRAP, stop.vcpu, self._why(stop.hit))
        elif verdict in (STOPPED_BY_DEBUGGER, Stopped("interrupt")):
            self.last = self._stopped(SIGNAL_INT, stop.vcpu)
        elif isinstance(verdict, (Crashed, Halted)) and self._final is None:
            self._final = verdict
            self.say(f"kvmpy: {verdict}\n")
            self.last = self._stopped(SIGNAL_SEGV if isinstance(verdict, Crashed) else SIGNAL_STOP, stop.vcpu)
        else:
            self.ended = verdict
            self.last = b"W%02x" % self._status(verdict)
        return self.last

    @staticmethod
    def _status(verdict: Any) -> int:
        if isinstance(verdict, GuestExit):
            return verdict.code & 0xFF
        if isinstance(verdict, Crashed):
            return 70
        if isinstance(verdict, Halted):
            return 71
        return 124 if verdict == Stopped("timeout") else 0

    def _why(self, hit: Hit) -> bytes:
        if hit.kind in _WATCH_NAMES:
            return _WATCH_NAMES[hit.kind] + b":%x;" % hit.address
        if hit.kind == "software" and self.swbreak:
            return b"swbreak:;"
        if hit.kind == "hardware" and self.hwbreak:
            return b"hwbreak:;"
        return b""

    def _stopped(self, signal: int, vcpu: int, why: bytes = b"") -> bytes:
        out = b"T%02x" % signal + why + b"thread:%x;core:%x;" % (vcpu + 1, vcpu)
        for name in ("rip", "rsp", "rbp") if self.arch == "x86-64" else ("eip", "esp", "ebp"):
            index = self.layout.numbers[name]
            out += b"%x:%s;" % (index, self.registers[vcpu].read(self.layout.fields[index]).hex().encode())
        return out

    def say(self, text: str) -> None:
        """Text on the debugger's console; allowed while it waits for an answer."""
        data = text.encode()
        for at in range(0, len(data), _READ_LIMIT):
            self.connection.send(b"O" + data[at : at + _READ_LIMIT].hex().encode())

    # Packets.

    def handle(self, content: bytes) -> Outcome:
        """Does what a packet says. Whatever it holds, the answer is one, never an exception but the connection's end."""
        try:
            command = self._commands.get(content[:1])
            if command is None:
                return Outcome(UNKNOWN)
            result = command(self, content[1:])
            return result if isinstance(result, Outcome) else Outcome(result)
        except PointError:
            return Outcome(E_POINT)
        except (BadPacket, OverflowError, RecursionError):
            return Outcome(E_PACKET)
        except KvmpyError:
            self.forget()
            return Outcome(E_HOST)

    def _reason(self, _: bytes) -> bytes:
        return self.last

    def _extended(self, _: bytes) -> bytes:
        self.extended = True
        return OK

    # Registers.

    def _read_all(self, _: bytes) -> bytes:
        return self.layout.read_all(self.current).hex().encode()

    def _write_all(self, rest: bytes) -> bytes:
        self.layout.write_all(self.current, unhex(rest))
        return OK

    def _read_one(self, rest: bytes) -> bytes:
        index = number(rest)
        if index >= len(self.layout.fields):
            return E_PACKET
        return self.current.read(self.layout.fields[index]).hex().encode()

    def _write_one(self, rest: bytes) -> bytes:
        index, equals, data = rest.partition(b"=")
        if not equals or number(index) >= len(self.layout.fields):
            return E_PACKET
        self.current.write(self.layout.fields[number(index)], unhex(data))
        return OK

    # Memory.

    @staticmethod
    def _range(text: bytes) -> tuple[int, int]:
        address, comma, size = text.partition(b",")
        if not comma:
            raise BadPacket("address,length is wanted")
        return number(address), number(size)

    def _read_memory(self, rest: bytes) -> bytes:
        address, size = self._range(rest)
        data = self.read(address, min(size, _READ_LIMIT))
        return data.hex().encode() if data or not size else E_MEMORY

    def _read_binary(self, rest: bytes) -> bytes:
        address, size = self._range(rest)
        data = self.read(address, min(size, _READ_LIMIT))
        return b"b" + escape(data) if data or not size else E_MEMORY

    def _write_memory(self, rest: bytes) -> bytes:
        head, _, data = rest.partition(b":")
        return self._store(head, unhex(data))

    def _write_binary(self, rest: bytes) -> bytes:
        head, _, data = rest.partition(b":")
        return self._store(head, unescape(data))

    def _store(self, head: bytes, data: bytes) -> bytes:
        address, size = self._range(head)
        if size != len(data):
            return E_PACKET
        return OK if self.space().write(address, data) else E_MEMORY

    def _search(self, rest: bytes) -> bytes:
        where, _, tail = rest.partition(b";")
        length, _, raw = tail.partition(b";")
        address, left, pattern = number(where), number(length), unescape(raw)
        if not pattern:
            return E_PACKET
        space = self.space()
        while left >= len(pattern):
            data = space.read(address, min(left, _SEARCH_CHUNK + len(pattern)))
            found = data.find(pattern)
            if found >= 0:
                return b"1,%x" % (address + found)
            if len(data) < min(left, _SEARCH_CHUNK + len(pattern)):
                return b"0" if data else E_MEMORY
            address, left = address + _SEARCH_CHUNK, left - _SEARCH_CHUNK
        return b"0"

    # Points.

    def _point(self, rest: bytes) -> Point:
        kind, comma, tail = rest.partition(b",")
        index = number(kind)
        if not comma or index >= len(KINDS):
            raise BadPacket("an unknown kind of point")
        address, size = self._range(tail.partition(b";")[0])
        return Point(KINDS[index], address, max(size, 1) if index > 1 else 1)

    def _insert(self, rest: bytes) -> bytes:
        self.control.points.add(self._point(rest))
        return OK

    def _withdraw(self, rest: bytes) -> bytes:
        self.control.points.remove(self._point(rest))
        return OK

    # Threads.

    def _thread_number(self, text: bytes) -> int | None:
        """Index of a vCPU; None for all or any."""
        if text in (b"-1", b"0", b""):
            return None
        index = number(text) - 1
        if not 0 <= index < len(self.registers):
            raise BadPacket("no such thread")
        return index

    def _set_thread(self, rest: bytes) -> bytes:
        chosen = self._thread_number(rest[1:])
        if rest[:1] == b"g" and chosen is not None:
            self.control.current = chosen
        return OK

    def _alive(self, rest: bytes) -> bytes:
        self._thread_number(rest)
        return OK

    # Running.

    def _go(self, resume: Resume) -> Outcome:
        if self.ended is not None:
            return Outcome(self.last)
        return Outcome(resume=resume)

    def _at(self, text: bytes) -> None:
        if text:
            index = self.layout.numbers["rip" if self.arch == "x86-64" else "eip"]
            target = self.layout.fields[index]
            self.current.write(target, number(text, (1 << target.bits) - 1).to_bytes(target.size, "little"))

    def _continue(self, rest: bytes) -> Outcome:
        self._at(rest)
        return self._go(Resume())

    def _step(self, rest: bytes) -> Outcome:
        self._at(rest)
        return self._go(Resume(frozenset((self.thread,))))

    def _continue_signal(self, rest: bytes) -> Outcome:
        return self._continue(rest.partition(b";")[2])

    def _step_signal(self, rest: bytes) -> Outcome:
        return self._step(rest.partition(b";")[2])

    def _vcont(self, rest: bytes) -> bytes | Outcome:
        count = len(self.registers)
        actions: dict[int, bytes] = {}
        for part in rest.split(b";")[1:]:
            action, colon, thread = part.partition(b":")
            if action[:1] not in (b"c", b"C", b"s", b"S", b"r"):
                return E_PACKET
            chosen = self._thread_number(thread) if colon else None
            for index in range(count) if chosen is None else (chosen,):
                actions.setdefault(index, action)  # the leftmost that fits (appendix E.2)
        if not actions:
            return E_PACKET
        stepping = [index for index, action in actions.items() if action[:1] in b"sSr"]
        ranged = [index for index, action in actions.items() if action[:1] == b"r"]
        inside = self._range(actions[ranged[0]][1:]) if ranged else None
        if ranged:
            stepping = ranged[:1]
        return self._go(Resume(frozenset(stepping), None if len(actions) == count else frozenset(actions), inside))

    def _detach(self, _: bytes) -> Outcome:
        return Outcome(OK, end="detach")

    def _kill(self, _: bytes) -> Outcome:
        return Outcome(end="kill")

    def _restart(self, _: bytes) -> Outcome:
        self.reset()
        return Outcome()

    def moved_on(self, vcpu: int) -> None:
        """The machine has run without the debugger's doing."""
        self.control.current = vcpu
        self.forget()
        self.last = self._stopped(SIGNAL_TRAP, vcpu)

    def reset(self) -> None:
        """The machine as it was loaded, stopped at its first instruction."""
        self.control.reset()
        self.ended = None
        self._final = None
        self.moved_on(0)

    def _v(self, rest: bytes) -> bytes | Outcome:
        if rest == b"Cont?":
            return b"vCont;c;C;s;S;r"
        if rest.startswith(b"Cont"):
            return self._vcont(rest[4:])
        if rest.startswith(b"Kill"):
            return Outcome(OK, end="" if self.extended else "kill")
        if rest.startswith(b"Run") and self.extended:
            self.reset()
            return self.last
        if rest.startswith(b"Attach") and self.extended:
            return self.last
        return UNKNOWN

    # Queries.

    def _query(self, rest: bytes) -> bytes | Outcome:
        name = rest
        for mark in (b":", b",", b";"):
            name = name.partition(mark)[0]
        handler = self._queries.get(name)
        return UNKNOWN if handler is None else handler(self, rest[len(name) + 1 :])

    def _set(self, rest: bytes) -> bytes:
        if rest == b"StartNoAckMode":
            return OK  # the connection drops acknowledgements once this answer is out
        name, _, value = rest.partition(b":")
        if name == b"qemu.PhyMemMode":
            self.physical = number(value) != 0
            return OK
        return UNKNOWN

    def _supported(self, rest: bytes) -> bytes:
        theirs = rest.split(b";")
        self.swbreak, self.hwbreak = b"swbreak+" in theirs, b"hwbreak+" in theirs
        return FEATURES

    def _transfer(self, rest: bytes) -> bytes:
        parts = rest.split(b":")
        if len(parts) != 4 or parts[1] != b"read":
            return UNKNOWN
        if parts[0] == b"features":
            if parts[2] != b"target.xml":
                return b"E00"
            text = target_xml(self.arch, self.registers[0].vectors)
        elif parts[0] == b"threads":
            text = "<?xml version=\"1.0\"?>\n<threads>\n" + "".join(
                f'<thread id="{index + 1:x}" core="{index}" name="CPU {index}">{self._thread_text(index)}</thread>\n'
                for index in self._threads()
            ) + "</threads>\n"
        else:
            return UNKNOWN
        offset, size = self._range(parts[3])
        data = text.encode()
        part = data[offset : offset + min(size, _READ_LIMIT)]
        return (b"m" if offset + len(part) < len(data) else b"l") + escape(part)

    def _thread_text(self, index: int) -> str:
        state = self.registers[index].vcpu.get_mp_state()
        return {
            lib.KVM_MP_STATE_UNINITIALIZED: "waits for INIT", lib.KVM_MP_STATE_INIT_RECEIVED: "waits for SIPI",
            lib.KVM_MP_STATE_HALTED: "halted", lib.KVM_MP_STATE_SIPI_RECEIVED: "starting",
        }.get(state, "running")  # fmt: skip

    def _threads(self) -> range:
        """Indices; none once the run has ended, where GDB would see a thread of no process."""
        return range(0 if self.ended is not None else len(self.registers))

    def _first_threads(self, _: bytes) -> bytes:
        return b"m" + b",".join(b"%x" % (index + 1) for index in self._threads()) if self._threads() else b"l"

    def _extra_info(self, rest: bytes) -> bytes:
        index = self._thread_number(rest)
        return f"CPU {index or 0} [{self._thread_text(index or 0)}]".encode().hex().encode()

    def _crc(self, rest: bytes) -> bytes:
        address, size = self._range(rest)
        crc, space = 0xFFFFFFFF, self.space()
        while size > 0:
            data = space.read(address, min(size, _SEARCH_CHUNK))
            if not data:
                return E_MEMORY
            crc = _crc32(crc, data)
            address, size = address + len(data), size - len(data)
        return b"C%08x" % crc

    def _command(self, rest: bytes) -> bytes:
        text = unhex(rest).decode("utf-8", "replace")
        with _Patience(self.connection):
            answer = self.monitor.do(text)
        if answer:
            self.say(answer if answer.endswith("\n") else answer + "\n")
        return OK

    _commands: dict[bytes, Callable[[Session, bytes], Any]] = {
        b"?": _reason, b"!": _extended, b"g": _read_all, b"G": _write_all, b"p": _read_one, b"P": _write_one, b"m": _read_memory,
        b"x": _read_binary, b"M": _write_memory, b"X": _write_binary, b"Z": _insert, b"z": _withdraw, b"H": _set_thread, b"T": _alive,
        b"c": _continue, b"s": _step, b"C": _continue_signal, b"S": _step_signal, b"v": _v, b"q": _query, b"Q": _set, b"D": _detach,
        b"k": _kill, b"R": _restart,
    }
    _queries: dict[bytes, Callable[[Session, bytes], Any]] = {
        b"Supported": _supported, b"Xfer": _transfer, b"C": lambda self, _: b"QC%x" % (self.thread + 1), b"fThreadInfo": _first_threads,
        b"sThreadInfo": lambda self, _: b"l", b"ThreadExtraInfo": _extra_info, b"Attached": lambda self, _: b"1",
        b"Symbol": lambda self, _: OK, b"Rcmd": _command, b"Search": lambda self, rest: self._search_memory(rest), b"CRC": _crc,
        b"qemu.PhyMemMode": lambda self, _: b"1" if self.physical else b"0",
    }

    def _search_memory(self, rest: bytes) -> bytes:
        kind, _, tail = rest.partition(b":")
        return self._search(tail) if kind == b"memory" else UNKNOWN


def _crc32(crc: int, data: bytes) -> int:
    """The protocol's CRC: polynomial 0x04C11DB7, most significant bit first, no final complement. The usual one is its mirror image."""
    swapped = data.translate(_MIRROR)
    mirrored = int(f"{crc:032b}"[::-1], 2)
    result = binascii.crc32(swapped, mirrored ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{result:032b}"[::-1], 2)


_MIRROR = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
