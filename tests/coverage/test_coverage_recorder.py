"""machine.coverage: what is recorded, when it is handed over, where it cannot be, and a whole Linux."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpy import Machine
from kvmpy.coverage import Coverage
from kvmpy.coverage.sources import functions
from kvmpy.errors import KvmpyError, MissingCapability
from kvmpy.verdicts import GuestExit, Stopped

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guests"
GUESTS = Path(__file__).resolve().parents[2] / "build" / "guests"
CODE = 0x100000
EXIT = bytes.fromhex("b000 e6f4")  # mov al, 0; out 0xf4, al


def image(directory: Path, name: str, code: bytes) -> Path:
    path = directory / name
    path.write_bytes(code)
    return path


def machine_with(path: Path, **options: object) -> Machine:
    return Machine("8M", backend="soft", **options).load(path, f"flat32@{CODE:#x}")  # type: ignore[arg-type]


def test_a_with_block_records_and_stops(tmp_path: Path) -> None:
    with machine_with(image(tmp_path, "a", b"\x90" + EXIT)) as machine:
        assert len(machine.coverage.read()) == 0
        with machine.coverage as recorder:
            machine.run(5)
        assert recorder.read().blocks() == [(CODE, 5)] and recorder.lost == 0
        recorder.clear()
        machine.reset()
        machine.run(5)
        assert len(recorder.read()) == 0


@pytest.mark.parametrize("name", ["traps64.elf", "paging32.elf", "user64.elf", "smc64.elf", "bench.elf"])
def test_interpreted_and_translated_code_are_one_record(name: str) -> None:
    path = GUESTS / name
    if not path.exists():
        pytest.skip(f"{path}: not built (make guests)")
    records = []
    for translate in ("off", 1, 24):
        with Machine("64M", backend="soft", clock="virtual", translate=translate) as machine:
            machine.load(path, append="scale=1 mix quicksort bytecode calls fault syscall" if name == "bench.elf" else "")
            machine.coverage.start(branches=True, spaces=True)
            assert isinstance(machine.run(60), GuestExit)
            record = machine.coverage.read()
            records.append((record.addresses(), record.blocks(), record.jumps()))
            done = machine.statistics["vcpus"].get("instructions_translated", 0)
            assert (done > 0) == (translate != "off")
    assert records[0] == records[1] == records[2]
    assert len(records[0][2]) > 10


def test_another_image_is_another_record(tmp_path: Path) -> None:
    collected: list[list[int]] = []
    with machine_with(image(tmp_path, "a", EXIT)) as machine:
        machine.coverage.collect = lambda recorded: collected.append(recorded.addresses())
        machine.coverage.start()
        machine.run(5)
        machine.load(image(tmp_path, "b", b"\x90\x90" + EXIT), f"flat32@{CODE:#x}")
        machine.run(5)
        assert collected == [[CODE, CODE + 2]]
    assert collected == [[CODE, CODE + 2], [CODE, CODE + 1, CODE + 2, CODE + 4]]


def test_a_reset_adds_to_the_record(tmp_path: Path) -> None:
    with machine_with(image(tmp_path, "a", EXIT)) as machine:
        machine.coverage.start()
        machine.run(5)
        machine.reset()
        assert machine.coverage.read().addresses() == [CODE, CODE + 2]


def test_kvm_says_that_it_cannot(tmp_path: Path) -> None:
    try:
        machine = Machine("8M", backend="kvm")
    except KvmpyError as error:
        pytest.skip(str(error))
    with machine, pytest.raises(MissingCapability, match="software CPU"):
        machine.coverage.start()


@pytest.mark.slow
@pytest.mark.parametrize("branches", [False, True])
def test_functions_of_linux_on_two_cpus(tmp_path: Path, branches: bool) -> None:
    """What a boot cannot do without, and what it must not do; user mode apart."""
    if not (CACHE / "vmlinuz").exists() or not (CACHE / "initrd.cpio.gz").exists():
        pytest.skip("vmlinuz, initrd.cpio.gz: not fetched (make linux)")
    with Machine(backend="soft", clock="virtual", cpus=2) as machine:
        machine.load(CACHE / "vmlinuz", initrd=CACHE / "initrd.cpio.gz", append="console=ttyS0")
        machine.coverage.start(branches=branches, spaces=True)
        assert machine.run(280, until="all checks passed") == Stopped("until")
        machine.symbols.add_kernel(machine.memory)
        recorded = machine.coverage.read()
        recorded.save(tmp_path / "linux.cov")
        kernel, user = recorded.only(user=False), recorded.only(user=True)
        found = {one.name: one for one in functions(kernel, machine.symbols.files)}
    for name in ("start_kernel", "start_secondary", "kernel_init", "schedule", "do_syscall_64", "serial8250_tx_chars", "kmem_cache_alloc"):
        assert found[name].hit, name
    for name in ("panic", "oops_enter", "emergency_restart"):
        assert not found[name].hit, name
    assert 0.05 < sum(1 for one in found.values() if one.hit) / len(found) < 0.5
    assert found["start_kernel"].hit < found["start_kernel"].size
    assert len(user) > 5000 and all(page.linear < 1 << 47 for page in user.pages)
    assert len({page.space for page in user.pages}) > 5, "every process has its own address space"
    assert {page.space for page in kernel.pages} == {0}
    assert bool(recorded.jumps()) == branches
    assert Coverage.load(tmp_path / "linux.cov").addresses() == recorded.addresses()
