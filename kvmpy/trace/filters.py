"""The language that chooses events: `io:0x3f8-0x3ff[write]`, `mmio:0xfee00000+0x1000`, `exception:14[cpl=3]`, `!device`.

    filter     clause, clause, ...          an event is chosen by any clause, unless one with `!` meets it
    clause     [!]kind[:subject][[condition, ...]]
    kind       of kvmpy.trace.KINDS; port: as io; all: every kind but block, instruction and memory, which tell of every instruction
    subject    a number, first-last, first+size, a symbol; the name of an MSR, an exception, an exit, a device (`*` and `?` match)
    condition  write, read, size=, value=, cpu=, cpl=, rip=, or a key of the event's data; each with a subject of its own

A filter of clauses with `!` alone chooses from all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple, Protocol

from kvmpy.errors import FilterError
from kvmpy.trace.event import KINDS, NUMBERS, Event
from kvmpy.x86 import EXCEPTIONS, MSR_NAMES, msr_name

MOST = (1 << 64) - 1
DETAILED = frozenset(("block", "instruction", "memory"))
"""Kinds that only their own names choose."""
ALL = frozenset(KINDS) - DETAILED

SUBJECTS = {
    "io": ("port",), "mmio": ("address",), "msr": ("index",), "cpuid": ("leaf",), "irq": ("vector",), "exception": ("vector",),
    "hypercall": ("number",), "line": ("gsi",), "exit": ("reason",), "unclaimed": ("port", "address"), "device": ("device",),
    "block": ("address",), "instruction": ("address",), "memory": ("address",), "ioctl": ("name",),
}  # fmt: skip
"""What stands behind a kind's colon: a key of its data, or the one of two that an event has."""
KEYS = {
    "io": ("port", "size", "count", "value", "device"), "mmio": ("address", "size", "value", "device"), "msr": ("index", "name", "value"),
    "cpuid": ("leaf", "subleaf", "eax", "ebx", "ecx", "edx"), "irq": ("vector",), "exception": ("vector", "name", "error", "address"),
    "hypercall": ("number",), "line": ("gsi", "level", "address", "data"), "exit": ("reason", "text"), "assist": ("instruction",),
    "unclaimed": ("port", "address", "size"), "device": ("device", "event"), "block": ("address", "count"),
    "instruction": ("address",), "memory": ("address", "size", "value"), "ioctl": ("fd", "name"), "verdict": ("verdict",),
}  # fmt: skip
"""The keys of data that conditions may name."""
DIRECTED = frozenset(("io", "mmio", "msr", "unclaimed", "memory"))
"""Kinds that are read or written."""
_TEXTS = frozenset(("name", "device", "reason", "text", "event", "instruction", "verdict"))
_ADDRESSES = frozenset(("address", "rip"))
_ACCESSES = frozenset(("io", "mmio", "memory", "unclaimed"))
_FIELDS = {"cpu": "vcpu", "vcpu": "vcpu", "cpl": "cpl", "rip": "rip"}

_NUMBER = r"(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|[0-9]+)"
_RANGE = re.compile(rf"({_NUMBER})(?:([-+])({_NUMBER}))?")
_CLAUSE = re.compile(r"(!?)\s*([A-Za-z_]+)(?::([^\[\]]*))?\s*(?:\[([^\[\]]*)\])?")
_MSRS = {name.lower(): index for index, name in MSR_NAMES.items()}


class SymbolTable(Protocol):
    """As kvmpy.debug.symbols.Symbols."""

    @property
    def moving(self) -> bool: ...
    def named(self, name: str) -> list[int]: ...
    def find(self, address: int) -> Any: ...


class Span(NamedTuple):
    """Numbers from `low` to `high`, both among them."""

    low: int
    high: int


class Test(NamedTuple):
    """One condition: a field of Event ("vcpu", "cpl", "rip") or a key of its data ("write" is a span of 0 or 1)."""

    key: str
    wanted: Span | str
    """A string is a pattern."""


