"""What holds for every device, whatever a guest does to it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmpy.devices.acpi_pm import AcpiPm
from kvmpy.devices.debug_console import DebugConsole
from kvmpy.devices.debug_exit import DebugExit
from kvmpy.devices.i8042 import I8042
from kvmpy.devices.port92 import Port92
from kvmpy.devices.post import Post
from kvmpy.devices.reset_port import ResetPort
from kvmpy.devices.rtc import Rtc
from kvmpy.devices.serial import Serial

MAKERS = {
    "serial": lambda line: Serial(0x3F8, line(4)),
    "rtc": lambda line: Rtc(line(8), low=64 << 20),
    "i8042": lambda line: I8042(line(1), line(12)),
    "acpi_pm": lambda line: AcpiPm(line(9)),
    "port92": lambda line: Port92(),
    "reset_port": lambda line: ResetPort(),
    "debug_console": lambda line: DebugConsole(),
    "debug_exit": lambda line: DebugExit(),
    "post": lambda line: Post(),
}
PLAIN = (int, str, bytes, bool, type(None))

values = st.one_of(st.integers(0, 255), st.integers(0, (1 << 64) - 1))
steps = st.lists(
    st.tuples(
        st.sampled_from(("read", "write", "write", "time", "reset", "input", "save")),
        st.integers(0, 63),
        st.sampled_from((1, 1, 1, 2, 4, 8)),
        values,
    ),
    min_size=20,
    max_size=80,
)


def span(device):
    ranges = [device.ports] if isinstance(device.ports[0], int) else device.ports
    return sum(size for _, size in ranges)


def give_input(device, value):
    """What the outside world may do to the device."""
    data = value.to_bytes(8, "little")
    if isinstance(device, Serial):
        device.receive(data, value & 0x1C)
        device.set_modem(value)
    elif isinstance(device, I8042):
        device.type("Kv")
        device.keyboard.down(("a", "up", "pause", "f7")[value % 4])
        device.mouse.move(value % 1000 - 500, value % 77 - 30, value % 9 - 4)
        device.mouse.buttons(value)
    elif isinstance(device, AcpiPm):
        device.press_power_button()
        device.raise_gpe(value % 16)


def is_plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return type(value) in PLAIN


def run(device, platform, script):
    """Answers of every read, levels of every line."""
    seen = []
    for what, offset, size, value in script:
        offset %= span(device)
        if what == "read":
            answer = device.read(offset, size)
            assert 0 <= answer < 1 << 8 * size
            seen.append(answer)
        elif what == "write":
            device.write(offset, size, value & (1 << 8 * size) - 1)
        elif what == "time":
            platform.clock.advance(value % 3_000_000_000 if value > 255 else value * 1000)
        elif what == "reset":
            device.reset()
        elif what == "input":
            give_input(device, value)
        else:
            assert is_plain(device.state())
        seen.append([line.level for line in lines(device)])
    return seen


def lines(device):
    return [getattr(device, name) for name in ("line", "sci", "irq1", "irq12") if hasattr(device, name)]


@pytest.mark.parametrize("kind", MAKERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=steps, after=steps)
def test_any_guest(kind, make_platform, make_line, before, after):
    """Nothing raises or hangs, reads fit their size, and a restored twin goes on exactly as the original would."""
    device, platform = MAKERS[kind](make_line), make_platform()
    device.connect(platform)
    run(device, platform, before)
    if kind == "i8042":
        device.keyboard.up("a")  # the state does not hold a held key's repetition
    twin, other = MAKERS[kind](make_line), make_platform()
    other.clock.time = platform.clock.time
    twin.connect(other)
    twin.restore(device.state())
    assert twin.state() == device.state()
    assert [line.level for line in lines(twin)] == [line.level for line in lines(device)]
    assert run(twin, other, after) == run(device, platform, after)


@pytest.mark.parametrize("kind", MAKERS)
def test_reset_is_complete(kind, make_platform, make_line):
    """No line stays high, no timer stays armed for what reset has ended, a second reset changes nothing."""
    device, platform = MAKERS[kind](make_line), make_platform()
    device.connect(platform)
    for value in (0xFF, 0x0F, 0x55):
        for offset in range(span(device)):
            device.write(offset, 1, value)
            device.read(offset, 1)
    device.reset()
    state = device.state()
    device.reset()
    assert device.state() == state
    assert all(line.level == 0 for line in lines(device))


@pytest.mark.parametrize("kind", MAKERS)
def test_has_a_name_and_closes(kind, make_line):
    device = MAKERS[kind](make_line)
    assert device.name
    device.close()
