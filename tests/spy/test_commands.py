"""Commands started under kvmpy spy: their calls, their exits, their end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.spy.programs import ENVIRONMENT, LIMIT, ROOT, SPY, VMM, calls, events, spy

pytestmark = pytest.mark.usefixtures("ptrace")


def test_calls_are_decoded(kvm: None, tmp_path: Path) -> None:
    out = tmp_path / "vm.jsonl"
    result = spy("-o", out, "--", *VMM, 1, 1, 2)
    assert (result.returncode, result.stdout, result.stderr) == (7, "ready\nround 1\nround 2\n", "")
    found = events(out)
    (vm,) = calls(found, "KVM_CREATE_VM")
    (vcpu,) = calls(found, "KVM_CREATE_VCPU")
    assert vcpu["fd"] == vm["result"] and vcpu["arguments"] == {"id": 0}
    (region,) = calls(found, "KVM_SET_USER_MEMORY_REGION")
    assert region["arguments"]["memory_size"] == 1 << 16 and region["arguments"]["guest_phys_addr"] == 0 and region["result"] == 0
    assert calls(found, "KVM_SET_MSRS")[0]["arguments"]["entries"] == {"LSTAR": 0x1122334455667788}
    assert calls(found, "KVM_SET_SREGS")[0]["arguments"]["ds"]["selector"] == 0xB000
    assert calls(found, "KVM_SET_REGS")[0]["arguments"]["rbx"] == 0xABC0
    cpuid = calls(found, "KVM_SET_CPUID2")[0]["arguments"]
    assert cpuid["nent"] == len(cpuid["entries"]) > 5 and {"function", "index", "eax"} <= set(cpuid["entries"][0])
    assert not calls(found, "KVM_RUN")
    assert found[-1]["data"]["verdict"].endswith("exit status 7")


def test_exits_have_their_payload_and_times(kvm: None, tmp_path: Path) -> None:
    out = tmp_path / "vm.jsonl"
    assert spy("--exits", "-o", out, "--", *VMM, 1, 1, 3).returncode == 7
    found = [event for event in events(out) if event["what"] != "verdict" and event["data"].get("reason") != "intr"]
    kinds = [event["what"] for event in found]
    assert kinds == ["io", "io", "mmio", "exit"] * 3
    read, write, mmio, halt = (event["data"] for event in found[4:8])
    assert read == {"port": 0x10, "size": 1, "count": 1, "write": False, "value": 0x5A}
    assert write == {"port": 0x20, "size": 1, "count": 1, "write": True, "value": 0x5A}
    assert mmio == {"address": 0xB1234, "size": 1, "write": True, "value": 0x5A}
    assert halt["reason"] == "hlt"
    assert all(event["guest"] > 0 and event["vcpu"] == 0 for event in found)
    # HLT is answered by 20 ms of sleep; the last one by the VM's end.
    assert all(20_000_000 <= event["cost"] < 2_000_000_000 for event in found if event["what"] == "exit" and event is not found[-1])
    times = [event["time"] for event in found]
    assert times == sorted(times)


def test_registers_symbols_and_the_instruction(kvm: None, tmp_path: Path) -> None:
    out, names = tmp_path / "vm.jsonl", tmp_path / "System.map"
    names.write_text("0000000000008000 T start\n")
    assert spy("--regs", "--symbols", names, "-o", out, "-e", "io:0x10", "--", *VMM, 1, 1, 1).returncode == 7
    event = events(out)[0]
    registers = event["data"]["registers"]
    assert event["rip"] in (0x8000, 0x8002) and event["symbol"].startswith("start")
    assert registers["rbx"] == 0xABC0 and registers["rip"] == event["rip"] and registers["cr0"] & 1 == 0
    assert re.match(r"(in|out) ", event["data"]["code"])
    text = spy("--regs", "-e", "io:0x10", "--", *VMM, 1, 1, 1).stderr
    assert "rbx 000000000000abc0" in text and re.search(r"=> 800[02]: (in|out) ", text)


def test_threads_and_vms_are_told_apart(kvm: None, tmp_path: Path) -> None:
    out = tmp_path / "vm.jsonl"
    assert spy("--exits", "-o", out, "--", *VMM, 2, 3, 2).returncode == 7
    found = [event for event in events(out) if event["what"] == "mmio"]
    seen = [(event["data"]["vm"], event["vcpu"]) for event in found]
    assert sorted(seen) == sorted([(vm, vcpu) for vm in range(2) for vcpu in range(3)] * 2)


def test_an_exit_that_nobody_answers_is_told_soon(kvm: None, tmp_path: Path) -> None:
    out = tmp_path / "vm.jsonl"
    assert spy("--exits", "-o", out, "--", *VMM, 1, 2, 30, "stuck").returncode == 7
    found = [event for event in events(out) if event["data"].get("reason") == "hlt"]
    (stuck,) = [number for number, event in enumerate(found) if event["vcpu"] == 1]
    assert "cost" not in found[stuck] and stuck < len(found) - 2


def test_kvmpy_itself(kvm: None, tmp_path: Path) -> None:
    image, out = tmp_path / "guest.bin", tmp_path / "trace.jsonl"
    image.write_bytes(b"\xba\xf8\x03" + b"".join(bytes((0xB0, char, 0xEE)) for char in b"Hi\n") + b"\xb0\x05\xe6\xf4")
    run = [sys.executable, "-m", "kvmpy.cli.main", "run", str(image), "--boot", "flat16", "--backend", "kvm", "-q"]
    result = spy("-e", "io[write],ioctl", "--all-ioctls", "-o", out, "--", *run)
    assert (result.returncode, result.stdout) == (5, "Hi\n")
    found = events(out)
    assert [(event["data"]["port"], event["data"]["value"]) for event in found if event["what"] == "io"] == [
        (0x3F8, ord("H")), (0x3F8, ord("i")), (0x3F8, ord("\n")), (0xF4, 5),
    ]  # fmt: skip
    assert len(calls(found, "KVM_RUN")) >= 4 and calls(found, "KVM_CREATE_IRQCHIP")


def test_tables(kvm: None) -> None:
    result = spy("-c", "--", *VMM, 1, 1, 3)
    assert result.returncode == 7
    assert re.search(r" 3 .* io +in 0x10$", result.stderr, re.M) and re.search(r" 3 .* mmio +write 0xb1234", result.stderr, re.M)
    assert "in the guest" in result.stderr and "in devices" not in result.stderr


def test_children_are_followed_when_asked(kvm: None, tmp_path: Path) -> None:
    line = " ".join(VMM) + " 1 1 1; exit 3"
    result = spy("--", "sh", "-c", line)
    assert result.returncode == 3 and "round 1" in result.stdout
    assert result.stderr.splitlines()[-1].endswith("the command made no KVM call; if a child of it runs the VM: -f follows child processes")
    out = tmp_path / "vm.jsonl"
    assert spy("-f", "-o", out, "--", "sh", "-c", line).returncode == 3
    found = [event for event in events(out) if event["what"] == "mmio"]
    assert len(found) == 1 and found[0]["data"]["pid"] > 1


def test_the_status_is_the_command_s() -> None:
    assert spy("--", "sh", "-c", "exit 9").returncode == 9
    result = spy("--", "sh", "-c", "kill -9 $$")
    assert result.returncode == 137 and "killed by SIGKILL (9)" in result.stderr


@pytest.mark.parametrize("arguments, status, text", [
    (["--", "/no/such/program"], 69, "exec /no/such/program: No such file or directory"),
    ([], 64, "either -p PID or a command is wanted"),
    (["-p", "1", "--", "true"], 64, "either -p PID or a command is wanted"),
    (["-p", "4194399"], 64, "there is no process 4194399"),
    (["-p", "x"], 64, "-p x: the number of a process is wanted"),
    (["-e", "nothing", "--", "true"], 64, "nothing"),
    (["--format", "perfetto", "-c", "--", "true"], 64, "--format without -o"),
    (["--symbols", "/no/such", "--", "true"], 65, "/no/such: No such file or directory"),
    (["-o", "/no/such/file", "--", "true"], 69, "No such file or directory"),
])  # fmt: skip
def test_errors_are_one_line(arguments: list[str], status: int, text: str) -> None:
    result = spy(*arguments)
    assert result.returncode == status, result.stderr
    assert text in result.stderr and "Traceback" not in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_32_bit_program(tmp_path: Path) -> None:
    source, program = tmp_path / "exit.S", tmp_path / "exit"
    source.write_text(".globl _start\n_start: mov $1, %eax; mov $5, %ebx; int $0x80\n")
    built = subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-no-pie", "-o", program, source], capture_output=True, text=True)
    if built.returncode:
        pytest.skip("gcc cannot build 32-bit programs here")
    result = spy("--", program)
    assert result.returncode == 69 and "is a 32-bit program" in result.stderr and len(result.stderr.splitlines()) == 1


def test_the_package_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.modules['ptrace'] = None; from kvmpy.cli.main import main; sys.exit(main(['spy', '--', 'true']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, env=ENVIRONMENT)
    assert result.returncode == 69
    assert result.stderr == "kvmpy: error: kvmpy spy needs the package python-ptrace: pip install 'kvmpy[spy]'\n"


def test_a_signal_for_us_is_the_command_s(started: Any) -> None:
    process = started([*SPY, "--", sys.executable, "-c", "import time; print('up', flush=True); time.sleep(30)"])
    assert process.stdout.readline() == "up\n"
    process.terminate()
    assert process.wait(LIMIT) == 128 + signal.SIGTERM
    assert "killed by SIGTERM (15)" in process.stderr.read()


def test_the_command_ends_with_us(started: Any) -> None:
    process = started([*SPY, "--", sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(30)"])
    pid = int(process.stdout.readline())
    process.kill()
    process.wait(LIMIT)
    end = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < end:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        time.sleep(0.02)
    else:
        assert not os.path.exists(f"/proc/{pid}")


def test_a_reader_that_goes_away_ends_both(kvm: None) -> None:
    shell = f"{' '.join([*SPY, '--', *VMM])} 1 1 1000 2>&1 >/dev/null | head -n 1; echo ${{PIPESTATUS[0]}}"
    began = time.monotonic()
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=LIMIT, env=ENVIRONMENT)
    assert result.stdout.splitlines()[-1] == "141" and time.monotonic() - began < 15


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="qemu-system-x86_64 is not installed")
def test_qemu(kvm: None, started: Any, tmp_path: Path) -> None:
    out = tmp_path / "qemu.jsonl"
    options = "-accel kvm -M pc -m 32 -smp 2 -display none -serial none -monitor none -nodefaults"
    machine = ["qemu-system-x86_64", *options.split()]
    process = started([*SPY, "-o", str(out), "--", *machine], cwd=ROOT)
    end = time.monotonic() + LIMIT
    # The trace is written in large pieces; the first one holds all of the set-up and SeaBIOS's first words.
    while not (out.exists() and out.stat().st_size) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.terminate()
    _, error = process.communicate(timeout=LIMIT)
    found = events(out)
    if not calls(found, "KVM_CREATE_VCPU"):
        pytest.skip(f"QEMU does not run with KVM here: {error.strip()}")
    # What SeaBIOS says goes to port 0x402.
    text = "".join(chr(event["data"]["value"]) for event in found if event["what"] == "io" and event["data"]["port"] == 0x402)
    assert "SeaBIOS" in text, error
    assert len(calls(found, "KVM_CREATE_VCPU")) == 2
    routing = calls(found, "KVM_SET_GSI_ROUTING")[0]["arguments"]
    assert routing["nr"] == len(routing["entries"]) and set(routing["entries"][0]["u"]) == {"irqchip", "pin"}
    assert {call["arguments"]["flags"] for call in calls(found, "KVM_SET_USER_MEMORY_REGION")} >= {"0", "READONLY"}
    assert {event["vcpu"] for event in found} >= {0, 1}
