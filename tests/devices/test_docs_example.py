"""The devices of docs/ do what their docstrings say."""

import re
from pathlib import Path

from kvmpy.bus import MmioBus, PortBus
from kvmpy.devices.pci.host import PciHost
from tests.devices.virtio.driver import Bench

DOCS = Path(__file__).parents[2] / "docs"


def example(file):
    code = re.search(r"```python\n(.*?)```", (DOCS / file).read_text(), re.DOTALL)
    names = {"__name__": "example"}
    exec(code[1], names)
    return names


def test_the_device_in_ten_lines(platform):
    names = example("devices.md")
    counter = names["Counter"]()
    counter.connect(platform)
    assert [counter.read(0, 1), counter.read(0, 1)] == [1, 2]
    counter.write(0, 1, 41)
    twin = names["Counter"]()
    twin.restore(counter.state())
    assert twin.read(0, 1) == 42


def test_the_pci_function(platform):
    host = PciHost((PortBus(), MmioBus()))
    doorbell = example("pci.md")["Doorbell"]()
    host.plug(doorbell)
    for device in (host, doorbell):
        device.connect(platform)
    doorbell.write_register(0, 4, 1)
    assert host.gsi_lines[0].level == 1
    assert doorbell.read_register(0, 4) == 1 and host.gsi_lines[0].level == 0


def test_the_virtio_device(platform):
    bench = Bench(platform, example("virtio.md")["Echo"](), "pci").start()
    assert bench.rings[0].request([b"say ", b"it"], [10]) == (6, b"say it\0\0\0\0")
    bench.close()
