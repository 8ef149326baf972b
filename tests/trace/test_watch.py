"""Machine.trace on both backends: what is told, and what listeners may answer."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from trace_guests import MMIO, PORT, Maker, leave, vector

from kvmpy import ConfigError, Fault, FilterError, GuestExit, Interrupt, MissingCapability, Nmi, Step, Stop, Stopped
from kvmpy.trace import Event
from kvmpy.trace.binary import BinaryFile
from kvmpy.trace.filters import parse

IN = b"\xe4\x99"  # in al, 99h
OUT = b"\xe6\x99"  # out 99h, al
READ_MEMORY = b"\xbb\x00\xd0\x8e\xdb\xa0\x00\x00"  # mov bx, 0d000h; mov ds, bx; mov al, [0]
WRITE_MEMORY = b"\xbb\x00\xd0\x8e\xdb\xa2\x00\x00"  # ...; mov [0], al
RDMSR = b"\x66\xb9\x80\x00\x00\xc0\x0f\x32"  # mov ecx, EFER; rdmsr
WRMSR = b"\x66\xb9\x74\x01\x00\x00\x66\x31\xd2\x0f\x30"  # mov ecx, SYSENTER_CS; xor edx, edx; wrmsr


def test_a_with_block_gathers_what_the_filter_chooses(machine: Maker) -> None:
    made = machine(b"\xb0\x41" + OUT + IN + WRITE_MEMORY + READ_MEMORY + leave(7))
    with made.trace("io", port=range(PORT, PORT + 2)) as ports, made.trace(f"mmio:{MMIO:#x}+16[write]") as stores:
        assert made.run(10) == GuestExit(7)
    write, read = ports
    assert write.data == {"port": PORT, "size": 1, "count": 1, "write": True, "value": 0x41, "device": "box"}
    assert read.data == {"port": PORT, "size": 1, "count": 1, "write": False, "value": 1, "device": "box"}
    assert (read.vcpu, read.rip, read.cpl) == (0, 0x7C04, 0)
    assert read.host > write.host > 0 and read.cost > 0 and read.guest > 0
    (store,) = stores
    assert store.data == {"address": MMIO, "size": 1, "write": True, "value": 1, "device": "box"}


def test_the_software_cpu_knows_a_write_s_own_instruction(soft: Maker) -> None:
    made = soft(b"\xb0\x41" + OUT + WRITE_MEMORY + leave(7))
    with made.trace("io:0x99,mmio") as events:
        made.run(10)
    assert [event.rip for event in events] == [0x7C02, 0x7C09]


def test_a_decorator(machine: Maker) -> None:
    made = machine(IN + IN + leave())

    @made.trace("io", port=PORT, write=False)
    def more(event):
        return event.data["value"] + 0x30

    assert made.run(10) == GuestExit(0x32)
    assert more.__name__ == "more"


@pytest.mark.parametrize(
    ("code", "what", "answer", "status"),
    [
        (IN + leave(), "io:0x99", 0x155, 0x55),  # cut to the access's size
        (READ_MEMORY + leave(), "mmio", 0x66, 0x66),
        (b"\xb0\x01" + leave(), "io:0xf4[write]", 9, 9),
        (RDMSR + leave(), "msr:EFER[read]", 0x21, 0x21),
    ],
)
def test_a_number_takes_the_place_of_the_value(machine: Maker, code: bytes, what: str, answer: int, status: int) -> None:
    made = machine(code)
    made.trace(what, lambda event: answer)
    assert made.run(10) == GuestExit(status)


def test_a_write_changed_on_its_way(machine: Maker) -> None:
    made = machine(b"\xb0\x01" + OUT + WRITE_MEMORY + leave(0))
    made.trace("io:0x99,mmio", lambda event: event.data["value"] + 1)
    made.run(10)
    assert made.box.log == [(0, 1, 2), (2, 1, 2)]  # type: ignore[attr-defined]


def test_an_msr_written_otherwise_and_refused(machine: Maker) -> None:
    made = machine(b"\x66\xb8\x08\x00\x00\x00" + WRMSR + leave(1))
    end = made.trace("msr:SYSENTER_CS[write]", lambda event: 0x28)
    assert made.run(10) == GuestExit(1)
    assert made.cpu[0].vcpu.get_msrs([0x174]) == {0x174: 0x28}
    end()
    made = machine(b"\x66\xb8\x08\x00\x00\x00" + WRMSR + leave(1))
    vector(made, 13, 99)
    made.trace("msr:SYSENTER_CS", lambda event: Fault(13, 0))
    assert made.run(10) == GuestExit(99)
    assert made.cpu[0].vcpu.get_msrs([0x174]) == {0x174: 0}


def test_msrs_told_are_served_as_ever(machine: Maker) -> None:
    made = machine(b"\x66\xb8\x08\x00\x00\x00" + WRMSR + b"\x0f\x32" + leave())
    with made.trace("msr") as events:
        assert made.run(10) == GuestExit(8)
    assert [(event.data["name"], event.data["write"], event.data["value"], event.data["served"]) for event in events] == [
        ("SYSENTER_CS", True, 8, True), ("SYSENTER_CS", False, 8, True),
    ]  # fmt: skip


@pytest.mark.parametrize("code", [IN, READ_MEMORY, RDMSR])
def test_a_fault_in_place_of_a_read(machine: Maker, code: bytes) -> None:
    made = machine(code + leave(1))
    vector(made, 6, 66)
    made.trace("io:0x99,mmio,msr", lambda event: Fault(6))
    assert made.run(10) == GuestExit(66)
    assert made.memory.read_u16(0x6FFA) == 0x7C00 + len(code) - {IN: 2, READ_MEMORY: 3, RDMSR: 2}[code]


def test_nmi_stop_and_interrupt(machine: Maker) -> None:
    made = machine(IN + leave(1))
    vector(made, 2, 22)
    made.trace("io:0x99", lambda event: Nmi())
    assert made.run(10) == GuestExit(22)
    made = machine(IN + leave(1))
    made.trace("io:0x99", lambda event: Stop("seen"))
    assert made.run(10) == Stopped("seen")
    assert made.run(10) == GuestExit(1)
    made = machine(b"\xfb\x90" + IN + b"\x90\x90" + leave(1))
    vector(made, 0x70, 77)
    made.trace("io:0x99", lambda event: Interrupt(0x70))
    assert made.run(10) == GuestExit(77)


def test_single_steps(machine: Maker) -> None:
    made = machine(IN + b"\x90\x90\x90" + leave(3))
    seen = []

    def listen(event):
        seen.append((event.what, event.rip))
        return Step(2) if event.what == "io" else None

    made.trace("io:0x99", listen)
    assert made.run(10) == GuestExit(3)
    assert seen == [("io", 0x7C00), ("instruction", 0x7C02), ("instruction", 0x7C03)]


def test_events_one_by_one(machine: Maker) -> None:
    made = machine(IN + b"\x88\xc3" + IN + leave())  # mov bl, al between
    seen = []
    for event in made.events("io", port=PORT, timeout=10):
        seen.append((event.data["value"], made.cpu[0].registers.rbx & 0xFF))
    assert seen == [(1, 0), (2, 1)]
    made = machine(IN + leave(5))
    events = made.events("io,verdict")
    assert next(events).data["port"] == PORT
    assert next(events).data["port"] == 0xF4
    assert next(events).data == {"verdict": "guest exit, status 5"}
    with pytest.raises(StopIteration) as end:
        next(events)
    assert end.value.value == GuestExit(5)


def test_the_time_of_events_ends(machine: Maker) -> None:
    made = machine(b"\xeb\xfe")
    assert list(made.events("io", timeout=0.2)) == []


def test_wrong_answers_and_wrong_wishes(machine: Maker, caplog: pytest.LogCaptureFixture) -> None:
    made = machine(IN + leave(4))
    made.trace("io:0x99", lambda event: "five")
    made.trace("device,exit,io:0xf4", lambda event: Fault(200))
    assert made.run(10) == GuestExit(4)
    assert caplog.text.count("a trace listener raised and is removed") == 2
    assert "a listener's answer 'five'" in caplog.text
    with pytest.raises(FilterError):
        made.trace("ports")
    with pytest.raises(ConfigError):
        made.trace(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        made.trace(parse("io"), port=3)
    with pytest.raises(ConfigError, match="ioctl"):
        made.trace("ioctl", print)


@pytest.mark.parametrize("kind", ["cpuid", "irq", "exception", "hypercall", "block", "instruction", "memory"])
def test_kvm_says_what_it_cannot_tell(kvm: Maker, kind: str) -> None:
    made = kvm(leave(0))
    with pytest.raises(MissingCapability, match=kind) as caught:
        made.trace(kind, print)
    assert "\n" not in str(caught.value) and "software CPU" in str(caught.value)
    with made.trace("all") as events:
        assert made.run(10) == GuestExit(0)
    assert [event.what for event in events] == ["io", "verdict"]


def test_interrupt_lines_of_devices(machine: Maker) -> None:
    # COM1: MCR = OUT2, IER = transmitter empty.
    made = machine(b"\xba\xfc\x03\xb0\x08\xee\xba\xf9\x03\xb0\x02\xee" + leave(0))
    with made.trace("line:4") as lines:
        made.run(10)
    assert [event.data for event in lines] == [{"gsi": 4, "level": 1}]


def test_from_another_thread_while_it_runs(machine: Maker) -> None:
    made = machine(b"\xe4\x99\xeb\xfc")  # in al, 99h; jmp -4
    seen = threading.Event()
    runner = threading.Thread(target=made.run, args=(20,))
    runner.start()
    try:
        end = made.trace("io:0x99", lambda event: seen.set())
        assert seen.wait(10)
        end()
    finally:
        made.stop()
        runner.join(20)
    assert not runner.is_alive() and made.loop.tracer is None


def test_no_trace_is_left_when_nobody_listens(machine: Maker) -> None:
    from kvmpy.exit_handlers import HANDLERS

    made = machine(IN + leave(1))
    with made.trace("all"):
        pass
    assert tuple(made.loop.handlers) == HANDLERS
    assert made.loop.tracer is None and not made.loop.drains
    assert made.ports.listener is None and made.mmio.listener is None
    assert made.run(10) == GuestExit(1)


def test_an_event_tells_its_symbol_and_is_a_line(soft: Maker) -> None:
    made = soft(OUT + leave(1))
    made.symbols.add_list("names", [("begin", "T", 0x7C00)])
    with made.trace("port", write=True) as events:
        assert made.run(10) == GuestExit(1)
    first, last = events
    assert first.symbol == "begin" and last.symbol.startswith("begin+")
    assert re.fullmatch(r"0\.\d{9} cpu0  begin +outb 0x99 <- 0x0 \(box\)  <[\d.]+ [num]s>", str(first)), str(first)
    assert Event("io", -1, 0, {}).symbol == "" and Event("io", -1, 0, {}, 0x10).symbol == "0x10"


class Moving:
    """A kernel that lies at 0x10000 for those who have not looked since it moved."""

    moving = True

    def __init__(self) -> None:
        self.asked = 0

    def named(self, name: str) -> list[int]:
        self.asked += 1
        return [0x10000 if self.asked == 1 else 0x7C07]

    def find(self, address: int) -> None:
        return None


@pytest.mark.parametrize("in_file", [False, True])
def test_a_filter_follows_a_kernel_that_moves(machine: Maker, tmp_path: Path, in_file: bool) -> None:
    code = b"\xb9\x80\x00\x00\xc0\x0f\x32\x0f\x30"  # rdmsr EFER; wrmsr, at 7C09
    made = machine(b"\x66" + code + IN + b"\xcd\x21" + leave(0))
    vector(made, 0x21, 1)
    chosen = parse("io[rip=kernel+0x10]", Moving())
    assert chosen.again is not None and not chosen.matches(Event("io", 0, 0, {"port": PORT}, 0x7C0A))
    if in_file:
        writer = made.trace_file(tmp_path / "trace", chosen)
        assert made.run(10) == GuestExit(1)
        writer.close()
        with open(tmp_path / "trace", "rb") as file:
            events = list(BinaryFile(file))
    else:
        with made.trace(chosen) as events:
            assert made.run(10) == GuestExit(1)
    assert [event.data["port"] for event in events] == [PORT]
    assert made.loop.tracer is None
