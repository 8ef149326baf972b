"""The UART, driven as drivers drive it."""

import pytest

from kvmpy.devices import serial as s
from kvmpy.devices.serial import Serial


class End:
    def __init__(self):
        self.out = bytearray()
        self.receive = None

    def write(self, data):
        self.out += data

    def attach(self, receive):
        self.receive = receive

    def close(self):
        pass


@pytest.fixture
def end():
    return End()


@pytest.fixture
def uart(platform, end, make_line):
    uart = Serial(0x3F8, make_line(4), end)
    uart.connect(platform)
    return uart


def inb(uart, register):
    return uart.read(register, 1)


def outb(uart, register, value):
    uart.write(register, 1, value)


def open_with_fifo(uart, trigger=0xC0, ier=s.IER_ERBFI):
    outb(uart, s.FCR, 0x07 | trigger)
    outb(uart, s.LCR, 3)
    outb(uart, s.MCR, s.MCR_DTR | s.MCR_RTS | s.MCR_OUT2)
    outb(uart, s.IER, ier)


def test_reset_values(uart):
    assert [inb(uart, r) for r in (s.IER, s.IIR, s.LCR, s.MCR, s.LSR)] == [0, 1, 0, 0, 0x60]
    assert inb(uart, s.MSR) == s.MSR_CTS | s.MSR_DSR | s.MSR_DCD


def test_polled_output(uart, end):
    outb(uart, s.LCR, 3)
    for byte in b"hello\n":
        assert inb(uart, s.LSR) & s.LSR_THRE
        outb(uart, s.THR, byte)
    assert end.out == b"hello\n"


def test_word_length_masks(uart, end):
    outb(uart, s.LCR, 2)
    outb(uart, s.THR, 0xC1)
    uart.receive(b"\xff")
    assert end.out == b"\x41" and inb(uart, s.RBR) == 0x7F


def test_input_from_before_a_reset_keeps_its_bits(uart):
    outb(uart, s.LCR, 3)
    uart.receive(b"ready")
    uart.reset()
    outb(uart, s.LCR, 3)
    assert bytes(inb(uart, s.RBR) for _ in range(4)) == b"eady"


def test_divisor_latch_hides_the_first_two(uart, end):
    outb(uart, s.LCR, 0x83)
    outb(uart, s.DLL, 0x34)
    outb(uart, s.DLM, 0x12)
    assert (inb(uart, 0), inb(uart, 1)) == (0x34, 0x12) and not end.out
    outb(uart, s.LCR, 3)
    assert inb(uart, s.IER) == 0


def test_wide_access_is_consecutive_bytes(uart, end):
    outb(uart, s.LCR, 3)
    uart.write(0, 2, 0x0F41)
    assert end.out == b"A" and inb(uart, s.IER) == 0x0F
    assert uart.read(5, 4) >> 24 == 0xFF


def test_linux_autoconfig(uart):
    """The probe of Linux: IER sticks in its low four bits, loopback shows 0x90, FIFOs in IIR, scratch, no enhanced features."""
    outb(uart, s.IER, 0)
    assert inb(uart, s.IER) & 0x0F == 0
    outb(uart, s.IER, 0x0F)
    assert inb(uart, s.IER) & 0x0F == 0x0F
    outb(uart, s.IER, 0)
    outb(uart, s.MCR, s.MCR_LOOP | s.MCR_OUT2 | s.MCR_RTS)
    assert inb(uart, s.MSR) & 0xF0 == 0x90
    outb(uart, s.MCR, 0)
    outb(uart, s.LCR, 0xBF)
    outb(uart, 2, 0)
    outb(uart, s.LCR, 0)
    outb(uart, s.FCR, 1)
    assert inb(uart, s.IIR) >> 6 == 3
    outb(uart, s.LCR, 0x80)
    assert inb(uart, 2) != 0  # no EFR
    outb(uart, s.LCR, 0)
    outb(uart, s.IER, 0x40)
    assert inb(uart, s.IER) == 0  # no XScale unit enable
    outb(uart, s.SCR, 0xA5)
    assert inb(uart, s.SCR) == 0xA5


def test_linux_startup_sees_no_thre_bug(uart):
    """Enabling ETBEI interrupts each time; while enabled, IIR shows it."""
    for _ in range(2):
        outb(uart, s.IER, s.IER_ETBEI)
        assert inb(uart, s.IIR) & 1 == 0
        outb(uart, s.IER, 0)
        assert inb(uart, s.IIR) & 1 == 1


