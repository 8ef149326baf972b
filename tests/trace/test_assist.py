"""Accesses of instructions that the software CPU finishes for KVM are told too, and to whoever listens then."""

from __future__ import annotations

import pytest
from trace_guests import Maker, leave

from kvmpy import GuestExit
from kvmpy.kvm.probe import ask, unavailable

CODE = b"\xbb\x00\xd0\x8e\xdb\x31\xdb\xf3\x0f\xb8\x07"  # mov bx, 0d000h; mov ds, bx; xor bx, bx; popcnt ax, [bx]


@pytest.mark.skipif(bool(unavailable()) or bool(ask("cpl0_on_hardware")), reason="no KVM whose emulator refuses POPCNT")
def test_accesses_of_the_assist(kvm: Maker) -> None:
    made = kvm(CODE + CODE + leave(0))
    seen: list[list[int]] = []
    for _ in range(2):
        with made.trace("mmio") as events, made.trace("assist,io:0xf4") as others:
            for event in made.events("assist", timeout=10):
                assert event.data["instruction"].startswith("f3 0f b8 07")
                break
        seen.append([event.data["address"] for event in events])
        assert [event.what for event in others] == ["assist"]
    assert seen == [[0xD0000], [0xD0000]]
    assert made.run(10) == GuestExit(0)
