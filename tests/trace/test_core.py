"""What the software CPU's core tells by itself: its rules, its answers, and that a trace changes nothing for the guest."""

from __future__ import annotations

from typing import Any

import pytest
from trace_guests import Maker, leave, start, vector

from kvmpy import Fault, GuestExit, Machine, Step, Stop, Stopped
from kvmpy.kvm.vm import KvmVm
from kvmpy.native import lib
from kvmpy.soft.vm import SoftVm
from kvmpy.trace import NUMBERS
from kvmpy.trace.records import RECORD

LOOP = bytes.fromhex("b90500 40 e2fd")  # mov cx, 5; inc ax; loop -3


def test_numbers_and_records_are_the_core_s() -> None:
    for kind in SoftVm.traceable:
        assert getattr(lib, f"KP_TRACE_{kind.upper()}") == NUMBERS[kind]
    from kvmpy.native import ffi

    assert ffi.sizeof("struct kp_trace_record") == RECORD.size
    assert KvmVm.traceable < SoftVm.traceable


def test_instructions_blocks_and_time(soft: Maker) -> None:
    made = soft(LOOP + leave(3), clock="virtual")
    with made.trace("instruction,block") as events:
        assert made.run(10) == GuestExit(3)
    steps = [event for event in events if event.what == "instruction"]
    assert [event.data["address"] for event in steps] == [0x7C00] + [0x7C03, 0x7C04] * 5 + [0x7C06, 0x7C08]
    assert [event.time for event in steps] == list(range(13))
    blocks = [event for event in events if event.what == "block"]
    assert sum(event.data["count"] for event in blocks) == 13
    assert blocks[0].data == {"address": 0x7C00, "count": 3}
    assert all(event.rip == event.data["address"] and event.cpl == 0 for event in events)


def test_instructions_of_a_range_alone(soft: Maker) -> None:
    made = soft(LOOP + leave(3))
    with made.trace("instruction:0x7c03") as some, made.trace("block[rip=0x7c03-0x7c05]") as blocks:
        made.run(10)
    assert [event.rip for event in some] == [0x7C03] * 5
    assert [event.rip for event in blocks] == [0x7C03] * 4  # the first time it is the middle of a block


def test_a_stop_before_an_instruction_and_steps_from_there(soft: Maker) -> None:
    made = soft(b"\x90\x90\x90\xb0\x05" + leave())
    made.trace("instruction:0x7c02", lambda event: Stop("here"))
    assert made.run(10) == Stopped("here")
    assert made.cpu[0].registers.rip == 0x7C02
    assert made.run(10) == GuestExit(5)  # told once, not again when it goes on
    seen = []

    def listen(event: Any) -> Any:
        seen.append(event.rip)
        return Step(1) if len(seen) == 1 else None

    made = soft(b"\x90\x90\x90" + leave(1))
    made.trace("block:0x7c00", listen)
    assert made.run(10) == GuestExit(1)
    assert seen == [0x7C00, 0x7C01]


def test_memory(soft: Maker) -> None:
    # mov ax, [600h]; add word [602h], 3; push ax; rep movsb of 3 bytes from 600h to 700h
    code = bytes.fromhex("a10006 8306020603 50 be0006 bf0007 b90300 fc f3a4") + leave(0)
    made = soft(code)
    made.memory.write(0x600, b"\x11\x22\x05\x00")
    with made.trace("memory:0x600-0x7ff,memory:0x6ff0+16") as events:
        made.run(10)
    assert [(event.rip, event.data["address"], event.data["size"], event.data["write"], event.data["value"]) for event in events] == [
        (0x7C00, 0x600, 2, False, 0x2211), (0x7C03, 0x602, 2, False, 5), (0x7C03, 0x602, 2, True, 8), (0x7C08, 0x6FFE, 2, True, 0x2211),
        *[(0x7C13, base + n, 1, base == 0x700, (0x11, 0x22, 8)[n]) for n in range(3) for base in (0x600, 0x700)],
    ]  # fmt: skip


def test_an_instruction_begun_anew_tells_its_reads_once(soft: Maker) -> None:
    # cmpsb of RAM at 600h with a device at D000:0: the read of RAM comes before the device's answer is there
    made = soft(bytes.fromhex("b800d0 8ec0 be0006 31ff fc a6") + leave(0))
    with made.trace("memory:0x600") as reads, made.trace("mmio") as device:
        made.run(10)
    assert len(reads) == 1 and len(device) == 1


def test_a_stop_behind_an_access_to_memory(soft: Maker) -> None:
    made = soft(b"\x90\xa2\x00\x06\x90" + leave(2))  # nop; mov [600h], al; nop
    made.trace("memory:0x600[write]", lambda event: Stop("written"))
    assert made.run(10) == Stopped("written")
    assert made.cpu[0].registers.rip == 0x7C04
    assert made.run(10) == GuestExit(2)


def test_exceptions_and_interrupts(soft: Maker) -> None:
    made = soft(b"\xcd\x21\xcc\x0f\x0b")  # int 21h; int3; ud2
    for number in (0x21, 3):
        made.memory.write(0x4000 + number * 4, b"\xcf")
        made.memory.write_u32(number * 4, 0x4000 + number * 4)
    vector(made, 6, 6)
    with made.trace("exception,irq") as events:
        assert made.run(10) == GuestExit(6)
    assert [(event.what, event.data["vector"], event.rip) for event in events] == [
        ("irq", 0x21, 0x7C00), ("exception", 3, 0x7C02), ("exception", 6, 0x7C03),
    ]  # fmt: skip
    assert events[0].data["soft"] and events[2].data["name"] == "#UD"


