"""The kvmpy command in processes of its own: exit statuses, errors in one line, JSON, the terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from importlib.metadata import version
from pathlib import Path

import pytest

SRC = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ENVIRONMENT = {**os.environ, "PYTHONPATH": SRC}
COMMAND = [sys.executable, "-m", "kvmpy"]


def _backend():
    import importlib

    from kvmpy.kvm.probe import unavailable

    if hasattr(importlib.import_module("kvmpy.soft"), "SoftBackend"):
        return "soft"
    return "" if unavailable() else "kvm"


BACKEND = _backend()
needs_backend = pytest.mark.skipif(not BACKEND, reason="no backend on this host")


def kvmpy(*arguments, cwd=None, **options):
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, env=ENVIRONMENT, cwd=cwd, **options
    )


def run(image, *arguments, **options):
    return kvmpy("run", image, "--boot", "flat16", "--backend", BACKEND, "--memory", "1M", *arguments, **options)


def say(text):
    return b"\xba\xf8\x03" + b"".join(bytes((0xB0, byte, 0xEE)) for byte in text.encode())


def leave(code):
    return bytes((0xB0, code, 0xE6, 0xF4))


SPIN, HALT = b"\xeb\xfe", b"\xfa\xf4"


@pytest.fixture
def guest(tmp_path):
    def make(code, name="guest.bin"):
        path = tmp_path / name
        path.write_bytes(code)
        return path

    return make


def one_line(result):
    """The error that a command ended with; nothing but that and the log may be on standard error."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("kvmpy: backend ", "usage:", " "))]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def test_help_is_quick_and_tells_the_exit_statuses():
    began = time.monotonic()
    result = kvmpy("run", "--help")
    assert result.returncode == 0 and time.monotonic() - began < 5
    for text in ("64", "65", "69", "70", "71", "124", "130", "--until", "Ctrl-A x"):
        assert text in result.stdout
    probe = "import sys; import kvmpy.cli.main as m; m.build_parser(); print('kvmpy.native' in sys.modules, 'ctypes' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=30, env=ENVIRONMENT)
    assert out.stdout == "False False\n", "help loads what it does not need"


def test_the_package_is_the_command_too():
    by_module = kvmpy("--version")
    script = subprocess.run([Path(sys.executable).with_name("kvmpy"), "--version"], capture_output=True, text=True, timeout=30)
    assert by_module.returncode == 0 and by_module.stdout == script.stdout == f"kvmpy {version('kvmpy')}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["run"], ["run", "--bogus"], ["run", "x", "--timeout", "soon"], ["run", "x", "--timeout", "-1"],
     ["run", "x", "--gdb-python"], ["run", "x", "--gdb-nowait"], ["run", "x", "--gdb-arch", "i386"],
     ["run", "x", "--cpus", "many"], ["run", "x", "--cpus", "0"], ["run", "x", "--backend", "bochs"], ["run", "x", "--until", ""],
     ["run", "x", "--serial", "tty"], ["run", "x", "--serial", "stdio", "--serial", "stdio"], ["run", "x", "--memory", "lots"],
     ["run", "x", "--memory", "3"], ["run", "x", "--device", "nonsense"], ["run", "x", "--device", "no_such_module:X"],
     ["run", "x", "--device", "json:loads"], ["run", "x", "--device", "json:nothing"], ["run", "x", "--device", "no.py:X"],
     ["run", "x", "--clock", "sun"], ["run", "x", "--boot", "wish"], ["run", "x", "--cpu", "z80"]],
)
def test_wrong_usage(arguments):
    if arguments[:1] == ["run"] and "--backend" not in arguments:
        arguments = [*arguments, "--backend", BACKEND or "soft"]
    result = kvmpy(*arguments)
    if not BACKEND and result.returncode == 69:
        pytest.skip("no backend on this host")
    assert result.returncode == 64, result.stderr
    assert one_line(result)


def test_unknown_options_are_told_by_their_command():
    for words in (["info"], ["run", "x"], ["image", "info", "x"]):
        result = kvmpy(*words, "--bogus")
        assert result.returncode == 64 and result.stderr.startswith(f"usage: kvmpy {words[0]}")
        assert result.stderr.endswith("unrecognized arguments: --bogus\n")


