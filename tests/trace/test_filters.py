"""The filter language: what it chooses, how it reads, what its errors say."""

from __future__ import annotations

from typing import Any

import pytest

from kvmpy.debug.symbols import Symbols
from kvmpy.errors import ConfigError, FilterError
from kvmpy.trace import KINDS, NUMBERS, Event
from kvmpy.trace.filters import ALL, KEYS, MOST, SUBJECTS, Span, build, parse


def event(what: str, *, vcpu: int = 0, rip: int | None = None, cpl: int | None = None, **data: Any) -> Event:
    return Event(what, vcpu, 0, data, rip, cpl=cpl)


OUT = event("io", port=0x3F8, size=1, count=1, write=True, value=0x41, device="COM1")
IN = event("io", port=0x3FD, size=1, count=1, write=False, value=0x60, vcpu=1)
PAGE_FAULT = event("exception", vector=14, name="#PF", error=2, address=0xB8000, rip=0x1010, cpl=3)
WRMSR = event("msr", index=0xC0000080, name="EFER", write=True, value=0x500, served=True)


@pytest.fixture
def symbols() -> Symbols:
    made = Symbols()
    made.add_list("list", [("start_kernel", "T", 0x1000), ("rest", "T", 0x1040), ("data", "D", 0x9000)])
    made.add_list("static", [("twice", "t", 0x800), ("twice", "t", 0x1010), ("end", "t", 0x1020)])
    return made


@pytest.mark.parametrize(
    "text, chosen",
    [
        ("io", [OUT, IN]),
        ("io:0x3f8", [OUT]),
        ("port:0x3f8[write]", [OUT]),
        ("exception[rip=twice]", [PAGE_FAULT]),
        ("all,!exception[rip=twice]", [OUT, IN, WRMSR]),
        ("io:0x3f8-0x3fc", [OUT]),
        ("io:1016+8", [OUT, IN]),
        ("io[read]", [IN]),
        ("io:0x3f8-0x3ff[write,value=0x40-0x4f]", [OUT]),
        ("io[value=0x42]", []),
        ("io[cpu=1]", [IN]),
        ("io[device=com?]", [OUT]),
        ("all", [OUT, IN, PAGE_FAULT, WRMSR]),
        ("!io", [PAGE_FAULT, WRMSR]),
        ("!io[write]", [IN, PAGE_FAULT, WRMSR]),
        ("io,!io:0x3fd", [OUT]),
        ("exception:14", [PAGE_FAULT]),
        ("exception:#PF[cpl=3]", [PAGE_FAULT]),
        ("exception:pf[address=0xb8000-0xb8fff]", [PAGE_FAULT]),
        ("exception[cpl=0]", []),
        ("msr:EFER", [WRMSR]),
        ("msr:IA32_EFER[write]", [WRMSR]),
        ("msr:0xc0000080,irq:0x20-0xff", [WRMSR]),
        ("exception[rip=start_kernel+0x11]", [PAGE_FAULT]),
        ("exception[rip=start_kernel+0x10]", []),
        ("exception[rip=rest]", []),
        (" io:0x3f8 , msr ", [OUT, WRMSR]),
    ],
)
def test_what_is_chosen(text: str, chosen: list[Event], symbols: Symbols) -> None:
    wanted = parse(text, symbols)
    assert [one for one in (OUT, IN, PAGE_FAULT, WRMSR) if wanted.matches(one)] == chosen


def test_any_byte_of_an_access_meets_a_range() -> None:
    wanted = parse("memory:0x1004-0x1007")
    assert wanted.matches(event("memory", address=0x1000, size=8, write=False, value=0))
    assert not wanted.matches(event("memory", address=0x1000, size=4, write=False, value=0))
    assert not wanted.matches(event("memory", address=0x1008, size=4, write=False, value=0))


def test_all_leaves_out_what_tells_of_every_instruction() -> None:
    assert not parse("all").matches(event("instruction", address=1))
    assert not parse("!device").matches(event("block", address=1, count=1))
    assert parse("all,block").matches(event("block", address=1, count=1))
    assert parse("all").named == frozenset()
    assert parse("all,block").named == {"block"}


def test_a_vcpu_or_rip_that_is_not_known_meets_no_condition() -> None:
    assert not parse("io[rip=0-0xffff]").matches(OUT)
    assert not parse("io[cpl=0]").matches(OUT)


