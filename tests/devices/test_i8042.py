"""Keyboard controller, keyboard and mouse, driven as a BIOS, DOS programs and Linux drive them."""

import pytest

from kvmpy.devices import i8042 as k
from kvmpy.devices.i8042 import I8042
from kvmpy.devices.keys import CHARACTERS, SEQUENCES, SET2, SET3
from kvmpy.devices.ps2_mouse import LEFT, RIGHT, SIDE
from kvmpy.verdicts import Reset


@pytest.fixture
def kbc(platform, make_line):
    kbc = I8042(make_line(1), make_line(12))
    kbc.connect(platform)
    return kbc


def status(kbc):
    return kbc.read(k.STATUS, 1)


def command(kbc, value, *arguments):
    kbc.write(k.COMMAND, 1, value)
    for argument in arguments:
        kbc.write(k.DATA, 1, argument)


def drain(kbc, clock):
    """Everything that comes, at the devices' pace."""
    got = []
    for _ in range(1000):
        if not status(kbc) & k.OBF:
            clock.advance(k.BYTE_TIME)
            if not status(kbc) & k.OBF:
                break
        got.append(kbc.read(k.DATA, 1))
    return got


def config(kbc, value):
    command(kbc, k.WRITE_RAM, value)


def to_keyboard(kbc, clock, *values):
    got = []
    for value in values:
        kbc.write(k.DATA, 1, value)
        got += drain(kbc, clock)
    return got


def to_mouse(kbc, clock, *values):
    got = []
    for value in values:
        command(kbc, k.WRITE_AUX, value)
        while True:
            if not status(kbc) & k.OBF:
                clock.advance(k.BYTE_TIME)
                if not status(kbc) & k.OBF:
                    break
            assert status(kbc) & k.AUX_OBF
            got.append(kbc.read(k.DATA, 1))
    return got


def test_controller_commands(kbc, clock):
    command(kbc, k.SELF_TEST)
    assert status(kbc) == k.OBF | k.SYSTEM_FLAG | k.LAST_WAS_COMMAND | k.UNLOCKED
    assert drain(kbc, clock) == [0x55]
    tests = (k.KEYBOARD_TEST, 0), (k.AUX_TEST, 0), (k.PASSWORD_TEST, 0xF1), (k.READ_INPUT, 0x80)
    for value, answer in ((k.READ_RAM, k.BOOT_CONFIG), *tests):
        command(kbc, value)
        assert drain(kbc, clock) == [answer]
    command(kbc, k.WRITE_RAM + 5, 0x99)
    command(kbc, k.READ_RAM + 5)
    assert drain(kbc, clock) == [0x99]
    command(kbc, k.AUX_ON)
    command(kbc, k.KEYBOARD_OFF)
    command(kbc, k.READ_RAM)
    assert drain(kbc, clock) == [k.BOOT_CONFIG & ~k.NO_AUX | k.NO_KEYBOARD]
    command(kbc, 0x11)
    assert drain(kbc, clock) == []


def test_a20_by_output_port(kbc, clock):
    command(kbc, k.WRITE_OUTPUT, 0xDD)
    assert not kbc.a20.enabled
    command(kbc, k.READ_OUTPUT)
    assert drain(kbc, clock)[0] & 3 == 1
    command(kbc, k.WRITE_OUTPUT, 0xDF)
    assert kbc.a20.enabled
    command(kbc, k.A20_OFF)
    assert not kbc.a20.enabled
    kbc.reset()
    assert kbc.a20.enabled


@pytest.mark.parametrize("way", [(0xFE,), (0xF0,), (k.WRITE_OUTPUT, 0x02)])
def test_reset_line(kbc, platform, way):
    command(kbc, *way)
    assert platform.verdicts == [Reset("i8042")]


def test_pulse_of_nothing_does_nothing(kbc, platform):
    command(kbc, 0xFF)
    assert not platform.verdicts


def test_key_by_interrupt_in_set_1(kbc, clock):
    kbc.press("a")
    assert kbc.irq1.level == 1 and kbc.read(k.DATA, 1) == 0x1E
    assert kbc.irq1.level == 0 and kbc.read(k.DATA, 1) == 0x1E  # a chained handler reads it again
    clock.advance(k.BYTE_TIME * 2)
    assert kbc.irq1.level == 1 and kbc.read(k.DATA, 1) == 0x9E
    clock.advance(k.BYTE_TIME * 2)
    assert kbc.irq1.level == 0 and kbc.irq1.edges == 2


def test_polling_alone_moves_the_bytes(kbc, platform):
    """No timer runs: the status register looks at the time itself."""
    kbc.press("up")
    got = []
    for _ in range(40):
        platform.clock.time += 100_000
        if status(kbc) & k.OBF:
            got.append(kbc.read(k.DATA, 1))
    assert got == [0xE0, 0x48, 0xE0, 0xC8]


