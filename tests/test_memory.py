"""Guest memory: layout, the checked door, ROMs, views, search."""

import gc
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmpy.errors import ConfigError, MemoryAccessError
from kvmpy.memory import GuestMemory


class RecordingVm:
    """Remembers what memory tells a backend."""

    def __init__(self):
        self.slots = {}
        self.written = []

    def set_memory(self, slot, gpa, host, size, *, readonly=False, log_dirty=False):
        if size:
            assert slot not in self.slots
            for other_gpa, other_size, _ in self.slots.values():
                assert gpa >= other_gpa + other_size or gpa + size <= other_gpa, "slots overlap"
            self.slots[slot] = gpa, size, readonly
        else:
            del self.slots[slot]

    def memory_written(self, gpa, size):
        self.written.append((gpa, size))


@pytest.fixture
def memory():
    with_rom = GuestMemory("2M")
    yield with_rom
    with_rom.close()


def test_reads_back_what_was_written(memory):
    memory.write(0x1000, b"hello")
    assert memory.read(0x1000, 5) == b"hello"
    memory.write_u64(0x1001, 0x1122334455667788)
    assert memory.read_u64(0x1001) == 0x1122334455667788
    assert memory.read_u32(0x1001) == 0x55667788
    assert memory.read_u16(0x1002) == 0x6677
    assert memory.read_u8(0x1008) == 0x11
    memory.write_u8(0x1FFFFF, 0x1FF)
    assert memory.read_u8(0x1FFFFF) == 0xFF


@pytest.mark.parametrize(("gpa", "size"), [(0x200000, 1), (0x1FFFFF, 2), (-1, 1), (1 << 63, 8), (0, (2 << 20) + 1), (0x1000, -1)])
def test_outside_ram_raises_with_address_and_size(memory, gpa, size):
    for call in (lambda: memory.read(gpa, size), lambda: memory.view(gpa, size), lambda: memory.views(gpa, size)):
        with pytest.raises(MemoryAccessError) as caught:
            call()
        assert (caught.value.address, caught.value.size) == (gpa, size)
    if size > 0:
        with pytest.raises(MemoryAccessError):
            memory.write(gpa, bytes(min(size, 4 << 20)))


def test_a_failing_write_changes_nothing(memory):
    with pytest.raises(MemoryAccessError):
        memory.write(0x1FFFFE, b"abcd")
    assert memory.read(0x1FFFFE, 2) == b"\0\0"


@pytest.mark.parametrize("size", ["3", "0", "100000", "1000T", 65537])
def test_impossible_sizes(size):
    with pytest.raises(ConfigError):
        GuestMemory(size)


def test_the_hole_and_ram_above_4_gib():
    memory = GuestMemory("5G")
    try:
        assert memory.ram_ranges() == [(0, 0xC0000000), (1 << 32, (5 << 30) - 0xC0000000)]
        memory.write((1 << 32) + 4, b"high")
        assert memory.read((1 << 32) + 4, 4) == b"high"
        for gpa in (0xC0000000, 0xFEE00000, 0xFFFFFFFF):
            assert not memory.contains(gpa)
        with pytest.raises(MemoryAccessError):
            memory.read(0xBFFFFFFF, 2)
    finally:
        memory.close()


def test_roms_are_read_only_and_seen_at_both_places(memory):
    memory.write(0xF0000, b"under the ROM")
    image = bytes(range(256)) * 512  # 128 KiB
    memory.add_bios(image)
    assert memory.read(0xFFFFFFF0, 16) == image[-16:] == memory.read(0xFFFF0, 16)
    with pytest.raises(MemoryAccessError):
        memory.write(0xF0000, b"x")
    with pytest.raises(MemoryAccessError):
        memory.view(0xF0000, 16, writable=True)
    assert memory.ram_ranges() == [(0, 0xE0000), (0x100000, 0x100000)]
    assert memory.read(0xDFFFE, 4) == b"\0\0\0\1"  # through the border
    with pytest.raises(MemoryAccessError):
        memory.write(0xDFFFE, b"\0\0\0\0")
    assert not memory.contains(0xDFFFE, 4, write=True) and memory.contains(0xDFFFE, 4)


def test_slots_follow_the_regions(memory):
    vm = RecordingVm()
    memory.attach(vm)
    assert sorted(vm.slots.values()) == [(0, 0x200000, False)]
    memory.add_bios(bytes(0x10000))
    memory.carve(0xA0000, 0x20000)
    assert sorted(vm.slots.values()) == [
        (0, 0xA0000, False), (0xC0000, 0x30000, False), (0xF0000, 0x10000, True), (0x100000, 0x100000, False),
        (0xFFFF0000, 0x10000, True),
    ]
    assert not memory.contains(0xB8000)
    memory.write(0x5000, b"abc")
    memory.views(0x6000, 16, writable=True)[0][:] = bytes(16)
    memory.written(0x6000, 16)
    memory.fill(0x7000, 3, 0xCC)
    assert vm.written == [(0x5000, 3), (0x6000, 16), (0x7000, 3)]


