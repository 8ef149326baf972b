"""The monitor's words for symbols, call stacks, C values and Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmpy import Machine
from tests.debug.build import HERE, compile_c, needs_gcc
from tests.debug.gdb.stub import Client

pytestmark = needs_gcc


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(HERE / "inspected.c", tmp_path_factory.mktemp("monitor"), 64)


@pytest.fixture
def client(image: Path) -> Iterator[Client]:
    with Machine(memory="8M", backend="soft") as machine:
        machine.load(image).run(timeout=10)
        machine.debug("127.0.0.1:0", python=True)
        with Client(machine) as client:
            yield client


def test_symbols_and_stacks(client: Client) -> None:
    assert client.monitor("where").startswith("stop_here+") and "(tests/debug/inspected.c:" in client.monitor("where")
    stack = client.monitor("bt").split("\n")
    assert " stop_here+" in stack[0] and " trap+" in stack[3] and stack[3].endswith("interrupted") and " _start+" in stack[8]
    assert len(client.monitor("bt 2").strip().split("\n")) == 3 and "usage" in client.monitor("bt 1 2")
    assert '"first"' in client.monitor("value items[0].name") and client.monitor("value &items[0]").startswith("0x")
    assert "no symbol 'nobody'" in client.monitor("value nobody") and "usage" in client.monitor("value")
    assert "=> 0x" in client.monitor("disas 2") and "LINEAR" in client.monitor("info tlb")
    assert "page walk of" in client.monitor("walk trap")
    assert all("no Linux" in client.monitor(word) for word in ("ps", "lsmod", "dmesg"))


def test_the_map_has_the_chips_of_the_backend_too(client: Client) -> None:
    lines = client.monitor("info mtree").split("\n")
    assert "  0000fee00000-0000fee00fff local APIC (of the backend)" in lines and any("I/O APIC" in line for line in lines)
    assert "  000000000000-0000007fffff RAM" in lines
    assert client.monitor("info").startswith("info: one of registers, ") and "unknown command" in client.monitor("frob")


def test_a_slow_command_keeps_the_debugger_patient(client: Client) -> None:
    client.send("qRcmd," + b"py __import__('time').sleep(2.5)".hex())
    answers = [client.receive() for _ in range(3)]
    assert answers == [b"O", b"O", b"OK"]


def test_python(client: Client) -> None:
    assert client.monitor("py 1 + 1").strip() == "2"
    assert client.monitor("py machine.symbol('trap')").startswith("<trap = 0x2")
    client.monitor("py cpu.registers.rbx = 0x77")
    assert "rbx 0000000000000077" in client.monitor("info registers")
    client.monitor("py kept = mem.read_u8(machine.symbol('trap'))")
    assert client.monitor("py print('said'); kept").split() == ["said", str(client.machine.memory.read_u8(client.machine.symbol("trap")))]
    assert client.monitor("py 1/0").strip() == "ZeroDivisionError: division by zero"
    assert "SyntaxError" in client.monitor("py (") and "is not RAM" in client.monitor("py mem.read(1 << 40, 1)")
    assert "usage: monitor py CODE" in client.monitor("py")


def test_python_is_only_for_who_allowed_it(image: Path) -> None:
    with Machine(memory="8M", backend="soft") as machine:
        machine.load(image)
        with Client(machine) as client:
            assert "without Python" in client.monitor("py machine.serial.send('x')")
