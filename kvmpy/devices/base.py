"""The base of every device, the project's own and a user's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kvmpy.memory import GuestMemory

Range = tuple[int, int]
"""First port or physical address, and size in bytes."""


class Timer(Protocol):
    """A pending call of a clock."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """The machine's time: host time or virtual time, in nanoseconds since the machine was made; never goes back."""

    def now(self) -> int: ...
    def at(self, when: int, call: Callable[[], None]) -> Timer:
        """Calls `call` under the machine's lock when `now()` has reached `when`."""

    def wall(self) -> float:
        """Seconds since 1970 as the guest should see them: runs with `now`."""


class Doorbell(Protocol):
    """A doorbell that the machine has registered."""

    def remove(self) -> None:
        """Writes go to the device again."""


class Platform(Protocol):
    """What a placed device may ask of its machine."""

    clock: Clock
    memory: GuestMemory

    @property
    def asynchronous(self) -> bool:
        """A device may leave work to threads of its own and answer later. False under virtual time: there the host's time decides
        nothing."""
        ...

    def stop(self, verdict: Any) -> None:
        """Ends the run with a verdict after the present exit."""

    def event(self, device: Device, what: str, **payload: Any) -> None:
        """A trace event: bad guest behaviour, a state worth seeing."""

    def warn(self, device: Device, text: str) -> None:
        """Tells the user of trouble on the host's side, one line, once for each text."""

    def signal_msi(self, address: int, data: int) -> None:
        """A message to local APICs: a write of `data` to an address in 0xFEE00000-0xFEEFFFFF."""

    def doorbell(self, address: int, size: int, value: int | None, call: Callable[[], None]) -> Doorbell | None:
        """Writes of `size` bytes to a physical address, with `value` alone if it is not None, call `call` under the lock soon, once
        for several, and the guest does not wait. None: the machine has no doorbells; writes come to the device as ever."""

    def at_rest(self, function: Callable[[], None]) -> None:
        """Has `function` called under the lock at the end of every run: what a device left to threads is finished there, so that a
        machine that stands still does not change."""

    def call(self, function: Callable[[], None]) -> None:
        """From any thread: runs `function` under the machine's lock soon (host ends deliver input so)."""


class Device:
    """A device sees offsets, never addresses.

    `ports` and `mmio` are one (first, size) pair or a sequence of such; offsets count through the ranges in order,
    ports first: the second range's offsets begin where the first one's end.
    A guest can never make a device raise.
    """

    name: str = ""
    ports: Range | Sequence[Range] = ()
    mmio: Range | Sequence[Range] = ()
    is_pci = False
    """True for a PCI function (`kvmpy.devices.pci.device`), which takes a slot."""
    platform: Platform

    def connect(self, platform: Platform) -> None:
        """Called once when the device is placed in a machine."""
        self.platform = platform

    def read(self, offset: int, size: int) -> int:
        """Value of a guest read of `size` bytes (1, 2, 4 or 8)."""
        return (1 << (8 * size)) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest write of `size` bytes."""

    def reset(self) -> None:
        """Power-on state."""

    def state(self) -> dict[str, Any]:
        """All guest-visible state as plain data (numbers, strings, bytes, lists, dicts)."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave."""

    def close(self) -> None:
        """Releases host ends; called once when the machine is closed."""
