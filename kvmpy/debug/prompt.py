"""Words for a prompt on a paused machine: `step()`, `until("main")`, `bt()`. What they give prints itself."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import traceback
from typing import TYPE_CHECKING, Any

from kvmpy.debug.control import KERNEL, Control, Stop
from kvmpy.debug.points import Point
from kvmpy.debug.symbol_file import KERNEL_HALF
from kvmpy.debug.types.value import PathError, Value
from kvmpy.errors import ConfigError, KvmpyError, MissingCapability
from kvmpy.verdicts import Crashed, PowerOff, Stopped

if TYPE_CHECKING:
    from kvmpy.machine import Machine

_PLACE = re.compile(r"(.+):(\d+)")
_MOST_BYTES = 1 << 16
_LAST = (1 << 64) - 1

HELP = """\
step(n=1)              n instructions of this CPU; interrupts wait
cont(seconds=None)     run; Ctrl-C comes back here
until(place)           run to a symbol, an address or "file.c:12"
kernel()               run until Linux has unpacked itself and has its place (KASLR)
point(place)           a breakpoint;  watch(address, size) stops at writes;  points() lists,  clear() forgets
regs()  where()  bt()  registers, the place, the call stack
disasm(place, n=10)    instructions; without a place those here
x(address, n=64)       bytes of memory;  value("table[3]->next") a C variable;  symbol("main")  an address
walk(address)  tables()  page tables: of one address, all of them
ps()  lsmod()  dmesg() of a Linux guest
send("text\\n")         input for the guest's first serial port
reset()                off and on again
autopsy()              what the guest did last, and why it goes on no more
use(1)                 the words above are about CPU 1 from now on

