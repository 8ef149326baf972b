"""Trace files: written by the core and by Python, read back, and refused where they are broken."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
from trace_guests import PORT, Maker, leave, vector

from kvmpy import GuestExit, HostError
from kvmpy.errors import TraceError
from kvmpy.trace import KINDS, Event
from kvmpy.trace.binary import MAGIC, BinaryFile, BinaryWriter
from kvmpy.trace.records import SIZE, record_of

CODE = b"\xb0\x41\xe6\x99\xe4\x99\x66\xb9\x80\x00\x00\xc0\x0f\x32\x66\xb9\x00\x12\x55\x4b\x0f\x32"  # out, in, rdmsr known and unknown
STRING = b"\xfc\x31\xf6\xb9\x05\x00\xba\x99\x00\xf3\x6e\xbf\x00\x05\xb9\x0a\x00\xf3\x6c"  # rep outsb of 5, rep insb of 10


def events_in(path: Path) -> list[Event]:
    with open(path, "rb") as file:
        return list(BinaryFile(file, str(path)))


def plain(events: list[Event]) -> list[tuple[Any, ...]]:
    """Without what the host's clock says."""
    return [(event.what, event.vcpu, event.data, event.rip, event.cpl) for event in events]


SAMPLES = [
    Event("io", 0, 5, {"port": 0x3F8, "size": 1, "count": 1, "write": True, "value": 0x41}, 0x7C00, 9, 8, 7, 0),
    Event("io", 1, 5, {"port": 0x1F0, "size": 2, "count": 9, "write": False, "value": int.from_bytes(bytes(range(1, 19)), "little")}),
    Event("mmio", 0, 6, {"address": 0xFEC00000, "size": 4, "write": False, "value": 0xFFFFFFFF}, 1 << 63),
    Event("msr", 0, 7, {"index": 0x10, "name": "TSC", "write": False, "value": None, "served": False}),
    Event("msr", 0, 7, {"index": 0xC0000080, "name": "EFER", "write": True, "value": 0x500, "served": True}, cpl=0),
    Event("cpuid", 2, 7, {"leaf": 7, "subleaf": 1, "eax": 1, "ebx": 2, "ecx": 3, "edx": 0xFFFFFFFF}),
    Event("irq", 0, 7, {"vector": 0x20}), Event("irq", 0, 7, {"vector": 0x80, "soft": True}),
    Event("exception", 0, 7, {"vector": 14, "name": "#PF", "error": 2, "address": 0xB8000}, 0x1000, cpl=3),
    Event("hypercall", 0, 7, {"number": 1, "arguments": [1, 2, 3, 4]}),
    Event("line", -1, 8, {"gsi": 4, "level": 1}), Event("line", -1, 8, {"address": 0xFEE00000, "data": 0x31}),
    Event("exit", 0, 9, {"reason": "hlt", "text": "HLT"}), Event("assist", 0, 9, {"rip": 1, "instruction": "cc"}),
    Event("unclaimed", -1, 9, {"port": 0xED, "size": 1, "write": False}),
    Event("device", -1, 9, {"device": "blk", "event": "reset", "why": "é" * 100}),
    Event("block", 0, 9, {"address": 0x7C00, "count": 3}, 0x7C00), Event("instruction", 0, 9, {"address": 0x7C00}, 0x7C00),
    Event("memory", 0, 9, {"address": 0x600, "size": 8, "write": True, "value": 1 << 63}),
    Event("memory", 0, 9, {"address": 0x600, "size": 32, "write": True, "value": (1 << 255) - 1}),
    Event("ioctl", 0, 9, {"fd": 3, "name": "KVM_RUN", "arguments": [1], "result": 0}),
    Event("verdict", -1, 9, {"verdict": "halted"}),
]  # fmt: skip


