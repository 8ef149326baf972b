"""The autopsy of a machine that crashed, hangs or ran out of time: gathered once as plain data, shown as one page of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from kvmpy import x86
from kvmpy.debug.autopsy import cause, spin
from kvmpy.debug.autopsy.standin import stand_in
from kvmpy.debug.autopsy.tables import Tables
from kvmpy.debug.autopsy.waiting import HALTED, RUNNING, Waiting
from kvmpy.debug.code import LONGEST, can_disassemble, disassemble, read_linear
from kvmpy.debug.textscreen import readable
from kvmpy.errors import ImageError, KvmpyError, TraceError
from kvmpy.exits import reason_name
from kvmpy.history import Delivery, ExitNote
from kvmpy.native import lib
from kvmpy.regs import code_width, dump, linear_rip
from kvmpy.trace.event import Event
from kvmpy.trace.words import describe, printable
from kvmpy.verdicts import Crashed, GuestExit, Halted, PowerOff, Reset, Stopped, Verdict
from kvmpy.x86 import msr_name

if TYPE_CHECKING:
    from kvmpy.machine import Machine

FORMAT = 1
FRAMES = 16
_EXITS = 12
_DELIVERIES = 8
_OUTPUT = 10
_REPEATED = 8
_MOST_TOUCHED = 12
_COUNTERS = {
    "exits": "exits", "unclaimed_ports": "ports that nobody answers", "unclaimed_mmio": "addresses that nobody answers",
    "unknown_msrs": "unknown MSRs", "device_events": "devices",
}  # fmt: skip
_RDMSR, _WRMSR = lib.KVM_EXIT_X86_RDMSR, lib.KVM_EXIT_X86_WRMSR


class Autopsy:
    """What was found; the text is made of the plain data alone."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    @property
    def heading(self) -> str:
        """The most probable cause in a line."""
        return str(self._data["heading"])

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it."""
        return self._data

    def lines(self) -> list[str]:
        """The page: titles begin at the left, what stands below them is indented."""
        return render(self._data)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    __repr__ = __str__


def autopsy(machine: Machine, verdict: Verdict | None) -> Autopsy:
    """As Machine.autopsy."""
    main = getattr(verdict, "vcpu", 0)
    messages = _messages(machine)  # first: it finds a kernel's symbols
    vcpus = [_vcpu(machine, cpu.index, whole=cpu.index == main) for cpu in machine.cpu]
    data: dict[str, Any] = {
        "format": FORMAT,
        "heading": "",
        "verdict": type(verdict).__name__ if verdict else None,
        "text": str(verdict) if verdict else "the guest has not run",
        "details": verdict.details if isinstance(verdict, Crashed) else {},
        "backend": machine.vm.name,
        "image": machine.image,
        "seconds": machine.statistics["seconds"],
        "vcpu": main,
        "vcpus": vcpus,
        "touched": touched(machine),
        "output": [printable(line) for line in machine.last_output().decode("utf-8", "replace").splitlines()[-_OUTPUT:]],
        "screen": [] if messages else _screen(machine),
        "messages": messages,
    }
    _look_ahead(machine, verdict, data)
    data["heading"] = _heading(machine, verdict, data)
    return Autopsy(data)


def read(text: str, path: str) -> Autopsy:
    """A kept one, from JSON. Raises TraceError."""
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise TraceError(f"{path}: an autopsy of format {data['format']}; this kvmpy reads {FORMAT}")
        render(data)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise TraceError(f"{path}: not an autopsy that kvmpy wrote") from None
    return Autopsy(data)


# Gathering.


def _guarded(what: Callable[[], list[str]]) -> list[str]:
    """Lines, or why there are none: a damaged image's debugging information must not hide the rest."""
    try:
        return what()
    except KvmpyError as error:
        return [str(error)]


def _name(machine: Machine, address: int) -> str:
    try:
        return str(machine.symbols.text(address))
    except ImageError:
        return ""


def _screen(machine: Machine) -> list[str]:
    """What stands in text memory and was not written to the serial port as well. Not asked of Linux: its messages are at hand, and what
    its console shows is another part of text memory, which the CRTC would know."""
    said = machine.last_output().decode("utf-8", "replace")
    found = [line for line in readable(machine.memory).splitlines() if line.strip()]
    return found if any(line.strip() not in said for line in found) else []