class Clause(NamedTuple):
    """One clause."""

    text: str
    kinds: frozenset[str]
    negative: bool
    subject: Span | str | None
    tests: tuple[Test, ...]

    def matches(self, event: Event) -> bool:
        """Its own part alone: what `!` does is the filter's."""
        return event.what in self.kinds and all(check(event) for check in self.checks(event.what))

    def checks(self, kind: str) -> list[Callable[[Event], bool]]:
        """The conditions as functions, for one of its kinds."""
        found = []
        if self.subject is not None:
            found.append(_subject_check(kind, self.subject))
        for test in self.tests:
            found.append(_check(test.key, test.wanted))
        return found


class Rule(NamedTuple):
    """One clause for one kind, as the core takes it. A range without limits goes from 0 to MOST."""

    kind: int
    negative: bool
    direction: int
    """0: any, 1: reads, 2: writes."""
    subject: Span
    value: Span
    rip: Span
    size: Span
    vcpu: Span
    cpl: Span
    exact: bool
    """False: the clause asks more than the rule says; whoever gets the record asks the filter."""


_ANY = Span(0, MOST)


class Filter:
    """Clauses, ready to be asked."""

    def __init__(self, clauses: Sequence[Clause], again: Callable[[], Filter] | None = None) -> None:
        self.clauses = tuple(clauses)
        self.again = again
        """Gives the filter anew, where it names symbols of a kernel that moves itself."""
        positive = [clause for clause in clauses if not clause.negative]
        self.kinds: frozenset[str] = frozenset().union(*(clause.kinds for clause in positive)) if positive else ALL
        """The kinds that it may choose."""
        self.named: frozenset[str] = frozenset().union(*(clause.kinds for clause in positive if clause.kinds != ALL))
        """Those of them that a clause names, rather than `all`."""
        self._static: dict[str, tuple[list[Rule], list[Rule]]] = {}
        self._checks = {kind: self._compile(kind, positive) for kind in self.kinds}

    def _compile(self, kind: str, positive: list[Clause]) -> tuple[list[_Checks], list[_Checks]]:
        wanted = [clause.checks(kind) for clause in positive if kind in clause.kinds] if positive else [[]]
        refused = [clause.checks(kind) for clause in self.clauses if clause.negative and kind in clause.kinds]
        return wanted, refused

    def __repr__(self) -> str:
        return f"Filter({','.join(clause.text for clause in self.clauses)})"

    def matches(self, event: Event) -> bool:
        """Is the event chosen?"""
        checks = self._checks.get(event.what)
        if checks is None:
            return False
        wanted, refused = checks
        for clause in wanted:
            for check in clause:
                if not check(event):
                    break
            else:
                break
        else:
            return False
        return not any(all(check(event) for check in clause) for clause in refused)

    def rules(self, kinds: Iterable[str] = KINDS) -> list[Rule]:
        """What decides before there is an event, for those of its kinds that are among `kinds`."""
        found: list[Rule] = []
        positive = any(not clause.negative for clause in self.clauses)
        for kind in kinds:
            if kind not in self.kinds:
                continue
            if not positive:
                found.append(_rule(kind, Clause("all", ALL, False, None, ())))
            for clause in self.clauses:
                if kind in clause.kinds:
                    rule = _rule(kind, clause)
                    if rule.exact or not rule.negative:
                        found.append(rule)
        return found

    def exact(self, kinds: Iterable[str]) -> bool:
        """Do `rules` say all that the filter says of those kinds?"""
        return all(_rule(kind, clause).exact for kind in kinds for clause in self.clauses if kind in clause.kinds)

    def may(self, kind: str, vcpu: int, subject: int, size: int, write: bool) -> bool:
        """Could it choose such an access? Decides by what is known before there is an event."""
        rules = self._static.get(kind)
        if rules is None:
            found = self.rules([kind])
            decided = [rule for rule in found if rule.negative and rule.value == rule.rip == rule.cpl == _ANY]
            rules = self._static[kind] = [rule for rule in found if not rule.negative], decided
        last = subject + (size - 1 if kind in _ACCESSES else 0)

        def fits(rule: Rule) -> bool:
            return (
                rule.subject.low <= last and subject <= rule.subject.high and rule.direction != (1 if write else 2)
                and rule.size.low <= size <= rule.size.high and rule.vcpu.low <= vcpu <= rule.vcpu.high
            )  # fmt: skip

        wanted, refused = rules
        return any(map(fits, wanted)) and not any(map(fits, refused))


