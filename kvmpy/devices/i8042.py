"""Keyboard controller of the PS/2 (Intel 8042) at ports 0x60 and 0x64, with a keyboard and a mouse.

A byte of a device follows the previous one after the time that its transmission takes, so a handler may read port 0x60 twice.
The controller starts as a BIOS leaves it: keyboard on, translation and IRQ 1 enabled, mouse off.
"""

from __future__ import annotations

from typing import Any

from kvmpy.devices.base import Platform, Timer
from kvmpy.devices.bytewise import ByteDevice
from kvmpy.devices.keys import Translator
from kvmpy.devices.port92 import A20Gate
from kvmpy.devices.ps2 import Ps2Device
from kvmpy.devices.ps2_keyboard import Ps2Keyboard
from kvmpy.devices.ps2_mouse import Ps2Mouse
from kvmpy.irq import Line
from kvmpy.verdicts import Reset

DATA, STATUS = 0, 1  # offsets: ports 0x60 and 0x64
COMMAND = STATUS

OBF = 0x01  # the output buffer holds a byte
SYSTEM_FLAG = 0x04
LAST_WAS_COMMAND = 0x08
UNLOCKED = 0x10
AUX_OBF = 0x20  # it is the mouse's

INT_KEYBOARD, INT_AUX, CONFIG_SYSTEM, NO_KEYBOARD, NO_AUX, TRANSLATE = 0x01, 0x02, 0x04, 0x10, 0x20, 0x40
BOOT_CONFIG = INT_KEYBOARD | CONFIG_SYSTEM | NO_AUX | TRANSLATE

READ_RAM, WRITE_RAM = 0x20, 0x60  # and the 31 after each; byte 0 is the configuration
PASSWORD_TEST, AUX_OFF, AUX_ON, AUX_TEST = 0xA4, 0xA7, 0xA8, 0xA9
SELF_TEST, KEYBOARD_TEST, KEYBOARD_OFF, KEYBOARD_ON = 0xAA, 0xAB, 0xAD, 0xAE
READ_INPUT, READ_OUTPUT, WRITE_OUTPUT, WRITE_KEYBOARD_BUFFER, WRITE_AUX_BUFFER, WRITE_AUX = 0xC0, 0xD0, 0xD1, 0xD2, 0xD3, 0xD4
A20_OFF, A20_ON, READ_TEST, PULSE = 0xDD, 0xDF, 0xE0, 0xF0
WITH_ARGUMENT = (WRITE_OUTPUT, WRITE_KEYBOARD_BUFFER, WRITE_AUX_BUFFER, WRITE_AUX)

OUT_NO_RESET, OUT_A20, OUT_OBF, OUT_AUX_OBF, OUT_IDLE = 0x01, 0x02, 0x10, 0x20, 0xC0
INPUT_PORT = 0x80  # keyboard not locked
NO_PASSWORD = 0xF1
SELF_TEST_PASSED = 0x55

BYTE_TIME = 700_000
"""ns from the guest's read of a device's byte to that device's next: 11 bits at 16 kHz."""