def _vcpu(machine: Machine, index: int, *, whole: bool) -> dict[str, Any]:
    cpu = machine.cpu[index]
    regs, sregs = cpu.vcpu.get_regs(), cpu.vcpu.get_sregs()
    waiting = Waiting(machine, index)
    data: dict[str, Any] = {
        "index": index,
        "rip": linear_rip(regs, sregs),
        "place": _guarded(lambda: [str(machine.where(index))])[0],
        "state": waiting.words(),
        "stack": _guarded(lambda: [str(frame) for frame in machine.backtrace(index, FRAMES)]),
    }
    if not whole:
        return data
    tables = Tables(machine.memory, regs, sregs, lambda address: _name(machine, address))
    code = read_linear(machine.memory, sregs, linear_rip(regs, sregs), LONGEST)
    found = disassemble(code, code_width(sregs), int(regs.rip))
    data.update(
        registers=cpu.registers.as_dict(),
        dump=dump(regs, sregs).split("\n"),
        instruction={"bytes": code[: found[1] if found else LONGEST].hex(" "), "text": found[0] if found else None},
        symbol=_name(machine, linear_rip(regs, sregs)),
        code=_guarded(lambda: [str(one) for one in machine.disassemble(count=4, before=4, cpu=index)]) if can_disassemble() else [],
        interrupts=waiting.lines(),
        tables=tables.lines(),
        page_walks=_walks(machine, index, regs, sregs),
        exits=_exits(machine, index, sregs),
        deliveries=[_delivery(one, tables) for one in cpu.vcpu.deliveries()[-_DELIVERIES:]],
    )
    return data


def _walks(machine: Machine, index: int, regs: Any, sregs: Any) -> list[dict[str, Any]]:
    """Of RIP, the stack and CR2, each page once."""
    if not sregs.cr0 & x86.CR0_PG:
        return []
    stack = int(regs.rsp) if code_width(sregs) == 64 else int(sregs.ss.base + regs.rsp) & 0xFFFFFFFF
    seen: dict[int, dict[str, Any]] = {}
    for name, address in (("RIP", linear_rip(regs, sregs)), ("RSP", stack), ("CR2", int(sregs.cr2))):
        if address >> 12 in seen:
            seen[address >> 12]["of"] += f", {name}"
        elif address or name == "RIP":
            one = machine.page_walk(address, index)
            seen[address >> 12] = {
                "of": name, "linear": one.linear, "mode": one.mode, "gpa": one.gpa, "problem": one.problem, "lines": one.lines(),
                "steps": [{"table": step.table, "address": step.address, "entry": step.entry} for step in one.steps],
            }
    return list(seen.values())


def _delivery(one: Delivery, tables: Tables) -> dict[str, Any]:
    return {
        "vector": one.vector, "source": one.source, "outcome": one.outcome, "rip": one.rip, "error": one.error, "cr2": one.cr2,
        "retired": one.retired, "text": f"{cause.words(one)} at {tables.place(one.rip)}",
    }


def _event(machine: Machine, index: int, note: ExitNote, rip: int) -> Event:
    """The note as an event of a trace, which has words for it."""
    data: dict[str, Any] = {"size": note.size, "write": note.write, "value": note.value}
    if note.reason == lib.KVM_EXIT_IO:
        entry = machine.ports.find(note.subject)
        value, whole = note.value, note.size * note.count <= 8
        data |= {"port": note.subject, "count": note.count, "value": value if whole else None}
        return Event("io", index, 0, data | ({"device": entry.name} if entry else {}), rip)
    if note.reason == lib.KVM_EXIT_MMIO:
        entry = machine.mmio.find(note.subject)
        return Event("mmio", index, 0, data | {"address": note.subject} | ({"device": entry.name} if entry else {}), rip)
    if note.reason in (_RDMSR, _WRMSR):
        served = note.subject not in machine.loop.unknown_msrs
        content = {"index": note.subject, "name": msr_name(note.subject), "write": note.write, "value": note.value, "served": served}
        return Event("msr", index, 0, content, rip)
    text = reason_name(note.reason)
    return Event("exit", index, 0, {"reason": text.lower(), "text": f"{text} {note.subject:#x}" if note.subject else text}, rip)