def test_preadv_straight_into_guest_pages(memory, tmp_path):
    memory.add_alias(0x100000, memory.add_rom(0x180000, b"rom", "ROM"), 0, 4096)
    memory.carve(0x100000, 4096)
    file = tmp_path / "disk"
    file.write_bytes(os.urandom(8192))
    with open(file, "rb") as disk:
        assert os.preadv(disk.fileno(), memory.views(0x3000, 8192, writable=True), 0) == 8192
    assert memory.read(0x3000, 8192) == file.read_bytes()


def test_search_finds_across_borders(memory):
    memory.add_rom(0x10000, b"CD" + bytes(4094))
    memory.write(0xFFFE, b"AB")
    memory.write(0x300, b"ABCD")
    assert list(memory.search(b"ABCD")) == [0x300, 0xFFFE]
    assert list(memory.search(b"ABCD", step=16)) == [0x300]
    assert list(memory.search(b"ABCD", 0x301, 0xFFFF)) == []
    memory.write(0x400, b"aaaa")
    assert list(memory.search(b"aa")) == [0x400, 0x401, 0x402]


def test_strings(memory):
    memory.write(0x500, b"word\0rest")
    assert memory.read_cstring(0x500) == b"word"
    memory.write(0x1FFFFC, b"tail")
    assert memory.read_cstring(0x1FFFFC) == b"tail"
    assert memory.read_cstring(0x500, 2) == b"wo"


def test_clear_gives_zeroes(memory):
    memory.write(0x1000, b"x" * 100)
    memory.clear()
    assert memory.read(0x1000, 100) == bytes(100)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(-8, 0x12008), st.binary(max_size=64)),
        st.tuples(st.just("fill"), st.integers(0, 0x11000), st.integers(0, 0x3000)),
        st.tuples(st.just("carve"), st.integers(0, 16), st.integers(0, 4)),
        st.tuples(st.just("rom"), st.integers(0, 20), st.binary(min_size=1, max_size=5000)),
        st.tuples(st.just("read"), st.integers(-8, 0x12008), st.integers(0, 0x2100)),
    ),
    max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(OPERATIONS)
def test_the_door_agrees_with_a_simple_model(operations):
    """A dictionary of bytes, each with its right to be written, against carved and overlaid memory and its slots."""
    memory, vm = GuestMemory("64K"), RecordingVm()
    memory.attach(vm)
    model = dict.fromkeys(range(65536), (0, True))
    try:
        for kind, where, what in operations:
            if kind == "carve":
                memory.carve(where * 4096, what * 4096)
                for gpa in range(where * 4096, (where + what) * 4096):
                    model.pop(gpa, None)
            elif kind == "rom":
                memory.add_rom(where * 4096, what)
                padded = what + b"\xff" * (-len(what) % 4096)
                model.update({where * 4096 + n: (byte, False) for n, byte in enumerate(padded)})
            elif kind == "read":
                bytes_there = [model.get(gpa) for gpa in range(where, where + what)]
                if not what:
                    continue
                if None in bytes_there:
                    with pytest.raises(MemoryAccessError):
                        memory.read(where, what)
                else:
                    expected = bytes(byte for byte, _ in bytes_there)
                    assert memory.read(where, what) == expected == b"".join(memory.views(where, what))
            else:
                data = what if kind == "write" else b"\xa5" * what
                if not data:
                    continue
                call = (lambda: memory.write(where, data)) if kind == "write" else (lambda: memory.fill(where, len(data), 0xA5))  # noqa: B023
                if all(model.get(gpa, (0, False))[1] for gpa in range(where, where + len(data))):
                    call()
                    model.update({where + n: (byte, True) for n, byte in enumerate(data)})
                    assert vm.written[-1] == (where, len(data))
                else:
                    with pytest.raises(MemoryAccessError):
                        call()
        covered = sum(size for _, size, _ in vm.slots.values())
        assert covered == len(model)
    finally:
        memory.close()


def test_closing_with_live_views_is_safe():
    memory = GuestMemory("1M")
    memory.write(0, b"still here")
    view = memory.view(0, 10)
    memory.close()
    memory.close()
    assert bytes(view) == b"still here"
    with pytest.raises(MemoryAccessError):
        memory.read(0, 1)
    del view
    gc.collect()