_Checks = list[Callable[[Event], bool]]


def _rule(kind: str, clause: Clause) -> Rule:
    direction, exact = 0, not isinstance(clause.subject, str)
    spans: dict[str, Span] = {}
    if isinstance(clause.subject, Span):
        spans["subject"] = clause.subject
    for test in clause.tests:
        if test.key == "write" and isinstance(test.wanted, Span):
            direction = 2 if test.wanted.low else 1
        elif test.key in ("value", "rip", "size", "vcpu", "cpl") and isinstance(test.wanted, Span) and test.key not in spans:
            spans[test.key] = test.wanted
        elif test.key == SUBJECTS.get(kind, ("",))[0] and isinstance(test.wanted, Span) and "subject" not in spans:
            spans["subject"] = test.wanted
        else:
            exact = False
    subject, value, rip, size, vcpu, cpl = (spans.get(name, _ANY) for name in ("subject", "value", "rip", "size", "vcpu", "cpl"))
    return Rule(NUMBERS[kind], clause.negative, direction, subject, value, rip, size, vcpu, cpl, exact)


def _pattern(pattern: str) -> Callable[[object], bool]:
    match = re.compile(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), re.I | re.S).fullmatch
    return lambda value: isinstance(value, str) and match(value) is not None


def _subject_check(kind: str, wanted: Span | str) -> Callable[[Event], bool]:
    keys = SUBJECTS[kind]
    if isinstance(wanted, str):
        same, key = _pattern(wanted), keys[0]
        return lambda event: same(event.data.get(key))
    low, high = wanted

    def check(event: Event) -> bool:
        data = event.data
        for key in keys:
            if key in data:
                first: int = data[key]
                # An access is met by any of its bytes.
                return first <= high and first + (data.get("size", 1) - 1 if kind in _ACCESSES else 0) >= low
        return False

    return check


def _check(key: str, wanted: Span | str) -> Callable[[Event], bool]:
    if isinstance(wanted, str):
        same = _pattern(wanted)
        return lambda event: same(event.data.get(key))
    low, high = wanted
    if key in ("vcpu", "rip", "cpl"):

        def check_field(event: Event) -> bool:
            value = getattr(event, key)
            return value is not None and low <= value <= high

        return check_field

    def check(event: Event) -> bool:
        value = event.data.get(key)
        return value is not None and not isinstance(value, str) and low <= value <= high

    return check


# Reading.


