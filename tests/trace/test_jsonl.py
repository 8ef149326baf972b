"""JSON lines: what is written is read again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from kvmpy.errors import TraceError
from kvmpy.trace import Event
from kvmpy.trace.formats import format_of, is_trace, make_format, open_trace
from kvmpy.trace.jsonl import JsonlFile
from tests.trace.samples import EVENTS, RIP, Symbols


def written(events: list[Event], symbols: Symbols | None = None) -> bytes:
    file = io.BytesIO()
    out = make_format("jsonl", file, symbols, {"image": "x.elf"})
    for event in events:
        out(event)
    out.close()
    return file.getvalue()


def test_what_is_written_is_read_again() -> None:
    events = [event for event, _, _ in EVENTS]
    saved = open_trace(io.BytesIO(written(events, Symbols())), "t")
    assert saved.about == {"image": "x.elf"}
    assert list(saved) == events
    assert saved.where(RIP) == "main+0x12 (hello.c:12)" and saved.where(5) == "0x5"


def test_keys_are_those_documented() -> None:
    first, second, third = map(json.loads, written([EVENTS[0][0], EVENTS[1][0]], Symbols()).splitlines())
    assert first == {"kvmpy_trace": 1, "image": "x.elf"}
    assert second == {
        "what": "io", "vcpu": 0, "time": 1000, "rip": RIP, "host": 5000, "guest": 300, "cost": 1900, "symbol": "main+0x12 (hello.c:12)",
        "data": {"port": 0x3F8, "size": 1, "count": 1, "write": True, "value": 0x41, "device": "serial"},
    }  # fmt: skip
    assert third.keys() == {"what", "vcpu", "time", "data"}, "what is not known is left out"


def test_bytes_are_hexadecimal() -> None:
    line = written([Event("device", -1, 0, {"device": "d", "event": "e", "raw": b"\x01\xff", "view": memoryview(b"a")})]).splitlines()[1]
    assert json.loads(line)["data"]["raw"] == "01ff" and json.loads(line)["data"]["view"] == "61"


def test_a_trace_that_was_cut_off_is_read_so_far() -> None:
    events = [event for event, _, _ in EVENTS]
    whole = written(events)
    for cut in (1, 2, 20):
        found = list(JsonlFile(io.BytesIO(whole[:-cut]), "t"))
        assert found == (events if cut == 1 else events[:-1])


@pytest.mark.parametrize(
    "line",
    ["garbage", "[]", "7", "{}",
     '{"what":"io"}', '{"what":"io","vcpu":"0","time":1,"data":{}}', '{"what":"io","vcpu":0,"time":1,"data":[]}',
     '{"what":5,"vcpu":0,"time":1,"data":{}}', '{"what":"io","vcpu":0,"time":1.5,"data":{}}',
     '{"what":"io","vcpu":0,"time":null,"data":{}}', '{"what":"io","vcpu":-2,"time":0,"data":{}}',
     '{"what":"io","vcpu":5000,"time":0,"data":{}}', '{"what":"io","vcpu":0,"time":18446744073709551616,"data":{}}',
     '{"what":"io","vcpu":0,"time":0,"data":{},"cost":-1}', '{"what":"io","vcpu":0,"time":0,"data":{},"cost":true}',

     '{"what":"io","vcpu":0,"time":1,"data":{},"rip":"main"}', "[" * 100000],
)  # fmt: skip
def test_a_line_that_is_no_event_is_named(line: str) -> None:
    data = written([]) + line.encode() + b"\n" + written([EVENTS[0][0]])
    with pytest.raises(TraceError, match=r"^path: line 2 is no event: ."):
        list(JsonlFile(io.BytesIO(data), "path"))


@pytest.mark.parametrize(
    "head",
    [b"", b"{}\n", b"[]\n", b'{"kvmpy_trace":2}\n', b'{"kvmpy_trace":', b"\x7fELF", b'{"kvmpy_trace":1', b"\xff\xfe"],
)
def test_what_is_no_trace(head: bytes) -> None:
    with pytest.raises(TraceError, match=r"path: (not a trace|a trace of version 2)"):
        open_trace(io.BytesIO(head), "path")


def test_files_are_told_by_their_names_and_first_bytes(tmp_path: Path) -> None:
    for name, kind in (("a.jsonl", "jsonl"), ("b.PFTRACE", "perfetto"), ("c.perfetto-trace", "perfetto"), ("d.txt", "text"), ("e", "text")):
        assert format_of(name) == kind
    file = tmp_path / "t"
    file.write_bytes(written([]))
    assert is_trace(str(file)) and not is_trace(str(tmp_path)) and not is_trace(str(tmp_path / "none"))
    file.write_bytes(b"\x7fELF")
    assert not is_trace(str(file))
