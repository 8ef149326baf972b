"""PS/2 keyboard with scan code sets 1, 2 and 3 (IBM PS/2 Hardware Interface Technical Reference, keyboards)."""

from __future__ import annotations

from collections import deque
from typing import Any

from kvmpy.devices.base import Clock, Timer
from kvmpy.devices.keys import CHARACTERS, SEQUENCES, SET3
from kvmpy.devices.ps2 import ACK, BAT_PASSED, QUEUE, RESEND, Ps2Device

SET_LEDS, ECHO, SCAN_CODE_SET, IDENTIFY, TYPEMATIC, ENABLE, DISABLE, DEFAULTS = 0xED, 0xEE, 0xF0, 0xF2, 0xF3, 0xF4, 0xF5, 0xF6
ALL_TYPEMATIC, ALL_MAKE_BREAK, ALL_MAKE, ALL_TYPEMATIC_MAKE_BREAK = 0xF7, 0xF8, 0xF9, 0xFA
KEY_TYPEMATIC, KEY_MAKE_BREAK, KEY_MAKE = 0xFB, 0xFC, 0xFD
RESET = 0xFF
WITH_ARGUMENT = (SET_LEDS, SCAN_CODE_SET, TYPEMATIC)
OF_KEYS = (KEY_TYPEMATIC, KEY_MAKE_BREAK, KEY_MAKE)

ID = (0xAB, 0x83)  # an MF2 keyboard; a translating controller makes AB 41 of it
SCROLL_LED, NUM_LED, CAPS_LED = 1, 2, 4
DEFAULT_TYPEMATIC = 0x2B  # 10.9 characters per second after 500 ms
ALL_KEYS = frozenset(code[0] for code in SET3.values())
BREAKING_BY_DEFAULT = frozenset(SET3[name][0] for name in ("shift", "rightshift", "ctrl", "alt", "capslock"))
HELD_KEYS = frozenset(("shift", "rightshift", "ctrl", "rightctrl", "alt", "rightalt", "meta", "rightmeta", "pause"))


