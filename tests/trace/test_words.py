"""Events in words."""

from __future__ import annotations

import pytest

from kvmpy.trace import KINDS, Event
from kvmpy.trace.places import ADDRESSES, PORTS, address_name, port_name
from kvmpy.trace.text import TextFormat
from kvmpy.trace.words import Names, describe, place
from tests.trace.samples import EVENTS, RIP, Symbols


@pytest.mark.parametrize(("event", "words", "where"), EVENTS, ids=[words[:30] for _, words, _ in EVENTS])
def test_words_and_place(event: Event, words: str, where: str) -> None:
    assert describe(event) == words
    assert place(event) == where
    assert describe(event).isprintable(), "a guest must not speak to the terminal"


def test_every_kind_has_words() -> None:
    assert {event.what for event, _, _ in EVENTS} >= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_with_other_data_is_shown_as_it_is(kind: str) -> None:
    assert describe(Event(kind, 0, 0, {"strange": 5000})) == f"{kind} strange=0x1388"
    assert place(Event(kind, 0, 0, {"strange": 5000})) == ""
    assert describe(Event(kind, 0, 0, {})) == kind


def test_fixed_places_do_not_overlap() -> None:
    for table in (PORTS, ADDRESSES):
        ends = [bound for first, last, _ in table for bound in (first, last)]
        assert ends == sorted(ends)
    assert [port_name(port) for port in (0x3F7, 0x3F8, 0x3FF, 0x400, 0, 0x10, 0xFFFF)] == ["floppy", "com1", "com1", "", "dma", "", ""]
    assert [address_name(address) for address in (0xFEE00020, 0xFEC00FFF, 0xFEC01000, 0)] == ["lapic", "ioapic", "", ""]


def test_lines() -> None:
    lines: list[str] = []
    out = TextFormat(lines.append, Symbols())
    out(EVENTS[0][0]._replace(time=1_000_000_900))
    out(EVENTS[-1][0])
    assert lines == [
        "  1.000000900 cpu0  main+0x12 (hello.c:12)                 outb 0x3f8 <- 0x41 'A' (serial)  <1.90 us>\n",
        "  0.000004000 cpu2                                         weather sun=true\n",
    ]
    out = TextFormat(lines.append, colour=True)
    out(EVENTS[0][0])
    assert "\x1b[" in lines[-1] and f"{RIP:#x}" in lines[-1]


def test_a_name_is_asked_for_once() -> None:
    asked = []

    class Asked(Symbols):
        def where(self, address: int) -> str:
            asked.append(address)
            return super().where(address)

    names = Names(Asked())
    assert [names(RIP), names(RIP), names(None), names(5)] == ["main+0x12 (hello.c:12)"] * 2 + ["", "0x5"]
    assert asked == [RIP, 5]


def test_arguments_of_calls_are_cut_and_errors_named() -> None:
    arguments = {"region": list(range(40)), "text": "ab " * 50}
    data = {"fd": 3, "name": "KVM_SET_XSAVE", "arguments": arguments, "result": -22, "error": "EINVAL"}
    words = describe(Event("ioctl", 0, 0, data))
    assert words.endswith("}) = -22 EINVAL") and "30, 31, ...]" in words and "32," not in words and f"text={'ab ' * 32}..." in words
    many = {"fd": 3, "name": "KVM_SET_MSRS", "arguments": {"entries": {f"M{n}": n for n in range(40)}}, "result": None}
    assert "M31=31 ...}" in describe(Event("ioctl", 0, 0, many)) and describe(Event("ioctl", 0, 0, many)).endswith(" = ?")


def test_lines_tell_process_and_vm_where_there_are_several() -> None:
    lines: list[str] = []
    writer = TextFormat(lines.append)
    writer(Event("exit", 2, 0, {"reason": "hlt", "text": "HLT", "vm": 1, "pid": 77}))
    writer(Event("ioctl", -1, 0, {"fd": 3, "name": "KVM_CREATE_VM", "arguments": {}, "result": 4, "pid": 77}))
    assert [line.split()[1] for line in lines] == ["77/vm1/cpu2", "77/-"]