def test_every_kind_comes_back() -> None:
    assert {event.what for event in SAMPLES} == KINDS.keys()
    file = io.BytesIO()
    writer = BinaryWriter(file, {"image": "x"})
    for event in SAMPLES:
        writer(event)
    writer.close()
    file.seek(0)
    read = BinaryFile(file, "x")
    assert read.about["image"] == "x"
    found = [event._replace(data={k: v for k, v in event.data.items() if k != "device" or event.what == "device"}) for event in read]
    assert found == SAMPLES


def test_a_machine_s_trace(machine: Maker, tmp_path: Path) -> None:
    made = machine(CODE + leave(1))
    vector(made, 13, 13)
    with made.trace("io,msr,verdict") as events, made.trace_file(tmp_path / "t", "io,msr,verdict"):
        assert made.run(10) == GuestExit(13)
    found = events_in(tmp_path / "t")
    assert plain(found) == plain(events)
    assert [event.data.get("device") for event in found[:2]] == ["box", "box"]
    assert all(event.cost > 0 and event.host > 0 for event in found if event.what == "io")
    made.close()


def test_string_accesses(soft: Maker, tmp_path: Path) -> None:
    made = soft(STRING + leave(0))
    with made.trace(f"io:{PORT:#x}") as events, made.trace_file(tmp_path / "t", f"io:{PORT:#x}"):
        made.run(10)
    assert plain(events_in(tmp_path / "t")) == plain(events)
    assert events[-1].data["count"] == 10


def test_virtual_time_gives_the_same_bytes(soft: Maker, tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = soft(CODE + STRING + leave(0), clock="virtual")
        vector(made, 13, 13)
        with made.trace_file(tmp_path / name, "all,block,instruction,memory"):
            made.run(10)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    kinds = {event.what for event in events_in(tmp_path / "a")}
    assert kinds >= {"io", "msr", "block", "instruction", "memory", "exception", "verdict"}


def test_filters_and_conditions_that_python_decides(machine: Maker, tmp_path: Path) -> None:
    made = machine(CODE + leave(1))
    vector(made, 13, 13)
    with made.trace_file(tmp_path / "some", "io[write]", device="box"), made.trace_file(tmp_path / "few", "io,!io:0xf4[write]"):
        made.run(10)
    assert [event.data["value"] for event in events_in(tmp_path / "some")] == [0x41]
    assert [event.data["write"] for event in events_in(tmp_path / "few")] == [True, False]


def test_more_records_than_the_core_keeps(soft: Maker, tmp_path: Path) -> None:
    made = soft(b"\x31\xc9\x90\xe2\xfd" + leave(0), clock="virtual")  # 65536 times
    with made.trace_file(tmp_path / "t", "instruction"), made.trace("instruction:0x7c02") as events:
        made.run(30)
    assert len(events) == 65536 and made.vm.trace_lost(0) == 0
    assert len(events_in(tmp_path / "t")) == made.cpu[0].vcpu.statistics()["instructions"]


def test_a_file_that_cannot_be_written(soft: Maker, tmp_path: Path) -> None:
    made = soft(leave(1))
    with pytest.raises(HostError, match="open"):
        made.trace_file(tmp_path / "no" / "t")
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    writer = made.trace_file("/dev/full", "io")
    made.run(10)
    with pytest.raises(HostError, match="write /dev/full"):
        writer.close()
    writer.close()


def test_more_files_than_channels(soft: Maker, tmp_path: Path) -> None:
    made = soft(b"\xe6\x99" + leave(1))
    writers = [made.trace_file(tmp_path / str(n), "io") for n in range(6)]
    made.run(10)
    for writer in writers:
        writer.close()
    first, *others = [plain(events_in(tmp_path / str(n))) for n in range(6)]
    assert len(first) == 2 and all(other == first for other in others)
    assert made.loop.tracer is None and len(made._watcher().channels) == 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a binary trace"), (b"\x7fELF" + bytes(80), "not a binary trace"), (MAGIC + bytes(8), "version 0"),
        (MAGIC + b"\1\0\0\0\xff\xff\xff\xff", "broken or cut off"), (MAGIC + b"\1\0\0\0\4\0\0\0[1]", "broken or cut off"),
        (MAGIC + b"\1\0\0\0\x12\0\0\0" + b'{"kinds": {"x":1}}', "kinds of events that this kvmpy does not know"),
        (MAGIC + b"\1\0\0\0\x19\0\0\0" + b'{"kinds": {}, "ports":[1]}'[:25], "broken"),
    ],
)  # fmt: skip
def test_foreign_files(data: bytes, said: str) -> None:
    with pytest.raises(TraceError) as caught:
        BinaryFile(io.BytesIO(data), "file")
    assert said in str(caught.value) and str(caught.value).startswith("file: ") and "\n" not in str(caught.value)


