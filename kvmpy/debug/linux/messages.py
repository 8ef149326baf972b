"""The kernel's messages: its lockless ring buffer (kernel/printk/printk_ringbuffer.h, Linux 5.10 and on)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmpy.debug.types.value import Value
from kvmpy.errors import KvmpyError

if TYPE_CHECKING:
    from kvmpy.debug.linux.kernel import Linux

_COMMITTED, _FINALIZED = 1, 2
_ID = (1 << 62) - 1
_MOST_BITS = 24
_WORD = 8


@dataclass(frozen=True)
class Message:
    """`time` is in seconds since the kernel's start, to the microsecond; `level` 0 (emergency) to 7 (debug)."""

    time: float
    level: int
    text: str

    def __str__(self) -> str:
        stamp = f"[{self.time:12.6f}] "
        return stamp + self.text.replace("\n", "\n" + " " * len(stamp))


class Messages(list[Message]):
    """Messages; as text a line each, as dmesg shows them."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no messages"

    __repr__ = __str__


def read_messages(linux: Linux) -> Messages:
    """What is being written at this moment is left out."""
    ring = linux.variable("struct printk_ringbuffer *", "prb").deref()
    descriptors, text = ring.member("desc_ring"), ring.member("text_data_ring")
    count_bits, size_bits = int(descriptors.member("count_bits")), int(text.member("size_bits"))
    tail, head = (int(descriptors.member(name).member("counter")) & _ID for name in ("tail_id", "head_id"))
    found = Messages()
    if count_bits > _MOST_BITS or size_bits > 2 * _MOST_BITS:
        return found
    for step in range(min((head - tail & _ID) + 1, 1 << count_bits)):
        number = tail + step & _ID
        try:
            message = _message(linux, descriptors, text, number, count_bits, size_bits)
        except KvmpyError:
            continue
        if message is not None:
            found.append(message)
    return found


def _message(linux: Linux, ring: Value, text: Value, number: int, count_bits: int, size_bits: int) -> Message | None:
    index = number & (1 << count_bits) - 1
    descriptor, info = ring.member("descs")[index], ring.member("infos")[index]
    state = int(descriptor.member("state_var").member("counter"))
    if state & _ID != number or state >> 62 & 3 not in (_COMMITTED, _FINALIZED):
        return None
    block = descriptor.member("text_blk_lpos")
    begin, end = int(block.member("begin")), int(block.member("next"))
    length = int(info.member("text_len"))
    content = b""
    if not begin & 1:  # a position with bit 0 stands for no text
        if begin >> size_bits != end >> size_bits:  # it did not fit before the ring's end, and begins at its start
            begin = 0
        size = (end & (1 << size_bits) - 1) - (begin & (1 << size_bits) - 1) - _WORD
        content = linux.read(int(text.member("data")) + (begin & (1 << size_bits) - 1) + _WORD, max(min(length, size), 0))
    return Message(int(info.member("ts_nsec")) // 1000 / 1e6, int(info.member("level")), content.decode("utf-8", "replace"))