def _exits(machine: Machine, index: int, sregs: Any) -> list[dict[str, Any]]:
    """The last ones, runs of the same access joined."""
    base = 0 if machine.vm.name == "soft" or code_width(sregs) == 64 else int(sregs.cs.base)
    rows: list[dict[str, Any]] = []
    for note in machine.cpu[index].vcpu.exits():
        rip = note.rip + base if note.rip else 0
        text = describe(_event(machine, index, note, rip))
        if rows and rows[-1]["text"] == text and rows[-1]["rip"] == rip:
            rows[-1]["times"] += 1
            continue
        rows.append({
            "reason": reason_name(note.reason).lower(), "rip": rip, "place": _name(machine, rip) if rip else "", "subject": note.subject,
            "size": note.size, "write": note.write, "value": note.value, "text": text, "times": 1,
        })
    return rows


def touched(machine: Machine) -> dict[str, dict[str, int]]:
    """Counters of what the guest did outside of itself, the greatest first."""
    found = machine.statistics
    return {key: dict(sorted(found[key].items(), key=lambda item: -item[1])) for key in _COUNTERS}


def _messages(machine: Machine) -> list[str]:
    """The end of a Linux kernel's own log, where one is up."""
    try:
        return [printable(str(line)) for line in machine.linux.dmesg()[-_OUTPUT:]]
    except KvmpyError:
        return []


def _look_ahead(machine: Machine, verdict: Verdict | None, data: dict[str, Any]) -> None:
    """What only a copy of the machine can tell: where its vCPUs spin; on KVM the exceptions of a triple fault."""
    main = data["vcpus"][data["vcpu"]]
    index = main["index"]
    vcpu = machine.cpu[index].vcpu
    fatal = isinstance(verdict, Crashed)
    triple = isinstance(verdict, Crashed) and verdict.why == "triple fault"
    tables = Tables(machine.memory, vcpu.get_regs(), vcpu.get_sregs(), lambda address: _name(machine, address))
    found = cause.chain(vcpu.deliveries()) if triple else []
    samples: dict[int, list[int | None]] = {}
    if (triple and not found) or not (fatal or isinstance(verdict, (Halted, GuestExit, PowerOff, Reset))):
        copy = stand_in(machine)
        if copy is not None:
            with copy:
                if triple:
                    found = cause.chain(copy.deliveries_to_shutdown(index))
                    main["reconstructed"] = bool(found)
                else:
                    samples = copy.sample()
    if found:
        main["chain"] = cause.steps(found, tables)
        main["cause"] = cause.triple_fault(found, tables)
    elif triple:  # of an event that was injected, or a limit of this KVM alone
        main["chain"] = [f"not known: {machine.vm.name} tells nothing of them, and the software CPU goes on from the same state"]
    for one in data["vcpus"]:
        seen = samples.get(one["index"])
        if seen:
            one["samples"] = len(seen)
            one["spin"] = _guarded_places(machine, seen)
            if one is main and one["spin"]:
                one["hot"] = _guarded(partial(spin.hot_code, machine, index, seen, one["spin"][0]))


def _guarded_places(machine: Machine, seen: list[int | None]) -> list[dict[str, Any]]:
    try:
        return spin.places(machine, seen)
    except ImageError:
        return []


def _heading(machine: Machine, verdict: Verdict | None, data: dict[str, Any]) -> str:
    main = data["vcpus"][data["vcpu"]]
    who = f"vCPU {main['index']} " if len(data["vcpus"]) > 1 else ""
    if isinstance(verdict, Crashed):
        return str(main.get("cause") or f"crashed: {verdict.why}, at {main['place']}")
    if isinstance(verdict, Halted):
        return f"halted for good: {who}{main['state']}, at {main['place']}"
    if not isinstance(verdict, Stopped):
        return str(data["text"])
    return f"{verdict}: {who}{_doing(machine, main)}"


