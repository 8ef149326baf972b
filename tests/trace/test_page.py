"""The HTML page of a trace, as a real browser shows it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmpy.trace import Event
from kvmpy.trace.page import MOST_ROWS, Report, _quarter, _start
from kvmpy.trace.timeline import STEPS, Timeline
from tests.trace.browser import PROGRAM, Browser
from tests.trace.samples import EVENTS, Symbols

HOSTILE = "</script><script>window.evil=1</script><img src=x onerror='window.evil=2'>"
needs_browser = pytest.mark.skipif(not PROGRAM, reason="no Chromium is installed (Debian: chromium-headless-shell)")


def report() -> Report:
    """A vCPU that says 2000 characters, another that touches its APIC; 20 us for each exit."""
    made = Report()
    for index in range(2000):
        now = 1_000_000 + index * 20_000
        data = {"port": 0x3F8, "size": 1, "count": 1, "write": True, "value": 0x41}
        made(Event("io", 0, now, data, 0x100000 + index % 3, now, 15_000, 1000 + index))
        if index % 10 == 0:
            made(Event("mmio", 1, now, {"address": 0xFEE00020, "size": 4, "write": False, "value": 0}, 0x100800, now, 150_000, 40_000))
            made(Event("irq", 0, now, {"vector": 0x30}, host=now))
    made(Event("device", -1, now, {"device": HOSTILE, "event": "bad"}, host=now))
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    where = tmp_path_factory.mktemp("page")
    file = where / "report.html"
    file.write_text(report().page({"image": f"/boot/{HOSTILE}", "backend": "soft"}, Symbols()))
    browser = Browser(where / "profile")
    try:
        browser.open(file)
        yield browser
    finally:
        browser.close()


ROWS = "[...document.querySelectorAll('#rows tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"


def click(page: Browser, selector: str) -> None:
    page.ask(f"document.querySelector({json.dumps(selector)}).click()")


def enter(page: Browser, selector: str, text: str, event: str = "input") -> None:
    found = f"document.querySelector({json.dumps(selector)})"
    page.ask(f"{found}.value = {json.dumps(text)}; {found}.dispatchEvent(new Event('{event}'))")


@needs_browser
def test_the_page_shows_all_parts(page: Browser) -> None:
    assert not page.said("Runtime.exceptionThrown") and not page.said("Log.entryAdded")
    heads = page.ask("[...document.querySelectorAll('h2')].map(head => head.innerText)")
    assert heads == [
        "Where the time went", "Timeline", "How long the answers took", "Hottest instructions", "Everything", "Slowest answers",
        "How it began and ended",
    ]  # fmt: skip
    text = page.ask("document.body.innerText")
    assert "2 401" in text.replace("\u202f", " ") and "main+0x0 (hello.c:12)" in text and "vCPU 1" in text
    assert len(page.ask("[...document.querySelectorAll('figure')].map(figure => figure.innerText)")) == 2


@needs_browser
def test_it_asks_for_nothing_else(page: Browser) -> None:
    wanted = [request["request"]["url"] for request in page.said("Network.requestWillBeSent")]
    assert len(wanted) == 1 and wanted[0].startswith("file:")


@needs_browser
def test_words_of_a_guest_are_no_markup(page: Browser) -> None:
    assert page.ask("typeof window.evil") == "undefined"
    assert page.ask("document.querySelectorAll('img').length") == 0
    assert HOSTILE in page.ask("document.querySelector('#rows').innerText")


@needs_browser
def test_the_table_is_filtered_and_sorted(page: Browser) -> None:
    rows = page.ask(ROWS)
    assert len(rows) == 6 and rows[0][:2] == ["mmio", "read 0xfee00020 (lapic)"]
    enter(page, "#filter", "0x3F8 main")
    rows = page.ask(ROWS)
    assert len(rows) == 3 and {row[1] for row in rows} == {"out 0x3f8 (com1)"}
    assert page.ask("document.querySelector('#told').innerText").startswith("3 rows, 2")
    click(page, "[data-column=instruction]")
    assert [row[2] for row in page.ask(ROWS)] == [f"main+{at} (hello.c:12)" for at in ("0x0", "0x1", "0x2")]
    click(page, "[data-column=instruction]")
    assert page.ask(ROWS)[0][2] == "main+0x2 (hello.c:12)"
    assert page.ask("document.querySelector('[data-column=instruction]').parentNode.ariaSort") == "descending"
    enter(page, "#filter", "")
    enter(page, "#kind", "irq", "change")
    assert [row[1] for row in page.ask(ROWS)] == ["vector 0x30"]
    enter(page, "#kind", "", "change")
    click(page, "[data-column=count]")
    assert [row[3] for row in page.ask(ROWS)] == ["667", "667", "666", "200", "200", "1"]


@needs_browser
def test_the_timeline(page: Browser) -> None:
    paths = "[...document.querySelectorAll('.chart path[data-kind]')].map(path => path.dataset.kind)"
    assert page.ask(paths) == ["io", "mmio", "irq", "device"]
    click(page, "button[data-kind=io]")
    assert page.ask(paths) == ["mmio", "irq", "device"]
    click(page, "button[data-kind=io]")
    enter(page, "#measure", "t", "change")
    assert page.ask(paths) == ["io", "mmio"]
    enter(page, "#measure", "n", "change")
    box = page.ask("(box => [box.left + box.width / 4, box.top + 20])(document.querySelector('.chart svg').getBoundingClientRect())")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    tip = page.ask("document.querySelector('.tip').innerText")
    assert re.match(r"\d+(\.\d+)? ms to \d+(\.\d+)? ms\n(mmio|io|irq)  \d+ events", tip), tip


@needs_browser
def test_both_colour_schemes_are_readable(page: Browser) -> None:
    """Contrast of text on its ground, by the WCAG's formula: 4.5 and more."""
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for text, ground in (("--ink", "--paper"), ("--soft", "--paper"), ("--soft", "--panel"), ("--ink", "--bar"), ("--link", "--paper")):
            colours = [page.ask(f"getComputedStyle(document.documentElement).getPropertyValue('{name}')") for name in (text, ground)]
            light, dark = sorted(map(_luminance, colours), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, text, ground)
    page.call("Emulation.setEmulatedMedia", features=[])


