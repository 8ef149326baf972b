"""The example of docs/testing-kernels.md is code that works."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs" / "testing-kernels.md"


def test_the_calls_of_the_page(make_machine: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    machine = make_machine(clock="virtual", cpus=2, disks=[f"{disk},format=raw,bus=virtio"], net=["none"])
    (text,) = re.findall(r"```python\n(machine\.faults.*?)```", DOCS.read_text(), re.S)
    exec(text, {"machine": machine, "errno": errno})
    assert len(machine.faults.rules) == len(text.splitlines()) == 9
    struck = [one.what for one in machine.faults.log]
    assert struck == ["edge on line 4", "the clock jumps by 3600000000000 ns", "Serial COM1 is stuck"]
    assert all(eval(repr(rule), records()) == rule for rule in machine.faults.rules)  # plain data
    machine.faults.clear()
    assert "fault:" not in repr(machine.faults)


def records() -> dict[str, Any]:
    from kvmpy.faults import clock, disk, irq, net, rules, stuck

    return {name: value for module in (clock, disk, irq, net, rules, stuck) for name, value in vars(module).items()}