class _Reader:
    """One clause being read: its errors name it."""

    def __init__(self, text: str, symbols: SymbolTable | None) -> None:
        self.text = text.strip()
        self.symbols = symbols
        self.moving = False
        """A symbol is named whose address may change."""
        self._counts: dict[str, int] = {}
        self._picked: dict[str, int] = {}
        """Of a name that several functions have (a kernel's static ones): how many, and which of them is meant now."""

    def each(self, read: Callable[[], Clause]) -> list[Clause]:
        """What `read` makes; where it names symbols that stand for several addresses, once for each of them."""
        first = read()
        if all(count == 1 for count in self._counts.values()):
            return [first]
        found = []
        for numbers in product(*map(range, self._counts.values())):
            self._picked = dict(zip(self._counts, numbers, strict=True))
            found.append(read())
        return found

    def fail(self, problem: str) -> FilterError:
        return FilterError(f"filter {self.text!r}: {problem}")

    def span(self, text: str, what: str) -> Span | None:
        """A range of numbers; None where it is none."""
        match = _RANGE.fullmatch(text)
        if match is None:
            return None
        first, sign, second = match.groups()
        low = high = self.number(first)
        if sign == "-":
            high = self.number(second)
            if high < low:
                raise self.fail(f"{what} {text}: the range ends before it begins")
        elif sign == "+":
            size = self.number(second)
            if size == 0:
                raise self.fail(f"{what} {text}: a range of size 0")
            high = low + size - 1
        if high > MOST:
            raise self.fail(f"{what} {text}: more than 64 bits")
        return Span(low, high)

    def number(self, text: str) -> int:
        return int(text, 0) if text[:1] == "0" and text[1:2].isalpha() else int(text)

    def symbol(self, text: str, what: str) -> Span:
        """A function's or object's whole range, or `size` bytes from its start (name+size)."""
        name, sign, rest = text.partition("+")
        if self.symbols is None:
            raise self.fail(f"{what} {text!r}: expected a number, first-last or first+size (no symbols are loaded here)")
        addresses = self.symbols.named(name)
        self.moving |= self.symbols.moving
        if not addresses:
            raise self.fail(f"{what} {text!r}: no symbol {name!r} is known; numbers are 16, 0x10, first-last or first+size")
        self._counts[name] = len(addresses)
        address = addresses[self._picked.get(name, 0)]
        if sign:
            span = self.span(f"{address}+{rest}", what)
            if span is None:
                raise self.fail(f"{what} {text!r}: expected name+size")
            return span
        return Span(address, _last_byte(self.symbols, address))

    def value(self, key: str, text: str, kind: str) -> Span | str:
        text = text.strip()
        if not text:
            raise self.fail(f"nothing stands behind {key}")
        if key in _TEXTS:
            return text
        span = self.span(text, key)
        if span is not None:
            return span
        if kind == "msr" and key == "index":
            index = _msr_index(text)
            if index is None:
                raise self.fail(f"{text!r} is neither a number nor the name of an MSR")
            return Span(index, index)
        if kind in ("exception", "irq") and key == "vector":
            for number, name in EXCEPTIONS.items():
                if kind == "exception" and text.lower().lstrip("#") == name.lower().lstrip("#"):
                    return Span(number, number)
            raise self.fail(f"{text!r}: expected a vector, 0 to 255" + (", or a name as #PF" if kind == "exception" else ""))
        if key in _ADDRESSES:
            return self.symbol(text, key)
        raise self.fail(f"{key} {text!r}: expected a number, first-last or first+size")

    def condition(self, text: str, kinds: frozenset[str]) -> Test:
        key, sign, value = (part.strip() for part in text.partition("="))
        if key in ("write", "read") and not sign:
            for kind in kinds if len(kinds) == 1 else ():
                if kind not in DIRECTED:
                    raise self.fail(f"{key}: events of kind {kind} are neither read nor written")
            return Test("write", Span(1, 1) if key == "write" else Span(0, 0))
        if not sign:
            raise self.fail(f"condition {text!r}: expected write, read or key=value")
        if key in _FIELDS:
            wanted = self.value(_FIELDS[key], value, "")
            return Test(_FIELDS[key], wanted)
        kind = next(iter(kinds)) if len(kinds) == 1 else ""
        known = KEYS[kind] if kind else ("size", "value", "device")
        if key not in known:
            usable = [*(("write", "read") if not kind or kind in DIRECTED else ()), *known, "cpu", "cpl", "rip"]
            raise self.fail(f"condition {key!r}: expected one of {', '.join(usable)}")
        return Test(key, self.value(key, value, kind))

    def clause(self) -> Clause:
        match = _CLAUSE.fullmatch(self.text)
        if match is None:
            raise self.fail("expected kind, kind:subject or kind:subject[condition,...], as in io:0x3f8-0x3ff[write]")
        sign, name, subject, conditions = match.groups()
        name = "io" if name == "port" else name
        kinds = ALL if name == "all" else frozenset((name,)) & KINDS.keys()
        if not kinds:
            raise self.fail(f"unknown kind {name!r}: expected one of all, {', '.join(KINDS)}")
        wanted: Span | str | None = None
        if subject is not None:
            if len(kinds) > 1 or name not in SUBJECTS:
                raise self.fail(f"{name} has nothing to choose behind a colon")
            wanted = self.value(SUBJECTS[name][-1], subject, name)
        tests = [self.condition(text, kinds) for text in conditions.split(",")] if conditions is not None else []
        return Clause(self.text, kinds, bool(sign), wanted, tuple(tests))