@needs_backend
def test_images_that_cannot_be_used(guest, tmp_path):
    good = guest(leave(0))
    for path, text in (
        (tmp_path / "missing", "No such file"), (tmp_path, "directory"), (guest(b"", "empty"), "empty"),
    ):
        result = run(path)
        assert result.returncode == 65, result.stderr
        assert text.lower() in one_line(result).lower() and str(path) in result.stderr
    result = kvmpy("run", good, "--backend", BACKEND)
    assert result.returncode == 65 and "flat16" in one_line(result)
    result = run(good, "--initrd", tmp_path / "gone")
    assert result.returncode == 65 and "gone" in one_line(result)


@needs_backend
@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_the_guest_s_own_status(guest, code):
    result = run(guest(say("hello\n") + leave(code)))
    assert (result.returncode, result.stdout) == (code, "hello\n")
    assert f"guest exit, status {code}" in result.stderr
    assert f"backend {BACKEND}: asked for by name" in result.stderr


@needs_backend
def test_quiet(guest):
    result = run(guest(leave(3)), "-q")
    assert (result.returncode, result.stdout, result.stderr) == (3, "", "")


@needs_backend
def test_timeout_until_and_halted(guest):
    assert run(guest(SPIN), "--timeout", "0.2").returncode == 124
    result = run(guest(say("ready to go") + SPIN), "--until", "ready to", "--timeout", "20")
    assert (result.returncode, result.stdout[:8]) == (0, "ready to")
    assert run(guest(HALT), "--timeout", "20").returncode == 71
    assert run(guest(say("no") + HALT), "--until", "yes", "--timeout", "20").returncode == 71


@needs_backend
def test_reboot_and_no_reboot(guest):
    reset = b"\xb0\x06\xba\xf9\x0c\xee\xf4"
    result = run(guest(say("x") + reset), "--no-reboot", "--timeout", "20")
    assert (result.returncode, result.stdout) == (0, "x") and "reset by port 0xcf9" in result.stderr
    result = run(guest(say("x") + reset), "--until", "xxx", "--timeout", "20")
    assert (result.returncode, result.stdout[:3]) == (0, "xxx")


# mov eax, cr0; or al, 1; with an empty IDT: lidt [addr]; mov cr0, eax; ud2
TRIPLE = b"\x0f\x01\x1e\x20\x7c\x0f\x20\xc0\x0c\x01\x0f\x22\xc0\x0f\x0b"


@needs_backend
def test_a_crash_shows_registers_and_the_instruction(guest):
    result = run(guest(TRIPLE.ljust(0x20, b"\x90") + bytes(6)), "--timeout", "20")
    assert result.returncode == 70
    lines = result.stderr.splitlines()
    report = lines[lines.index(next(line for line in lines if "crashed" in line)) :]
    assert report[0] == "kvmpy: crashed at rip 0x7c0d: triple fault"
    assert any(line.startswith("  rip 0000000000007c0d") for line in report)
    assert any(line.startswith("  => 0x7c0d: 0f0b") for line in report)
    assert any("IDT at 0x0, limit 0x0: room for 0 gates" in line for line in report)


@needs_backend
def test_json_is_one_object_with_the_serial_output(guest):
    result = run(guest(say("text\n") + leave(5)), "--json")
    assert result.returncode == 5
    data = json.loads(result.stdout)
    assert (data["verdict"], data["code"], data["status"], data["serial"]) == ("GuestExit", 5, 5, "text\n")
    assert data["statistics"]["exits"]["io"] == 6 and data["statistics"]["backend"] == BACKEND
    result = run(guest(TRIPLE.ljust(0x20, b"\x90") + bytes(6)), "--json", "--timeout", "20")
    data = json.loads(result.stdout)
    assert (data["verdict"], data["why"], data["rip"]) == ("Crashed", "triple fault", 0x7C0D)
    (vcpu,) = data["autopsy"]["vcpus"]
    assert vcpu["registers"]["rip"] == 0x7C0D and vcpu["instruction"]["bytes"].startswith("0f 0b")


@needs_backend
def test_serial_to_a_file(guest, tmp_path):
    out = tmp_path / "serial.log"
    result = run(guest(say("into a file\n") + leave(0)), "--serial", f"file:{out}")
    assert (result.returncode, result.stdout, out.read_text()) == (0, "", "into a file\n")
    assert run(guest(leave(0)), "--serial", f"file:{tmp_path}/no/such").returncode == 69


