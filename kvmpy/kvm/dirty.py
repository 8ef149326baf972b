"""Which pages were written: the dirty bitmap of a slot, and the dirty ring of a vCPU (KVM API 4.8, 4.111, 8.29)."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvmpy.errors import KvmpyError
from kvmpy.kvm.files import PAGE, KvmFile
from kvmpy.native import ffi, lib


@dataclass
class _Slot:
    gpa: int
    size: int
    written: bytearray | None = field(default=None)
    """Pages the host wrote, one bit each; only where the slot's log is on."""

    @property
    def bitmap_size(self) -> int:
        """Bytes of a bitmap with one bit per page, in whole 64-bit words."""
        return -(-self.size // (PAGE * 64)) * 8


class DirtyPart(KvmFile):
    """VM calls about written pages."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._slots: dict[int, _Slot] = {}
        self._logged: list[_Slot] = []
        self._manual_clear = False
        self.dirty_ring_entries = 0

    def _note_slot(self, slot: int, gpa: int, size: int, log_dirty: bool) -> None:
        old = self._slots.pop(slot, None)
        if size:
            new = self._slots[slot] = _Slot(gpa, size)
            if log_dirty:
                kept = old.written if old is not None and old.size == size else None
                new.written = bytearray(new.bitmap_size) if kept is None else kept
        self._logged = [known for known in self._slots.values() if known.written is not None]

    def _mark_written(self, gpa: int, size: int) -> None:
        for slot in self._logged:
            if slot.written is None or size <= 0:
                continue
            first, last = max(gpa, slot.gpa), min(gpa + size, slot.gpa + slot.size)
            if first < last:
                for page in range((first - slot.gpa) // PAGE, (last - 1 - slot.gpa) // PAGE + 1):
                    slot.written[page >> 3] |= 1 << (page & 7)

    def _known(self, slot: int) -> _Slot:
        try:
            return self._slots[slot]
        except KeyError:
            raise KvmpyError(f"memory slot {slot} does not exist") from None

    def dirty_log(self, slot: int) -> bytes:
        """KVM_GET_DIRTY_LOG and, with manual clearing, KVM_CLEAR_DIRTY_LOG of what it told; pages the host wrote are in it."""
        known = self._known(slot)
        bitmap = ffi.new("uint8_t[]", known.bitmap_size)
        log = ffi.new("struct kvm_dirty_log *", {"slot": slot})
        log.dirty_bitmap = bitmap
        self.ioctl_ptr("KVM_GET_DIRTY_LOG", log)
        seen = bytes(ffi.buffer(bitmap))
        if self._manual_clear:
            self.clear_dirty_log(slot, 0, known.size // PAGE, seen)
        if known.written is not None:
            host, known.written = known.written, bytearray(known.bitmap_size)
            seen = (int.from_bytes(seen, "little") | int.from_bytes(host, "little")).to_bytes(len(seen), "little")
        return seen[: -(-known.size // (PAGE * 8))]

    def enable_manual_dirty_clear(self, *, initially_set: bool = False) -> None:
        """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: reading the log no longer write-protects pages; CLEAR does."""
        flags = lib.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | (lib.KVM_DIRTY_LOG_INITIALLY_SET if initially_set else 0)
        cap = ffi.new("struct kvm_enable_cap *", {"cap": lib.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "args": [flags]})
        self.ioctl_ptr("KVM_ENABLE_CAP", cap)
        self._manual_clear = True

    def clear_dirty_log(self, slot: int, first_page: int, pages: int, bitmap: bytes) -> None:
        """KVM_CLEAR_DIRTY_LOG: clears the pages whose bits are set; `first_page` and `pages` in multiples of 64, or to the slot's end."""
        words = -(-pages // 64) * 8
        data = ffi.new("uint8_t[]", bitmap[:words].ljust(words, b"\0"))
        log = ffi.new("struct kvm_clear_dirty_log *", {"slot": slot, "num_pages": pages, "first_page": first_page})
        log.dirty_bitmap = data
        self.ioctl_ptr("KVM_CLEAR_DIRTY_LOG", log)

    def enable_dirty_ring(self, entries: int) -> None:
        """A ring of `entries` (a power of two) per vCPU in place of the bitmaps; before the first vCPU is created."""
        size = entries * ffi.sizeof("struct kvm_dirty_gfn")
        for capability in (lib.KVM_CAP_DIRTY_LOG_RING_ACQ_REL, lib.KVM_CAP_DIRTY_LOG_RING):
            if self.check_extension(capability):
                break
        cap = ffi.new("struct kvm_enable_cap *", {"cap": capability, "args": [size]})
        self.ioctl_ptr("KVM_ENABLE_CAP", cap)
        self.dirty_ring_entries = entries

    def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: protects the harvested pages anew; gives their number."""
        return self.ioctl("KVM_RESET_DIRTY_RINGS")
