"""Who watches a machine: filters that become rules of the backend, decorators, `with` blocks, and events one by one."""

from __future__ import annotations

import errno
from collections.abc import Callable
from threading import Event as Flag
from threading import get_ident
from typing import TYPE_CHECKING, Any

from kvmpy.errors import ConfigError, FilterError, HostError, MissingCapability
from kvmpy.native import CData, lib
from kvmpy.trace.event import Event, Listener
from kvmpy.trace.filters import Filter, Rule, SymbolTable, build, parse
from kvmpy.trace.records import STOP, chip_name, event_of, records_in
from kvmpy.trace.tracer import SERVED, Sink, Tracer
from kvmpy.x86 import MSR_KVM_WALL_CLOCK

if TYPE_CHECKING:
    from kvmpy.bus import MmioBus, PortBus
    from kvmpy.loop import Loop

LIVE = 0
"""The core's channel of listeners; the others are of files."""
CHANNELS: int = lib.KP_TRACE_CHANNELS

WAIT = 5
"""Seconds for the machine's lock."""

# A Linux kernel writes EFER as soon as it runs where it has moved itself to, before any C code, and LSTAR a little later.
_MOVED = "msr:EFER[write],msr:LSTAR[write]"

_WHY = {
    "cpuid": "KVM answers CPUID from a table without an exit: change the table with vcpu.set_cpuid",
    "hypercall": "KVM answers hypercalls itself",
    "irq": "KVM delivers interrupts itself, without an exit",
    "exception": "KVM delivers exceptions itself, without an exit",
    "block": "KVM knows no blocks of code",
    "instruction": "KVM tells no instructions; a listener that answers with Step gets some",
    "memory": "KVM tells no accesses to memory",
}

# Where MSRs are (SDM 4, table 2-1; AMD's; KVM's own): KVM's filter has bitmaps, not ranges without end.
_MSR_AREAS = ((0, 0x2FFF), (MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK + 0xFF), (0xC0000000, 0xC0002FFF), (0xC0010000, 0xC0012FFF))