DICE = '''
from kvmpy import Device, Line

class Dice(Device):
    """Port 0x99 gives a number."""
    ports = 0x99, 1

    def __init__(self, value=4, line: Line = Line(5)):
        self.value, self.line = value, line

    def read(self, offset, size):
        return self.value

class Broken(Device):
    ports = 0x99, 1

    def read(self, offset, size):
        raise RuntimeError("my own bug")

class Rude(Device):
    name = "Rude"
    ports = 0x3fe, 4

class NoDevice:
    pass
'''


@needs_backend
def test_a_device_of_the_user_s_own(guest, tmp_path):
    (tmp_path / "dicedev.py").write_text(DICE)
    image = guest(b"\xe4\x99\xe6\xf4")
    for spec, status in (("dicedev:Dice", 4), ("dicedev:Dice,value=0x11,line=10", 17), ("dicedev.py:Dice", 4)):
        assert run(image, "--device", spec, cwd=tmp_path).returncode == status
    result = run(image, "--device", "dicedev:Rude", cwd=tmp_path)
    assert result.returncode == 64
    assert one_line(result) == "kvmpy: error: port 0x3fe-0x401 (Rude) overlaps 0x3f8-0x3ff (Serial COM1)"
    for spec in ("dicedev:NoDevice", "dicedev:Dice,valeu=1", "dicedev:Dice,4", "dicedev:Dice,line=x"):
        assert run(image, "--device", spec, cwd=tmp_path).returncode == 64
    result = run(image, "--device", "dicedev:Broken", cwd=tmp_path)
    assert result.returncode == 1 and "RuntimeError: my own bug" in result.stderr and "dicedev.py" in result.stderr


@needs_backend
def test_a_closed_standard_output_ends_quietly(guest):
    spin = say("line\n") + b"\xeb" + bytes((256 - (3 * 5 + 2),))
    shell = " ".join([*COMMAND, "run", str(guest(spin)), "--boot", "flat16", "--backend", BACKEND, "--timeout", "30", "-q"])
    began = time.monotonic()
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell} | head -n 2"], capture_output=True, text=True, timeout=60, env=ENVIRONMENT
    )
    assert result.stdout == "line\nline\n" and result.stderr == ""
    assert result.returncode == 141 and time.monotonic() - began < 20
    result = subprocess.run(
        ["bash", "-c", f"{' '.join(COMMAND)} info | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, timeout=60,
        env=ENVIRONMENT,
    )
    assert result.stderr == "" and result.stdout in ("0\n", "141\n")
    closed = subprocess.run(
        ["bash", "-c", f"{shell.replace(str(guest(spin)), str(guest(say('x') + leave(6), 'two.bin')))} >&-"], capture_output=True,
        text=True, timeout=60, env=ENVIRONMENT,
    )
    assert (closed.returncode, closed.stderr) == (6, "")


@needs_backend
@pytest.mark.parametrize("where", [["--serial", "file:/dev/full"], []], ids=["file", "stdout"])
def test_a_full_disk_ends_the_run_with_one_line(guest, where):
    image = guest(say("line\n") + SPIN)
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*COMMAND, "run", str(image), "--boot", "flat16", "--backend", BACKEND, "--timeout", "20", "-q", *where],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=ENVIRONMENT,
        )
    name = "/dev/full" if where else "standard output"
    assert (result.returncode, result.stderr) == (69, f"kvmpy: error: write {name}: No space left on device\n")


@needs_backend
def test_a_closed_standard_input_is_no_input(guest):
    """Descriptor 0 must not become the guest's memory or an event descriptor of the machine."""
    shell = " ".join([*COMMAND, "run", str(guest(say("x") + leave(6))), "--boot", "flat16", "--backend", BACKEND, "-q"])
    probe = "import os; [print(os.readlink(f'/proc/self/fd/{fd}')) for fd in range(3)]"
    result = subprocess.run(["bash", "-c", f"{shell} <&-"], capture_output=True, text=True, timeout=30, env=ENVIRONMENT)
    assert (result.returncode, result.stdout) == (6, "x")
    program = f"from kvmpy.cli import main; main._open_standard_files(); {probe}"
    result = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$0" <&-', program], capture_output=True, text=True, timeout=30, env=ENVIRONMENT
    )
    assert result.stdout.startswith("/dev/null\n"), result


