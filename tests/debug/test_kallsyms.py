"""Linux's own symbol table, out of images made for the test in each form that the kernel has had."""

from __future__ import annotations

import gzip
import struct

import pytest

from kvmpy.debug.kallsyms import NoTable, kernel_symbols, unpack_kernel
from kvmpy.debug.symbol_elf import symbol_elf
from kvmpy.debug.symbols import Symbol, Symbols

BASE = 0xFFFFFFFF81000000
NAMES = [(f"symbol_{n}", "tTdDrR"[n % 6], BASE + 64 * n) for n in range(1000)]


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def table(*, order: bool, late: bool, absolute: bool) -> bytes:
    """`order`: the names' alphabetical order stands before the tokens; `late`: the addresses stand at the end."""
    tokens = [bytes((n,)) if n in b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_" else b"" for n in range(256)]
    spare = [n for n, token in enumerate(tokens) if not token]
    tokens[spare[0]] = b"symbol_"
    tokens = [token or b"x%d" % n for n, token in enumerate(tokens)]
    names, markers = b"", []
    for n, (name, kind, _) in enumerate(NAMES):
        if n % 256 == 0:
            markers.append(len(names))
        packed = kind.encode() + bytes((spare[0],)) + name[7:].encode()
        names += bytes((len(packed),)) + packed
    offsets = [BASE - 1 - address if absolute else address - BASE for _, _, address in NAMES]
    addresses = pad(struct.pack(f"<{len(NAMES)}i", *offsets)) + struct.pack("<Q", BASE)
    body = pad(struct.pack("<I", len(NAMES))) + pad(names) + pad(struct.pack(f"<{len(markers)}I", *markers))
    if order:
        body += pad(b"".join(n.to_bytes(3, "big") for n in range(len(NAMES))))
    index, at = [], 0
    for token in tokens:
        index.append(at)
        at += len(token) + 1
    body += pad(b"".join(token + b"\0" for token in tokens)) + struct.pack("<256H", *index)
    return bytes(range(256)) * 16 + (body + addresses if late else addresses + body) + b"\xcc" * 64


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
def test_every_form(order: bool, late: bool, absolute: bool) -> None:
    assert kernel_symbols(table(order=order, late=late, absolute=absolute)) == NAMES


def test_no_table() -> None:
    image = table(order=False, late=False, absolute=True)
    digits = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00"
    for broken in (b"", bytes(1000), image[: len(image) // 2], digits, bytes(100) + digits, digits * 99):
        with pytest.raises(NoTable):
            kernel_symbols(broken)


def test_a_packed_kernel() -> None:
    payload = gzip.compress(b"the kernel")
    image = bytearray(2048)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    image[1024 + 16 : 1024 + 16 + len(payload)] = payload
    assert unpack_kernel(bytes(image)) == b"the kernel"
    image[1024 + 16 + 12] ^= 0xFF
    image[1024 + 16 : 1024 + 18] = b"\x02\x21"
    with pytest.raises(NoTable):
        unpack_kernel(bytes(image))
    assert unpack_kernel(b"other") == b"other"


def test_symbols_saved_as_elf_are_read_again(tmp_path) -> None:
    symbols = [Symbol("first", 0x1000, 16), Symbol("data", 0x2000, 8, function=False), Symbol("kernel", BASE, 0)]
    path = tmp_path / "symbols.elf"
    path.write_bytes(symbol_elf(symbols))
    again = Symbols()
    again.add(path, 0x100)
    assert (again.address("first"), again.address("kernel")) == (0x1100, BASE + 0x100)
    assert (again.text(0x1104), again.text(0x1110), again.text(0x2103)) == ("first+0x4", "", "data+0x3")
    again.save(tmp_path / "again.elf")


def test_system_map(tmp_path) -> None:
    path = tmp_path / "System.map"
    path.write_text("0000000000000000 A start\nffffffff81000000 T _text\nffffffff81000040 t helper\nffffffff82000000 D data\n")
    symbols = Symbols()
    symbols.add(path, offset=0x200000)
    assert symbols.address("_text") == BASE + 0x200000
    assert symbols.text(BASE + 0x200044) == "helper+0x4"
    assert symbols.text(0) == ""