class Watcher:
    """The listeners of one machine, and what its backend is asked to tell them."""

    def __init__(
        self, loop: Loop, ports: PortBus, mmio: MmioBus, now: Callable[[], int], *, virtual: bool, on_accesses: Callable[[bool], None],
        names: Callable[[], SymbolTable],
    ) -> None:
        """`on_accesses` is called under the lock when accesses to device memory are told, or no longer."""
        self.loop = loop
        self.vm: Any = loop.vm
        self.ports, self.mmio = ports, mmio
        self.tracer = Tracer(loop, now, names)
        self.tracer.changed = self._apply
        self.on_accesses = on_accesses
        self._accesses = False
        self._waiting: CData = None
        self._lost = 0
        self._msr_ranges: list[tuple[int, int, int]] = []
        self.virtual = virtual
        """Time is virtual: the host's has no place in records."""
        self.channels = set(range(1, CHANNELS))
        """Free ones of the core, for files."""
        self._follower = Sink(self._follow, parse(_MOVED), observe=False)

    def check(self, chosen: Filter, *, observe: bool = True) -> None:
        """MissingCapability for a kind that is asked for by name and cannot be told here, or to no listener that does not `observe`."""
        for kind in sorted(chosen.named - SERVED - (self.vm.traceable if observe else self.vm.answerable)):
            if kind == "ioctl":
                raise ConfigError("ioctl: calls of another process, which a machine does not have")
            if self.vm.name == "soft":
                raise MissingCapability(f"{kind}: vCPUs in parallel take no answer to it: observe=True looks on, or leave parallel out")
            raise MissingCapability(f"{kind}: {_WHY[kind]} (the software CPU tells them: --backend soft)")

    def add(self, sink: Sink) -> None:
        if sink.filter is not None:
            self.check(sink.filter, observe=sink.observe)
        self.locked(lambda: self.tracer.add(sink))

    def remove(self, sink: Sink) -> None:
        self.locked(lambda: self.tracer.remove(sink))

    @property
    def core_kinds(self) -> frozenset[str]:
        """Kinds that the backend's own trace tells. MSRs of threaded vCPUs exit where a filter wants them."""
        kinds: frozenset[str] = self.vm.traceable - {"msr"} if self.vm.threaded else self.vm.traceable
        return kinds

    def locked(self, change: Callable[[], None], *, wait: bool = False) -> None:
        """Under the machine's lock: now where it is free or its holder asks, else as soon as it is; `wait`: until then."""
        if self.tracer.holder == get_ident():
            change()
        elif self.loop.lock.acquire(blocking=False):
            try:
                change()
            finally:
                self.loop.lock.release()
        else:
            done = Flag()

            def posted() -> None:
                change()
                done.set()

            self.loop.post(posted)
            if wait:
                done.wait(WAIT)

    def _follow(self, event: Event) -> None:
        """Filters that name symbols of a kernel which has moved itself are read again."""
        changed = False
        for sink in self.tracer.sinks:
            if sink.filter is None or sink.filter.again is None:
                continue
            try:
                found = sink.filter.again()
            except FilterError:
                continue
            if found.clauses != sink.filter.clauses:
                sink.filter, changed = found, True
                sink.refiltered()
        if changed:
            self.tracer.refresh()

    # The backend.

    def _apply(self) -> None:
        tracer = self.tracer
        following = any(sink.filter is not None and sink.filter.again is not None for sink in tracer.sinks)
        if following is not (self._follower in tracer.sinks):
            (tracer.add if following else tracer.remove)(self._follower)  # which comes here again
            return
        telling = tracer if len(tracer) else None

        def unclaimed(where: str) -> Callable[[int, int, bool], None] | None:
            if telling is None:
                return None
            return lambda at, size, write: telling.emit("unclaimed", None, **{where: at}, size=size, write=write)

        self.ports.listener, self.mmio.listener = unclaimed("port"), unclaimed("address")
        accesses = any("mmio" in (sink.kinds if sink.filter is None else sink.filter.kinds) for sink in tracer.sinks)
        if accesses != self._accesses:
            self._accesses = accesses
            self.on_accesses(accesses)
        core = self.core_kinds
        if core:
            rules = [
                rule_of(rule, group, 0 if sink.observe else lib.KP_RULE_STOP)
                for group, sink in enumerate(tracer.sinks)
                if self._told_by_core(sink)
                for rule in (sink.filter.rules(core) if sink.filter is not None else ())
            ]
            if rules or self.loop.drains:
                self.vm.set_trace(LIVE, rules, host=not self.virtual)
                self._waiting = self.vm.trace_waiting(LIVE)
            self.loop.drains[:] = [self.drain] if rules else []
        if "msr" in self.vm.traceable - core:
            self._filter_msrs()

    def _told_by_core(self, sink: Sink) -> bool:
        """Of vCPUs in threads the core asks for no answers: who drains its records may be another vCPU's thread."""
        return sink.filter is not None and sink.in_core and (sink.observe or not self.vm.threaded)

    def _filter_msrs(self) -> None:
        ranges: list[tuple[int, int, int]] = []
        for sink in self.tracer.sinks:
            for rule in [] if sink.filter is None else sink.filter.rules(["msr"]):
                if rule.negative:
                    continue
                flags = {0: lib.KVM_MSR_FILTER_READ | lib.KVM_MSR_FILTER_WRITE, 1: lib.KVM_MSR_FILTER_READ, 2: lib.KVM_MSR_FILTER_WRITE}
                low, high = rule.subject
                for first, last in _MSR_AREAS if high - low >= 0x3000 else ((low, min(high, 0xFFFFFFFF)),):
                    if max(first, low) <= min(last, high):
                        ranges.append((max(first, low), min(last, high) - max(first, low) + 1, flags[rule.direction]))
        if ranges == self._msr_ranges:
            return
        self._msr_ranges = ranges
        reasons = lib.KVM_MSR_EXIT_REASON_UNKNOWN | (lib.KVM_MSR_EXIT_REASON_FILTER if ranges else 0)
        try:
            self.vm.set_user_msrs(reasons, ranges)
        except HostError as error:
            if ranges and error.errno in (errno.EINVAL, errno.ENOTTY):
                raise MissingCapability("msr: this KVM has no filter of MSRs (KVM_CAP_X86_MSR_FILTER)") from None
            if ranges:
                raise

    def drain(self) -> None:
        """Tells the records that the core has kept, oldest first."""
        if not self._waiting[0]:
            return
        tracer = self.tracer
        while data := self.vm.trace_take(LIVE):
            for fields, payload in records_in(data):
                event = event_of(fields, payload)
                if event.what in ("io", "mmio"):
                    chip = chip_name(event.what, event.data)
                    if chip is not None:
                        event.data["device"] = chip
                seat = self.loop.seats[event.vcpu]
                replace = self._replace(event, seat) if fields[11] & STOP else None
                for sink in tracer.sinks:
                    if not self._told_by_core(sink) or sink.filter is None or not sink.filter.matches(event):
                        continue
                    if tracer.tell(sink, event, seat, replace):
                        break
        lost = self.vm.trace_lost(LIVE)
        if lost > self._lost:
            import logging

            logging.getLogger("kvmpy.trace").warning("%d events are lost: no memory was left to keep them", lost - self._lost)
        self._lost = lost

    def _replace(self, event: Event, seat: Any) -> Callable[[Any], None] | None:
        """How a listener's value takes the place of the event's."""
        what, data = event.what, event.data
        if what not in ("io", "mmio", "msr", "cpuid", "hypercall"):
            return None

        def replace(value: Any) -> None:
            if what == "cpuid":
                if not isinstance(value, dict) or value.keys() - {"eax", "ebx", "ecx", "edx"}:
                    raise TypeError(f"{value!r}: CPUID is answered with a dict of eax, ebx, ecx, edx")
                data.update({name: number & 0xFFFFFFFF for name, number in value.items()})
                seat.vcpu.answer([data["eax"] | data["ebx"] << 32, data["ecx"] | data["edx"] << 32])
                return
            if not isinstance(value, int):
                raise TypeError(f"{value!r}: an event of kind {what} is answered with a number")
            bits = 64 if what in ("msr", "hypercall") else 8 * data["size"]
            number = value & ((1 << bits) - 1)
            if what != "hypercall":
                data["value"] = number
            seat.vcpu.answer([number])

        return replace


