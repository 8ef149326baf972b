"""PS/2 mouse with wheel and five buttons: the standard protocol and Microsoft's IntelliMouse extensions."""

from __future__ import annotations

from typing import Any

from kvmpy.devices.ps2 import ACK, BAT_PASSED, RESEND, Ps2Device

SCALING_1, SCALING_2, RESOLUTION, STATUS, STREAM, READ, END_WRAP, WRAP = 0xE6, 0xE7, 0xE8, 0xE9, 0xEA, 0xEB, 0xEC, 0xEE
REMOTE, IDENTIFY, SAMPLE_RATE, ENABLE, DISABLE, DEFAULTS, RESET = 0xF0, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6, 0xFF

STANDARD, WHEEL, FIVE_BUTTONS = 0, 3, 4
KNOCKS: dict[tuple[int, ...], int] = {(200, 100, 80): WHEEL, (200, 200, 80): FIVE_BUTTONS}
"""Sample rates set in a row that unlock an extension."""

LEFT, RIGHT, MIDDLE, SIDE, EXTRA = 1, 2, 4, 8, 16
SCALED = (0, 1, 1, 3, 6, 9)  # 2:1 scaling of small movements; larger ones double


class Ps2Mouse(Ps2Device):
    """`move` and `buttons` are the user; call them under the machine's lock. Movement adds up while the guest is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.power_on()

    def power_on(self) -> None:
        super().power_on()
        self.id = STANDARD
        self.wrap = False
        self._rates: list[int] = []
        self._buttons = 0
        self._reported = 0
        self._set_defaults()

    def _set_defaults(self) -> None:
        self.rate, self.resolution = 100, 2  # per second; 4 counts per millimetre
        self.doubled = self.remote = self.reporting = False
        self._dx = self._dy = self._dz = 0
        self.clear_queue()

    # The user

    def move(self, dx: int, dy: int, dz: int = 0) -> None:
        """Right, up and wheel towards the user are positive."""
        self._dx, self._dy, self._dz = self._dx + dx, self._dy + dy, self._dz + dz
        self._report()

    def buttons(self, held: int) -> None:
        """All buttons that are down: LEFT, RIGHT, MIDDLE, SIDE, EXTRA."""
        self._buttons = held & 0x1F
        self._report()

    def _report(self) -> None:
        if not self.reporting or self.remote or self.wrap or self._queue:
            return
        if self._dx or self._dy or self._dz or self._buttons != self._reported:
            self.queue(self._packet(self.doubled))

    def drained(self) -> None:
        self._report()

    def _packet(self, doubled: bool) -> bytes:
        dx, dy = (min(max(d, -127), 127) for d in (self._dx, self._dy))
        dz = min(max(self._dz, -8), 7)
        self._dx, self._dy = self._dx - dx, self._dy - dy
        self._dz = self._dz - dz if self.id else 0
        self._reported = self._buttons
        if doubled:
            dx, dy = _scale(dx), _scale(dy)
        packet = [8 | self._buttons & 7 | (0x10 if dx < 0 else 0) | (0x20 if dy < 0 else 0), dx & 0xFF, dy & 0xFF]
        if self.id == WHEEL:
            packet.append(dz & 0xFF)
        elif self.id == FIVE_BUTTONS:
            packet.append(dz & 0x0F | (self._buttons & (SIDE | EXTRA)) << 1)
        return bytes(packet)

    # The host

    def send(self, byte: int) -> None:
        command, self._command = self._command, None
        if self.wrap and byte not in (END_WRAP, RESET):
            self.reply(byte)
        elif command == SAMPLE_RATE:
            self.rate = byte
            self._rates = [*self._rates[-2:], byte]
            self.id = max(self.id, KNOCKS.get(tuple(self._rates), STANDARD))
            self.reply(ACK)
        elif command == RESOLUTION:
            if byte <= 3:
                self.resolution = byte
            self.reply(ACK if byte <= 3 else RESEND)
        elif byte == RESEND:
            self.reply(self._last)
        else:
            self._execute(byte)

    def _execute(self, byte: int) -> None:
        if byte in (SAMPLE_RATE, RESOLUTION):
            self._command = byte
        elif byte in (SCALING_1, SCALING_2):
            self.doubled = byte == SCALING_2
        elif byte in (STREAM, REMOTE):
            self.remote = byte == REMOTE
            self._dx = self._dy = self._dz = 0
            self.clear_queue()
        elif byte in (WRAP, END_WRAP):
            self.wrap = byte == WRAP
            self.clear_queue()
        elif byte in (ENABLE, DISABLE):
            self.reporting = byte == ENABLE
            self._dx = self._dy = self._dz = 0
            self.clear_queue()
        elif byte == DEFAULTS:
            self._set_defaults()
        elif byte == IDENTIFY:
            self.reply(ACK, self.id)
            return
        elif byte == STATUS:
            middle_right = (self._buttons & MIDDLE) >> 1 | (self._buttons & RIGHT) >> 1
            flags = self.remote << 6 | self.reporting << 5 | self.doubled << 4 | (self._buttons & LEFT) << 2 | middle_right
            self.reply(ACK, flags, self.resolution, self.rate)
            return
        elif byte == READ:
            self.reply(ACK, *self._packet(False))
            return
        elif byte == RESET:
            buttons = self._buttons
            self.power_on()
            self._buttons = buttons
            self.reply(ACK, BAT_PASSED, STANDARD)
            return
        else:
            self.reply(RESEND)
            return
        self.reply(ACK)

    # State

    _PLAIN = ("id", "wrap", "rate", "resolution", "doubled", "remote", "reporting", "_rates", "_buttons", "_reported", "_dx", "_dy", "_dz")

    def state(self) -> dict[str, Any]:
        return super().state() | {name: getattr(self, name) for name in self._PLAIN} | {"_rates": list(self._rates)}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        for name in self._PLAIN:
            setattr(self, name, state[name])
        self._rates = list(state["_rates"])


def _scale(delta: int) -> int:
    size = abs(delta)
    scaled = SCALED[size] if size < len(SCALED) else 2 * size
    return scaled if delta >= 0 else -scaled