def test_an_exception_stops_behind_its_delivery(soft: Maker) -> None:
    made = soft(b"\x0f\x0b")
    vector(made, 6, 6)
    made.trace("exception:#UD", lambda event: Stop("ud"))
    assert made.run(10) == Stopped("ud")
    assert made.cpu[0].registers.rip == 0x5060


def test_the_timer_s_interrupt(soft: Maker) -> None:
    # The 8259 at vector 20h with all but line 0 masked, channel 0 of the 8254 every 512 ticks; sti; hlt
    code = bytes.fromhex("b011e620 b020e621 b004e621 b001e621 b0fee621 b034e643 b000e640 b002e640 fb f4")
    made = soft(code + leave(1))
    vector(made, 0x20, 32)
    with made.trace("irq,io:0x20-0x21") as events:
        assert made.run(10) == GuestExit(32)
    assert [event.data.get("vector") for event in events if event.what == "irq"] == [0x20]
    assert [event.data["value"] for event in events if event.what == "io"] == [0x11, 0x20, 4, 1, 0xFE]
    assert {event.data["device"] for event in events if event.what == "io"} == {"8259"}


@pytest.mark.parametrize(
    ("code", "what", "answer", "status"),
    [
        ("e421", "io:0x21", 0x55, 0x55),  # in al, 21h
        ("b077 e621 e421", "io:0x21[write]", 0x12, 0x12),  # mov al, 77h; out 21h, al; in al, 21h
        ("0fa2 88d8", "cpuid:0", {"ebx": 0x44}, 0x44),  # cpuid; mov al, bl
        ("0f01c1", "hypercall", 7, 7),  # vmcall
    ],
)
def test_answers_to_what_the_core_serves(soft: Maker, code: str, what: str, answer: Any, status: int) -> None:
    made = soft(bytes.fromhex(code) + leave())
    seen = []

    def listen(event: Any) -> Any:
        seen.append(event)
        return answer

    made.trace(what, listen)
    assert made.run(10) == GuestExit(status)
    assert len(seen) == 1


def test_faults_in_place_of_what_the_core_serves(soft: Maker) -> None:
    for code, what in (("e421", "io:0x21"), ("e621", "io:0x21"), ("0fa2", "cpuid"), ("0f01c1", "hypercall")):
        made = soft(bytes.fromhex(code) + leave(1))
        vector(made, 6, 66)
        made.trace(what, lambda event: Fault(6))
        assert made.run(10) == GuestExit(66), what
        assert made.memory.read_u16(0x6FFA) == 0x7C00, what


def test_the_local_apic(soft: Maker) -> None:
    # 32-bit accesses from real mode need a segment there: an unreal one, by its base.
    made = soft(bytes.fromhex("66a12000 66a38000") + leave(3))  # mov eax, [20h]; mov [80h], eax
    made.cpu[0].registers.ds = {"base": 0xFEE00000, "limit": 0xFFFF}
    with made.trace("mmio") as events:
        assert made.run(10) == GuestExit(3)
    assert [(event.data["address"], event.data["write"], event.data["device"]) for event in events] == [
        (0xFEE00020, False, "local APIC"), (0xFEE00080, True, "local APIC"),
    ]  # fmt: skip


WORK = bytes.fromhex(
    "b011e620 b020e621 b004e621 b001e621 b0fee621"  # 8259 at 20h, line 0 alone
    "b034e643 b040e640 b000e640"  # 8254: channel 0 every 64 ticks
    "fb bdffff 0fa2 a30006 e499 51 59 4d 75f4 fa"  # sti; FFFFh times: cpuid, store, in al, 99h, push, pop; cli
) + b"\xa0\x10\x06" + leave()  # fmt: skip
TICK = bytes.fromhex("50 fe061006 b020e620 58 cf")  # push ax; inc byte [610h]; EOI; pop ax; iret


def _outcome(what: str | None, observe: bool = False) -> tuple[Any, ...]:
    with Machine("640K", backend="soft", clock="virtual") as machine:
        start(machine, WORK)
        machine.memory.write(0x5200, TICK)
        machine.memory.write_u32(0x20 * 4, 0x5200)
        if what is not None:
            machine.trace(what, lambda event: None, observe=observe)
        verdict = machine.run(60)
        counters = machine.cpu[0].vcpu.statistics()
        kept = ("instructions", "interrupts", "exceptions", "io_exits", "mmio_exits")
        return verdict, machine.vm.now(), {name: counters[name] for name in kept}, bytes(machine.memory.read(0x600, 32))


def test_a_trace_changes_nothing_for_the_guest() -> None:
    quiet = _outcome(None)
    assert quiet[2]["interrupts"] >= 2
    for what, observe in (
        ("io,cpuid", True), ("block[rip=0x5200],memory:0x600+2,irq,exception", True), ("irq,memory:0x610,io:0x20-0x43,cpuid:1", False),
    ):  # fmt: skip
        assert _outcome(what, observe) == quiet, what


def test_the_core_s_own_stops_are_no_exits_of_the_guest(soft: Maker) -> None:
    made = soft(b"\x0f\xa2\x0f\xa2" + leave(0))
    seen = []
    made.trace("cpuid", seen.append)
    assert made.run(10) == GuestExit(0)
    assert len(seen) == 2 and made.statistics["exits"] == {"io": 1}


def test_several_vcpus_and_filters(soft: Maker) -> None:
    made = soft(b"\x90\xe4\x21\xe4\x40" + leave(0), cpus=2)
    with made.trace("io,!io:0x21", cpu=0) as some, made.trace("io:0x21") as others, made.trace("io", cpu=1) as none:
        assert made.run(10) == GuestExit(0)
    assert [event.data["port"] for event in some] == [0x40, 0xF4]
    assert [event.data["port"] for event in others] == [0x21]
    assert none == []
