"""The cost of an exit to a device written in Python: a loop of one access on a Machine of this process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from kvmpy import Device, Machine
from kvmpy.errors import KvmpyError

PORT, MMIO = 0x99, 0xD0000000


class Sink(Device):
    """Takes writes, gives a constant."""

    name = "sink"
    ports = PORT, 1
    mmio = MMIO, 0x1000

    def read(self, offset: int, size: int) -> int:
        return 1

    def write(self, offset: int, size: int, value: int) -> None:
        pass


ACCESSES = {
    "port write": b"\xe6\x99",  # out 99h, al
    "port read": b"\xe4\x99",  # in al, 99h
    "MMIO write": b"\x89\x03",  # mov [ebx], eax
    "MMIO read": b"\x8b\x03",  # mov eax, [ebx]
    "empty loop": b"\x90",
}


def microseconds(backend: str, access: bytes, count: int) -> float:
    """One access and its part of the loop, by the host's clock; KvmpyError where the backend is not there."""
    body = b"\xb9" + count.to_bytes(4, "little") + b"\xbb" + MMIO.to_bytes(4, "little") + access  # mov ecx, count; mov ebx, MMIO
    back = 256 - len(access) - 3
    code = body + b"\x49\x75" + bytes([back]) + b"\x31\xc0\xe6\xf4\xf4"  # dec ecx; jnz; leave with 0
    with tempfile.TemporaryDirectory() as directory, Machine("2M", backend=backend, devices=[Sink()]) as machine:
        image = Path(directory, "loop.bin")
        image.write_bytes(code)
        machine.load(image, boot="flat32")
        start = time.perf_counter()
        verdict = machine.run(60)
        took = time.perf_counter() - start
        assert getattr(verdict, "code", None) == 0, verdict
    return took / count * 1e6


def measure(backends: list[str], runs: int) -> dict[str, dict[str, float]]:
    """us by access and backend, the best of `runs`."""
    result: dict[str, dict[str, float]] = {}
    for name, access in ACCESSES.items():
        row = result[name] = {}
        for backend in backends:
            try:
                row[backend] = min(microseconds(backend, access, 20000) for _ in range(runs))
            except KvmpyError:
                continue
    return result
