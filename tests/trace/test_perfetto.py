"""Perfetto's format, read by Perfetto's own declaration of it and by its trace processor."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from kvmpy import GuestExit, Machine
from kvmpy.trace import Event
from kvmpy.trace.formats import make_format
from kvmpy.trace.perfetto import varint
from kvmpy.trace.words import describe
from tests.trace.processor import TraceProcessor, missing
from tests.trace.samples import EVENTS, Symbols

HELLO = Path(__file__).parents[2] / "kvmpy" / "blobs" / "hello64.elf"


def packets(events: list[Event]) -> Any:
    protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="Perfetto's declarations are not installed")
    file = io.BytesIO()
    out = make_format("perfetto", file, Symbols(), {"image": "/x/hello.elf"})
    for event in events:
        out(event)
    out.close()
    trace = protos.Trace()
    trace.ParseFromString(file.getvalue())
    return trace.packet


class Reader:
    """What a viewer makes of the packets; asserts what it relies on."""

    def __init__(self, found: Any) -> None:
        self.tracks: dict[int, Any] = {}
        self.slices: dict[str, list[tuple[str, int, int, dict[str, str]]]] = defaultdict(list)
        self.instants: dict[str, list[str]] = defaultdict(list)
        self.counters: dict[str, list[tuple[int, int]]] = defaultdict(list)
        names, keys, opened, last = {}, {}, {}, defaultdict(int)
        assert found[0].sequence_flags & 1, "the sequence begins with no state"
        for packet in found:
            assert packet.trusted_packet_sequence_id == 1
            names.update({name.iid: name.name for name in packet.interned_data.event_names})
            keys.update({name.iid: name.name for name in packet.interned_data.debug_annotation_names})
            if packet.HasField("track_descriptor"):
                track = packet.track_descriptor
                assert track.uuid not in self.tracks and (not track.parent_uuid or track.parent_uuid in self.tracks)
                self.tracks[track.uuid] = track
            if not packet.HasField("track_event"):
                continue
            event = packet.track_event
            track = self.tracks[event.track_uuid]
            title = track.name or track.thread.thread_name
            assert packet.sequence_flags & 2 and packet.timestamp >= last[title], "a track's times do not go back"
            last[title] = packet.timestamp
            notes = {keys[note.name_iid]: note.string_value for note in event.debug_annotations}
            name = names[event.name_iid] if event.name_iid else event.name
            if event.type == event.TYPE_SLICE_BEGIN:
                assert title not in opened, "slices of one track follow one another"
                opened[title] = (name, packet.timestamp, notes)
            elif event.type == event.TYPE_SLICE_END:
                began, start, notes = opened.pop(title)
                self.slices[title].append((began, start, packet.timestamp, notes))
            elif event.type == event.TYPE_INSTANT:
                self.instants[title].append(name)
            else:
                assert event.type == event.TYPE_COUNTER and track.HasField("counter")
                self.counters[title].append((packet.timestamp, event.counter_value))
        assert not opened


def io_event(host: int, guest: int, cost: int, vcpu: int = 0) -> Event:
    return Event("io", vcpu, 0, {"port": 0x3F8, "size": 1, "count": 1, "write": True, "value": 0x41}, 0x100000, host, guest, cost)


def test_slices_of_guest_and_exits() -> None:
    first = [io_event(9000, 4000, 1000), io_event(19_000, 9000, 1000), io_event(19_500, 9000, 1000)]
    reader = Reader(packets([*first, io_event(20_900, 0, 100, 3)]))
    assert [part[:3] for part in reader.slices["vCPU 0"]] == [
        ("guest", 5000, 9000), ("out 0x3f8 (com1)", 9000, 10_000), ("guest", 10_000, 19_000), ("out 0x3f8 (com1)", 19_000, 20_000),
        ("out 0x3f8 (com1)", 20_000, 20_500),
    ]  # fmt: skip
    assert reader.slices["vCPU 0"][1][3] == {"what": "outb 0x3f8 <- 0x41 'A' (com1)", "instruction": "main+0x0 (hello.c:12)"}
    assert [part[:3] for part in reader.slices["vCPU 3"]] == [("out 0x3f8 (com1)", 20_900, 21_000)]
    assert reader.tracks[1].process.process_name == "kvmpy hello.elf"


def test_every_kind_of_event() -> None:
    reader = Reader(packets([event._replace(host=0) for event, _, _ in EVENTS]))
    assert "exception #PF" in reader.instants["vCPU 0"] and "irq vector 0x30" in reader.instants["vCPU 0"]
    assert "device disk\\x1b[2J: bad request" in reader.instants["disk\x1b[2J"]


def test_counters() -> None:
    events = [io_event(5_000_000 + index, 0, 10) for index in range(7)] + [io_event(6_100_000, 0, 1), io_event(9_000_000, 0, 1)]
    reader = Reader(packets(events))
    assert reader.counters["io each ms"] == [(5_000_000, 7), (6_000_000, 1), (7_000_000, 0), (9_000_000, 1), (10_000_000, 0)]


def test_many_devices_share_tracks() -> None:
    reader = Reader(packets([Event("device", -1, index, {"device": f"d{index}", "event": "e"}) for index in range(300)]))
    assert len(reader.tracks) < 270 and sum(map(len, reader.instants.values())) == 300


@pytest.mark.parametrize(
    ("value", "data"),
    [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (16383, "ff7f"), (16384, "808001"), ((1 << 64) - 1, "ff" * 9 + "01")],
)
def test_varints(value: int, data: str) -> None:
    assert varint(value) == (bytes.fromhex(data))


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.skipif(not HELLO.exists(), reason="hello64.elf is not built")
def test_the_trace_processor_loads_a_machine_s_trace(tmp_path: Path) -> None:
    file = io.BytesIO()
    with Machine("64M", backend="soft") as machine:
        out = make_format("perfetto", file, machine.load(HELLO).symbols, {"image": str(HELLO)})
        events: list[Event] = []
        machine.trace("all", lambda event: (events.append(event), out(event))[0], observe=True)
        assert machine.run(20) == GuestExit(0)
        out.close()
    processor = TraceProcessor(file.getvalue(), tmp_path)
    try:
        assert processor.query("select name, value from stats where value > 0 and severity != 'info'") == []
        counts = dict(processor.query("select name, count(*) from slice where name != 'guest' group by name"))
        assert sum(counts.values()) == len(events) > 1000
        writes = [event for event in events if event.what == "io" and event.data["port"] == 0x3F8]
        name = "out 0x3f8 (Serial COM1)"
        assert counts[name] == len(writes)
        assert processor.query(f"select sum(dur), min(ts) from slice where name = '{name}'") == [
            (sum(event.cost for event in writes), writes[0].host)
        ]
        cpuid = next(event for event in events if event.what == "cpuid")
        first = "extract_arg(arg_set_id, 'debug.what'), extract_arg(arg_set_id, 'debug.instruction')"
        assert processor.query(f"select {first} from slice where name like 'cpuid%' order by ts limit 1") == [
            (describe(cpuid), cpuid.symbol)
        ]
        assert ("vCPU 0",) in processor.query("select name from thread")
        assert ("kvmpy hello64.elf",) in processor.query("select name from process")
        assert ("io each ms",) in processor.query("select distinct name from counter_track")
    finally:
        processor.close()
