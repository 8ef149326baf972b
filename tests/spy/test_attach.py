"""kvmpy spy -p: processes that ran before, and go on after."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.spy.programs import LIMIT, SPY, VMM, calls, events, spy

pytestmark = pytest.mark.usefixtures("ptrace")


def _tracer(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("TracerPid:")[2].split()[0])


def _wait_for(condition: Any, what: str) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.mark.parametrize("options", [[], ["--rip"]], ids=["plain", "rip"])
def test_attach_detach_and_the_process_goes_on(kvm: None, started: Any, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "vm.jsonl"
    rounds = 120
    vmm = started([*VMM, "1", "2", str(rounds)])
    assert vmm.stdout.readline() == "ready\n"
    watcher = started([*SPY, "-o", str(out), *options, "-p", str(vmm.pid)])
    _wait_for(lambda: _tracer(vmm.pid) == watcher.pid, "attached")
    time.sleep(0.7)
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(LIMIT) == 0, watcher.stderr.read()
    assert vmm.poll() is None and _tracer(vmm.pid) == 0
    rest = vmm.communicate(timeout=LIMIT)[0].splitlines()
    assert vmm.returncode == 7 and rest[-1] == f"round {rounds}"
    found = events(out)
    assert {event["vcpu"] for event in found if event["what"] == "mmio"} == {0, 1}
    answers = [event["data"]["value"] for event in found if event["what"] == "io" and not event["data"]["write"]]
    # The last one of a vCPU has no answer when we leave before it.
    assert answers and set(answers[:-2]) == {0x5A}
    assert any("rip" in event for event in found) == bool(options)
    assert 2 < sum(event["what"] == "mmio" for event in found) < 2 * rounds


def test_the_process_ends_while_we_watch(kvm: None, started: Any) -> None:
    vmm = started([*VMM, "1", "1", "40"])
    assert vmm.stdout.readline() == "ready\n"
    result = spy("-p", vmm.pid)
    assert result.returncode == 0 and "mmio write1 0xb1234 <- 0x5a" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("exit status 7")


def test_a_reader_that_goes_away_leaves_the_process_alone(kvm: None, started: Any) -> None:
    vmm = started([*VMM, "1", "2", "60"])
    assert vmm.stdout.readline() == "ready\n"
    shell = f"{' '.join(SPY)} -p {vmm.pid} 2>&1 >/dev/null | head -n 1; echo ${{PIPESTATUS[0]}}"
    watcher = started(["bash", "-c", shell])
    lines = watcher.communicate(timeout=LIMIT)[0].splitlines()
    assert lines[-1] == "141" and _tracer(vmm.pid) == 0
    assert vmm.communicate(timeout=LIMIT)[0].splitlines()[-1] == "round 60" and vmm.returncode == 7


def test_a_stopped_process_stays_stopped_until_it_is_continued(kvm: None, started: Any) -> None:
    vmm = started([*VMM, "1", "1", "60"])
    assert vmm.stdout.readline() == "ready\n"
    watcher = started([*SPY, "-p", str(vmm.pid)], stderr=-3)
    _wait_for(lambda: _tracer(vmm.pid) == watcher.pid, "attached")
    vmm.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    stopped = Path(f"/proc/{vmm.pid}/stat").read_text().rpartition(")")[2].split()[0]
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(LIMIT) == 0
    _wait_for(lambda: Path(f"/proc/{vmm.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "stopped")
    assert stopped in "tT" and vmm.poll() is None
    vmm.send_signal(signal.SIGCONT)
    assert vmm.communicate(timeout=LIMIT)[0].splitlines()[-1] == "round 60" and vmm.returncode == 7


def test_what_cannot_be_attached_to(started: Any, kvm: None) -> None:
    idle = started([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(30)"])
    assert idle.stdout.readline() == "up\n"
    result = spy("-p", idle.pid)
    assert result.returncode == 69 and "has no VM of KVM: nothing to trace" in result.stderr
    assert idle.poll() is None and _tracer(idle.pid) == 0
    vmm = started([*VMM, "1", "1", "500"])
    assert vmm.stdout.readline() == "ready\n"
    watcher = started([*SPY, "-p", str(vmm.pid)], stderr=-3)
    _wait_for(lambda: _tracer(vmm.pid) == watcher.pid, "attached")
    result = spy("-p", vmm.pid)
    assert result.returncode == 69 and f"process {watcher.pid} traces it already" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_several_vms_that_ran_before(kvm: None, started: Any, tmp_path: Path) -> None:
    """Their records cannot be told apart by name; no exit may be told with another's payload."""
    out = tmp_path / "vm.jsonl"
    vmm = started([*VMM, "2", "1", "60"])
    assert vmm.stdout.readline() == "ready\n"
    result = spy("-o", out, "-p", vmm.pid)
    assert result.returncode == 0
    assert "cannot be told from that of another VM" in result.stderr
    found = events(out)
    assert all(event["what"] in ("ioctl", "verdict") for event in found) and not calls(found, "KVM_CREATE_VM")
    assert os.path.getsize(out) > 0
