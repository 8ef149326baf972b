"""Histograms and summaries."""

from __future__ import annotations

import random

import pytest

from kvmpy.trace import Event
from kvmpy.trace import summary as module
from kvmpy.trace.histogram import Histogram, bucket_of, bucket_range
from kvmpy.trace.summary import Summary
from tests.trace.samples import Symbols


def test_buckets_follow_one_another() -> None:
    end = 0
    for bucket in range(1920):
        low, after = bucket_range(bucket)
        assert low == end and bucket_of(low) == bucket_of(after - 1) == bucket
        assert after - low <= max(low >> 5, 1)
        end = after
    assert end == 1 << 64


def test_quantiles_are_near_the_true_ones() -> None:
    rng = random.Random(5)
    values = [int(rng.lognormvariate(8, 2)) for _ in range(20000)]
    one, other = Histogram(), Histogram()
    for index, value in enumerate(values):
        (one if index % 3 else other).add(value)
    one.merge(other)
    one.merge(Histogram())
    values.sort()
    assert (one.count, one.total, one.low, one.high) == (20000, sum(values), values[0], values[-1])
    for part in (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0):
        true = values[max(int(part * 20000 + 0.5) - 1, 0)]
        assert abs(one.quantile(part) - true) <= max(true * 0.017, 1), part


def test_an_empty_histogram() -> None:
    empty = Histogram()
    assert empty.quantile(0.5) == 0
    empty.merge(Histogram())
    assert empty.count == empty.low == 0


def io(index: int, port: int, rip: int, cost: int, guest: int = 0, vcpu: int = 0) -> Event:
    return Event("io", vcpu, 0, {"port": port, "size": 1, "count": 1, "write": True, "value": 0}, rip, index * 10_000, guest, cost)


def test_tables() -> None:
    summary = Summary()
    for index in range(1, 101):
        summary(io(index, 0x3F8, 0x100000, 1000 + index, guest=7000))
    summary(io(101, 0x80, 0x100010, 500, guest=100))
    summary(Event("mmio", 1, 0, {"address": 0xFEE00020, "size": 4, "write": False, "value": 0}, 0x100000, 20_000, 0, 50_000))
    summary(Event("device", -1, 0, {"device": "d", "event": "e"}, host=1_500_000))
    data = summary.data(Symbols())
    assert data["events"] == 103 and data["ns"] == 1_500_000 - 10_000
    first = data["vcpus"]["0"]
    assert first["ns"] == 1_010_500 - (10_000 - 7000) and first["guest_ns"] == 700_100
    assert first["device_ns"] == sum(range(1001, 1101)) + 500
    assert first["kvmpy_ns"] == first["ns"] - first["guest_ns"] - first["device_ns"] > 0
    kinds = {row["kind"]: row for row in data["by_kind"]}
    assert kinds["io"]["count"] == 101 and kinds["io"]["share"] == 101 / 103 and kinds["device"]["total_ns"] == 0
    place = next(row for row in data["by_place"] if row["place"] == "out 0x3f8 (com1)")
    assert (place["count"], place["min_ns"], place["max_ns"], place["guest_ns"]) == (100, 1001, 1100, 700_000)
    assert abs(place["median_ns"] - 1050) < 20 and abs(place["p99_ns"] - 1099) < 20
    assert [(row["symbol"], row["count"]) for row in data["by_rip"]] == [("main+0x0 (hello.c:12)", 101), ("main+0x10 (hello.c:12)", 1)]
    text = "\n".join(summary.lines(Symbols()))
    assert "103 events in 1.49 ms" in text and "in the guest" in text and "out 0x3f8 (com1)" in text and "98.1 %" in text


def test_a_summary_of_nothing() -> None:
    assert Summary().lines() == ["0 events in 0 ns"]
    assert Summary().data()["by_kind"] == []


def test_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 50)
    summary = Summary()
    for index in range(10_000):
        summary(io(index, 0x80 + index % 3, index, 10))  # instructions without end
    assert len(summary.rows) <= 53
    for index in range(10_000):
        summary(Event("block", 0, 0, {"address": index, "count": 1}))  # places without end
    assert len(summary.rows) <= 102
    rows = {(row["kind"], row["place"]): row["count"] for row in summary.data()["by_place"]}
    assert sum(rows.values()) == 20_000 and rows["io", "out 0x80 (post)"] == 3334 and ("block", "(others)") in rows


def test_calls_of_a_traced_program_lie_within_its_answers() -> None:
    summary = Summary()
    summary(Event("io", 0, 900, {"port": 0x80, "size": 1, "count": 1, "write": True, "value": 0}, host=500, guest=500, cost=400))
    summary(Event("ioctl", 0, 1900, {"fd": 5, "name": "KVM_GET_REGS", "arguments": {}, "result": 0}, host=1500, cost=400))
    summary(Event("io", 0, 2000, {"port": 0x80, "size": 1, "count": 1, "write": True, "value": 0}, host=1400, guest=500, cost=600))
    assert summary.data()["vcpus"]["0"] == {"ns": 2000, "guest_ns": 1000, "device_ns": 1000, "kvmpy_ns": 0}
    assert "in the traced program" in "\n".join(summary.lines(parts=module.TRACED))
    assert "in devices" in "\n".join(summary.lines())


def test_a_vcpu_whose_exits_were_not_answered_has_no_share_of_the_time() -> None:
    summary = Summary()
    summary(Event("irq", 1, 100, {"vector": 0x30}, host=100))
    summary(Event("io", 0, 900, {"port": 0x80, "size": 1, "count": 1, "write": True, "value": 0}, host=500, guest=500, cost=400))
    summary(Event("irq", 1, 5000, {"vector": 0x30}, host=5000))
    assert summary.data()["vcpus"] == {"0": {"ns": 900, "guest_ns": 500, "device_ns": 400, "kvmpy_ns": 0}}
