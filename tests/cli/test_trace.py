"""kvmpy trace in processes of its own: live and saved traces, tables, where each output goes."""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvmpy.kvm.probe import unavailable

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, "-m", "kvmpy.cli.main"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def kvmpy(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, **options
    )


SMALL = ("--backend", "soft", "--memory", "1M", "--boot", "flat16", "--machine", "micro")


def live(image: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return kvmpy("trace", image, *SMALL, *arguments, **options)


def say(text: str) -> bytes:
    return b"\xba\xf8\x03" + b"".join(bytes((0xB0, byte, 0xEE)) for byte in text.encode())


def leave(code: int) -> bytes:
    return bytes((0xB0, code, 0xE6, 0xF4))


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """Says "hi", reads its line status, leaves with 5."""
    path = tmp_path / "guest.bin"
    path.write_bytes(say("hi\n") + bytes.fromhex("bafd03 ec") + leave(5))
    return path


@pytest.fixture
def busy(tmp_path: Path) -> Path:
    """Writes to port 0x80 for ever."""
    path = tmp_path / "busy.bin"
    path.write_bytes(say("busy") + bytes.fromhex("e680 ebfc"))
    return path


@pytest.fixture
def saved(guest: Path, tmp_path: Path) -> Path:
    path = tmp_path / "saved.jsonl"
    assert live(guest, "-o", path).returncode == 5
    return path


def events(text: str) -> list[str]:
    """What happened, without times and the log."""
    return [line.split(maxsplit=2)[2] for line in text.splitlines() if not line.startswith("kvmpy:")]


def test_the_guest_speaks_on_stdout_and_the_trace_on_stderr(guest: Path) -> None:
    done = live(guest)
    assert done.returncode == 5 and done.stdout == "hi\n"
    found = done.stderr
    for text in ("outb 0x3f8 <- 0x68 'h'", "outb 0x3f8 <- 0xa", "inb 0x3fd -> 0x60", "outb 0xf4 <- 0x5", "verdict: guest exit, status 5"):
        assert text in found
    assert found.count("outb 0x3f8") == 3 and "\x1b" not in found
    assert "kvmpy: guest exit, status 5 after" in found


def test_expressions_choose(guest: Path) -> None:
    done = live(guest, "-q", "-e", "io:0x3f8[write]", "-e", "verdict")
    assert len(done.stderr.splitlines()) == 4 and done.returncode == 5
    done = live(guest, "-e", "nonsense")
    assert done.returncode == 64 and "nonsense" in done.stderr and "Traceback" not in done.stderr


def test_a_saved_trace_is_the_live_one(guest: Path, saved: Path, tmp_path: Path) -> None:
    shown = kvmpy("trace", saved)
    assert shown.returncode == 0 and shown.stderr == ""
    assert [line.split("  <")[0] for line in events(shown.stdout)] == [line.split("  <")[0] for line in events(live(guest, "-q").stderr)]
    only = kvmpy("trace", saved, "-e", "io[read]").stdout
    assert "inb 0x3fd" in only and "outb" not in only
    again = tmp_path / "again.jsonl"
    assert kvmpy("trace", saved, "-o", again).returncode == 0
    assert again.read_bytes() == saved.read_bytes()
    assert kvmpy("trace", saved, "--format", "jsonl").stdout == saved.read_text()
    head = json.loads(saved.read_text().splitlines()[0])
    assert head["backend"] == "soft" and head["image"] == str(guest)


def test_tables(guest: Path, saved: Path, tmp_path: Path) -> None:
    done = live(guest, "-c")
    assert done.returncode == 5 and done.stdout == "hi\n"
    assert "6 events in" in done.stderr and "out 0x3f8" in done.stderr and "outb" not in done.stderr
    both = live(guest, "-c", "-o", tmp_path / "t.txt")
    assert "6 events in" in both.stderr and "outb 0x3f8" in (tmp_path / "t.txt").read_text()
    of_file = kvmpy("trace", saved, "-c", "--top", "1")
    assert of_file.stdout.count("0x3f") == 1 and of_file.stderr == ""


def test_json(guest: Path, saved: Path) -> None:
    done = live(guest, "--json")
    data = json.loads(done.stdout)
    assert data["status"] == done.returncode == 5 and data["serial"] == "hi\n" and data["trace"]["events"] == 6
    assert data["trace"]["by_kind"][0]["kind"] == "io"
    alone = json.loads(kvmpy("trace", saved, "--json").stdout)["trace"]
    assert [(row["kind"], row["count"]) for row in alone["by_kind"]] == [("io", 5), ("verdict", 1)]


def test_ctrl_c_gives_the_tables(busy: Path) -> None:
    child = subprocess.Popen([*COMMAND, "trace", str(busy), *SMALL, "-c"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=ENVIRONMENT)  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.read(4) == b"busy"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=30)
    assert child.returncode == 130
    assert b"out 0x80" in error and b"events in" in error and b"Traceback" not in error


def test_a_time_limit_gives_the_tables(busy: Path) -> None:
    done = live(busy, "-c", "--timeout", "0.3")
    assert done.returncode == 124 and "out 0x80" in done.stderr


def test_an_output_that_cannot_be_written_ends_the_run(busy: Path, guest: Path, tmp_path: Path) -> None:
    done = live(busy, "-o", "/dev/full", "--timeout", "30")
    assert done.returncode == 69 and "/dev/full" in done.stderr and "Traceback" not in done.stderr, done.stderr
    done = live(guest, "-o", "/dev/full")
    assert done.returncode == 69 and "/dev/full" in done.stderr and "Traceback" not in done.stderr, done.stderr
    done = live(guest, "-o", tmp_path / "none" / "t")
    assert done.returncode == 69 and "No such file" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_standard_files(guest: Path, saved: Path, tmp_path: Path, closed: str) -> None:
    for status, words in (
        (5, ["trace", guest, *SMALL]), (0, ["trace", saved]), (0, ["trace", "-c", saved]), (0, ["report", saved]),
        (65, ["report", tmp_path]),
    ):
        command = shlex.join([*COMMAND, *map(str, words)])
        done = subprocess.run(["bash", "-c", f"{command} {closed}"], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
        assert done.returncode == status and "Traceback" not in done.stderr, (words, done)
        assert "2>&-" not in closed or "kvmpy:" not in done.stdout  # the log is not for standard output


def test_a_reader_that_leaves(saved: Path) -> None:
    line = json.dumps({"what": "irq", "vcpu": 0, "time": 0, "data": {"vector": 32}}) + "\n"
    with saved.open("a") as file:
        file.write(line * 5000)
    child = subprocess.Popen([*COMMAND, "trace", str(saved)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    error = child.stderr.read()
    child.stderr.close()
    assert child.wait(30) == 141 and error == b""


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [(["{saved}", "--top", "0"], 64, "--top 0"), (["{saved}", "-c", "--format", "jsonl"], 64, "--format"),
     (["{saved}", "-o", "{saved}"], 64, "itself"),
     (["{saved}", "-e", "io["], 64, "io["),
     (["{broken}"], 65, "line 3"), (["{saved}", "--symbols", "{broken}"], 65, "broken"),
     (["{saved}", "--format", "gif"], 64, "gif"), ([], 64, "IMAGE")],
)  # fmt: skip
def test_wrong_usage(arguments: list[str], status: int, text: str, saved: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"kvmpy_trace":1}\n{"what":"irq","vcpu":0,"time":0,"data":{"vector":32}}\nnothing\n')
    before = saved.read_bytes()
    done = kvmpy("trace", *(word.format(saved=saved, broken=broken) for word in arguments))
    assert done.returncode == status and text in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert saved.read_bytes() == before
    if text == "line 3":
        assert "irq 0x20" in done.stdout, "what is whole is shown"


def on_terminal(arguments: list[str], **variables: str) -> str:
    """What a command says on a terminal."""
    child, master = pty.fork()
    if not child:
        os.execve(sys.executable, [*COMMAND, *arguments], {**ENVIRONMENT, "TERM": "xterm", **variables})
    said, end = b"", time.monotonic() + 30
    while time.monotonic() < end:
        if select.select([master], [], [], 0.2)[0]:
            try:
                said += os.read(master, 65536)
            except OSError:
                break
    os.close(master)
    os.waitpid(child, 0)
    return said.decode()


def test_colour_on_a_terminal_alone(saved: Path) -> None:
    assert "\x1b[" in on_terminal(["trace", str(saved)], NO_COLOR="")
    assert "\x1b[" not in on_terminal(["trace", str(saved)], NO_COLOR="1")
    assert "\x1b[" not in on_terminal(["trace", str(saved)], NO_COLOR="", TERM="dumb")
    assert "not for a terminal" in on_terminal(["trace", str(saved), "--format", "perfetto"])


def test_names_of_a_saved_trace(tmp_path: Path) -> None:
    """Those of its lines, those of the image as long as it is the one that was traced, those that are asked for."""
    image, table, file = tmp_path / "image.map", tmp_path / "System.map", tmp_path / "t.jsonl"
    elf = ROOT / "kvmpy" / "blobs" / "hello64.elf"
    if not elf.exists():
        pytest.skip("the guests are not built")
    image.write_bytes(elf.read_bytes())
    table.write_text("0000000000100000 T asked_for\n")
    event = '{"what":"irq","vcpu":0,"time":0,"data":{"vector":32},"rip":1048608}\n'
    told = '{"what":"irq","vcpu":0,"time":0,"data":{"vector":32},"rip":65536,"symbol":"told\\u001b[2J"}\n'
    file.write_text(json.dumps({"kvmpy_trace": 1, "image": str(image)}) + "\n" + event + told)
    os.utime(image, (1000, 1000))
    known = kvmpy("trace", file).stdout
    assert known.splitlines()[0].split()[2] != "0x100020" and "told\\x1b[2J" in known
    os.utime(image)
    os.utime(file, (2000, 2000))
    assert kvmpy("trace", file).stdout.splitlines()[0].split()[2] == "0x100020", "the image is another by now"
    assert "asked_for+0x20" in kvmpy("trace", file, "--symbols", table).stdout


@pytest.mark.parametrize("choice", [(), ("-e", "all")], ids=["plain", "all"])
def test_binary_traces(choice: tuple[str, ...], guest: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.trace"
    done = live(guest, *choice, "-o", file)
    assert done.returncode == 5, done.stderr
    shown = kvmpy("trace", file, "-e", "io,verdict")
    assert shown.returncode == 0, shown.stderr
    wanted = [line.split("  <")[0] for line in events(live(guest, "-q", "-e", "io,verdict").stderr)]
    assert [line.split("  <")[0] for line in events(shown.stdout)] == wanted
    lines = tmp_path / "t.jsonl"
    assert kvmpy("trace", file, "-o", lines).returncode == 0
    assert kvmpy("trace", lines).stdout == kvmpy("trace", file).stdout
    file.write_bytes(file.read_bytes()[:-170])
    cut = kvmpy("trace", file, "-c")
    assert cut.returncode == 65 and "out 0x3f8" in cut.stdout and str(file) in cut.stderr and "Traceback" not in cut.stderr


def test_a_kind_that_a_machine_does_not_have(guest: Path) -> None:
    done = live(guest, "-e", "ioctl")
    assert done.returncode == 64 and "ioctl" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(bool(unavailable()), reason=f"no KVM: {unavailable()}")
def test_what_all_leaves_out_is_said(guest: Path) -> None:
    def said(*words: str) -> bool:
        return "kvm does not tell of cpuid, exception, hypercall, irq" in kvmpy("trace", *words, "--boot", "flat16", guest).stderr

    assert said("-e", "all", "--backend", "kvm")
    assert not said("-e", "all", "--backend", "soft") and not said("-e", "io", "--backend", "kvm")


def test_a_file_for_perfetto_is_not_read_again(guest: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.pftrace"
    assert live(guest, "-o", file).returncode == 5
    for command in ("trace", "report"):
        done = kvmpy(command, file)
        assert done.returncode == 65 and "ui.perfetto.dev" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_linux_kernel_names_itself(tmp_path: Path) -> None:
    """Its image is packed and KASLR moves it: the names come from its memory."""
    kernel = ROOT / ".cache" / "guests" / "vmlinuz"
    if not kernel.exists():
        pytest.skip("the real guests are not fetched (make linux)")
    table, file = tmp_path / "linux.sym", tmp_path / "t.trace"
    options = ("--append", "console=ttyS0", "--until", "Memory:", "--timeout", "50", "--backend", "soft", "--save-symbols", table)
    done = kvmpy("trace", kernel, *options, "-c", "-o", file)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "io_serial_out+0x" in done.stderr
    assert "io_serial_out+0x" in kvmpy("trace", file, "--symbols", table, "-e", "io:0x3f8").stdout
