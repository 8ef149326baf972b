"""A Debian kernel looked into from outside: its place, processes, modules, messages and call stacks, with KASLR and without."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from kvmpy import KvmpyError, Machine
from kvmpy.debug.linux.kernel import NoLinux
from tests.debug.build import ROOT

CACHE = ROOT / ".cache" / "guests"
KERNEL, ELF, INITRD = CACHE / "vmlinuz", CACHE / "vmlinux", CACHE / "initrd.cpio.gz"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not ELF.exists(), reason="the Debian kernel is not fetched (make linux)")]


@pytest.fixture(params=["nokaslr", "pti=on"], scope="module")
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Stopped in user mode, where the page tables (pti=on) leave the kernel out; `vmlinux` is given, so that its place has to be found."""
    with Machine(memory="256M", cpus=2, clock="virtual") as machine:
        machine.load(KERNEL, initrd=INITRD, append=f"console=ttyS0 {request.param}")
        machine.symbols.add(ELF)
        assert machine.symbols.files[-1].offset == 0, "the kernel is not there yet"
        assert str(machine.run(timeout=120, until="ok sha256")) == "stopped: until"
        for _ in range(2000):
            machine.run(timeout=60, until=lambda: True)
            machine.run(timeout=0.005)
            if machine.cpu[0].registers.cs["selector"] & 3:
                break
        assert machine.cpu[0].registers.cs["selector"] & 3
        yield machine


def test_the_kernel_is_found_where_it_went(machine: Machine) -> None:
    moved = machine.symbol("start_kernel") - next(s.address for s in machine.symbols.files[-1].symbols if s.name == "start_kernel")
    if "nokaslr" in machine.linux.dmesg()[1].text:
        assert moved == 0
    else:
        assert moved and moved % 0x200000 == 0
    entry = machine.cpu[0].vcpu.get_msrs([0xC0000082])[0xC0000082]
    assert machine.symbols.text(entry) == "entry_SYSCALL_64"
    assert machine.symbols.value("{struct task_struct}init_task.comm") == "swapper/0"
    assert machine.symbols.value("{struct task_struct}init_task.tasks.next->prev") == machine.symbols.value(
        "&{struct task_struct}init_task.tasks"
    )
    assert machine.linux.version.startswith("Linux version ")


def test_processes(machine: Machine) -> None:
    processes = machine.linux.processes()
    by_pid = {one.pid: one for one in processes}
    assert len(by_pid) == len(processes) > 20
    assert (by_pid[0].name, by_pid[0].kernel, by_pid[0].memory) == ("swapper/0", True, 0)
    init = by_pid[1]
    assert (init.name, init.parent, init.uid, init.kernel) == ("init", 0, 0, False)
    assert init.command.startswith("/bin/busybox sh /init") and init.memory > 1 << 20
    assert by_pid[2].name == "kthreadd" and by_pid[2].state == "S" and by_pid[2].command == ""
    children = [one for one in processes if one.parent == 2]
    assert {"ksoftirqd/0", "ksoftirqd/1"} <= {one.name for one in children} and all(one.kernel for one in children)
    assert any(one.state == "R" for one in processes)
    lines = str(processes).split("\n")
    assert lines[0].split()[:2] == ["PID", "PPID"] and len(lines) == len(processes) + 1 and "/bin/busybox sh /init" in str(processes)


def test_messages_are_those_of_the_console(machine: Machine) -> None:
    messages = machine.linux.dmesg()
    assert messages[0].text.startswith("Linux version 6.") and messages[0].time == 0
    assert [one.time for one in messages] == sorted(one.time for one in messages)
    console = [line for line in machine.serial.text.replace("\r", "").split("\n") if re.match(r"\[ +\d+\.\d+\] ", line)]
    shown = str(messages).split("\n")
    assert len(console) > 150 and set(console) <= set(shown)


def test_where_it_stands(machine: Machine) -> None:
    kernel = user = False
    for _ in range(200):
        frames = machine.backtrace()
        names = [frame.place.symbol for frame in frames]
        if frames[0].address >> 63:
            kernel = True
            assert all(frame.how in ("registers", "orc", "frame pointer") for frame in frames), f"{frames} {frames.end}"
            outermost = ("secondary_startup_64_no_verify", "ret_from_fork")
            assert names[-1] in outermost or not frames[-1].address >> 63, f"{frames} {frames.end}"
        else:
            user = True
        for cpu in (0, 1):
            assert machine.backtrace(cpu)
        if kernel and user:
            break
        machine.run(timeout=0.003)
    assert kernel and user