def test_patterns_choose_texts() -> None:
    wanted = parse("device:virtio*[event=re?et]")
    assert wanted.matches(event("device", device="virtio-blk", event="reset"))
    assert not wanted.matches(event("device", device="rtc", event="reset"))
    assert parse("exit:hlt").matches(event("exit", reason="hlt", text="HLT"))
    assert not parse("exit:hlt").matches(event("exit", reason="shutdown", text="SHUTDOWN"))


@pytest.mark.parametrize(
    "text, said",
    [
        ("ports", "filter 'ports': unknown kind 'ports': expected one of all, io, mmio"),
        ("io,", "an empty clause"),
        ("io:xyz", "'io:xyz': port 'xyz': expected a number, first-last or first+size"),
        ("io:9-4", "the range ends before it begins"),
        ("io:9+0", "a range of size 0"),
        ("io:0x1ffffffffffffffff", "more than 64 bits"),
        ("io[foo=1]", "condition 'foo': expected one of write, read, port, size"),
        ("io[foo]", "condition 'foo': expected write, read or key=value"),
        ("io[size=]", "nothing stands behind size"),
        ("irq[write]", "events of kind irq are neither read nor written"),
        ("io[size=1", "expected kind, kind:subject or kind:subject[condition,...]"),
        ("assist:1", "assist has nothing to choose behind a colon"),
        ("all:1", "all has nothing to choose behind a colon"),
        ("msr:FOO", "'FOO' is neither a number nor the name of an MSR"),
        ("exception:#XX", "expected a vector, 0 to 255, or a name as #PF"),
        ("io[rip=main]", "no symbol 'main' is known"),
        ("io[rip=start_kernel+x]", "expected name+size"),
    ],
)
def test_errors_name_the_clause_and_what_was_expected(text: str, said: str, symbols: Symbols) -> None:
    with pytest.raises(FilterError) as caught:
        parse(text, symbols)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigError)


def test_a_symbol_without_symbols() -> None:
    with pytest.raises(FilterError, match="no symbols are loaded here"):
        parse("io[rip=main]")


def test_conditions_by_name() -> None:
    wanted = build(["io"], {"port": range(0x3F8, 0x400), "write": True})
    assert wanted.matches(OUT) and not wanted.matches(IN)
    assert build(["io", "msr:EFER"], {"write": False}).matches(IN)
    assert not build(["io", "msr:EFER"], {"write": False}).matches(WRMSR)
    assert build([], {"cpu": 1}).matches(IN) and not build([], {"cpu": 1}).matches(OUT)
    with pytest.raises(FilterError, match="expected a number, first-last"):
        build(["io"], {"port": "a"})
    with pytest.raises(FilterError, match="no range of numbers"):
        build(["io"], {"port": range(4, 4)})
    with pytest.raises(FilterError, match="True or False"):
        build(["io"], {"write": 1})
    with pytest.raises(FilterError, match="condition 'prot'"):
        build(["io"], {"prot": 1})


def test_rules_say_what_the_core_may_decide() -> None:
    rule, refused = parse("io:0x3f8-0x3ff[write,size=4,value=1-9,cpu=2],!io:0x3fd").rules()
    assert (rule.kind, rule.negative, rule.direction, rule.exact) == (NUMBERS["io"], False, 2, True)
    assert (rule.subject, rule.size, rule.value, rule.vcpu) == (Span(0x3F8, 0x3FF), Span(4, 4), Span(1, 9), Span(2, 2))
    assert rule.rip == rule.cpl == Span(0, MOST)
    assert (refused.negative, refused.subject) == (True, Span(0x3FD, 0x3FD))
    (loose,) = parse("io[device=COM1]").rules()
    assert not loose.exact
    # A clause that refuses more than its rule can say refuses nothing there: else events would be lost.
    assert [rule.negative for rule in parse("io,!io[device=COM1]").rules()] == [False]
    assert {rule.kind for rule in parse("!device").rules(["io", "device", "block"])} == {NUMBERS["io"], NUMBERS["device"]}


def test_the_tables_know_every_kind() -> None:
    assert KEYS.keys() == KINDS.keys()
    assert SUBJECTS.keys() <= KINDS.keys()
    assert all(set(SUBJECTS[kind]) <= set(KEYS[kind]) for kind in SUBJECTS)
    assert set(KINDS) > ALL


def test_a_name_of_several_functions_chooses_all_of_them(symbols: Symbols) -> None:
    spans = [rule.rip for rule in parse("io[rip=twice]", symbols).rules()]
    assert spans == [Span(0x800, 0xFFF), Span(0x1010, 0x101F)]
    assert [rule.rip for rule in build(["io"], {"rip": "twice", "write": True}, symbols).rules()] == spans
    assert parse("io[rip=twice]", symbols).again is None