def test_sets_without_translation(kbc, clock):
    config(kbc, k.BOOT_CONFIG & ~k.TRANSLATE)
    kbc.press("up")
    assert drain(kbc, clock) == [0xE0, 0x75, 0xE0, 0xF0, 0x75]
    assert to_keyboard(kbc, clock, 0xF0, 1) == [0xFA, 0xFA]
    kbc.press("up")
    assert drain(kbc, clock) == [0xE0, 0x48, 0xE0, 0xC8]
    assert to_keyboard(kbc, clock, 0xF0, 3, 0xF0, 0) == [0xFA, 0xFA, 0xFA, 0xFA, 3]
    kbc.press("up")
    assert drain(kbc, clock) == [0x63]
    assert to_keyboard(kbc, clock, 0xF8) == [0xFA]
    kbc.press("up")
    assert drain(kbc, clock) == [0x63, 0xF0, 0x63]
    assert to_keyboard(kbc, clock, 0xFD, 0x63, 0xF4) == [0xFA] * 3
    kbc.press("up")
    assert drain(kbc, clock) == [0x63]
    assert to_keyboard(kbc, clock, 0xF0, 9) == [0xFA, 0xFE]


def test_keyboard_probe_of_linux(kbc, clock):
    config(kbc, k.BOOT_CONFIG & ~k.INT_KEYBOARD)
    assert to_keyboard(kbc, clock, 0xFF) == [0xFA, 0xAA]
    assert to_keyboard(kbc, clock, 0xF2) == [0xFA, 0xAB, 0x41]  # translated
    assert to_keyboard(kbc, clock, 0xED, 0x02) == [0xFA, 0xFA] and kbc.keyboard.leds == 2
    assert to_keyboard(kbc, clock, 0xF3, 0x00, 0xF4) == [0xFA] * 3
    assert kbc.irq1.edges == 0


def test_keyboard_echo_resend_unknown_and_interrupted_argument(kbc, clock):
    assert to_keyboard(kbc, clock, 0xEE, 0xFE, 0x10) == [0xEE, 0xEE, 0xFE]
    assert to_keyboard(kbc, clock, 0xED, 0xEE) == [0xFA, 0xEE]
    assert kbc.keyboard.leds == 0


def test_keyboard_disable_and_interface_off(kbc, clock):
    assert to_keyboard(kbc, clock, 0xF5) == [0xFA]
    kbc.keyboard.down("x")
    assert drain(kbc, clock) == []
    assert to_keyboard(kbc, clock, 0xF4) == [0xFA]
    command(kbc, k.KEYBOARD_OFF)
    kbc.press("x")
    assert drain(kbc, clock) == []
    command(kbc, k.KEYBOARD_ON)
    assert drain(kbc, clock) == [0x2D, 0xAD]


def test_typed_text_of_any_length(kbc, clock):
    text = "Hello, World! ~/x_y\t\n" * 20
    kbc.type(text)
    makes = {SEQUENCES[1][key][0][0]: key for key in SET2 if len(SEQUENCES[1][key][0]) == 1}
    plain = {key: character for character, (key, shifted) in CHARACTERS.items() if not shifted and character not in "\r"}
    shift = {key: character for character, (key, shifted) in CHARACTERS.items() if shifted}
    shifted, typed = False, ""
    for _ in range(3):
        for code in drain(kbc, clock):
            key = makes[code & 0x7F]
            if key == "shift":
                shifted = not code & 0x80
            elif not code & 0x80:
                typed += (shift if shifted else plain)[key]
    assert typed == text
    with pytest.raises(ValueError, match="é"):
        kbc.type("é")
    with pytest.raises(KeyError):
        kbc.press("a", "nokey")
    assert drain(kbc, clock) == []


def test_chord_and_pause(kbc, clock):
    kbc.press("ctrl", "alt", "delete")
    assert drain(kbc, clock) == [0x1D, 0x38, 0xE0, 0x53, 0xE0, 0xD3, 0xB8, 0x9D]
    kbc.press("pause")
    assert drain(kbc, clock) == [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5]
    kbc.press("printscreen")
    assert drain(kbc, clock) == [0xE0, 0x2A, 0xE0, 0x37, 0xE0, 0xB7, 0xE0, 0xAA]


def test_set_1_is_the_layout_of_the_xt():
    ones = {key: make[0] for key, (make, _) in SEQUENCES[1].items() if len(make) == 1}
    assert [ones[c] for c in "1234567890"] == list(range(2, 12))
    assert [ones[c] for c in "qwertyuiop"] == list(range(0x10, 0x1A))
    assert [ones[c] for c in "asdfghjkl"] == list(range(0x1E, 0x27))
    assert [ones[c] for c in "zxcvbnm"] == list(range(0x2C, 0x33))
    assert [ones[f"f{n}"] for n in range(1, 13)] == [*range(0x3B, 0x45), 0x57, 0x58]
    assert (ones["escape"], ones["space"], ones["capslock"], ones["less"]) == (1, 0x39, 0x3A, 0x56)
    assert len(set(ones.values())) == len(ones) and len(set(SET3.values())) == len(SET3)