class I8042(ByteDevice):
    """`irq1` and `irq12` are levels: high while the output buffer holds a byte of keyboard or mouse.

    `keyboard` and `mouse` are where a user presses and moves; `press` and `type` go to the keyboard.
    """

    name = "i8042"
    ports = (0x60, 1), (0x64, 1)
    size = 1  # a wide access must not run from one port into the other, which is not its neighbour

    def __init__(self, irq1: Line, irq12: Line, a20: A20Gate | None = None) -> None:
        self.irq1, self.irq12 = irq1, irq12
        self.a20 = a20 or A20Gate()
        self.keyboard, self.mouse = Ps2Keyboard(), Ps2Mouse()
        self.keyboard.notify = self.mouse.notify = self._pump
        self.press, self.type = self.keyboard.press, self.keyboard.type
        self._translator = Translator()
        self._timer: Timer | None = None
        self._pumping = False
        self._clear()

    def connect(self, platform: Platform) -> None:
        super().connect(platform)
        self.keyboard.clock = platform.clock

    def _clear(self) -> None:
        self._ram = bytearray(32)
        self._ram[0] = BOOT_CONFIG
        self._status = UNLOCKED
        self._buffer = 0
        self._own: tuple[int, int] | None = None  # reply of the controller and its AUX_OBF bit, waiting for the buffer
        self._argument: int | None = None  # command that waits for a byte at port 0x60
        self._ready = 0  # when a device's next byte may come
        self._translator.breaking = False

    def reset(self) -> None:
        self.keyboard.power_on()
        self.mouse.power_on()
        self._clear()
        self.a20.enabled = True
        self._drive()

    # Registers

    def read_byte(self, offset: int) -> int:
        if offset == STATUS:
            self._pump()
            return self._status | self._ram[0] & CONFIG_SYSTEM
        value = self._buffer
        if self._status & OBF:
            self._status &= ~(OBF | AUX_OBF)
            self._drive()
            self._ready = self.platform.clock.now() + BYTE_TIME
            self._pump()
        return value

    def write_byte(self, offset: int, value: int) -> None:
        if offset == COMMAND:
            self._status |= LAST_WAS_COMMAND
            self._argument = None
            self._command(value)
        else:
            self._status &= ~LAST_WAS_COMMAND
            command, self._argument = self._argument, None
            self._data(command, value)
        self._pump()

    def _command(self, value: int) -> None:
        if READ_RAM <= value < READ_RAM + 32:
            self._reply(self._ram[value - READ_RAM])
        elif WRITE_RAM <= value < WRITE_RAM + 32 or value in WITH_ARGUMENT:
            self._argument = value
        elif value in (AUX_OFF, AUX_ON):
            self._configure(NO_AUX, value == AUX_OFF)
        elif value in (KEYBOARD_OFF, KEYBOARD_ON):
            self._configure(NO_KEYBOARD, value == KEYBOARD_OFF)
        elif value in (AUX_TEST, KEYBOARD_TEST):
            self._reply(0)
        elif value == SELF_TEST:
            self._ram[0] |= CONFIG_SYSTEM
            self._reply(SELF_TEST_PASSED)
        elif value == PASSWORD_TEST:
            self._reply(NO_PASSWORD)
        elif value == READ_INPUT:
            self._reply(INPUT_PORT)
        elif value == READ_OUTPUT:
            self._reply(self._output_port())
        elif value in (A20_OFF, A20_ON):
            self.a20.enabled = value == A20_ON
        elif value == READ_TEST:
            self._reply(0)
        elif value >= PULSE:
            if not value & OUT_NO_RESET:
                self.platform.stop(Reset(self.name))
        else:
            self.platform.event(self, "unknown command", command=value)

    def _data(self, command: int | None, value: int) -> None:
        if command is None:
            self._configure(NO_KEYBOARD, False)  # sending turns the interface on
            self.keyboard.send(value)
        elif command == WRITE_AUX:
            self._configure(NO_AUX, False)
            self.mouse.send(value)
        elif command == WRITE_OUTPUT:
            self.a20.enabled = bool(value & OUT_A20)
            if not value & OUT_NO_RESET:
                self.platform.stop(Reset(self.name))
        elif command == WRITE_KEYBOARD_BUFFER:
            self._reply(value)
        elif command == WRITE_AUX_BUFFER:
            self._reply(value, AUX_OBF)
        else:
            self._ram[command - WRITE_RAM] = value
            self._drive()

    def _configure(self, bit: int, on: bool) -> None:
        self._ram[0] = self._ram[0] & ~bit | (bit if on else 0)

    def _output_port(self) -> int:
        value = OUT_IDLE | OUT_NO_RESET | (OUT_A20 if self.a20.enabled else 0)
        if self._status & OBF:
            value |= OUT_AUX_OBF if self._status & AUX_OBF else OUT_OBF
        return value

    # The output buffer

    def _reply(self, value: int, aux: int = 0) -> None:
        """The controller's own byte goes before any device's; a later one replaces one that has not gone out."""
        self._own = value, aux

    def _pump(self) -> None:
        """Fills the output buffer if it is empty, something wants to go, and its time has come."""
        if self._status & OBF or self._pumping:
            return
        self._pumping = True  # taking a device's last byte makes it offer the next ones
        try:
            self._fetch()
        finally:
            self._pumping = False

    def _fetch(self) -> None:
        if self._own is not None:
            (value, aux), self._own = self._own, None
            self._fill(value, aux)
            return
        while True:
            source = self._source()
            if source is None:
                return
            now = self.platform.clock.now()
            if now < self._ready:
                if self._timer is None:
                    self._timer = self.platform.clock.at(self._ready, self._timer_fired)
                return
            value = source.take()
            if source is self.mouse:
                self._fill(value, AUX_OBF)
                return
            if not self._ram[0] & TRANSLATE:
                self._fill(value, 0)
                return
            translated = self._translator.take(value)
            if translated is not None:
                self._fill(translated, 0)
                return

    def _source(self) -> Ps2Device | None:
        if self.keyboard.pending() and not self._ram[0] & NO_KEYBOARD:
            return self.keyboard
        if self.mouse.pending() and not self._ram[0] & NO_AUX:
            return self.mouse
        return None

    def _timer_fired(self) -> None:
        self._timer = None
        self._pump()

    def _fill(self, value: int, aux: int) -> None:
        self._buffer = value
        self._status |= OBF | aux
        self._drive()

    def _drive(self) -> None:
        full, aux = self._status & OBF, self._status & AUX_OBF
        self.irq1.set(bool(full and not aux and self._ram[0] & INT_KEYBOARD))
        self.irq12.set(bool(full and aux and self._ram[0] & INT_AUX))

    # State

    def state(self) -> dict[str, Any]:
        return {
            "ram": bytes(self._ram), "status": self._status, "buffer": self._buffer, "own": list(self._own) if self._own else None,
            "argument": self._argument, "ready in": max(0, self._ready - self.platform.clock.now()), "breaking": self._translator.breaking,
            "a20": self.a20.enabled, "keyboard": self.keyboard.state(), "mouse": self.mouse.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._ram = bytearray(state["ram"])
        self._status, self._buffer, self._argument = state["status"], state["buffer"], state["argument"]
        self._own = (state["own"][0], state["own"][1]) if state["own"] else None
        self._ready = self.platform.clock.now() + state["ready in"]
        self._translator.breaking = state["breaking"]
        self.a20.enabled = state["a20"]
        self.keyboard.restore(state["keyboard"])
        self.mouse.restore(state["mouse"])
        self._drive()
        self._pump()