@needs_backend
def test_ctrl_c(guest):
    process = subprocess.Popen(
        [*COMMAND, "run", str(guest(say("up\n") + SPIN)), "--boot", "flat16", "--backend", BACKEND], env=ENVIRONMENT,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err and "stopped: interrupt" in err


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments):
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], env=ENVIRONMENT, stdin=self.slave, stdout=self.slave, stderr=self.slave,
            start_new_session=True, preexec_fn=lambda: __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.output = b""

    def expect(self, text, seconds=20):
        end = time.monotonic() + seconds
        while text not in self.output:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, self.output
            self.output += os.read(self.master, 4096)

    def send(self, keys):
        os.write(self.master, keys)

    def end(self):
        code = self.process.wait(20)
        after = termios.tcgetattr(self.slave)
        os.close(self.master)
        os.close(self.slave)
        return code, after == self.before


# Echoes the serial port: in al, 3fdh; test al, 1; jz; in al, 3f8h; out; jmp
ECHO = say("ready\n") + b"\xba\xfd\x03\xec\xa8\x01\x74\xfb\xba\xf8\x03\xec\xee\xeb\xf1"


@needs_backend
@pytest.mark.parametrize("way", ["quit", "guest", "term", "crash", "timeout"])
def test_the_terminal_is_restored(guest, way):
    code = {"guest": say("ready\n") + leave(9), "crash": TRIPLE.ljust(0x20, b"\x90") + bytes(6)}.get(way, ECHO)
    more = ["--timeout", "1"] if way == "timeout" else []
    terminal = Terminal("run", guest(code), "--boot", "flat16", "--backend", BACKEND, "--memory", "1M", *more)
    if way in ("quit", "term", "timeout"):
        terminal.expect(b"ready")
        terminal.send(b"abc\x03")
        terminal.expect(b"abc\x03")
        assert termios.tcgetattr(terminal.slave)[3] & termios.ICANON == 0
    if way == "quit":
        terminal.send(b"\x01h")
        terminal.expect(b"Ctrl-A x")
        terminal.send(b"\x01x")
    elif way == "term":
        terminal.process.terminate()
    status, restored = terminal.end()
    assert restored
    assert status == {"quit": 0, "guest": 9, "term": -signal.SIGTERM, "crash": 70, "timeout": 124}[way]


def test_info():
    result = kvmpy("info")
    assert result.returncode == 0 and result.stdout.startswith("--backend auto takes ")
    assert "x86-64-v2" in result.stdout
    data = json.loads(kvmpy("info", "--json").stdout)
    assert data["auto"]["backend"] in ("kvm", "soft") and data["auto"]["why"]
    assert set(data["cpu_models"]) >= {"max", "x86-64-v1", "x86-64-v2", "x86-64-v3"}


def test_boot_help():
    result = kvmpy("run", "--boot", "help")
    assert result.returncode == 0 and "multiboot2" in result.stdout


def test_a_backend_that_the_host_has_not():
    probe = "import kvmpy.kvm.system as s; import sys, kvmpy.cli.main as m; s.KvmBackend.__init__.__defaults__ = ('/dev/null/kvm',); "
    probe += "sys.exit(m.main(['run', 'x', '--backend', 'kvm']))"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=30, env=ENVIRONMENT)
    assert result.returncode == 69 and "/dev/null/kvm" in one_line(result)


def test_translation_from_the_command_line(guest, tmp_path):
    image = guest(bytes.fromhex("b9 e8030000 ffc9 75fc b000 e6f4"))  # mov ecx, 1000; dec ecx; jnz
    arguments = ["run", image, "--boot", "flat32@0x100000", "--backend", "soft", "--memory", "4M"]
    on = kvmpy(*arguments, "--translate", "1", "--stats", "--dump-translation", "0x100005,0x200000,nobody")
    if "forbids executable memory" in on.stderr:
        pytest.skip("this host lets no program make code")
    assert on.returncode == 0, on.stderr
    assert "instructions_translated" in on.stderr and " %)" in on.stderr
    assert "block 0x100005: 32-bit, supervisor, 2 instructions, 4 bytes;" in on.stderr and "  100005  dec " in on.stderr
    assert "no code has run at 0x200000" in on.stderr and "nobody: neither an address nor a symbol" in on.stderr
    off = kvmpy(*arguments, "--translate", "off", "--stats", "--dump-translation", "0x100005")
    assert off.returncode == 0 and "instructions_translated" not in off.stderr and "; interpreted" in off.stderr
    for wrong in (["--translate", "fast"], ["--translate", "-1"]):
        result = kvmpy(*arguments, *wrong)
        assert result.returncode == 64 and one_line(result)
    if BACKEND == "kvm":
        assert kvmpy("run", image, "--backend", "kvm", "--boot", "flat32", "--translate", "on").returncode == 64