machine, cpu, mem      the machine; the CPU in use: cpu.registers.rax = 5; memory: mem.read(0x7c00, 16)
help_()                this list;  help(machine)  all that a machine can;  exit() or Ctrl-D  leaves
"""


class Text(str):
    """Text that a prompt shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Prompt:
    """The words, for one machine at rest."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.control = Control(machine)
        self._names: dict[str, Any] = {}

    def names(self) -> dict[str, Any]:
        """What a prompt has by name."""
        words = ("step", "cont", "until", "kernel", "point", "watch", "points", "clear", "regs", "where", "bt", "disasm", "x", "value",
                 "symbol", "walk", "tables", "autopsy", "ps", "lsmod", "dmesg", "send", "reset", "use", "help_")  # fmt: skip
        self._names.update({word: getattr(self, word) for word in words})
        self._names.update(machine=self.machine, mem=self.machine.memory, symbols=self.machine.symbols, cpu=self.machine.cpu[0])
        return self._names

    def close(self) -> None:
        """Takes all points away."""
        self.control.release()

    @property
    def current(self) -> int:
        """Index of the CPU in use."""
        return self.control.current

    def use(self, index: int) -> Text:
        """The words are about this CPU from now on."""
        if not 0 <= index < len(self.machine.cpu):
            raise ConfigError(f"CPU {index}: this machine has {len(self.machine.cpu)}, counted from 0")
        self._names["cpu"] = self.machine.cpu[index]
        self.control.current = index
        return self.where()

    def address(self, place: int | str | Value) -> int:
        """A symbol, a number, "file.c:12", or a place in a C variable. KvmpyError where it is none of them."""
        if not isinstance(place, str):
            return int(place) & _LAST
        found = self.machine.symbols.address(place)
        if found is not None:
            return int(found)
        with contextlib.suppress(ValueError):
            return int(place, 0) & _LAST
        line = _PLACE.fullmatch(place)
        addresses = self.machine.symbols.addresses(line[1], int(line[2])) if line else []
        if not addresses:
            raise PathError(f"{place!r}: no symbol, no address, and no line of source with code")
        return int(addresses[0])

    # Running.

    def _show(self, stop: Stop) -> Text:
        if stop.vcpu != self.control.current:
            self.use(stop.vcpu)
        lines = []
        if stop.hit is None:
            lines.append(f"[{stop.verdict}]")
        elif stop.hit.kind != "step":
            what = "breakpoint" if stop.hit.kind in ("software", "hardware") else f"{stop.hit.kind} of {stop.hit.address:#x}"
            lines.append(f"[{what}]")
        if isinstance(stop.verdict, Crashed):
            return Text("\n".join([*lines, str(self.machine.autopsy(stop.verdict))]))
        return Text("\n".join([*lines, *self._here()]))

    def _here(self) -> list[str]:
        head = f"CPU {self.current}: {self.machine.where(self.current)}"
        return [head, *map(str, self.machine.disassemble(count=1, cpu=self.current))]

    def _run(self, *arguments: Any, **options: Any) -> Stop:
        if isinstance(self.machine.ended, PowerOff):
            raise ConfigError("the guest has switched the machine off: reset() switches it on again")
        return self.control.run(*arguments, **options)

    def step(self, n: int = 1) -> Text:
        """Runs `n` instructions of the CPU in use."""
        stop = None
        try:
            for _ in range(max(n, 1)):
                stop = self._run(frozenset((self.current,)))
                if stop.hit is None or stop.hit.kind != "step":
                    break
        except KeyboardInterrupt:
            return Text("\n".join(["[interrupted]", *self._here()]))
        assert stop is not None
        return self._show(stop)

    def cont(self, seconds: float | None = None) -> Text:
        """Runs until a point, a verdict, Ctrl-C, or for some seconds."""
        try:
            return self._show(self._run(timeout=seconds))
        except KeyboardInterrupt:
            return Text("\n".join(["[interrupted]", *self._here()]))

    def until(self, place: int | str, seconds: float | None = None) -> Text:
        """Runs until an instruction is reached; of a Linux kernel that moves itself, wherever it goes."""
        if self._will_move(place):
            with contextlib.suppress(MissingCapability):
                stop = self._to_kernel(seconds)
                if stop.verdict != KERNEL:
                    return self._show(stop)
        point = Point("software", self.address(place))
        self.control.points.add(point)
        try:
            return self.cont(seconds)
        finally:
            self.control.points.remove(point)

    def _will_move(self, place: int | str) -> bool:
        return isinstance(place, str) and self.machine.symbols.kernel_moves and self.address(place) >= KERNEL_HALF

    def _to_kernel(self, seconds: float | None) -> Stop:
        try:
            return self.control.run_to_kernel(seconds)
        except KeyboardInterrupt:
            return Stop(Stopped("interrupt"), self.current)

    def kernel(self, seconds: float | None = None) -> Text:
        """Runs until Linux has its place, and tells it."""
        stop = self._to_kernel(seconds)
        offset = self.machine.symbols.kernel_offset
        shown = self._show(stop)
        return shown if offset is None else Text(f"[the kernel has moved by {offset:#x}]\n{shown}")

    def point(self, place: int | str) -> Text:
        """Stops wherever an instruction is reached."""
        moves = self._will_move(place)
        self.control.points.add(Point("software", self.address(place)))
        note = "\n(the address in the file: unless the kernel stays there, kernel() first, which runs until it has its place)"
        return Text(self.points() + (note if moves else ""))

    def watch(self, place: int | str | Value, size: int = 8) -> Text:
        """Stops when memory is written."""
        self.control.points.add(Point("write", self.address(place), size))
        return self.points()

    def points(self) -> Text:
        """All points."""
        text = [f"{one.kind:9} {one.address:#x} {self.machine.symbols.text(one.address)}".rstrip() for one in self.control.points]
        return Text("\n".join(text) or "no points")

    def clear(self) -> None:
        """Forgets all points."""
        self.control.points.clear()

    def reset(self) -> Text:
        """Switches the machine off and on, the image loaded again."""
        self.control.reset()
        return Text("\n".join(self._here()))

    def send(self, text: str) -> None:
        """Input for the guest's first serial port."""
        self.machine.serial.send(text)  # type: ignore[attr-defined]

    # Looking.

    def regs(self) -> Any:
        """Registers of the CPU in use."""
        return self.machine.cpu[self.current].registers

    def where(self) -> Text:
        """Where the CPU in use stands."""
        return Text("\n".join(self._here()))

    def bt(self, limit: int = 64) -> Any:
        """The call stack."""
        return self.machine.backtrace(self.current, limit)

    def disasm(self, place: int | str | None = None, n: int = 10) -> Any:
        """Instructions."""
        if place is None:
            return self.machine.disassemble(count=n, before=3, cpu=self.current)
        return self.machine.disassemble(self.address(place), n, cpu=self.current)

    def x(self, place: int | str | Value, n: int = 64) -> Text:
        """Memory by linear address, in hexadecimal and as characters; it ends where nothing is mapped."""
        address = self.address(place)
        data = self.control.space().read(address, min(n, _MOST_BYTES))
        lines = []
        for at in range(0, len(data), 16):
            row = data[at : at + 16]
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
            lines.append(f"{address + at:016x}  {row.hex(' '):47}  {text}")
        return Text("\n".join(lines) + ("" if len(data) >= n else f"\nnothing mapped at {address + len(data):#x}"))

    def value(self, path: str) -> Any:
        """A C variable, or what a path leads to."""
        return self.machine.symbols.value(path, self.current)

    def symbol(self, name: str) -> Any:
        """The address of a symbol."""
        try:
            return self.machine.symbol(name)
        except KeyError:
            raise PathError(f"no symbol {name!r} is known") from None

    def walk(self, place: int | str) -> Text:
        """The page walk of an address."""
        return Text(self.machine.page_walk(self.address(place), self.current))

    def tables(self) -> Any:
        """All that the page tables map."""
        return self.machine.page_table(self.current)

    def autopsy(self) -> Any:
        """Everything about the guest's end, or its present state."""
        return self.machine.autopsy()

    def ps(self) -> Any:
        """Processes of a Linux guest."""
        return self.machine.linux.processes()

    def lsmod(self) -> Any:
        """Modules of a Linux guest."""
        return self.machine.linux.modules()

    def dmesg(self) -> Any:
        """Messages of a Linux guest's kernel."""
        return self.machine.linux.dmesg()

    def help_(self) -> Text:
        """The list of words."""
        return Text(HELP)


def evaluate(text: str, names: dict[str, Any]) -> str:
    """What a prompt would show for Python statements: their output, the last one's value, or the exception in a line."""
    out = io.StringIO()
    try:
        tree = ast.parse(text)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        with contextlib.redirect_stdout(out):
            exec(compile(tree, "<monitor>", "exec"), names)
            result = eval(compile(ast.Expression(last.value), "<monitor>", "eval"), names) if isinstance(last, ast.Expr) else None
        if result is not None:
            out.write(repr(result))
    except KvmpyError as error:
        out.write(f"{error}")
    except Exception as error:
        out.write("".join(traceback.format_exception_only(error)).strip())
    return out.getvalue()
