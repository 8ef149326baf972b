"""Each device access of a guest reaches its device once, whatever stands beside it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kvmpy import Device, GuestExit, Machine

COUNT = 500


class Counter(Device):
    """Port 0x99: how often it was read before, modulo 256."""

    ports = 0x99, 1

    def __init__(self) -> None:
        self.reads = 0

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        return (self.reads - 1) & 0xFF


@pytest.mark.parametrize("beside", [b"", b"\xa1\x20\x00\xe0\xfe", b"\xa3\xb0\x00\xe0\xfe", b"\xa1\x20\x00\xe0\xfe\xa3\xb0\x00\xe0\xfe"],
                         ids=["nothing", "APIC read", "APIC write", "both"])
@pytest.mark.parametrize("split", [b"", b"\xeb\x00"], ids=["straight", "jump"])
def test_port_reads_beside_chip_accesses(tmp_path: Path, beside: bytes, split: bytes) -> None:
    # xor ebx,ebx / mov ecx,COUNT / loop: <beside> <jump> in al,0x99; movzx eax,al; add ebx,eax; loop / exit with success where ebx fits
    body = beside + split + b"\xe4\x99\x0f\xb6\xc0\x01\xc3"
    code = b"\x31\xdb\xb9" + struct.pack("<I", COUNT) + body
    code += b"\xe2" + struct.pack("b", -(len(body) + 2))
    want = sum(n & 0xFF for n in range(COUNT))
    code += b"\x81\xfb" + struct.pack("<I", want) + b"\x0f\x95\xc0\xe6\xf4\xf4"
    image = tmp_path / "image"
    image.write_bytes(code)
    counter = Counter()
    with Machine(memory="16M", backend="soft", devices=[counter]) as machine:
        assert machine.load(image, boot="flat32@0x100000").run(20) == GuestExit(0)
    assert counter.reads == COUNT
