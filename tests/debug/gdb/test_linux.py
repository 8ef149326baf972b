"""gdb on a Debian kernel: start_kernel by the symbols of the kernel's own table, and KASLR found in memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmpy import Machine
from kvmpy.debug.prompt import Prompt
from tests.debug.gdb.stub import ROOT, Client, answers, gdb, needs_gdb

CACHE = ROOT / ".cache" / "guests"
WITH_DWARF = CACHE / "vmlinux-debug"
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


def test_a_kernel_that_moves_itself_is_met_where_it_goes() -> None:
    with Machine(memory="256M", backend="soft") as machine:
        machine.load(KERNEL, initrd=INITRD, append="console=ttyS0")
        machine.symbols.add(ELF)
        assert machine.symbols.kernel_moves and machine.symbols.kernel_offset is None
        with Client(machine, timeout=60) as client:
            said = client.monitor("kernel")
            offset = machine.symbols.kernel_offset
            assert offset is not None and f"moved by {offset:#x}" in said and not machine.symbols.kernel_moves
            assert client.monitor("where").startswith("secondary_startup_64")
            start = machine.symbol("start_kernel")
            assert client.ask(f"Z0,{start:x},1") == "OK" and client.ask("c").startswith("T05")
            assert client.monitor("where").startswith("start_kernel") and "secondary_startup_64" in client.monitor("bt")
            assert client.ask(f"z0,{start:x},1") == "OK"


def test_the_prompt_runs_to_a_symbol_of_a_kernel_that_moves_itself() -> None:
    with Machine(memory="256M", backend="soft") as machine:
        machine.load(KERNEL, initrd=INITRD, append="console=ttyS0")
        machine.symbols.add(ELF)
        prompt = Prompt(machine)
        assert "kernel() first" in prompt.point("start_kernel")
        prompt.clear()
        assert "CPU 0: start_kernel\n" in prompt.until("start_kernel", 60)
        assert "kernel() first" not in prompt.point("kernel_init")
        prompt.close()


@pytest.mark.skipif(not WITH_DWARF.exists(), reason="no vmlinux with debug information (python -m tests.guests_fetch debug: 280 MB)")
def test_lines_types_and_stacks_by_the_kernels_own_debug_information() -> None:
    with Machine(memory="256M", backend="soft") as machine:
        machine.load(KERNEL, initrd=INITRD, append="console=ttyS0 nokaslr")
        machine.symbols.add(WITH_DWARF)
        output, _ = gdb(machine, [
            "hbreak start_kernel", "continue", "monitor where", "monitor bt", "next", "delete", "break kernel_init", "continue",
            "print init_task.comm", "monitor value init_task.comm", "monitor value saved_command_line", "break tick_sched_timer",
            "continue", "monitor bt", "kill",
        ], WITH_DWARF, timeout=100)  # fmt: skip
        said = answers(output)
        assert "start_kernel () at init/main.c:" in said["continue"] and "kernel_init (unused=" in said["continue"], output
        assert re.match(r"start_kernel \(init/main\.c:\d+\)", said["monitor where"])
        assert '"swapper/0' in said["print init_task.comm"] and '"swapper/0"' in said["monitor value init_task.comm"]
        assert "console=ttyS0 nokaslr" in said["monitor value saved_command_line"]
        stack = said["monitor bt"]
        assert "asm_sysvec_apic_timer_interrupt" in stack and " interrupted\n" in stack and "kernel/time/hrtimer.c:" in stack
        assert machine.symbols.addresses("init/main.c", 936) and "Ignoring packet error" not in output


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
