"""What holds for every device at fixed ports; what a guest may do to it is in `tests/fuzz`."""

import pytest

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

def span(device):
    ranges = [device.ports] if isinstance(device.ports[0], int) else device.ports
    return sum(size for _, size in ranges)


def lines(device):
    return [getattr(device, name) for name in ("line", "sci", "irq1", "irq12") if hasattr(device, name)]


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
