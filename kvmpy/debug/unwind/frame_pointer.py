"""Frames by the chain of saved frame pointers, by interrupt frames, and by looking through the stack for return addresses."""

from __future__ import annotations

from kvmpy.debug.unwind.cursor import Cursor, Stack

_SCAN_SLOTS = 512
_STUB_SLOTS = 40
"""An interrupt's entry code pushes all registers, an error code and a vector, and calls."""
_PUSH = 0x55
_MOVES = (b"\x48\x89\xe5", b"\x48\x8b\xec", b"\x89\xe5", b"\x8b\xec")
_ENDBR = (b"\xf3\x0f\x1e\xfa", b"\xf3\x0f\x1e\xfb")
_PROLOGUE = 24
_FLAGS_ONE, _FLAGS_ZERO = 0x2, 0xFFFFFFFFFFC08028
"""Bit 1 of RFLAGS is always one; bits 3, 5, 15 and those above ID are always zero."""


def by_frame_pointer(stack: Stack, at: Cursor) -> Cursor | None:
    """The caller by RBP; None where the function keeps no frame pointer, or none that makes sense."""
    function = stack.function(at.lookup)
    if function is None:
        # Perhaps an interrupt's entry code, under which RBP is still that of what was struck.
        return interrupt_frame(stack, at, _STUB_SLOTS) or _chain(stack, at)
    setup = _prologue(stack, function.address)
    if setup is None:
        return None
    if at.exact:
        # Before the function has set up its frame, or at its RET, the caller's is still in RBP.
        push, ready = setup
        if at.linear <= push or stack.read(at.linear, 1) in (b"\xc3", b"\xc2"):
            return _near_return(stack, at, at.sp)
        if at.linear < ready:
            return _near_return(stack, at, at.sp + at.word)
    return _chain(stack, at)


def _chain(stack: Stack, at: Cursor) -> Cursor | None:
    frame = at.regs.get("rbp")
    if frame is None:
        return None
    frame &= at.mask
    if frame < at.sp or frame % (2 if at.width == 16 else 4) or frame - at.sp > 1 << 20:
        return None
    saved, back = stack.slot(at, frame), stack.slot(at, frame + at.word)
    if saved is None or back is None or not stack.after_call(at, back):
        return None
    return at.moved(back, frame + 2 * at.word, regs={"rbp": saved})


def by_call(stack: Stack, at: Cursor) -> Cursor | None:
    """The first slot above that a call of this very function has left: for functions that keep no frame pointer."""
    function = stack.function(at.lookup)
    if function is None:
        return None
    size = 3 if at.width == 16 else 5
    for index in range(_SCAN_SLOTS):
        back = stack.slot(at, at.sp + index * at.word)
        if back is None:
            return None
        if back < 0x100:
            continue
        caller = at.moved(back, at.sp + (index + 1) * at.word, regs=dict(at.regs))
        code = stack.read(caller.linear - size, size)
        if len(code) == size and code[0] == 0xE8:
            target = back + int.from_bytes(code[1:], "little", signed=True) & at.mask
            if (target if at.width == 64 else at.code_base + target) == function.address:
                return caller
    return None


def _near_return(stack: Stack, at: Cursor, sp: int) -> Cursor | None:
    back = stack.slot(at, sp)
    if back is None or not stack.after_call(at, back):
        return None
    return at.moved(back, sp + at.word, regs=dict(at.regs))


def _prologue(stack: Stack, start: int) -> tuple[int, int] | None:
    """Addresses of `push %rbp` and of what follows `mov %rsp, %rbp` in the function that begins there; None where it has no such
    beginning."""
    code = stack.read(start, _PROLOGUE)
    first = 4 if code[:4] in _ENDBR else 0
    if code[first : first + 1] == b"\xc8":  # ENTER does both
        return start + first, start + first + 4
    for index in range(first, len(code) - 2):
        if code[index] == _PUSH:
            for move in _MOVES:
                if code.startswith(move, index + 1):
                    return start + index, start + index + 1 + len(move)
    return None


def by_interrupt(stack: Stack, at: Cursor) -> Cursor | None:
    """What an interrupt or exception struck, where its frame lies near."""
    return interrupt_frame(stack, at, _STUB_SLOTS)


def by_scan(stack: Stack, at: Cursor) -> Cursor | None:
    """The first slot above that may be a return address into a known function, or an interrupt's frame. A guess."""
    step = at.word
    for index in range(_SCAN_SLOTS):
        sp = at.sp + index * step
        found = _interrupted(stack, at, sp)
        if found is not None:
            return found
        back = stack.slot(at, sp)
        if back is None:
            return None
        candidate = at.moved(back, sp + step, regs={})
        known = back > 0xFFF and stack.function(candidate.lookup) is not None
        if known and stack.after_call(at, back) and stack.executable(candidate.linear):
            return candidate
    return None


def interrupt_frame(stack: Stack, at: Cursor, slots: int) -> Cursor | None:
    """The first interrupt frame among the slots above (SDM 3A 6.12.1, 6.14.2)."""
    for index in range(slots):
        found = _interrupted(stack, at, at.sp + index * at.word)
        if found is not None:
            return found
    return None


def _interrupted(stack: Stack, at: Cursor, sp: int) -> Cursor | None:
    word = at.word
    pc, selector, flags = (stack.slot(at, sp + n * word) for n in range(3))
    if pc is None or selector is None or flags is None or selector > 0xFFFF or not selector:
        return None
    if not flags & _FLAGS_ONE or flags & _FLAGS_ZERO:
        return None
    segment = stack.code_segment(selector)
    if segment is None or (at.width == 16 and not stack.function(segment[1] + pc)):
        return None
    width, base = segment
    rest = {"cs": selector, "width": width, "code_base": base, "exact": True, "regs": {}}
    if at.width == 64:
        new_sp, new_ss = stack.slot(at, sp + 3 * word), stack.slot(at, sp + 4 * word)
        if new_sp is None or new_ss is None or new_ss > 0xFFFF:
            return None
    elif selector & 3 > at.cs & 3 and at.width == 32:  # the stack was switched, and is told
        told_sp, told_ss = stack.slot(at, sp + 3 * word), stack.slot(at, sp + 4 * word)
        if told_sp is None or told_ss is None or told_ss > 0xFFFF:
            return None
        new_sp = told_sp
    else:
        new_sp = sp + 3 * word
    found = at.moved(pc, new_sp, **rest)
    if not stack.read(found.linear, 1) or not stack.executable(found.linear):
        return None
    # What was struck has its frame pointer still where the entry code saved it, at a place that only that code knows. The slot below
    # the frame that holds an address on the same stack, above it, is it: the entry code's other registers seldom look so.
    return at.moved(pc, new_sp, **{**rest, "regs": _saved_frame(stack, at, sp, found)})


def _saved_frame(stack: Stack, at: Cursor, sp: int, found: Cursor) -> dict[str, int]:
    frame = at.regs.get("rbp")
    candidates = [frame] if frame is not None else []
    candidates += [value for n in range(1, 24) if sp - n * at.word >= at.sp and (value := stack.slot(at, sp - n * at.word)) is not None]
    for value in candidates:
        value &= found.mask
        if found.sp <= value < found.sp + (1 << 14) and value % 4 == 0:
            back = stack.slot(found, value + found.word)
            if back is not None and stack.after_call(found, back):
                return {"rbp": value}
    return {}