def test_broken_and_truncated_files() -> None:
    file = io.BytesIO()
    writer = BinaryWriter(file)
    for event in SAMPLES:
        writer(event)
    whole = file.getvalue()
    start = len(whole) - sum(len(record_of(event)) for event in SAMPLES)
    reader = BinaryFile(io.BytesIO(whole[: start + 10]), "t")
    with pytest.raises(TraceError, match="cut off inside event 1"):
        next(iter(reader))
    wild = random.Random(1)
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(wild.randrange(1, 4)):
            data[wild.randrange(start, len(data))] = wild.randrange(256)
        del data[wild.choice((len(data), wild.randrange(start, len(data)))) :]
        try:
            for event in BinaryFile(io.BytesIO(data), "t"):
                assert event.what in KINDS
        except TraceError as error:
            assert "\n" not in str(error)
    assert start % SIZE == 0


def test_a_writer_that_was_stopped_between_two_events_is_noticed() -> None:
    file = io.BytesIO()
    writer = BinaryWriter(file)
    writer(Event("io", 0, 1, {"port": 0x80, "size": 1, "count": 1, "write": True, "value": 0}))
    file.seek(0)
    events = iter(BinaryFile(file, "t"))
    assert next(events).data["port"] == 0x80
    with pytest.raises(TraceError, match="the trace has no end, its writer was stopped behind event 1"):
        next(events)
    writer.close()
    file.seek(0)
    assert len(list(BinaryFile(file, "t"))) == 1


def test_a_long_time_in_the_guest_is_told_by_the_clock() -> None:
    """A record has 32 bits for it: 4.3 seconds."""
    file = io.BytesIO()
    writer = BinaryWriter(file)
    data = {"port": 0x80, "size": 1, "count": 1, "write": True, "value": 0}
    for host, guest in ((1_000, 500), (20_000_001_000, 20_000_000_000 - 100), (20_000_002_000, 900)):
        writer(Event("io", 0, host, data, 0x1000, host, guest, 100))
    writer.close()
    file.seek(0)
    assert [event.guest for event in BinaryFile(file, "t")] == [500, 20_000_000_000 - 100, 900]
    file = io.BytesIO()
    writer = BinaryWriter(file)
    writer(Event("io", 3, 0, data, 0x1000, 10_000_000_000, 5_000_000_000, 100))
    writer.close()
    file.seek(0)
    assert [event.guest for event in BinaryFile(file, "t")] == [0xFFFFFFFF], "nothing came before"


def test_without_a_filter_a_file_has_what_exits_anyway(machine: Maker, tmp_path: Path) -> None:
    made = machine(b"\xe4\x21\x66\xb9\x80\x00\x00\xc0\x0f\x32\xe6\x99" + leave(1))  # in al, 21h; rdmsr EFER: the backend's; out
    with made.trace() as events, made.trace_file(tmp_path / "t"):
        assert made.run(10) == GuestExit(1)
    assert plain(events_in(tmp_path / "t")) == plain(events)
    assert [event.data["port"] for event in events if event.what == "io"] == [PORT, 0xF4]