def _luminance(colour: str) -> float:
    parts = [int(colour.strip()[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@needs_browser
def test_a_large_page_and_one_without_times(tmp_path: Path) -> None:
    rng, made = random.Random(3), Report()
    for index in range(3 * MOST_ROWS):
        data = {"port": rng.randrange(65536), "size": 1, "count": 1, "write": True, "value": 0}
        made(Event("io", index % 8, index * 999, data, rng.randrange(1 << 64)))
    file = tmp_path / "large.html"
    file.write_text(made.page({}, None))
    assert file.stat().st_size < 1_000_000
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(file)
        assert not browser.said("Runtime.exceptionThrown")
        assert len(browser.ask(ROWS)) == 200 and "Where the time went" not in browser.ask("document.body.innerText")
        browser.ask("[...document.querySelectorAll('button')].find(one => one.innerText == 'Show more rows').click()")
        assert len(browser.ask(ROWS)) == 2200
    finally:
        browser.close()


def test_a_page_of_every_kind_and_of_nothing() -> None:
    made = Report()
    assert '"events":0' in made.page()
    for event, _, _ in EVENTS:
        made(event)
    text = made.page({"image": "x & <y>", "ports": [[1, 2, "tables are not for people"]]}, Symbols())
    assert text.count("<script") == 2 == text.count("</script") and "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}, "a namespace, not a request"
    data: Any = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert data["events"] == len(EVENTS) and data["about"] == {"image": "x & <y>"}
    assert sum(row[3] for row in data["rows"]) == len(EVENTS)


def test_a_timeline_folds() -> None:
    line = Timeline()
    rng = random.Random(7)
    times = sorted(rng.randrange(5_000_000_000) for _ in range(5000))
    for time in times:
        line.add("n", line.step_of(time), 1)
    assert sum(line.series["n"]) == 5000 and STEPS // 2 < line.used() <= STEPS
    low = line.start + 100 * line.width
    assert line.series["n"][100] == sum(low <= time < low + line.width for time in times)
    line.add("n", line.step_of(0), 1)  # clocks of two vCPUs, not quite in order
    assert line.series["n"][0] >= 2
    before = list(line.series["n"])
    line.spread("g", low + line.width // 2, low + 3 * line.width)
    assert [line.series["g"][step] for step in (99, 100, 101, 102, 103)] == [0, line.width - line.width // 2, line.width, line.width, 0]
    line.spread("h", 0, line.start + 10)
    assert sum(line.series["h"]) == 10 and line.series["n"] == before


def test_a_timeline_has_bounded_series() -> None:
    line = Timeline()
    for index in range(1000):
        line.add(str(index), 0, 1)
    assert len(line.series) == 256


def test_bars_of_a_histogram_join() -> None:
    end = 0
    for quarter in range(200):
        assert _start(quarter) == end and _quarter(end) == quarter
        end = _start(quarter + 1)
        assert _quarter(end - 1) == quarter