def rule_of(rule: Rule, group: int, flags: int) -> tuple[Any, ...]:
    """A filter's rule as the core takes it."""
    flags |= (lib.KP_RULE_NOT if rule.negative else 0) | (0, lib.KP_RULE_READ, lib.KP_RULE_WRITE)[rule.direction]
    return rule.kind, flags, group, rule.subject, rule.value, rule.rip, rule.size, rule.vcpu, rule.cpl


class Watch:
    """What `Machine.trace` gives: call it to end it. Without a listener it waits for one: as a decorator, or as a `with` block that
    gathers the events in a list."""

    def __init__(self, watcher: Watcher, chosen: Filter | None, listener: Listener | None, observe: bool) -> None:
        if chosen is not None:
            watcher.check(chosen, observe=observe or listener is None)
        self._watcher = watcher
        self._filter = chosen
        self._observe = observe
        self._sink: Sink | None = None
        if listener is not None:
            self._begin(listener, observe or chosen is None)

    def _begin(self, listener: Listener, observe: bool) -> None:
        self._sink = Sink(listener, self._filter, observe=observe)
        self._watcher.add(self._sink)

    def __call__(self, listener: Listener | None = None) -> Any:
        """Ends it; or, the decorator: `listener` begins, and is given back."""
        if listener is None:
            self.end()
            return None
        if self._sink is not None:
            raise ConfigError("this trace has a listener already")
        self._begin(listener, self._observe)
        return listener

    def end(self) -> None:
        """Harmless when called again."""
        sink, self._sink = self._sink, None
        if sink is not None:
            self._watcher.remove(sink)

    def __enter__(self) -> Any:
        if self._sink is not None:
            return self
        events: list[Event] = []
        self._begin(events.append, True)
        return events

    def __exit__(self, *exception: object) -> None:
        self.end()


class LateSymbols:
    """A machine's symbols, read when a filter names one."""

    def __init__(self, read: Callable[[], SymbolTable]) -> None:
        self._read = read

    @property
    def moving(self) -> bool:
        return self._read().moving

    def named(self, name: str) -> list[int]:
        return self._read().named(name)

    def find(self, address: int) -> Any:
        return self._read().find(address)


def wanted(what: tuple[Any, ...], conditions: dict[str, Any], symbols: SymbolTable) -> tuple[Filter | None, Listener | None]:
    """The arguments of `Machine.trace`: the filter (None: whatever comes to user space) and the listener, if there is one."""
    texts, listener, chosen = [], None, None
    for argument in what:
        if isinstance(argument, str):
            texts.append(argument)
        elif isinstance(argument, Filter):
            chosen = argument
        elif callable(argument):
            listener = argument
        elif argument is not None:
            raise ConfigError(f"{argument!r} is neither a filter nor a listener")
    if chosen is not None:
        if texts or conditions:
            raise ConfigError("a Filter goes without further texts and conditions")
        return chosen, listener
    if not texts and not conditions:
        return None, listener
    return build(texts, conditions, symbols), listener
