"""gdb on a Debian kernel: start_kernel by the symbols of the kernel's own table, and KASLR found in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpy import Machine
from tests.debug.gdb.stub import ROOT, Client, answers, gdb, needs_gdb

CACHE = ROOT / ".cache" / "guests"
KERNEL, ELF, INITRD = CACHE / "vmlinuz", CACHE / "vmlinux", CACHE / "initrd.cpio.gz"

pytestmark = [needs_gdb, pytest.mark.slow, pytest.mark.skipif(not ELF.exists(), reason="the Debian kernel is not fetched (make linux)")]


def test_start_kernel_and_the_first_kernel_thread(tmp_path: Path) -> None:
    with Machine(memory="256M", backend="soft") as machine:
        machine.load(KERNEL, initrd=INITRD, append="console=ttyS0 nokaslr")
        machine.symbols.add(ELF)
        machine.symbols.save(tmp_path / "kernel.elf")
        output, _ = gdb(machine, [
            "break start_kernel", "continue", "bt 2", "delete", "break kernel_init", "continue", "bt 2", "monitor info mode",
            "print (char*)&linux_banner", "watch jiffies", "continue", "delete", "stepi", "monitor info mem", "kill",
        ], tmp_path / "kernel.elf", timeout=200)  # fmt: skip
    said = answers(output)
    assert "in start_kernel ()" in said["continue"] and "in kernel_init ()" in said["continue"], output
    assert "ret_from_fork" in said["bt 2"]
    assert "64-bit, paging 4-level" in said["monitor info mode"] and "kernel_init" in said["monitor info mode"]
    assert "Linux version" in said["print (char*)&linux_banner"]
    assert "Old value" in said["continue"] and "New value" in said["continue"]
    assert "ffffffff81000000" in said["monitor info mem"]


def test_a_kernel_at_a_random_address_is_found_in_memory() -> None:
    with Machine(memory="256M", backend="soft") as machine:
        machine.load(KERNEL, initrd=INITRD, append="console=ttyS0")
        plain = Machine(memory="16M", backend="soft")
        plain.symbols.add(ELF)
        machine.run(timeout=60, until="Linux version")
        with Client(machine) as client:
            assert "symbols" in client.monitor("kallsyms")
            where = client.monitor("info mode")
            assert "0x" in where
            assert "Linux version 6" in client.monitor("dmesg") and len(client.monitor("dmesg 2").strip().split("\n")) == 2
            assert "[swapper/0]" in client.monitor("ps") and "no modules" in client.monitor("lsmod")
            assert "start_kernel" in client.monitor("bt") and '"swapper/0"' in client.monitor("value {struct task_struct}init_task.comm")
        moved = machine.symbol("start_kernel") - plain.symbol("start_kernel")
        assert moved % 0x200000 == 0
        banner = machine.memory.search(b"Linux version 6")
        assert next(banner, None) is not None
        assert machine.where() != ""
        plain.close()