def _doing(machine: Machine, main: dict[str, Any]) -> str:
    """In words what a vCPU does that neither crashed nor ended."""
    top = main["spin"][0] if main.get("spin") else None
    state = machine.cpu[main["index"]].vcpu.get_mp_state()
    if state not in (RUNNING, HALTED) or (state == HALTED and (top is None or top["first"] is None)):
        return f"{main['state']}, at {main['place']}"
    if top is None:
        return f"is at {main['place']}"
    text = f"spins in {top['place']} ({100 * top['share']:.0f} % of {main['samples']} samples)"
    if top["first"] is None:
        text = f"waits in HLT most of the time ({100 * top['share']:.0f} % of {main['samples']} samples)"
    elif top["share"] < 0.5:
        text = f"is busy, mostly in {top['place']} ({100 * top['share']:.0f} % of {main['samples']} samples)"
    caller = main["stack"][1].split()[2] if len(main["stack"]) > 1 else "?"
    if top["first"] is not None and top["first"] <= main["rip"] <= top["last"] and caller != "?":
        text += f", called from {caller}"
    last = main["exits"][-1] if main["exits"] else None
    if last and last["times"] >= _REPEATED and last["reason"] in ("io", "mmio") and not last["write"]:
        text += f", reading the same over and over: {last['text']}"
    return text


# Showing.


def _section(title: str, lines: list[str]) -> list[str]:
    return [title, *(f"  {line}" for line in lines)] if lines else []


def _counts(found: dict[str, int]) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in list(found.items())[:_MOST_TOUCHED])
    return shown + (f" and {len(found) - _MOST_TOUCHED} more" if len(found) > _MOST_TOUCHED else "")


def counters(found: dict[str, dict[str, int]]) -> list[str]:
    """What `touched` gave, a line for each kind."""
    return [f"{title}: {_counts(found[key])}" for key, title in _COUNTERS.items() if found[key]]


def _exit_line(row: dict[str, Any]) -> str:
    where = (row["place"] or f"{row['rip']:#x}") if row["rip"] else ""
    return f"{where:30} {row['text']}" + (f"   {row['times']} times" if row["times"] > 1 else "")


def render(data: dict[str, Any]) -> list[str]:
    """The page of plain data that `autopsy` gathered."""
    main = data["vcpus"][data["vcpu"]]
    many = len(data["vcpus"]) > 1
    title = f"vCPU {main['index']}: " if many else ""
    lines = [str(data["heading"])]
    lines.append(f"  {data['text']}; backend {data['backend']}, {data['seconds']:.2f} s" + (f", {data['image']}" if data["image"] else ""))
    said = next((line for line in reversed(data["output"]) if line.strip()), "")
    if said:
        lines.append(f"  the last it wrote to its serial port: {said.strip()}")
    again = " (found by doing it again on the software CPU)" if main.get("reconstructed") else ""
    lines += _section(f"exceptions that led to it{again}", main.get("chain", []))
    lines += _section(f"{title}registers, at {main['place']}", main["dump"])
    lines += _section("instructions", main["code"] or [f"=> {main['instruction']['bytes']}"])
    lines += _section("call stack", main["stack"] if len(main["stack"]) > 1 else [])
    if main.get("spin"):
        lines += _section(f"where it spends its time ({main['samples']} samples of what it does next)", spin.histogram(main["spin"]))
        lines += _section("the hottest place", main.get("hot", []))
    lines += _section("interrupts", main["interrupts"])
    lines += _section("descriptor tables", main["tables"])
    for walk in main["page_walks"]:
        lines += _section(f"{walk['lines'][0]}: {walk['of']}", [line.strip() for line in walk["lines"][1:]])
    if not main.get("chain"):
        lines += _section("last exceptions and interrupts", [one["text"] for one in main["deliveries"]])
    lines += _section("last exits", [_exit_line(row) for row in main["exits"][-_EXITS:]])
    for one in data["vcpus"]:
        if one is not main:
            frames = one["stack"][1:4] if len(one["stack"]) > 1 else []
            lines += _section(f"vCPU {one['index']}, at {one['place']}", [one["state"], *frames, *spin.histogram(one.get("spin", [])[:2])])
    lines += _section("counters", counters(data["touched"]))
    lines += _section("the kernel's last messages", data["messages"])
    if not data["messages"] or data["output"][-1:] != data["messages"][-1:]:
        lines += _section("the end of the serial output", data["output"])
    lines += _section("the text screen", data.get("screen", []))
    return lines
