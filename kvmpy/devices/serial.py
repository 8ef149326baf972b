"""16550A UART, register by register as in the NS PC16550D data sheet (June 1995).

Transmission takes no time: THRE and TEMT are always set, and a byte is at the host end when the OUT instruction is done.
Reception is paced by the guest: the FIFO (or RBR) is filled from a backlog whenever it has room, so host input never overruns it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from kvmpy.devices.base import Platform, Timer
from kvmpy.devices.bytewise import ByteDevice
from kvmpy.devices.chars import CharEnd, NullEnd
from kvmpy.irq import Line

# Registers by offset; DLL and DLM stand in for the first two while LCR.DLAB is set.
RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)
THR, FCR = RBR, IIR
DLL, DLM = 0, 1

IER_ERBFI = 0x01  # received data available, character timeout
IER_ETBEI = 0x02  # THR empty
IER_ELSI = 0x04  # line status
IER_EDSSI = 0x08  # modem status

IIR_NONE = 0x01
IIR_MODEM = 0x00
IIR_THRE = 0x02
IIR_DATA = 0x04
IIR_LINE = 0x06
IIR_TIMEOUT = 0x0C
IIR_FIFO = 0xC0  # FIFOs enabled

FCR_ENABLE = 0x01
FCR_CLEAR_RX = 0x02
FCR_CLEAR_TX = 0x04
FCR_DMA = 0x08

LCR_STOP2 = 0x04
LCR_PARITY = 0x08
LCR_BREAK = 0x40
LCR_DLAB = 0x80

MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08  # on a PC: connects INTR to the bus
MCR_LOOP = 0x10

LSR_DR = 0x01
LSR_OE = 0x02
LSR_PE = 0x04
LSR_FE = 0x08
LSR_BI = 0x10
LSR_THRE = 0x20
LSR_TEMT = 0x40
LSR_FIFO = 0x80  # a character with an error is in the FIFO

MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
MSR_TERI = 0x04  # RI went from on to off; the other three deltas are bits 0, 1 and 3

FIFO_SIZE = 16
TRIGGERS = (1, 4, 8, 14)
CLOCK = 1_843_200
DIVISOR_9600 = 12  # what a BIOS leaves; the chip's own reset leaves the divisor unknown
BYTES = tuple(bytes((value,)) for value in range(256))


class Serial(ByteDevice):
    """A UART at `base` (8 ports) on `line`; `host` takes its output and gives its input.

    `receive`, `receive_break` and `set_modem` are the other end of the cable; call them under the machine's lock.
    """

    size = 8

    def __init__(self, base: int, line: Line, host: CharEnd | None = None, name: str = "") -> None:
        self.ports = base, 8
        self.name = name or f"serial {base:#x}"
        self.line = line
        self.host: CharEnd = host or NullEnd()
        self._send = self.host.write
        self._modem = MSR_CTS | MSR_DSR | MSR_DCD  # a peer is there and ready
        self._backlog: deque[int] = deque()  # data | LSR error bits << 8, not yet received
        self._rx: deque[int] = deque()  # the receive FIFO, or RBR
        self._timer: Timer | None = None
        self._plain_read = (
            self._read_rbr, self._read_ier, self._read_iir, self._read_lcr, self._read_mcr,
            self._read_lsr, self._read_msr, self._read_scr,
        )
        self._dlab_read = (self._read_dll, self._read_dlm, *self._plain_read[2:])
        self._plain_write = (
            self._write_thr, self._write_ier, self._write_fcr, self._write_lcr, self._write_mcr,
            self._ignore, self._ignore, self._write_scr,
        )
        self._dlab_write = (self._write_dll, self._write_dlm, *self._plain_write[2:])
        self._divisor = DIVISOR_9600
        self._scr = 0
        self._clear()

    def connect(self, platform: Platform) -> None:
        super().connect(platform)
        self.host.attach(lambda data: platform.call(lambda: self.receive(data)))

    def _clear(self) -> None:
        """What master reset touches (data sheet, table "UART reset configuration")."""
        self._ier = self._fcr = self._mcr = 0
        self._set_lcr(0)
        self._thre = False  # THRE interrupt pending
        self._timeout = False  # character timeout pending
        self._deadline: int | None = None
        self._errors = 0  # LSR bits latched until LSR is read
        self._bad = 0  # characters with error bits behind the top of the FIFO
        self._rbr = 0
        self._rx.clear()
        self._msr = self._modem

    def reset(self) -> None:
        self._clear()
        self._update()
        self._fill()

    # Reads, in register order

    def read(self, offset: int, size: int) -> int:
        if size == 1:
            return self._reads[offset & 7]()
        return super().read(offset, size)

    def read_byte(self, offset: int) -> int:
        return self._reads[offset & 7]()

    def _read_rbr(self) -> int:
        if self._rx:
            self._rbr = self._rx.popleft() & self._mask  # here, so that input waiting from before LCR was set keeps its bits
            self._timeout = False
            self._surface()
            self._update()  # the line falls before the next character raises it
            self._fill()
        return self._rbr

    def _read_dll(self) -> int:
        return self._divisor & 0xFF

    def _read_ier(self) -> int:
        return self._ier

    def _read_dlm(self) -> int:
        return self._divisor >> 8

    def _read_iir(self) -> int:
        cause = self._cause()
        if cause == IIR_THRE:
            self._thre = False
            self._update()
        return cause | IIR_FIFO if self._fcr & FCR_ENABLE else cause

    def _read_lcr(self) -> int:
        return self._lcr

    def _read_mcr(self) -> int:
        return self._mcr

    def _read_lsr(self) -> int:
        value = LSR_TEMT | LSR_THRE | LSR_DR if self._rx else LSR_TEMT | LSR_THRE
        if self._errors or self._bad:
            value |= self._errors
            if self._bad and self._fcr & FCR_ENABLE:
                value |= LSR_FIFO
            self._errors = 0
            self._update()
        return value

    def _read_msr(self) -> int:
        value = self._msr
        if value & 0x0F:
            self._msr = value & 0xF0
            self._update()
        return value

    def _read_scr(self) -> int:
        return self._scr

    # Writes, in register order

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 1:
            self._writes[offset & 7](value & 0xFF)
        else:
            super().write(offset, size, value)

    def write_byte(self, offset: int, value: int) -> None:
        self._writes[offset & 7](value)

    def _write_thr(self, value: int) -> None:
        if self._mcr & MCR_LOOP:
            self._loop(value & self._mask)
        else:
            self._send(BYTES[value & self._mask])
        if self._ier & IER_ETBEI:
            self._thre = False  # THR is full for a moment: an edge for the interrupt controller
            self._update()
            self._thre = True
            self._update()

    def _write_dll(self, value: int) -> None:
        self._divisor = self._divisor & 0xFF00 | value

    def _write_ier(self, value: int) -> None:
        if (value ^ self._ier) & IER_ETBEI:
            self._thre = bool(value & IER_ETBEI)  # THR is empty: enabling interrupts at once
        self._ier = value & 0x0F
        self._update()

    def _write_dlm(self, value: int) -> None:
        self._divisor = self._divisor & 0x00FF | value << 8

    def _write_fcr(self, value: int) -> None:
        changed = (value ^ self._fcr) & FCR_ENABLE
        if not value & FCR_ENABLE:
            value = 0  # the other bits are programmed only together with the enable bit
        if changed or value & FCR_CLEAR_RX:
            self._rx.clear()
            self._bad = 0
            self._timeout = False
            self._errors &= ~LSR_FIFO
        self._fcr = value & ~(FCR_CLEAR_RX | FCR_CLEAR_TX)
        self._update()
        self._fill()

    def _write_lcr(self, value: int) -> None:
        if value & ~self._lcr & LCR_BREAK:
            self.platform.event(self, "break sent")
        self._set_lcr(value)

    def _set_lcr(self, value: int) -> None:
        self._lcr = value
        self._mask = 0xFF >> (3 - (value & 3))
        self._reads = self._dlab_read if value & LCR_DLAB else self._plain_read
        self._writes = self._dlab_write if value & LCR_DLAB else self._plain_write

    def _write_mcr(self, value: int) -> None:
        self._mcr = value & 0x1F
        self._move_modem()
        self._update()
        self._fill()

    def _write_scr(self, value: int) -> None:
        self._scr = value

    def _ignore(self, value: int) -> None:
        """LSR and MSR are for reading; writes serve factory tests."""

    # The interrupt output

    def _cause(self) -> int:
        """IIR bits 0-3: the pending interrupt of highest priority."""
        enabled = self._ier
        if enabled & IER_ELSI and self._errors:
            return IIR_LINE
        if enabled & IER_ERBFI and self._rx:
            if not self._fcr & FCR_ENABLE or len(self._rx) >= TRIGGERS[self._fcr >> 6]:
                return IIR_DATA
            if self._timeout:
                return IIR_TIMEOUT
        if self._thre:
            return IIR_THRE
        if enabled & IER_EDSSI and self._msr & 0x0F:
            return IIR_MODEM
        return IIR_NONE

    def _update(self) -> None:
        """INTR reaches the bus through OUT2, whose pin is inactive in loopback."""
        self.line.set(self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 and self._cause() != IIR_NONE)

    # The receiver

    def receive(self, data: bytes, errors: int = 0) -> None:
        """Characters arrive at SIN; `errors` are LSR bits (PE, FE, BI) that each of them carries."""
        self._backlog.extend(byte | errors << 8 for byte in data)
        self._fill()

    def receive_break(self) -> None:
        """SIN is low for longer than a character: one zero character with the break bit."""
        self.receive(b"\0", LSR_BI | LSR_FE)

    def _fill(self) -> None:
        if self._mcr & MCR_LOOP or not self._backlog:  # SIN is disconnected in loopback
            self._watch()
            return
        capacity = FIFO_SIZE if self._fcr & FCR_ENABLE else 1
        while self._backlog and len(self._rx) < capacity:
            self._push(self._backlog.popleft())
        self._watch()
        self._update()

    def _push(self, entry: int) -> None:
        self._rx.append(entry)
        if entry > 0xFF:
            self._bad += 1
            if len(self._rx) == 1:
                self._surface()

    def _surface(self) -> None:
        """Error bits show in LSR when their character is at the top of the FIFO."""
        if self._bad and self._rx and self._rx[0] > 0xFF:
            self._errors |= self._rx[0] >> 8 | (LSR_FIFO if self._fcr & FCR_ENABLE else 0)
            self._rx[0] &= 0xFF
            self._bad -= 1

    def _loop(self, value: int) -> None:
        """A character sent in loopback: with the receiver full, RBR is overwritten, a FIFO keeps what it has."""
        if self._fcr & FCR_ENABLE:
            if len(self._rx) >= FIFO_SIZE:
                self._errors |= LSR_OE
            else:
                self._push(value)
        else:
            if self._rx:
                self._errors |= LSR_OE
                self._rx.clear()
            self._push(value)
        self._watch()
        self._update()

    def _watch(self) -> None:
        """Restarts the character timeout: four character times without a character or a read."""
        if not self._rx or not self._fcr & FCR_ENABLE:
            self._deadline = None
            return
        lcr = self._lcr
        bits = 1 + 5 + (lcr & 3) + bool(lcr & LCR_PARITY) + 1 + bool(lcr & LCR_STOP2)
        self._deadline = self.platform.clock.now() + 4 * bits * 16 * (self._divisor or 1) * 1_000_000_000 // CLOCK
        if self._timer is None:  # one timer at a time: it looks at the deadline when it fires
            self._timer = self.platform.clock.at(self._deadline, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self.platform.clock.now() < self._deadline:
            self._timer = self.platform.clock.at(self._deadline, self._timer_fired)
            return
        self._deadline = None
        self._timeout = True
        self._update()

    # The modem lines

    def set_modem(self, lines: int) -> None:
        """The peer drives its lines: a combination of MSR_CTS, MSR_DSR, MSR_RI and MSR_DCD."""
        self._modem = lines & 0xF0
        self._move_modem()
        self._update()

    def _move_modem(self) -> None:
        lines = self._modem
        if self._mcr & MCR_LOOP:
            mcr = self._mcr
            lines = (mcr & MCR_RTS) << 3 | (mcr & MCR_DTR) << 5 | (mcr & MCR_OUT1) << 4 | (mcr & MCR_OUT2) << 4
        old = self._msr
        deltas = (old ^ lines) >> 4 & 0x0B
        if old & ~lines & MSR_RI:
            deltas |= MSR_TERI
        self._msr = lines | old & 0x0F | deltas

    # State

    def state(self) -> dict[str, Any]:
        due = None if self._deadline is None else self._deadline - self.platform.clock.now()
        return {
            "divisor": self._divisor, "ier": self._ier, "fcr": self._fcr, "lcr": self._lcr, "mcr": self._mcr, "msr": self._msr,
            "scr": self._scr, "rbr": self._rbr, "modem": self._modem, "errors": self._errors, "bad": self._bad, "thre": self._thre,
            "timeout": self._timeout, "timeout due": due, "rx": list(self._rx), "backlog": list(self._backlog),
        }

    def restore(self, state: dict[str, Any]) -> None:
        for key in ("divisor", "ier", "fcr", "mcr", "msr", "scr", "rbr", "modem", "errors", "bad", "thre", "timeout"):
            setattr(self, f"_{key}", state[key])
        self._set_lcr(state["lcr"])
        self._rx = deque(state["rx"])
        self._backlog = deque(state["backlog"])
        due = state["timeout due"]
        self._deadline = None if due is None else self.platform.clock.now() + due
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if self._deadline is None else self.platform.clock.at(self._deadline, self._timer_fired)
        self._update()

    def close(self) -> None:
        self.host.close()
