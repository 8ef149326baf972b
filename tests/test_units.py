"""Sizes and numbers as people write them."""

import pytest

from kvmpy.errors import ConfigError
from kvmpy.units import format_ns, format_size, parse_number, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("128M", 128 << 20), ("1G", 1 << 30), ("1.5G", 3 << 29), ("4096", 4096), ("0x1000", 4096), ("64k", 65536), ("2 MiB", 2 << 20),
     ("1KB", 1024), ("1T", 1 << 40), (4096, 4096), ("0", 0), ("1_000", 1000)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "12Q", "-1", "1.3", "0x", "1..5G", "12 34", "abc", -5, True, None])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError):
        parse_size(text)


def test_formatting_is_exact_and_comes_back():
    for size in (0, 1, 1023, 1024, 1536, 128 << 20, 3 << 29, 1 << 40):
        assert parse_size(format_size(size)) == size
    assert format_size(128 << 20) == "128M"


def test_numbers():
    assert parse_number("0x3f8") == 0x3F8
    with pytest.raises(ConfigError):
        parse_number("3f8")


@pytest.mark.parametrize(
    ("time", "text"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1.00 us"), (9994, "9.99 us"), (9999, "10.0 us"), (12345, "12.3 us"), (123456, "123 us"),
     (999_600, "1.00 ms"), (3_000_000_000, "3.00 s"), (12_345_000_000_000, "12345 s")],
)
def test_durations(time, text):
    assert format_ns(time) == text