def test_thre_interrupt(uart):
    open_with_fifo(uart, ier=0)
    outb(uart, s.IER, s.IER_ETBEI)
    assert uart.line.level == 1
    assert inb(uart, s.IIR) == 0xC0 | s.IIR_THRE
    assert uart.line.level == 0 and inb(uart, s.IIR) == 0xC1
    outb(uart, s.IER, s.IER_ETBEI)  # no new edge of the enable bit
    assert uart.line.level == 0
    outb(uart, s.THR, 0x41)
    assert uart.line.level == 1
    edges = uart.line.edges
    outb(uart, s.THR, 0x42)  # not acknowledged: the line falls while THR is full, then rises again
    assert uart.line.level == 1 and uart.line.edges == edges + 1


def test_out2_gates_the_line(uart):
    outb(uart, s.IER, s.IER_ERBFI)
    uart.receive(b"x")
    assert uart.line.level == 0 and inb(uart, s.IIR) == s.IIR_DATA
    outb(uart, s.MCR, s.MCR_OUT2)
    assert uart.line.level == 1
    outb(uart, s.MCR, s.MCR_OUT2 | s.MCR_LOOP)
    assert uart.line.level == 0


def test_character_mode_interrupts_for_each_byte(uart):
    outb(uart, s.LCR, 3)
    outb(uart, s.MCR, s.MCR_OUT2)
    outb(uart, s.IER, s.IER_ERBFI)
    uart.receive(b"abc")
    got = bytearray()
    while uart.line.level:
        got.append(inb(uart, s.RBR))
    assert got == b"abc" and uart.line.edges == 3
    assert inb(uart, s.RBR) == ord("c")  # RBR keeps the last


