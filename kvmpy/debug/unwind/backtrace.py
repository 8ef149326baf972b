"""The call stack of a vCPU, by whatever tells of each frame: ORC, call frame information, frame pointers, the stack's contents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmpy.debug.symbols import Place
from kvmpy.debug.unwind.cfi import End, by_cfi
from kvmpy.debug.unwind.cursor import Cursor, Stack, quietly
from kvmpy.debug.unwind.frame_pointer import by_call, by_frame_pointer, by_interrupt, by_scan
from kvmpy.debug.unwind.orc import by_orc

if TYPE_CHECKING:
    from kvmpy.machine import Machine

MOST_FRAMES = 64
METHODS: tuple[tuple[str, Callable[[Stack, Cursor], Cursor | None]], ...] = (
    ("orc", by_orc), ("cfi", by_cfi), ("frame pointer", by_frame_pointer), ("call", by_call),
    ("interrupt frame", by_interrupt), ("scan", by_scan),
)  # fmt: skip
"""In this order: the first that gives a frame with code behind it is taken. ORC before CFI, since a kernel's inline assembly that
switches stacks stands in ORC alone."""


@dataclass(frozen=True)
class Frame:
    """One frame: linear address of the instruction, its stack pointer, its place by the symbols, and the method that found it
    ("registers" for the first one). `interrupted`: an interrupt or exception struck here."""

    index: int
    address: int
    sp: int
    place: Place
    how: str
    interrupted: bool = False

    @property
    def sure(self) -> bool:
        """False for a guess: a frame that looking through the stack has found."""
        return self.how not in ("call", "scan")

    def __str__(self) -> str:
        name = str(self.place) if self.place.name or self.place.line else "?"
        notes = (" interrupted" if self.interrupted else "") + ("" if self.sure else " (guessed)")
        return f"#{self.index:<2} {self.address:#018x} {name}{notes}"


class Backtrace(list[Frame]):
    """Frames, the innermost first; as text a line each. `end` says why there are no more."""

    end: str = ""

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    __repr__ = __str__


def backtrace(machine: Machine, cpu: int = 0, limit: int = MOST_FRAMES) -> Backtrace:
    """At most `limit` frames of a vCPU at rest. Whatever the guest's stack holds, it ends and raises nothing."""
    stack = Stack(machine, cpu)
    at = stack.first()
    frames = Backtrace([_frame(stack, 0, at, "registers")])
    seen = {(at.linear, at.sp)}
    while True:
        if len(frames) >= limit:
            frames.end = "limit"
            return frames
        found = _caller(stack, at)
        if isinstance(found, str):
            frames.end = found
            return frames
        at, how = found
        if (at.linear, at.sp) in seen:
            frames.end = "the stack runs in a circle"
            return frames
        seen.add((at.linear, at.sp))
        frames.append(_frame(stack, len(frames), at, how))


def _frame(stack: Stack, index: int, at: Cursor, how: str) -> Frame:
    place = quietly(stack.symbols.place, at.lookup) or Place(at.linear)
    if not at.exact and place.symbol:
        place = Place(at.linear, place.symbol, place.offset + 1, place.line)
    return Frame(index, at.linear, at.sp, place, how, index > 0 and at.exact)


def _caller(stack: Stack, at: Cursor) -> tuple[Cursor, str] | str:
    for name, method in METHODS:
        if name == "scan" and at.cs & 3 and stack.function(at.lookup) is None:
            continue  # in user code that nobody knows anything may look like an address
        try:
            found = quietly(method, stack, at)
        except End:
            return f"outermost, by {name}"
        if found is None or not found.pc or not stack.mapped(found):
            continue
        if not found.exact and found.sp <= at.sp and name != "orc":
            continue  # a caller's frame lies above, but for the kernel's switches of stacks
        return found, name
    return "nothing tells of a caller"
