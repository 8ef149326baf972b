"""A bench per transport: virtio-mmio, virtio-pci with MSI-X, virtio-pci with INTA#."""

from __future__ import annotations

import errno

import pytest

from tests.devices.virtio.driver import Bench

SECTOR = 512


class FakeImage:
    """A disk in memory; `fail` is an errno that every call then raises."""

    def __init__(self, sectors=2048, readonly=False, serial="disk-1"):
        self.data = bytearray(sectors * SECTOR)
        self.size = len(self.data)
        self.readonly = readonly
        self.serial = serial
        self.fail = 0
        self.calls = []
        self.closed = False

    def _called(self, what, *arguments):
        if self.fail:
            raise OSError(self.fail, "No space left on device" if self.fail == errno.ENOSPC else "Input/output error")
        self.calls.append((what, *arguments))

    def read_into(self, offset, buffers):
        self._called("read", offset, sum(map(len, buffers)))
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def write_from(self, offset, buffers):
        self._called("write", offset, sum(map(len, buffers)))
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def flush(self):
        self._called("flush")

    def discard(self, offset, length):
        self._called("discard", offset, length)

    def write_zeroes(self, offset, length, *, may_unmap):
        self._called("zeroes", offset, length, may_unmap)
        self.data[offset : offset + length] = bytes(length)

    def close(self):
        self.closed = True


@pytest.fixture
def make_image():
    return FakeImage


@pytest.fixture(params=["mmio", "pci", "intx"])
def transport(request):
    return request.param


@pytest.fixture
def make_bench(make_platform):
    benches = []

    def make(device, transport="mmio"):
        benches.append(Bench(make_platform(), device, transport))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()