@pytest.mark.parametrize(("code", "level"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_trigger_levels(uart, code, level):
    open_with_fifo(uart, trigger=code)
    for count in range(1, 17):
        uart.receive(b"x")
        assert (inb(uart, s.IIR) == 0xC0 | s.IIR_DATA) == (count >= level)
    for left in range(15, -1, -1):
        inb(uart, s.RBR)
        assert uart.line.level == (left >= level)


def test_character_timeout(uart, clock):
    open_with_fifo(uart)
    outb(uart, s.LCR, 0x83)
    outb(uart, s.DLL, 1)
    outb(uart, s.LCR, 3)
    character = 10 * 16 * 1_000_000_000 // s.CLOCK
    uart.receive(b"ab")
    clock.advance(3 * character)
    assert inb(uart, s.IIR) == 0xC1
    uart.receive(b"c")  # restarts it
    clock.advance(3 * character)
    assert uart.line.level == 0
    clock.advance(2 * character)
    assert inb(uart, s.IIR) == 0xC0 | s.IIR_TIMEOUT and uart.line.level == 1
    assert inb(uart, s.RBR) == ord("a") and uart.line.level == 0
    clock.advance(5 * character)
    assert uart.line.level == 1
    assert inb(uart, s.RBR) == ord("b") and inb(uart, s.RBR) == ord("c") and uart.line.level == 0
    clock.advance(50 * character)
    assert uart.line.level == 0 and clock.pending() == 0


def test_host_input_never_overruns(uart):
    open_with_fifo(uart)
    text = bytes(range(200)) * 5
    uart.receive(text)
    got = bytearray()
    while inb(uart, s.LSR) & s.LSR_DR:
        got.append(inb(uart, s.RBR))
    assert got == text


def test_priorities(uart):
    open_with_fifo(uart, trigger=0, ier=0x0F)
    uart.set_modem(s.MSR_CTS)
    uart.receive(b"x", s.LSR_PE)
    assert inb(uart, s.IIR) == 0xC0 | s.IIR_LINE
    assert inb(uart, s.LSR) == 0x60 | s.LSR_DR | s.LSR_PE | s.LSR_FIFO
    assert inb(uart, s.IIR) == 0xC0 | s.IIR_DATA
    inb(uart, s.RBR)
    assert inb(uart, s.IIR) == 0xC0 | s.IIR_THRE
    assert inb(uart, s.IIR) == 0xC0 | s.IIR_MODEM
    assert inb(uart, s.MSR) == s.MSR_CTS | 0x08 | 0x02
    assert inb(uart, s.IIR) == 0xC1 and uart.line.level == 0


def test_errors_surface_with_their_character(uart):
    open_with_fifo(uart, ier=s.IER_ELSI)
    uart.receive(b"a")
    uart.receive_break()
    uart.receive(b"b")
    assert inb(uart, s.LSR) == 0x60 | s.LSR_DR | s.LSR_FIFO and uart.line.level == 0
    inb(uart, s.RBR)
    assert uart.line.level == 1
    assert inb(uart, s.LSR) == 0x60 | s.LSR_DR | s.LSR_BI | s.LSR_FE | s.LSR_FIFO
    assert inb(uart, s.LSR) == 0x60 | s.LSR_DR
    assert inb(uart, s.RBR) == 0 and inb(uart, s.RBR) == ord("b")


def test_loopback_data_and_overrun(uart, end):
    outb(uart, s.LCR, 3)
    outb(uart, s.MCR, s.MCR_LOOP)
    outb(uart, s.THR, 0xAE)
    assert inb(uart, s.RBR) == 0xAE and not end.out
    outb(uart, s.THR, 1)
    outb(uart, s.THR, 2)
    assert inb(uart, s.LSR) & s.LSR_OE and not inb(uart, s.LSR) & s.LSR_OE
    assert inb(uart, s.RBR) == 2  # RBR is overwritten
    outb(uart, s.FCR, 1)
    for value in range(18):
        outb(uart, s.THR, value)
    assert inb(uart, s.LSR) & s.LSR_OE
    assert [inb(uart, s.RBR) for _ in range(16)] == list(range(16))  # a FIFO keeps what it has
    assert not inb(uart, s.LSR) & s.LSR_DR


def test_loopback_disconnects_the_host(uart):
    outb(uart, s.LCR, 3)
    outb(uart, s.MCR, s.MCR_LOOP)
    uart.receive(b"z")
    assert not inb(uart, s.LSR) & s.LSR_DR
    outb(uart, s.MCR, 0)
    assert inb(uart, s.RBR) == ord("z")


@pytest.mark.parametrize(
    ("mcr", "msr"), [(s.MCR_RTS, s.MSR_CTS), (s.MCR_DTR, s.MSR_DSR), (s.MCR_OUT1, s.MSR_RI), (s.MCR_OUT2, s.MSR_DCD)]
)
def test_loopback_modem_lines(uart, mcr, msr):
    outb(uart, s.MCR, s.MCR_LOOP)
    inb(uart, s.MSR)
    outb(uart, s.MCR, s.MCR_LOOP | mcr)
    assert inb(uart, s.MSR) & 0xF0 == msr
    outb(uart, s.MCR, s.MCR_LOOP)
    assert inb(uart, s.MSR) == (s.MSR_TERI if msr == s.MSR_RI else msr >> 4)


def test_fcr_needs_its_enable_bit_and_clears_on_change(uart):
    outb(uart, s.FCR, 0xC6)
    assert inb(uart, s.IIR) == 1
    uart.receive(b"q")
    outb(uart, s.FCR, 0x01)
    assert not inb(uart, s.LSR) & s.LSR_DR
    uart.receive(b"qq")
    outb(uart, s.FCR, 0x03)
    assert not inb(uart, s.LSR) & s.LSR_DR


def test_input_through_the_platform(uart, end):
    outb(uart, s.LCR, 3)
    end.receive(b"k")
    assert inb(uart, s.RBR) == ord("k")


def test_state_in_the_middle(uart, platform, make_platform, make_line):
    open_with_fifo(uart)
    uart.receive(b"0123456789abcdefghij")
    inb(uart, s.RBR)
    for _ in range(13):
        inb(uart, s.RBR)
    state = uart.state()
    twin = Serial(0x3F8, make_line(4))
    other = make_platform()
    other.clock.time = 123_456_789
    twin.connect(other)
    twin.restore(state)
    for clock in (platform.clock, other.clock):
        clock.advance(10_000_000)
    assert twin.state() == uart.state()
    assert [inb(twin, s.IIR), twin.line.level] == [inb(uart, s.IIR), uart.line.level] == [0xC0 | s.IIR_TIMEOUT, 1]
    assert bytes(inb(twin, s.RBR) for _ in range(6)) == b"efghij"


def test_reset_keeps_scratch_and_drops_the_line(uart):
    open_with_fifo(uart, trigger=0)
    uart.receive(b"x")
    outb(uart, s.SCR, 7)
    uart.reset()
    assert uart.line.level == 0 and inb(uart, s.SCR) == 7 and inb(uart, s.MCR) == 0