def _last_byte(symbols: SymbolTable, address: int) -> int:
    """Of the symbol at `address`; those without a size (a kernel's own table) reach to the next one."""
    found = symbols.find(address)
    if found is None or found[0].address != address:
        return address
    if found[0].size:
        return address + int(found[0].size) - 1
    inside, outside = address, address + 1
    while outside - address < 1 << 20:
        other = symbols.find(outside)
        if other is None or other[0].address != address:
            break
        inside, outside = outside, address + 2 * (outside - address)
    while outside - inside > 1:
        middle = (inside + outside) // 2
        other = symbols.find(middle)
        if other is not None and other[0].address == address:
            inside = middle
        else:
            outside = middle
    return inside


def _msr_index(text: str) -> int | None:
    name = text.lower().removeprefix("msr_").removeprefix("ia32_")
    if name in _MSRS:
        return _MSRS[name]
    computed = (*range(0x200, 0x220), *range(0x268, 0x270), *range(0x800, 0x840))
    return next((index for index in computed if msr_name(index).lower() == name), None)


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += {"[": 1, "]": -1}.get(sign, 0)
        if sign == "," and depth <= 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def parse(text: str, symbols: SymbolTable | None = None) -> Filter:
    """A filter from its text. FilterError names the clause and what was expected."""
    clauses, moving = [], False
    for part in _split(text):
        if not part.strip():
            raise FilterError(f"filter {text!r}: an empty clause; expected for instance io:0x3f8-0x3ff[write],!device")
        reader = _Reader(part, symbols)
        clauses += reader.each(reader.clause)
        moving |= reader.moving
    return Filter(clauses, (lambda: parse(text, symbols)) if moving else None)


def build(texts: Iterable[str], conditions: dict[str, Any], symbols: SymbolTable | None = None) -> Filter:
    """Texts as `parse` takes them, with conditions by name added to each clause that chooses: numbers, `range` objects, True and
    False (write, read), and texts: `build(["io"], {"port": range(0x3f8, 0x400), "write": True})`."""
    texts = list(texts)
    filters = [parse(text, symbols) for text in texts]
    moving = any(one.again is not None for one in filters)
    clauses = [clause for one in filters for clause in one.clauses]
    if not clauses:
        clauses = [Clause("all", ALL, False, None, ())]
    result = []
    for clause in clauses:
        if not clause.negative and conditions:
            reader = _Reader(f"{clause.text}[{','.join(f'{key}={value!r}' for key, value in conditions.items())}]", symbols)
            result += reader.each(partial(_with_conditions, reader, clause, conditions))
            moving |= reader.moving
        else:
            result.append(clause)
    return Filter(result, (lambda: build(texts, conditions, symbols)) if moving else None)


def _with_conditions(reader: _Reader, clause: Clause, conditions: dict[str, Any]) -> Clause:
    tests = [reader.condition(_condition_text(reader, key, value), clause.kinds) for key, value in conditions.items()]
    return clause._replace(text=reader.text, tests=(*clause.tests, *tests))


def _condition_text(reader: _Reader, key: str, value: Any) -> str:
    if key in ("write", "read"):
        if not isinstance(value, bool):
            raise reader.fail(f"{key} is True or False")
        return key if value else {"write": "read", "read": "write"}[key]
    if isinstance(value, range):
        if value.step != 1 or not value or value.start < 0:
            raise reader.fail(f"{key}: {value!r} is no range of numbers from 0 on, one by one")
        return f"{key}={value.start}-{value.stop - 1}"
    if isinstance(value, bool) or not isinstance(value, (int, str)) or (isinstance(value, int) and value < 0):
        raise reader.fail(f"{key}: {value!r} is neither a number, a range nor a text")
    return f"{key}={value}"