def test_typematic(kbc, clock):
    config(kbc, k.BOOT_CONFIG & ~k.TRANSLATE)
    to_keyboard(kbc, clock, 0xF3, 0x00)  # 30 per second after 250 ms
    kbc.keyboard.down("a")
    assert drain(kbc, clock) == [0x1C]
    repeats = 0
    for _ in range(1250):
        clock.advance(1_000_000)
        repeats += len(drain(kbc, clock)) if status(kbc) & k.OBF else 0
    assert 27 <= repeats <= 60
    kbc.keyboard.up("a")
    assert drain(kbc, clock) == [0xF0, 0x1C]
    clock.advance(2_000_000_000)
    assert not status(kbc) & k.OBF


def test_aux_loopback_of_linux(kbc, clock):
    command(kbc, k.WRITE_AUX_BUFFER, 0x5A)
    assert status(kbc) & (k.OBF | k.AUX_OBF) == k.OBF | k.AUX_OBF and kbc.read(k.DATA, 1) == 0x5A
    config(kbc, k.INT_AUX | k.TRANSLATE)
    command(kbc, k.WRITE_AUX_BUFFER, 0xA5)
    assert kbc.irq12.level == 1 and kbc.irq1.level == 0
    assert kbc.read(k.DATA, 1) == 0xA5 and kbc.irq12.level == 0
    config(kbc, k.INT_KEYBOARD)
    command(kbc, k.WRITE_KEYBOARD_BUFFER, 0x1E)
    assert kbc.irq1.level == 1 and kbc.read(k.DATA, 1) == 0x1E


def test_mouse_standard_packets(kbc, clock):
    assert to_mouse(kbc, clock, 0xFF) == [0xFA, 0xAA, 0x00]
    assert to_mouse(kbc, clock, 0xF2) == [0xFA, 0x00]
    kbc.mouse.move(5, 5)
    assert drain(kbc, clock) == []
    assert to_mouse(kbc, clock, 0xF4) == [0xFA]
    kbc.mouse.move(3, -2)
    assert drain(kbc, clock) == [0x08 | 0x20, 3, 0xFE]
    kbc.mouse.buttons(LEFT | RIGHT)
    assert drain(kbc, clock) == [0x0B, 0, 0]
    kbc.mouse.move(300, 0)
    moved = drain(kbc, clock)
    assert sum(moved[1::3]) == 300 and set(moved[0::3]) == {0x0B}


def test_mouse_wheel_and_five_buttons(kbc, clock):
    assert to_mouse(kbc, clock, 0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF2)[-1] == 3
    to_mouse(kbc, clock, 0xF4)
    kbc.mouse.move(0, 0, -1)
    assert drain(kbc, clock) == [0x08, 0, 0, 0xFF]
    assert to_mouse(kbc, clock, 0xF3, 200, 0xF3, 200, 0xF3, 80, 0xF2)[-1] == 4
    kbc.mouse.buttons(SIDE)
    assert drain(kbc, clock) == [0x08, 0, 0, 0x10]


def test_mouse_remote_wrap_status_and_errors(kbc, clock):
    assert to_mouse(kbc, clock, 0xF0, 0xE7, 0xE8, 3) == [0xFA] * 4
    kbc.mouse.move(7, 0)
    assert to_mouse(kbc, clock, 0xEB) == [0xFA, 0x08, 7, 0]
    kbc.mouse.buttons(LEFT)
    assert to_mouse(kbc, clock, 0xE9) == [0xFA, 0x40 | 0x10 | 4, 3, 100]
    assert to_mouse(kbc, clock, 0xEE, 0x12, 0xF2, 0xEC) == [0xFA, 0x12, 0xF2, 0xFA]
    assert to_mouse(kbc, clock, 0x00, 0xE8, 9) == [0xFE, 0xFA, 0xFE]


def test_keyboard_goes_before_mouse_and_bytes_keep_their_owner(kbc, clock):
    to_mouse(kbc, clock, 0xF4)
    kbc.mouse.move(1, 1)
    kbc.press("a")
    owners = []
    for _ in range(5):
        clock.advance(k.BYTE_TIME)
        owners.append((bool(status(kbc) & k.AUX_OBF), kbc.read(k.DATA, 1)))
    assert sorted(owners) == [(False, 0x1E), (False, 0x9E), (True, 1), (True, 1), (True, 8)]


def test_state_in_the_middle(kbc, clock, make_platform, make_line):
    to_mouse(kbc, clock, 0xF4)
    kbc.mouse.move(1000, 0)
    kbc.type("a long line of text that does not fit into the queue\n")
    kbc.read(k.DATA, 1)
    command(kbc, k.WRITE_RAM)
    twin = I8042(make_line(1), make_line(12))
    other = make_platform()
    other.clock.time = 5_000_000_000
    twin.connect(other)
    twin.restore(kbc.state())
    for one in (kbc, twin):
        one.write(k.DATA, 1, k.INT_KEYBOARD | k.INT_AUX | k.TRANSLATE)
    assert drain(twin, other.clock) == drain(kbc, clock) != []
    assert twin.state() == kbc.state()


def test_wide_access_touches_one_port(kbc):
    kbc.write(k.DATA, 4, 0xFEFEFEED)
    assert kbc.read(k.DATA, 4) == 0xFFFFFFFA
