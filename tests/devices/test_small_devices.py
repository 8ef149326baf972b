"""Ports with one idea each."""

import pytest

from kvmpy.devices.acpi_pm import GPE0_EN, GPE0_STS, PM1_CNT, PM1_EN, PM1_STS, PM_TMR, PWRBTN, SCI_EN, SLP_EN, TMR, AcpiPm
from kvmpy.devices.debug_console import DebugConsole
from kvmpy.devices.debug_exit import DebugExit
from kvmpy.devices.port92 import A20Gate, Port92
from kvmpy.devices.post import Post
from kvmpy.devices.reset_port import ResetPort
from kvmpy.verdicts import GuestExit, PowerOff, Reset


def place(device, platform):
    device.connect(platform)
    return device


def test_port92_gates_a20_and_resets_on_a_rising_edge(platform):
    gate = A20Gate()
    port = place(Port92(gate), platform)
    assert port.read(0, 1) == 2
    port.write(0, 1, 0)
    assert not gate.enabled and port.read(0, 1) == 0
    port.write(0, 1, 3)
    assert gate.enabled and platform.verdicts == [Reset("port 0x92")]
    port.write(0, 1, 3)
    assert len(platform.verdicts) == 1
    port.reset()
    assert port.read(0, 1) == 2


def test_reset_port(platform):
    port = place(ResetPort(), platform)
    port.write(0, 1, 0x02)
    assert not platform.verdicts
    port.write(0, 1, 0x06)
    assert platform.verdicts == [Reset("port 0xcf9")] and port.read(0, 1) == 6


def test_debug_console():
    class End:
        out = b""

        def write(self, data):
            self.out += data

    end = End()
    console = DebugConsole(end)
    assert console.read(0, 1) == 0xE9 and console.read(0, 2) == 0xE9E9
    console.write(0, 1, ord("h"))
    console.write(0, 4, int.from_bytes(b"ello", "little"))
    assert end.out == b"hello"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_debug_exit(platform, size):
    port = place(DebugExit(), platform)
    port.write(1, 1, 3)
    port.write(0, size, 42)
    assert platform.verdicts == [GuestExit(42)] and platform.events


def test_debug_exit_keeps_all_bits(platform):
    place(DebugExit(), platform).write(0, 4, 0xDEADBEEF)
    assert platform.verdicts == [GuestExit(0xDEADBEEF)]


def test_post_keeps_the_last_codes(platform):
    post = place(Post(), platform)
    assert post.read(0, 1) == 0
    for code in range(20):
        post.write(0, 1, code)
    assert post.read(0, 1) == 19 and list(post.codes) == list(range(4, 20))
    twin = Post()
    twin.restore(post.state())
    assert twin.codes == post.codes


@pytest.fixture
def pm(platform, make_line):
    return place(AcpiPm(make_line(9)), platform)


def test_pm_timer_counts_and_wraps(pm, clock):
    assert pm.read(PM_TMR, 4) == 0
    clock.advance(1_000_000_000)
    assert pm.read(PM_TMR, 4) == 3_579_545
    assert pm.read(PM_TMR + 1, 1) == 3_579_545 >> 8 & 0xFF
    clock.advance(1200 * 1_000_000_000)
    assert pm.read(PM_TMR, 4) == 1201 * 3_579_545 - (1 << 32)


def test_pm_timer_status_and_sci(pm, clock):
    half = (1 << 31) * 1_000_000_000 // 3_579_545
    clock.advance(half - 1000)
    assert pm.read(PM1_STS, 2) == 0
    pm.write(PM1_EN, 2, TMR)
    clock.advance(2000)
    assert pm.sci.level == 1 and pm.read(PM1_STS, 2) == TMR
    pm.write(PM1_STS, 2, TMR)
    assert pm.sci.level == 0
    clock.advance(half)
    assert pm.sci.level == 1
    pm.write(PM1_EN, 2, 0)
    assert pm.sci.level == 0 and pm.read(PM1_STS, 2) == TMR


def test_power_off_by_word_and_by_bytes(pm, platform):
    assert pm.read(PM1_CNT, 2) == SCI_EN
    pm.write(PM1_CNT, 2, 3 << 10 | SLP_EN)
    assert not platform.verdicts and platform.events == [("sleep type ignored", {"type": 3})]
    pm.write(PM1_CNT, 2, 5 << 10)
    assert not platform.verdicts
    pm.write(PM1_CNT + 1, 1, (5 << 10 | SLP_EN) >> 8)
    assert platform.verdicts == [PowerOff()]
    assert not pm.read(PM1_CNT, 2) & SLP_EN


def test_power_button(pm):
    pm.press_power_button()
    assert pm.sci.level == 0 and pm.read(PM1_STS, 2) == PWRBTN
    pm.write(PM1_EN + 1, 1, PWRBTN >> 8)
    assert pm.sci.level == 1
    pm.write(PM1_STS, 4, PWRBTN | pm.read(PM1_EN, 2) << 16)
    assert pm.sci.level == 0 and pm.read(PM1_EN, 2) == PWRBTN


def test_general_purpose_event(pm):
    pm.write(GPE0_EN, 2, 0x0102)
    pm.raise_gpe(8)
    assert pm.sci.level == 1 and pm.read(GPE0_STS, 2) == 0x0100
    pm.write(GPE0_STS + 1, 1, 1)
    assert pm.sci.level == 0


def test_pm_state(pm, make_line, make_platform):
    pm.write(PM1_EN, 2, PWRBTN | TMR)
    pm.press_power_button()
    twin = place(AcpiPm(make_line(9)), make_platform())
    twin.restore(pm.state())
    assert twin.sci.level == 1 and twin.state() == pm.state()
