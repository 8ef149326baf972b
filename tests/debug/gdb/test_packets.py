"""The protocol by bare packets: corner cases, threads, physical memory, restart, and packets that mean harm."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmpy import GuestExit, Machine, Stopped
from tests.debug.gdb.stub import Client, needs_binutils

pytestmark = needs_binutils


@pytest.fixture
def client(machine: Machine) -> Iterator[Client]:
    with Client(machine) as client:
        yield client


def go_to(client: Client, name: str) -> str:
    address = client.machine.symbol(name)
    assert client.ask(f"Z0,{address:x},1") == "OK"
    reply = client.ask("vCont;c")
    assert client.ask(f"z0,{address:x},1") == "OK"
    return reply


def test_single_registers(client: Client) -> None:
    assert client.ask("p10") == (0xFFFFFFF0).to_bytes(8, "little").hex()
    assert client.ask("P0=efbeadde00000000") == "OK"
    assert client.ask("p0") == "efbeadde00000000"
    assert client.ask("g")[:16] == "efbeadde00000000"
    assert client.ask("P0=efbe") == "E01"
    assert client.ask("p999") == "E01"
    whole = client.ask("g")
    assert client.ask("G" + "11" * 8 + whole[16:]) == "OK"
    assert client.ask("p0") == "11" * 8
    assert client.machine.cpu[0].registers.rax == 0x1111111111111111


def test_every_register_can_be_read_and_written_back(client: Client) -> None:
    go_to(client, "user_start")
    number = 0
    while (value := client.ask(f"p{number:x}")) != "E01":
        assert client.ask(f"P{number:x}={value}") == "OK", number
        assert client.ask(f"p{number:x}") == value, number
        number += 1
    assert number > 100


def test_vector_and_x87_registers(client: Client) -> None:
    go_to(client, "user_start")
    from kvmpy.debug.gdb.registers import Layout

    layout = Layout("x86-64", "avx" if "i386.avx" in client.ask("qXfer:features:read:target.xml:0,4000") else "")
    for name in ("xmm0", "xmm15", "ymm3h", "st0", "st7"):
        number, size = layout.numbers[name], layout.fields[layout.numbers[name]].size
        value = bytes(range(1, size + 1)).hex()
        assert client.ask(f"P{number:x}={value}") == "OK"
        assert client.ask(f"p{number:x}") == value
    assert client.ask(f"p{layout.numbers['fctrl']:x}") == "7f030000"
    assert client.ask(f"p{layout.numbers['mxcsr']:x}") == "801f0000"


def test_memory_in_hexadecimal_and_binary(client: Client) -> None:
    assert client.ask(b"X5000,6:\x01}\x03}\x04}]\x02\x05") == "OK"
    assert client.ask("m5000,6") == "012324" + "7d" + "0205"
    assert client.ask("M5000,2:abcd") == "OK"
    assert client.ask("m5000,2") == "abcd"
    assert client.ask("x5000,2").encode("latin-1") == b"b\xab\xcd"
    assert client.ask("M5000,3:abcd") == "E01"
    assert client.ask("mffffff000,4") != ""
    assert client.ask("m5000,0") == ""
    assert client.ask("Mfffffff0,1:00") == "E14", "the BIOS is ROM"


def test_physical_memory_mode(client: Client) -> None:
    go_to(client, "user_start")
    assert client.ask("m200000,4") == "E14"
    assert client.ask("m1ffffe,4") == "0000"
    assert client.ask("Qqemu.PhyMemMode:1") == "OK" and client.ask("qqemu.PhyMemMode") == "1"
    assert client.ask("m200000,4") == "00000000"
    assert "linear" in client.monitor("phys off")
    assert client.ask("m200000,4") == "E14"


def test_search_and_crc(client: Client) -> None:
    assert client.ask("M20000,9:313233343536373839") == "OK"
    assert client.ask("qSearch:memory:10000;20000;456") == "1,20003"
    assert client.ask("qSearch:memory:10000;20000;zzz") == "0"
    assert client.ask("qCRC:20000,9") == "C0376e6e7", "CRC-32/MPEG-2's check value"


def test_step_is_one_instruction_and_range_step_ends_outside(client: Client) -> None:
    go_to(client, "user_start")
    start = client.machine.symbol("user_start")
    assert "thread:1" in client.ask("vCont;s:1")
    assert int.from_bytes(bytes.fromhex(client.ask("p10")), "little") == start + 5
    loop = client.machine.symbol("user_loop")
    reply = client.ask(f"vCont;r{start:x},{loop:x}:1")
    assert reply.startswith("T05")
    assert int.from_bytes(bytes.fromhex(client.ask("p10")), "little") == loop


def test_breakpoints_are_not_seen_in_memory_and_do_not_stop_twice(client: Client) -> None:
    address = client.machine.symbol("user_loop")
    go_to(client, "user_start")
    before = client.ask(f"m{address:x},4")
    for _ in range(2):
        assert client.ask(f"Z0,{address:x},1") == "OK"
    assert client.ask("qSupported:swbreak+;hwbreak+").startswith("PacketSize=")
    for _ in range(3):
        assert "swbreak" in client.ask("c")
        assert client.ask(f"m{address:x},4") == before
    assert client.ask(f"z0,{address:x},1") == "OK"
    assert client.ask(f"z0,{address:x},1") == "OK"
    assert client.ask("c") == "W15"
    assert client.end() == GuestExit(21)


def test_many_points(client: Client) -> None:
    go_to(client, "user_start")
    counter = client.machine.symbol("counter")
    for n in range(200):
        assert client.ask(f"Z0,{0x100000 + 8 * n:x},1") == "OK"
        assert client.ask(f"Z3,{0x180000 + 8 * n:x},4") == "OK"
    assert client.ask(f"Z2,{counter:x},4") == "OK"
    assert f"watch:{counter:x};" in client.ask("vCont;c")
    assert client.ask("Z2,ffffffffffffffff,2") == "E1c"
    assert client.ask("Z7,0,1") == "E01"


def test_interrupt_detach_and_the_guest_runs_on(client: Client) -> None:
    go_to(client, "user_loop")
    client.ask(f"M{client.machine.symbol('counter'):x},4:00000080")
    client.send("vCont;c")
    time.sleep(0.3)
    client.interrupt()
    assert client.receive().startswith(b"T02")
    client.ask(f"M{client.machine.symbol('counter'):x},4:00000000")
    assert client.ask("D") == "OK"
    assert client.end() == GuestExit(21)


def test_an_interrupt_at_once_is_not_lost(client: Client) -> None:
    go_to(client, "user_loop")
    client.ask(f"M{client.machine.symbol('counter'):x},4:00000080")
    for _ in range(5):
        client.socket.sendall(b"$vCont;c#a8\x03")
        assert client.receive().startswith(b"T02")


def test_kill_ends_the_run(client: Client) -> None:
    client.send("k")
    assert client.end() == Stopped("quit")


def test_restart_by_run_and_by_monitor(client: Client) -> None:
    assert client.ask("!") == "OK"
    go_to(client, "user_start")
    assert "reset" in client.monitor("reset")
    assert client.ask("p10") == (0xFFFFFFF0).to_bytes(8, "little").hex()
    assert client.ask("c") == "W15"
    assert client.ask("qfThreadInfo") == "l", "what has ended has no threads"
    assert client.ask("vRun;").startswith("T05")
    go_to(client, "user_loop")
    assert client.ask("vRun;").startswith("T05")
    client.send("R00")
    assert client.ask("c") == "W15"
    client.socket.close()
    assert client.end() == GuestExit(21)


def test_a_closed_connection_lets_the_guest_run_on(client: Client) -> None:
    assert client.ask("Z0,7c00,1") == "OK"
    client.socket.close()
    assert client.end() == GuestExit(21)


def test_threads(modes: tuple[Path, Path]) -> None:
    with Machine(memory="16M", cpus=3, backend="soft", disks=[f"{modes[1]},readonly"]) as machine:
        machine.load(None)
        machine.symbols.add(modes[0])
        with Client(machine) as client:
            assert client.ask("qfThreadInfo") == "m1,2,3"
            assert client.ask("qsThreadInfo") == "l"
            assert 'id="3" core="2"' in client.ask("qXfer:threads:read::0,4000")
            assert "waits for" in bytes.fromhex(client.ask("qThreadExtraInfo,2")).decode()
            assert client.ask("T3") == "OK" and client.ask("T4") == "E01"
            assert client.ask("Hg2") == "OK" and client.ask("qC") == "QC2"
            assert client.ask("Hg1") == "OK"
            go_to(client, "user_start")
            assert client.ask("vCont;s:1").startswith("T05thread:1;")
            assert client.ask("vCont;s:1;c").startswith("T05thread:1;")
            assert "CPU 2" in client.monitor("info mode")


def test_monitor_commands(client: Client) -> None:
    go_to(client, "user_start")
    for command, text in {
        "help": "info tlb", "info registers": "64-bit, CPL 3", "info mem": "urwx", "info tlb": "2 MiB", "info tlb all": "2 MiB",
        "info pic": "8259 master", "info lapic": "xAPIC", "info mtree": "COM1", "info exits": "io", "info points": "none",
        "info mode": "user_start", "walk user_start": "0x7d", "walk 0x400000": "not mapped", "disas 2": "user_start",
        "disas 1 0x7c00": "7c00", "symbol user_start": "0x7d", "symbol": "usage", "kallsyms": "no Linux kernel",
        "arch": "x86-64", "linear": "CS.base", "nonsense": "unknown command", "walk": "usage", "disas x": "usage", "phys maybe": "usage",
    }.items():  # fmt: skip
        assert text in client.monitor(command), command


def test_architectures(client: Client) -> None:
    assert "<architecture>i386:x86-64</architecture>" in client.ask("qXfer:features:read:target.xml:0,4000")
    wide = len(client.ask("g"))
    assert "i8086" in client.monitor("arch i8086")
    assert "<architecture>i8086</architecture>" in client.ask("qXfer:features:read:target.xml:0,4000")
    assert len(client.ask("g")) < wide
    assert client.ask("p8") == (0xFFFFFFF0).to_bytes(4, "little").hex()
    assert "usage" in client.monitor("arch vax")


def test_a_debugger_may_come_later(tmp_path: Path) -> None:
    code = tmp_path / "spin.bin"
    code.write_bytes(bytes.fromhex("ebfe b007 e6f4 f4"))  # jmp .; mov al, 7; out 0xf4, al; hlt
    with Machine(memory="16M", backend="soft") as machine:
        machine.load(code, "flat32")
        machine.debug("127.0.0.1:0", wait=False)
        with Client(machine) as client:
            assert client.ask("?").startswith("T05thread:1;")
            here = int.from_bytes(bytes.fromhex(client.ask("p10")), "little")
            assert client.ask(f"m{here:x},4") == "ebfeb007"
            assert client.ask("D") == "OK"
            with socket.create_connection(client.socket.getpeername(), timeout=10) as second:
                second.sendall(b"$?#3f")
                assert second.recv(10).startswith((b"+", b"$T05"))
            again = Client.__new__(Client)  # the thread that runs the machine is the first client's
            again.socket, again._buffer, again.machine = socket.create_connection(client.socket.getpeername(), timeout=10), b"", machine
            assert again.ask("P10=" + (here + 2).to_bytes(8, "little").hex()) == "OK"
            assert again.ask("c") == "W07"
            assert client.end() == GuestExit(7)
            again.socket.close()


def test_checksums_and_acknowledgements(machine: Machine) -> None:
    with Client(machine) as client:
        client.socket.close()
    with pytest.raises(Exception, match="stub already"):
        machine.debug("127.0.0.1:0")


HOSTILE = [
    "", "g1", "G", "Gzz", "G00", "p", "pzz", "pffffffffffffffff", "P", "P=", "P0=", "P0=z", "m", "m1", "m1,", "m,1", "m-1,1",
    "m1,ffffffffffffffff", "mffffffffffffffff,ffff", "M", "M0", "M0,0", "M0,0:", "M0,1:zz", "X", "X0,1:", "X0,1:}",
    "Xffffffffffffffff,2:ab", "Z", "Z0", "Z0,", "Z0,0", "Z9,0,1", "Z2,0,ffffffffffffffff", "Z2,0,0", "z0,0,1", "zz", "H", "Hg",
    "Hgffffff", "Hgz", "T", "Tz", "T0", "vCont", "vCont;", "vCont;x", "vCont;c:9", "vCont;s:z", "vCont;r:1", "vCont;r1:1",
    "vCont;rz,1:1", "vRun", "vFile:open:", "vMustReplyEmpty", "v", "q", "qRcmd", "qRcmd,", "qRcmd,zz", "qRcmd,ff", "qXfer",
    "qXfer:features:read:", "qXfer:features:read:target.xml:", "qXfer:features:read:target.xml:z,1",
    "qXfer:features:read:../../etc/passwd:0,100", "qXfer:features:write:target.xml:0:", "qXfer:threads:read::ffffffff,1", "qSearch",
    "qSearch:memory:", "qSearch:memory:0;0;", "qSearch:memory:0;ffffffffffffffff;a", "qSearch:memory:z;1;a", "qCRC:",
    "qCRC:0,ffffffffffffff", "qThreadExtraInfo,", "qThreadExtraInfo,99", "Q", "Qqemu.PhyMemMode:", "Qqemu.PhyMemMode:z",
    "QStartNoAckMode:", "C", "Cxx;z", "s z", "cz", "\xff\xfe", "b", "R", "qRcmd," + b"info tlb \xff".hex(), "qRcmd," + b"walk -1".hex(),
    "qRcmd," + b"disas 99999999999 0".hex(), "qRcmd," + b"disas 5 0xffffffffffffffff".hex(),
]  # fmt: skip


def test_hostile_packets_get_an_answer(client: Client) -> None:
    go_to(client, "user_start")
    for packet in HOSTILE:
        client.send(packet)
        client.send("qC")
        try:
            while client.receive() != b"QC1":
                pass
        except TimeoutError:
            pytest.fail(f"no answer to {packet!r}")
    assert client.error is None


def test_noise_on_the_line(machine: Machine) -> None:
    generator = random.Random(1)
    with Client(machine) as client:
        for _ in range(300):
            size = generator.randrange(1, 60)
            letters = b"gGpPmMXZzHTvqQ?0123456789abcdef,;:=%" if generator.random() < 0.7 else bytes(range(256))
            content = bytes(generator.choice(letters) for _ in range(size)).replace(b"#", b"").replace(b"$", b"").replace(b"\x03", b"")
            if content[:1] in (b"c", b"s", b"C", b"S", b"k", b"D", b"R") or content.startswith(b"vCont"):
                continue
            client.send(content)
            client.receive()
        client.socket.sendall(b"-" * 100 + b"+" * 100 + b"$" + b"m" * 200000)
        time.sleep(0.2)
        client.socket.sendall(b"#00")
        client.socket.sendall(b"\x00\x01$#00" + b"$qC#b4")
        while client.receive() != b"QC1":
            pass
        assert client.error is None