def test_no_modules_and_no_linux(machine: Machine) -> None:
    assert machine.linux.modules() == [] and str(machine.linux.modules()) == "no modules"
    with Machine(memory="16M", backend="soft") as other, pytest.raises(NoLinux, match="no vCPU is in 64-bit mode"):
        _ = other.linux
    assert issubclass(NoLinux, KvmpyError)


def test_modules_and_a_panic() -> None:
    """Symbols and types come from the kernel's own memory alone; the kernel says itself where it is, and how it got there."""
    with Machine(memory="256M", clock="virtual") as machine:
        machine.load(KERNEL, initrd=INITRD, append="console=ttyS0 kvmpy.test=none")
        assert str(machine.run(timeout=120, until="end Kernel panic")) == "stopped: until"
        linux = machine.linux
        modules = {one.name: one for one in linux.modules()}
        assert {"virtio_blk", "virtio_ring", "sd_mod", "scsi_mod"} <= set(modules)
        ring = modules["virtio_ring"]
        assert ring.users >= 3 and ring.state == "live" and 16 << 10 <= ring.size <= 1 << 20 and "virtio_ring" in str(linux.modules())
        assert linux.add_module_symbols() > 500
        assert ring.address <= machine.symbol("virtqueue_add_sgs") < ring.address + ring.size
        said = machine.serial.text.replace("\r", "")
        (offset,) = re.findall(r"Kernel Offset: (0x[0-9a-f]+) from", said)
        machine.symbols.add(ELF)
        machine.symbols.address("start_kernel")
        assert machine.symbols.files[-1].offset == int(offset, 16)
        trace = said.partition("<TASK>")[2].partition("RIP:")[0]
        theirs = [line.split("] ")[1].strip() for line in trace.split("\n") if re.search(r"\]  [a-z_]", line)]
        ours = [frame.place.name for frame in machine.backtrace()]
        assert len(theirs) >= 6
        for one in theirs[2:]:  # what called panic() stands still
            name, _, inside = one.partition("/")[0].partition("+")
            assert f"{name}+{inside}" in ours, f"{machine.backtrace()}"
        machine.reset()
        with pytest.raises(NoLinux):
            _ = machine.linux


def test_call_stacks_through_modules() -> None:
    """A module's initialisation calls the kernel; the module has ORC tables of its own."""
    from kvmpy.debug.control import Control
    from kvmpy.debug.points import Point

    with Machine(memory="256M", clock="virtual") as machine:
        machine.load(KERNEL, initrd=INITRD, append="console=ttyS0 kvmpy.test=none")
        machine.symbols.add(ELF)
        machine.run(timeout=120, until="userspace up")
        control = Control(machine)
        control.points.add(Point("software", machine.symbol("driver_register")))
        for _ in range(20):  # some modules leave by a jump
            assert control.run(timeout=60).hit is not None
            frames = machine.backtrace()
            if any(one.address <= frames[1].address < one.address + (1 << 20) for one in machine.linux.modules()):
                break
        assert machine.linux.add_module_symbols() > 0
        frames = machine.backtrace()
        names = [frame.place.symbol for frame in frames]
        assert names[0] == "driver_register" and names[2:4] == ["do_one_initcall", "do_init_module"], f"{frames}"
        assert all(frame.how == "orc" for frame in frames[1:6]), [str(frame) + frame.how for frame in frames]
        control.release()


def test_a_filter_finds_the_kernel_where_it_went() -> None:
    with Machine(memory="256M", clock="virtual") as machine:
        machine.load(KERNEL, initrd=INITRD, append="console=ttyS0")
        machine.symbols.add(ELF)
        event = next(machine.events("block:start_kernel", timeout=120))
        assert event.symbol == "start_kernel" and event.rip == machine.symbol("start_kernel")
        moved = event.rip - next(s.address for s in machine.symbols.files[-1].symbols if s.name == "start_kernel")
        assert moved and moved % 0x200000 == 0