class Ps2Keyboard(Ps2Device):
    """`down`, `up`, `press` and `type` are the user; call them under the machine's lock. `leds` shows what the guest lit."""

    def __init__(self) -> None:
        super().__init__()
        self.clock: Clock | None = None
        self._typed: deque[tuple[str, bool]] = deque()  # key and whether it goes down, for when there is room
        self._repeated: str | None = None
        self._timer: Timer | None = None
        self.power_on()

    def power_on(self) -> None:
        super().power_on()
        self.leds = 0
        self.scanning = True
        self._set_defaults()

    def _set_defaults(self) -> None:
        self.set = 2
        self.typematic = DEFAULT_TYPEMATIC
        self._breaking = set(BREAKING_BY_DEFAULT)  # keys that send a break code in set 3
        self._repeating = set(ALL_KEYS)  # keys that repeat in set 3
        self.clear_queue()

    # The user

    def down(self, key: str) -> None:
        """A key is pressed; it repeats until it is released or another one is pressed. KeyError for an unknown name."""
        self._event(key, True)

    def up(self, key: str) -> None:
        self._event(key, False)

    def press(self, *keys: str) -> None:
        """Keys go down in order and up in reverse order: `press("ctrl", "alt", "delete")`."""
        for key in keys:
            SEQUENCES[2][key]  # all or nothing
        self._typed.extend((key, True) for key in keys)
        self._typed.extend((key, False) for key in reversed(keys))
        self._feed()

    def type(self, text: str) -> None:
        """Types text on the US layout as fast as the guest takes it. ValueError for a character that has no key."""
        for character in text:
            if character not in CHARACTERS:
                raise ValueError(f"no key for {character!r}")
        for character in text:
            key, shifted = CHARACTERS[character]
            events = [("shift", True), (key, True), (key, False), ("shift", False)] if shifted else [(key, True), (key, False)]
            self._typed.extend(events)
        self._feed()

    def drained(self) -> None:
        self._feed()

    def _feed(self) -> None:
        while self._typed and self.scanning and len(self._queue) < QUEUE:
            key, is_down = self._typed.popleft()
            self._code(key, is_down)

    def _event(self, key: str, is_down: bool) -> None:
        SEQUENCES[2][key]
        if not self.scanning:
            return
        self._code(key, is_down)
        self._stop_repeating()
        if is_down and key not in HELD_KEYS and (self.set != 3 or SET3[key][0] in self._repeating):
            self._repeated = key
            self._arm(250_000_000 * (1 + (self.typematic >> 5 & 3)))

    def _code(self, key: str, is_down: bool) -> None:
        make, released = SEQUENCES[self.set][key]
        if is_down:
            self.queue(make)
        elif released and (self.set != 3 or make[0] in self._breaking):
            self.queue(released)

    def _arm(self, delay: int) -> None:
        if self.clock is not None:
            self._timer = self.clock.at(self.clock.now() + delay, self._repeat)

    def _repeat(self) -> None:
        self._timer = None
        if self._repeated is not None and self.scanning:
            self._code(self._repeated, True)
            self._arm((8 + (self.typematic & 7)) * (1 << (self.typematic >> 3 & 3)) * 4_170_000)

    def _stop_repeating(self) -> None:
        self._repeated = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The host

    def send(self, byte: int) -> None:
        command, self._command = self._command, None
        if command in OF_KEYS and byte < SET_LEDS:
            self._command = command
            self._set_key_type(command, byte)
            self.reply(ACK)
        elif command is not None and byte < 0x80:
            self._argument(command, byte)
        else:
            self._execute(byte)
        self._feed()

    def _argument(self, command: int, byte: int) -> None:
        if command == SET_LEDS:
            self.leds = byte & 7
        elif command == TYPEMATIC:
            self.typematic = byte
        elif byte == 0:
            self.reply(ACK, self.set)
            return
        elif byte <= 3:
            self.set = byte
            self.clear_queue()
        else:
            self._command = command
            self.reply(RESEND)
            return
        self.reply(ACK)

    def _execute(self, byte: int) -> None:
        if byte == ECHO:
            self.reply(ECHO)
        elif byte == RESEND:
            self.reply(self._last)
        elif byte == RESET:
            self._stop_repeating()
            self.power_on()
            self.reply(ACK, BAT_PASSED)
        elif byte in WITH_ARGUMENT or byte in OF_KEYS:
            self._command = byte
            self.reply(ACK)
        elif byte == IDENTIFY:
            self.reply(ACK, *ID)
        elif byte in (ENABLE, DISABLE, DEFAULTS):
            self._stop_repeating()
            if byte == ENABLE:
                self.clear_queue()
            else:
                self._set_defaults()
            if byte != DEFAULTS:
                self.scanning = byte == ENABLE
            self.reply(ACK)
        elif ALL_TYPEMATIC <= byte <= ALL_TYPEMATIC_MAKE_BREAK:
            self._breaking = set(ALL_KEYS if byte in (ALL_MAKE_BREAK, ALL_TYPEMATIC_MAKE_BREAK) else ())
            self._repeating = set(ALL_KEYS if byte in (ALL_TYPEMATIC, ALL_TYPEMATIC_MAKE_BREAK) else ())
            self.reply(ACK)
        else:
            self.reply(RESEND)

    def _set_key_type(self, command: int, code: int) -> None:
        (self._breaking.add if command == KEY_MAKE_BREAK else self._breaking.discard)(code)
        (self._repeating.add if command == KEY_TYPEMATIC else self._repeating.discard)(code)

    # State

    def state(self) -> dict[str, Any]:
        return super().state() | {
            "leds": self.leds, "scanning": self.scanning, "set": self.set, "typematic": self.typematic,
            "breaking": sorted(self._breaking), "repeating": sorted(self._repeating), "typed": [list(event) for event in self._typed],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """A key that was held does not go on repeating."""
        super().restore(state)
        self._stop_repeating()
        self.leds, self.scanning, self.set, self.typematic = state["leds"], state["scanning"], state["set"], state["typematic"]
        self._breaking, self._repeating = set(state["breaking"]), set(state["repeating"])
        self._typed = deque((key, is_down) for key, is_down in state["typed"])
