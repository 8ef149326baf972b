"""The device of docs/devices.md does what its docstring says."""

import re
from pathlib import Path

DOC = Path(__file__).parents[2] / "docs" / "devices.md"


def test_the_device_in_ten_lines(platform):
    code = re.search(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    names = {"__name__": "example"}
    exec(code[1], names)
    counter = names["Counter"]()
    counter.connect(platform)
    assert [counter.read(0, 1), counter.read(0, 1)] == [1, 2]
    counter.write(0, 1, 41)
    twin = names["Counter"]()
    twin.restore(counter.state())
    assert twin.read(0, 1) == 42
